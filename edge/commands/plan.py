"""`glm4-edge plan`: whether a context fits into this machine's memory, and what to change where it does not."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.errors import DeviceError, ResourceError, UsageError

if TYPE_CHECKING:
    from edge.runtime.plan import KvPrecision, Plan

_LARGEST = 1e18
_KV_WORDS = {"f32": "32 bits a number", "f16": "16 bits a number", "u8": "8 bits a number", "u4": "4 bits a number"}


@click.command()
@click.argument("model")
@click.option(
    "--context", type=click.IntRange(1, 2**31 - 1), help="Tokens of a conversation; left out, what would be chosen."
)
@click.option("--device", default="CPU", show_default=True, help="CPU, GPU, GPU.n, NPU, HETERO:GPU,CPU or AUTO.")
@click.option("--memory", help="Plan for a machine with this much free, such as 16GB; left out, for this one.")
@click.option(
    "--kv-precision", type=click.Choice(["f32", "f16", "u8", "u4"]),
    help="Number format of the attention keys and values kept for each token; left out, u8, on the NPU f16.",
)  # fmt: skip
@click.option("--threads", type=click.IntRange(1, 4096), help="That the model runs on; left out, this machine's cores.")
@click.option("--lora", multiple=True, metavar="PATH[:SCALE]", help="With this LoRA adapter; all are on, as in a chat.")
@click.option("--json", "as_json", is_flag=True, help="For a program.")
def plan(
    model: str, context: int | None, device: str, memory: str | None, kv_precision: KvPrecision | None,
    threads: int | None, lora: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Say whether a conversation of so many tokens fits into memory with the exported MODEL.

    Nothing is loaded: the figures are computed from the model's sizes. The exit code is 1 if the
    context does not fit.

    \b
    Examples:
      glm4-edge plan ./glm4-int4 --context 32768
      glm4-edge plan ./glm4-int4 --context 131072 --memory 16GB --kv-precision u4
      glm4-edge plan ./glm4-int4 --lora ./support
    """
    from edge.commands.named import exported
    from edge.runtime import devices
    from edge.runtime import plan as plans
    from edge.runtime.choices import Choices
    from edge.runtime.cores import usable_threads
    from edge.runtime.machine import Machine

    named = devices.parse(device)  # it need not be here: --memory plans for another machine
    free = None if memory is None else _bytes(memory)
    if kv_precision is not None and named != devices.AUTO:
        plans.check_kv(named, kv_precision)
    folder = exported(model, named)
    shape = plans.Shape.read(folder)
    place = Choices().resolved(named, folder) if named == devices.AUTO else named
    precision = plans.kv_default(place) if kv_precision is None else kv_precision
    plans.check_kv(place, precision)
    _check_npu(place, folder, context)
    room = devices.room(place) if free is None else devices.Room(free, free)
    cores = threads or usable_threads(Machine())
    more = _adapter_bytes(lora, folder, place)
    tokens = context or plans.choose_context(
        shape, place, room.available, kv_precision=precision, threads=cores, adapter_bytes=more
    )

    def weigh(other: KvPrecision) -> Plan:
        weighed = plans.plan(
            shape, tokens, device=place, kv_precision=other, available=room.available, total=room.total, threads=cores,
            adapter_bytes=more,
        )  # fmt: skip
        return weighed if room.assumed is None else replace(weighed, assumed=(*weighed.assumed, room.assumed))

    made = weigh(precision)
    advice = _advice(made, [weigh(other) for other in plans.kv_choices(place)])
    facts = _facts(made, plans.cache_for(made, shape), plans.prefill_flop(shape, tokens), cores, advice)
    click.echo(json.dumps(facts, indent=2, allow_nan=False) if as_json else _table(folder, made, facts))
    if not made.fits:
        raise ResourceError(made.verdict.removeprefix("no: "), hint=" ".join(advice))


def _adapter_bytes(lora: Sequence[str], folder: Path, place: str) -> int:
    """What the adapters take on the device."""
    if not lora:
        return 0
    from edge.commands.loading import asked_for, check_adapters
    from edge.lora.adapter import Adapter
    from edge.lora.cost import Sizes
    from edge.model.spec import GlmSpec
    from edge.runtime import plan as plans

    loras = asked_for(lora, place)
    assert loras is not None
    check_adapters(folder, loras)
    spec = GlmSpec.from_folder(folder)
    adapters = [Adapter.read(asked, spec) for asked in loras.asked]
    return Sizes.of(adapters, loras, spec).bytes(plans.STEP_TOKENS.get(place.partition(".")[0], 1024))


