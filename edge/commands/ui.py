"""`glm4-edge ui`: the page in the browser."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
import time
import webbrowser
from typing import Any
from urllib.parse import urlsplit

import click

from edge.commands.chat import _sampling_options, _taken
from edge.report import say


@click.command()
@click.argument("model", required=False)
@click.option("--port", type=click.IntRange(1, 65535), help="Left out, the first free one from 7860.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to serve; for others' machines, with a password."
)
@click.option("--open", "open_browser", is_flag=True, help="Open the page in the browser.")
@_sampling_options
def ui(
    model: str | None, port: int | None, host: str, open_browser: bool, system: str | None, stop: tuple[str, ...],
    **options: Any,
) -> None:  # fmt: skip
    """Talk to MODEL in the browser, on this machine alone.

    MODEL is what `glm4-edge chat` takes. Left out, or not exported yet, the page lets one be chosen, says what
    its export takes and makes it; with --yes it is exported at once. Conversations are kept on this machine.
    With --host other machines may be let in; the password they need is made anew each time, and printed.

    Needs the extra 'ui': pip install "glm4-edge[ui]". Prints the page's address; Ctrl-C ends it.

    \b
    Examples:
      glm4-edge ui
      glm4-edge ui pocket --open
      glm4-edge ui ./glm4-int4 --port 8000 --temperature 0.6
    """
    from edge.messages import Sampling
    from edge.runtime import sampling as samplings
    from edge.ui.web import serving

    serving.require()
    serving.check_port(port, host)
    asked = Sampling(stop=stop, **_taken(options, Sampling))
    samplings.check(asked)

    from edge.commands.ui_backend import Loader, check
    from edge.ui.web.desk import Desk
    from edge.ui.web.store import default_folder
    from edge.ui.web.talk import Settings

    check(model, **options)
    settings = Settings(
        system=system, temperature=asked.temperature, top_p=asked.top_p, top_k=asked.top_k, seed=asked.seed,
        repetition_penalty=asked.repetition_penalty, max_new_tokens=asked.max_new_tokens, stop=list(stop),
    )  # fmt: skip
    loader = Loader(options)
    desk = Desk(loader, default_folder(), settings)
    if model is not None:
        desk.host.choose(model, at_once=options["yes"])  # gradio takes its seconds meanwhile
    try:
        from edge.ui.web import page

        password = None if serving.is_loopback(host) else secrets.token_urlsafe(9)
        address = serving.serve(page.build(desk), port=port, host=host, password=password)
        click.echo(address)
        if password:
            if host in ("0.0.0.0", "::"):
                say(f"From another machine: http://{socket.gethostname()}:{urlsplit(address).port}/")
            say(f"OTHER MACHINES CAN REACH THIS PAGE. Whoever knows the name edge and the password {password}")
            say("can read and delete all conversations, and read this machine's models. What is said goes over the")
            say("network as it is: where others listen, let it through an encrypted tunnel instead.")
        say("Ctrl-C ends it.")
        if open_browser:
            webbrowser.open(address)
        while True:  # in pieces: Windows does not interrupt one long wait
            time.sleep(1)
    except (KeyboardInterrupt, SystemExit) as told:
        desk.close()
        if desk.host.working():  # Python would take down under its thread what that uses, and be aborted for it
            _leave(told)
        raise
    finally:
        desk.close()


def _leave(told: KeyboardInterrupt | SystemExit) -> None:
    """End the process at once, and that of the model: in the middle of a load it would see this one gone only later."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            child.kill()
    interrupted = isinstance(told, KeyboardInterrupt)
    if interrupted:
        say("Interrupted.")
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed, or nobody reads it any more
            stream.flush()
    os._exit(130 if interrupted else 143)
