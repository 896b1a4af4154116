"""`glm4-edge serve`: a model for programs that speak OpenAI's API."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.commands import loading
from edge.commands.loading import DEVICE_OPTIONS
from edge.errors import UsageError
from edge.report import say

if TYPE_CHECKING:
    from edge.lora.asked import Loras


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(DEVICE_OPTIONS):
        command = option(command)
    return command


@click.command()
@click.argument("model", default="pocket")
@click.option("--host", default="127.0.0.1", show_default=True, help="Others than this machine need a key to ask.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes any that is free."
)
@click.option(
    "--api-key-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Keys, one on each line; each request must bring one.",
)
@click.option("--name", metavar="NAME", help="What the model is called; left out, as it was exported.")
@click.option(
    "--queue",
    type=click.IntRange(0, 10_000),
    default=16,
    show_default=True,
    metavar="N",
    help="Requests that may wait for their turn; one more is told to come again (429).",
)
@click.option(
    "--timeout",
    "timeout_seconds",
    type=click.FloatRange(1, 86_400),
    default=600,
    show_default=True,
    metavar="SECONDS",
    help="Longest time for one request, the waiting included.",
)
@click.option(
    "--drain",
    "drain_seconds",
    type=click.FloatRange(0, 3_600),
    default=30,
    show_default=True,
    metavar="SECONDS",
    help="What running answers have left when the server is told to end.",
)
@click.option(
    "--cors-origin",
    "cors_origins",
    multiple=True,
    metavar="ORIGIN",
    help="A web page's origin that may ask, such as http://localhost:3000; may be given several times.",
)
@click.option("--log-prompts", is_flag=True, help="Log what is asked; left out, no prompt is written anywhere.")
@_options
@click.option("--yes", is_flag=True, help="Export a model that is not exported yet without asking.")
def serve(model: str, port: int, api_key_file: Path | None, **options: Any) -> None:
    """Serve MODEL to programs that speak OpenAI's API.

    MODEL is a folder that `glm4-edge export` made, or a name it was exported by ('pocket' if left out).
    Needs the extra 'serve': pip install "glm4-edge[serve]".

    The address to give to a client is printed with /v1 at its end. The page / says what is taken; /health
    says "ready" when the model is loaded; /metrics is for Prometheus. Ctrl-C ends it: what is being
    answered may finish, a second Ctrl-C ends that, too.

    With --lora a request has the adapter whose name (its folder's) it gives as the model, and none with the
    model's own name. Each prompt is then read whole: what others have read was read with another adapter.

    \b
    Examples:
      glm4-edge serve pocket
      glm4-edge serve ./glm4-int4 --device GPU --context 16384 --port 8080
      glm4-edge serve ./glm4-int4 --host 0.0.0.0 --api-key-file keys.txt
      glm4-edge serve ./glm4-int4 --name gpt-4o-mini --cors-origin http://localhost:3000
      glm4-edge serve ./glm4-int4 --lora ./support --lora ./poetry:0.8
    """
    from edge.manifest import Manifest
    from edge.server import options as served
    from edge.server import run

    run.require()
    keys = () if api_key_file is None else served.read_keys(api_key_file)
    taken = {field.name: options.pop(field.name) for field in fields(served.Options) if field.name in options}
    how = served.Options(keys=keys, **taken)
    served.check_host(how.host, keys)
    _check_origins(how.cors_origins)
    if api_key_file is not None and served.readable_by_others(api_key_file):
        say(f"Others on this machine can read the keys in {api_key_file}; chmod 600 would change that.")
    bound = run.bind(how.host, port)
    try:
        wanted = loading.look(model, read=lambda: None, per_request=True, **options)
        if wanted.loras is not None:
            _check_names(how.name or Manifest.read(wanted.folder).source.model, wanted.loras)
        run.serve(bound, how, lambda: loading.load(wanted, overflow="refuse"), say)
    finally:
        bound.close()
    run.leave()


def _check_names(model: str, loras: Loras) -> None:
    for asked in loras.asked:
        if asked.name == model:
            raise UsageError(
                f"the adapter {asked.folder} has the model's own name, {model!r}",
                hint="Give the model another with --name, or rename the adapter's folder.",
            )
    names = " and ".join(repr(asked.name) for asked in loras.asked)
    say(f"Asked for by its name, {model!r} answers without an adapter; {names} with one. Every prompt is read whole.")


def _check_origins(origins: tuple[str, ...]) -> None:
    for origin in origins:
        scheme, found, rest = origin.partition("://")
        if origin != "*" and not (found and scheme and rest and "/" not in rest):
            raise UsageError(
                f"--cors-origin {origin} is no origin",
                hint="Write scheme, host and port alone, such as http://localhost:3000.",
            )
