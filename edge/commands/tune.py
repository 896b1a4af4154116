"""`glm4-edge tune`: the settings that are best on this machine, found by measuring."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.errors import UsageError
from edge.report import progress_lines, say

if TYPE_CHECKING:
    from edge.bench.search import Aim, Change, Found

_AIMS = ("chat", "ttft", "decode", "memory")  # those of bench.search, which is not imported for --help


@click.command()
@click.argument("model", default="pocket")
@click.option("--device", default="AUTO", show_default=True, help="CPU, GPU, GPU.n or AUTO.")
@click.option("--aim", type=click.Choice(_AIMS), default="chat", show_default=True,
              help="What is to be less: the seconds of a question, its answer and a second turn; to the first token; "
              "for each further token; or memory.")  # fmt: skip
@click.option("--minutes", type=click.FloatRange(0.2, 600), default=3.0, show_default=True, help="For the search.")
@click.option("--context", type=click.IntRange(1, 2**31 - 1), help="Tokens of a conversation; left out, as chosen.")
@click.option("--forget", is_flag=True, help="Go back to the defaults, and measure nothing.")
@click.option("--json", "as_json", is_flag=True, help="For a program.")
def tune(
    model: str, device: str, aim: Aim, minutes: float, context: int | None, forget: bool, as_json: bool
) -> None:  # fmt: skip
    """Look for the settings that are best for the exported MODEL on this machine, and keep them beside it.

    Tried are, one after the other: the precision of the arithmetic, the groups of dynamic quantisation, how many
    threads and which cores, how much of a prompt is read at once, and the format of the cache. Each is measured in
    turn with the best so far. Kept is only what was faster beyond the noise, twice, and does not spoil the answers.
    `chat`, `ask`, `ui`, `serve` and `batch` then use it and say so; it holds for this machine, model and versions.

    \b
    Examples:
      glm4-edge tune pocket
      glm4-edge tune ./glm4-int4 --aim decode --minutes 10
      glm4-edge tune ./glm4-int4 --forget
    """
    from edge.bench import search as searching
    from edge.commands.named import exported
    from edge.manifest import Manifest
    from edge.runtime import devices, tuned
    from edge.runtime.settings import Settings

    named = devices.parse(device)
    folder = exported(model, named)
    place = devices.resolve(named, manifest=Manifest.read(folder))
    if place == "NPU" or len(devices.members(place)) > 1:
        raise UsageError(f"there is nothing to tune on {place}", hint="Name the CPU or a GPU.")
    if forget:
        there = tuned.forget(folder, place)
        say(f"{model} is back to the defaults on {place}." if there else f"Nothing was kept for {model} on {place}.")
        return
    defaults = Settings(place, context=context, tuned=False)
    with progress_lines() as progress:
        found = searching.search(folder, defaults, _changes(place), aim, seconds=60 * minutes, progress=progress)
    if found.left_out and found.final is None:  # an earlier search may have had more time
        click.echo(json.dumps(_facts(found, None), indent=1) if as_json else _told(found, aim, place))
        return
    ratio = found.final.ratio if found.final is not None else 1.0
    kept = tuned.Tuned(aim, ", ".join(found.words), dict(found.settings.properties), found.settings.step_tokens, ratio)
    path = tuned.keep(folder, place, kept)
    click.echo(json.dumps(_facts(found, path), indent=1) if as_json else _told(found, aim, place))
    say(f"Kept in {path}")


def _changes(place: str) -> list[list[Change]]:
    import psutil

    from edge.bench.search import changes
    from edge.runtime import devices
    from edge.runtime.cores import count_cores, usable_threads
    from edge.runtime.machine import Machine

    machine = Machine()
    cores = count_cores(machine)
    logical = min(machine.affinity() or psutil.cpu_count() or 1, psutil.cpu_count() or 1)
    kinds = sum(bool(each) for each in (cores.performance, cores.efficient, cores.low_power))
    return changes(place, devices.ask, usable_threads(machine), logical, kinds)


def _facts(found: Found, path: Path | None) -> dict[str, Any]:
    final = found.final
    return {
        "kept": list(found.words), "properties": dict(found.settings.properties),
        "step_tokens": found.settings.step_tokens, "file": None if path is None else str(path),
        "seconds": found.seconds, "enough_seconds": found.enough_seconds, "case": asdict(found.case),
        "against_defaults": None if final is None else {**asdict(final), "verdict": final.verdict},
        "tried": [asdict(each) for each in found.tried],
    }  # fmt: skip


def _told(found: Found, aim: str, place: str) -> str:
    from edge.bench.search import AIMS

    what = "memory" if aim == "memory" else "time"
    lines = [f"Measured on {place}: {AIMS[aim]}, {found.case.name}; {found.seconds:.0f} s."]  # type: ignore[index]
    for each in found.tried:
        ratio = "" if each.ratio is None else f", {each.ratio:.2f} of the {what}"
        why = "" if each.reason is None else f": {each.reason}"
        lines.append(f"  {each.words:<34} {each.verdict}{ratio}{why}")
    final = found.final
    if found.left_out:
        lines.append(f"{found.left_out} of {len(found.tried)} were not tried: --minutes gives it more time.")
    if found.left_out and final is None:
        lines.append("Nothing is kept: what was in use before still is.")
    elif final is None:
        lines.append("Kept: the defaults. Nothing was better beyond the noise.")
    else:
        lines.append(
            f"Kept: {', '.join(found.words)}. Against the defaults {final.ratio:.2f} ({final.low:.2f} to "
            f"{final.high:.2f}) of what it cost."
        )
    return "\n".join(lines)