def _check_npu(place: str, folder: Path, context: int | None) -> None:
    """Refuse what a run on the NPU would refuse, too."""
    from edge.manifest import Manifest
    from edge.npu import npu_lengths
    from edge.runtime import devices

    refused = devices.illegal(place, Manifest.read(folder), folder)
    if refused is not None:
        raise DeviceError(
            f"{place}: {refused}", hint="Export the model again with --for npu, or plan for another device."
        )
    if place == "NPU" and context is not None:
        npu_lengths(context)


def _advice(made: Plan, others: list[Plan]) -> list[str]:
    """What to change where it does not fit."""
    if made.fits:
        return []
    if made.context > made.model_context:
        return [f"Ask for at most --context {made.model_context}."]
    said = [
        f"--kv-precision {other.kv_precision} would need {_gb(other.needed_bytes)}"
        + (", and fit." if other.fits else f"; then {other.longest_context:,} tokens fit.")
        for other in others
        if other.kv_bytes < made.kv_bytes
    ]
    if made.longest_context:
        said.insert(0, f"As it is, --context {made.longest_context} fits.")
    else:
        said = ["Not even the weights fit: close other programs, or take a machine with more memory."]
    said.append("Cache eviction does not help here: it forgets only after the whole prompt was read.")
    return said


def _facts(
    made: Plan, blocks: int, flop: tuple[float, float], threads: int, advice: list[str]
) -> dict[str, Any]:  # fmt: skip
    return {
        **asdict(made),
        "assumed": list(made.assumed),
        "needed_bytes": made.needed_bytes,
        "threads": threads,
        "kv_blocks": blocks,
        "prefill_flop": {"weights": flop[0], "attention": flop[1]},
        "prefill_seconds": None,
        "fits": made.fits,
        "verdict": made.verdict,
        "advice": advice,
    }


def _table(folder: Path, made: Plan, facts: dict[str, Any]) -> str:
    weights, attention = facts["prefill_flop"].values()
    work = f"{(weights + attention) / 1e12:,.1f} trillion operations to read a prompt that fills it"
    share = f"{attention / (weights + attention):.0%} of them to look back at what was read"
    rows = [
        ("model", f"{folder}, on {made.device} with {facts['threads']} threads"),
        ("context", f"{made.context:,} tokens; the model reads at most {made.model_context:,}"),
        ("program", f"{_gb(made.program_bytes)}, without a model"),
        ("weights", f"{_gb(made.repacked_bytes)}, in the order in which the device reads them; the file's own "
                    f"{_gb(made.weight_bytes)} stay in memory, too, as long as no program needs it"),
        ("cache", f"{_gb(made.kv_bytes)} for what the model keeps of each token it has read (KV cache, in "
                  f"{made.kv_precision}, {_KV_WORDS[made.kv_precision]}), {made.kv_bytes / made.context:,.0f} bytes a "
                  "token"),
        ("working", f"{_gb(made.working_bytes)} more while the prompt is read"),
        *([("adapters", f"{_gb(made.adapter_bytes)}, with what they add to working")] if made.adapter_bytes else []),
        ("together", _gb(made.needed_bytes)),
        ("available", f"{_gb(made.available_bytes)} of {_gb(made.total_bytes)}"),
        ("longest", f"{made.longest_context:,} tokens fit"),
        ("reading", f"{work}, {share}; glm4-edge bench measures how long that takes"),
        *(("assumed", sentence) for sentence in made.assumed),
        ("verdict", made.verdict),
        *(("", sentence) for sentence in facts["advice"]),
    ]  # fmt: skip
    return "\n".join(f"{name:<10} {text}" for name, text in rows)


def _bytes(text: str) -> int:
    """16GB, 16 GiB, 512M, 900000000B → bytes; a number alone could be either."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?)B?|B)\s*", text, re.IGNORECASE)
    size = 0.0
    if found is not None:
        size = float(found[1]) * (1024 if found[3] else 1000) ** " KMGT".index((found[2] or " ").upper())
    if not 1 <= size < _LARGEST:
        shown = text if len(text) <= 40 else f"{text[:40]}…"
        raise UsageError(f"'{shown}' is no amount of memory that a machine has", hint="Write it as 16GB or 16GiB.")
    return int(size)


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
