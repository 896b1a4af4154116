"""Which model on which device, from what a command was told: looked at first, loaded later."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge.commands import itrex
from edge.commands.export import default_folder, export_model, is_exported
from edge.commands.named import is_name, target_for
from edge.errors import ModelError, UsageError
from edge.report import progress_lines, say, summary

if TYPE_CHECKING:
    from edge.lora.asked import Loras
    from edge.runtime.context import Policy
    from edge.runtime.guarded import Guarded
    from edge.runtime.settings import Runtime, Settings, Sparse

Remark = Callable[[str], None]
_NAMES = (
    "Name a folder that `glm4-edge export` made, a checkpoint's folder, a repository such as "
    "zai-org/glm-4-9b-chat-hf, or 'pocket'."
)


DEVICE_OPTIONS = (
    click.option(
        "--device",
        default="AUTO",
        show_default=True,
        help="CPU, GPU, GPU.n, NPU, HETERO:GPU,CPU, or AUTO: the best that is here and computes right.",
    ),
    click.option("--no-fallback", is_flag=True, help="Fail rather than go on with another device."),
    click.option(
        "--rehearse", is_flag=True, help="With --device NPU: run its fixed shapes on the CPU, for want of an NPU."
    ),
    click.option(
        "--context",
        type=click.IntRange(32, 2**31 - 1),  # less holds no question, its template and an answer
        metavar="TOKENS",
        help="Longest conversation; left out, what memory has room for (see glm4-edge plan).",
    ),
    click.option(
        "--kv-precision",
        type=click.Choice(["f32", "f16", "u8", "u4"]),
        help="Number format of the attention keys and values kept for each token; left out, the device's own.",
    ),
    click.option(
        "--sparse",
        type=click.Choice(["trishape", "xattention"]),
        help="Read long prompts with parts of the attention left out: faster, and worse. With xattention a prompt is "
        "read in one go: Ctrl-C takes effect only after that.",
    ),
    click.option(
        "--evict-beyond",
        type=click.IntRange(128, 2**31 - 1),
        metavar="TOKENS",
        help="Forget the least used tokens above so many: less memory, and worse.",
    ),
    click.option(
        "--prompt-lookup",
        is_flag=True,
        help="Guess from the conversation how the answer goes on, and check it: faster where an answer repeats "
        "what was read, as in editing a text.",
    ),
    click.option(
        "--lora",
        multiple=True,
        metavar="PATH[:SCALE]",
        help="A LoRA adapter's folder, as PEFT writes it; SCALE 1 is as it was trained. May be given several times.",
    ),
)
"""Those that say how a model is loaded; the same for every command that loads one."""


@dataclass(frozen=True)
class Wanted:
    """A model that is exported, and how it is to be loaded."""

    folder: Path
    settings: Settings
    fallback: bool
    prompt: str | None
    """What was piped in."""
    loras: Loras | None = None


def look(
    model: str, *, read: Callable[[], str | None], device: str, no_fallback: bool, rehearse: bool, context: int | None,
    kv_precision: str | None, sparse: Sparse | None, evict_beyond: int | None, prompt_lookup: bool, yes: bool,
    lora: Sequence[str] = (), per_request: bool = False, runtime: Runtime = "openvino",
) -> Wanted:  # fmt: skip
    """Refuse what cannot be, read the piped prompt if there is one, and export a model that is not exported yet.

    Args:
        per_request: each answer may have one of the adapters, or none; else all have all.

    Raises:
        EdgeError: an option, the model or the device.
    """
    from edge.npu import REHEARSED
    from edge.runtime import devices
    from edge.runtime import plan as plans
    from edge.runtime.choices import Choices
    from edge.runtime.pipelines import check_lookup
    from edge.runtime.settings import Settings

    if runtime == "itrex":
        if lora:
            raise UsageError("ITREX takes no adapters", hint="Leave --lora or --runtime itrex out.")
        of_itrex = itrex.settings_for(
            device, context, kv_precision=kv_precision, sparse=sparse, evict_beyond=evict_beyond,
            prompt_lookup=prompt_lookup, rehearse=rehearse,
        )  # fmt: skip
        check_model(model)
        prompt = read()
        folder = _exported(model, "CPU", yes=yes, interactive=sys.stdin.isatty())
        return Wanted(folder, of_itrex, False, prompt)
    named = devices.parse(device)
    if rehearse and named != "NPU":
        raise UsageError(f"{named} is not rehearsed, the NPU is", hint="Write --device NPU --rehearse.")
    if evict_beyond and context is not None and evict_beyond >= context:
        raise UsageError(
            f"--evict-beyond {evict_beyond} has no effect in a context of {context} tokens",
            hint="Name fewer tokens to keep than the context has, or leave it out.",
        )
    check_model(model)
    if rehearse:
        say(f"This is a rehearsal {REHEARSED}: it shows the fixed shapes, and is slow.")
    properties = {} if kv_precision is None else {"KV_CACHE_PRECISION": kv_precision}
    wanted = Settings(
        named, properties, context=context, rehearse=rehearse, sparse=sparse, evict_beyond=evict_beyond,
        prompt_lookup=prompt_lookup,
    )  # fmt: skip
    if prompt_lookup:
        check_lookup(wanted)
    loras = asked_for(lora, named, per_request=per_request, prompt_lookup=prompt_lookup)
    if named == "NPU" and (sparse or evict_beyond):
        raise UsageError("the NPU has neither --sparse nor --evict-beyond", hint="Leave them out, or take the CPU.")
    if kv_precision is not None and named != devices.AUTO:
        plans.check_kv(named, kv_precision)
    if named != devices.AUTO and no_fallback and not rehearse:
        devices.resolve(device)  # before a question is read or a model exported
    prompt = read()
    folder = _exported(model, exported_for(named, rehearse), yes=yes, interactive=sys.stdin.isatty())
    if loras is not None:
        check_adapters(folder, loras)
    if kv_precision is not None and named == devices.AUTO:
        # The devices it may fall back to keep a cache in all that this one does.
        first = Choices().resolved(devices.AUTO, folder)
        if no_fallback:
            plans.check_kv(first, kv_precision)
        elif kv_precision not in plans.kv_choices(first):
            say(f"The {first} keeps no cache in {kv_precision}: --kv-precision is left out.")
            wanted = replace(wanted, properties={})
    return Wanted(folder, wanted, not no_fallback, prompt, loras)


def asked_for(
    lora: Sequence[str], named: str, *, per_request: bool = False, prompt_lookup: bool = False
) -> Loras | None:
    """The adapters that `--lora` names; None: none.

    Raises:
        EdgeError: they cannot be had, or not on the device `named`.
    """
    if not lora:
        return None
    from edge.lora.asked import Loras, parse_all
    from edge.lora.config import Config

    loras = Loras(parse_all(lora), per_request)
    for asked in loras.asked:
        Config.read(asked)  # all else is looked at when the model is there
    if prompt_lookup:
        raise UsageError("--lora does not go with --prompt-lookup", hint="Leave one of them out.")
    if named == "NPU":
        raise UsageError(
            "the NPU has no --lora: its model is compiled whole",
            hint="Merge the adapter: glm4-edge export MODEL OUT --for npu --merge-lora PATH. Or take the CPU.",
        )
    return loras


def check_adapters(folder: Path, loras: Loras) -> None:
    """Hold the adapters against the exported model, before it is loaded.

    Raises:
        EdgeError: one cannot be used, or not with this model.
    """
    from edge.lora.adapter import Adapter, other_base
    from edge.manifest import OURS, Manifest
    from edge.model.spec import GlmSpec

    made = Manifest.read(folder)
    if made.exporter != OURS:
        raise ModelError(
            f"{folder} was traced by {made.exporter}, and adapters find their matrices by our names",
            hint="Export it with glm4-edge's own exporter, or leave --lora out.",
        )
    spec, source = GlmSpec.from_folder(folder), made.source
    for asked in loras.asked:
        remark = other_base(Adapter.read(asked, spec).config, source.model)
        if remark:
            say(remark)


def load(wanted: Wanted, *, overflow: Policy, remark: Remark = say) -> Guarded:
    """Load it; the caller closes it.

    Args:
        remark: told what is worth knowing on the way, such as why another device was taken.

    Raises:
        EdgeError: it cannot be loaded.
    """
    from edge.runtime import remote

    settings = wanted.settings
    if settings.runtime == "itrex":
        itrex.told("itrex")
        with progress_lines() as progress:
            return itrex.opened(wanted.folder, settings, overflow, progress)
    with remote.prepared(), progress_lines() as progress:
        from edge.runtime.guarding import open_guarded  # while the process that was prepared imports its own

        engine = open_guarded(
            wanted.folder, settings, fallback=wanted.fallback, policy=overflow, loras=wanted.loras, say=remark,
            progress=progress,
        )  # fmt: skip
    if settings.evict_beyond and settings.evict_beyond >= engine.context_length:
        remark(
            f"--evict-beyond {settings.evict_beyond} has no effect: the context has {engine.context_length:,} tokens."
        )
    return engine


def exported_for(named: str, rehearse: bool) -> str:
    """The device that a model not exported yet is exported for: the wanted one if it is here."""
    from edge.runtime import devices

    present = devices.available()
    if named == devices.AUTO:
        return devices.automatic(None, present)[0]
    place = devices.members(named)[0]
    return place if rehearse or devices.has(present, place) else "CPU"


def check_model(model: str) -> None:
    """Refuse what is neither exported nor can be: before a question is read."""
    from edge.manifest import Manifest

    given = Path(model).expanduser()
    if is_name(model):
        return
    if not given.exists():
        raise ModelError(f"there is no folder {model}", hint=_NAMES)
    if given.is_dir() and not any(given.glob("openvino_*")) and not is_exported(given):
        raise ModelError(f"{model} is no exported model and no checkpoint", hint=_NAMES)
    Manifest.read(given)  # says what is missing


def _exported(model: str, device: str, *, yes: bool, interactive: bool) -> Path:
    """The folder of the exported `model`, made now if it was not yet and the user agrees."""
    from edge.model import pocket

    if not is_name(model):
        return Path(model).expanduser()
    target = target_for(device)
    folder = default_folder(model, target)
    if is_exported(folder):
        say(f"{model} is in {folder}")
        return folder
    what = _cost(model, target)
    if interactive and not yes:
        if not click.confirm(
            f"{model} is not exported{_for(target)} yet ({what}). Export it now?", default=True, err=True
        ):
            raise ModelError(f"{model} is not exported", hint=f"Later: glm4-edge export {model} --for {target}")
    elif model != pocket.NAME and not yes:
        raise ModelError(
            f"{model} is not exported{_for(target)} yet",
            hint=f"Run: glm4-edge export {model} --for {target}, or add --yes.",
        )
    else:
        say(f"{model} is not exported{_for(target)} yet; doing that first ({what}).")
    say(summary(export_model(model, folder, target=target)[1]))
    say(f"{model} is in {folder}")
    return folder


def _for(target: str) -> str:
    """ " for the NPU", where it is another device than the CPU; it may be exported for that."""
    return {"igpu": " for GPUs", "npu": " for the NPU"}.get(target, "")


def _cost(model: str, target: str) -> str:
    """What an export would read and write, as far as that is known before it starts."""
    from edge.export.recipe import Recipe
    from edge.model import pocket
    from edge.model.checkpoint import Checkpoint

    if model == pocket.NAME:
        fetched = pocket.folder().is_dir()
        return ("" if fetched else f"{pocket.WHEEL_BYTES / 1e6:.0f} MB to download once, then ") + "a minute or two"
    if not Path(model).expanduser().is_dir():
        return "GLM-4-9B is 18.8 GB to download once"
    checkpoint = Checkpoint(Path(model).expanduser())
    size = sum(shard.stat().st_size for shard in checkpoint.shards)
    made = Recipe.for_target(target, checkpoint.spec).estimated_bytes(checkpoint.spec)
    return f"reads {size / 1e9:.1f} GB, writes {made / 1e9:.1f} GB"
