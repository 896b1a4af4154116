"""`glm4-edge devices`: what is there to run on, and what a model may do there."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edge.runtime.choices import Kept
    from edge.runtime.devices import DeviceFacts
    from edge.runtime.settings import Precision


@click.command(short_help="List the devices, and what a model may do on each.")
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
def devices(model: str | None, as_json: bool) -> None:
    """List the devices that OpenVINO finds, and why a GPU or NPU is not among them.

    With an exported MODEL also what it may do on each device and why not, what it needs there, what was found
    out when it was last loaded, and which device AUTO takes.

    \b
    Examples:
      glm4-edge devices
      glm4-edge devices ./glm4-int4
      glm4-edge devices ./glm4-int4 --json
    """
    from edge.commands.named import exported
    from edge.manifest import Manifest
    from edge.runtime import devices as found_devices
    from edge.runtime.choices import Choices

    folder = exported(model) if model else None
    facts = found_devices.describe(folder)
    there = [each.device for each in facts if each.absent is None]
    manifest, known, failed = None, {}, {}
    if folder is not None:
        manifest, choices = Manifest.read(folder), Choices()
        known = {device: about[0] for device in there if (about := choices.about(folder, device))}
        failed = choices.failed(folder, there)
    unfit = {each.device for each in facts if each.why_not is not None}
    auto = found_devices.resolve(found_devices.AUTO, lambda: there, manifest, [*failed, *unfit])
    if as_json:
        rows = [
            {**dataclasses.asdict(each), "kept": _kept(*known.get(each.device, ("chosen", None)))} for each in facts
        ]
        answer = {"folder": None if folder is None else str(folder), "devices": rows, "auto": auto}
        click.echo(json.dumps(answer, indent=2, allow_nan=False))
        return
    for each in facts:
        _print(each, known.get(each.device, ("chosen", None)), folder is not None)
    click.echo(f"{'AUTO':<8}takes {auto}")


def _kept(precision: Precision, kept: Kept | None) -> dict[str, Any] | None:
    if kept is None:
        return None
    return {**dataclasses.asdict(kept), "when": kept.when.isoformat(timespec="seconds"), "precision": precision}


def _print(facts: DeviceFacts, known: tuple[Precision, Kept | None], with_model: bool) -> None:
    from edge.runtime.ladder import WORDS

    precision, kept = known

    def more(text: str) -> None:
        click.echo(f"{'':<8}{text}")

    if facts.absent is not None:
        click.echo(f"{facts.device:<8}not here: {facts.absent}")
        return
    driver = f", driver {facts.driver}" if facts.driver else ""
    click.echo(f"{facts.device:<8}{facts.name or 'no name'}{driver}")
    memory = "memory not known" if facts.memory_bytes is None else f"{facts.memory_bytes / 1e9:.1f} GB of memory"
    free = "" if facts.free_bytes is None else f", {facts.free_bytes / 1e9:.1f} GB free"
    more(f"{memory}{free}; {', '.join(facts.precisions) or 'precisions not known'}")
    if not with_model:
        return
    if facts.why_not is not None:
        more(f"not for this model: {facts.why_not}")
        return
    more(f"may run this model, which needs {(facts.needs_bytes or 0) / 1e9:.1f} GB there")
    if facts.remark is not None:
        more(f"Warning: it {facts.remark}")
    if kept is None:
        more("not tried yet")
    elif kept.ok:
        how = "verified" if kept.checked else "loaded, its numbers not checked,"
        more(f"{how}{WORDS[precision]} on {kept.when:%Y-%m-%d}")
    else:
        more(f"failed on {kept.when:%Y-%m-%d}: {kept.reason}")
