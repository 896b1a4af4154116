"""`glm4-edge canary`: does this device compute the model right?"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from edge.report import progress_lines

if TYPE_CHECKING:
    from edge.runtime.canary import Finding


@click.command(short_help="Check that a device computes a model right.")
@click.argument("model")
@click.option("--device", default="AUTO", show_default=True, help="AUTO, CPU, GPU, GPU.n or NPU.")
@click.option("--rehearse", is_flag=True, help="Run the NPU's fixed shapes on the CPU, for want of an NPU.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def canary(model: str, device: str, rehearse: bool, as_json: bool) -> None:
    """Check that a device computes the exported MODEL right, and end with 0 if it does.

    An export keeps golden logits: what its own bits say of a text after prompts of several lengths, in exact
    arithmetic. The device reads the same prompts, on the pipeline that answers, and what it says is compared: the next
    token, how far that lies below the right one, and the probabilities of the text's own tokens, in nats. On the NPU,
    whose pipeline does not tell them, whole logits are compared, read at once and one token after the other.

    On a GPU or an NPU that happens in a process of its own, which a driver may crash.

    \b
    Examples:
      glm4-edge canary ./glm4-int4
      glm4-edge canary ./glm4-int4 --device GPU --json
      glm4-edge canary ./glm4-npu --device NPU --rehearse
    """
    from edge import golden as goldens
    from edge.commands.named import exported
    from edge.errors import DeviceError, ModelError, UsageError
    from edge.manifest import Manifest
    from edge.runtime import devices
    from edge.runtime.canary import Finding, thorough
    from edge.runtime.settings import Settings
    from edge.runtime.trial import run

    named = devices.parse(device)
    if rehearse and named not in (devices.AUTO, "NPU"):
        raise UsageError(f"{named} is not rehearsed, the NPU is", hint="Write --device NPU --rehearse.")
    folder = exported(model, "NPU" if rehearse else device)
    made = Manifest.read(folder)
    golden = goldens.read(folder)
    if golden is None:
        raise ModelError(f"{folder} holds no golden logits", hint="Export the model again with this version.")
    resolved = "NPU" if rehearse else devices.resolve(device)
    if resolved == "NPU" and made.target != "npu":
        raise DeviceError(
            f"{folder} was exported for {made.target}, and the NPU cannot run that",
            hint="Export the model again with --for npu, or choose another device.",
        )
    settings = Settings(resolved, rehearse=rehearse)
    with progress_lines() as progress:
        if resolved == "CPU" or rehearse:
            finding = thorough(folder, settings, golden, progress)
        else:
            outcome = run(folder, settings, task="canary", progress=progress)
            if outcome.error is not None:
                raise outcome.error
            assert outcome.told is not None
            finding = Finding(**outcome.told)
    if as_json:
        click.echo(json.dumps({"folder": str(folder), "ok": finding.ok, "reason": finding.reason, **finding.figures}))
    else:
        click.echo(_table(finding))
    if not finding.ok:
        raise DeviceError(
            f"{_where(finding)} does not compute {folder} right: {finding.reason}",
            hint="Update the device's driver, choose another device, and see whether glm4-edge verify finds the "
            "model itself damaged.",
        )


def _where(finding: Finding) -> str:
    from edge.npu import REHEARSED

    device = str(finding.figures["device"])
    return f"{device} (rehearsed {REHEARSED})" if finding.figures["rehearsal"] else device


def _table(finding: Finding) -> str:
    """Figures by length for a person."""
    verdict = f"{_where(finding)}: " + ("right" if finding.ok else f"WRONG: {finding.reason}")
    if "by_length" in finding.figures:
        rows = [
            f"{row['length']:>6} {'same' if row['same_token'] else 'other':>10} {_nats(row['token_gap']):>11} "
            f"{_nats(row['mean_error']):>11}"
            for row in finding.figures["by_length"]
        ]
        above = f"{'':>6} {'':>10} {'nats below':>11} {'nats off':>11}"
        heads = f"{'tokens':>6} {'next token':>10} {'the right':>11} {'in the text':>11}"
        return "\n".join([above, heads, *rows, verdict])
    columns = f"{'KL':>9} {'top 1':>6} {'max error':>10}"
    lines = [f"{'':>6}  {'read at once':^27}  {'token by token':^27}", f"{'tokens':>6}  {columns}  {columns}"]
    steps = {row["length"]: row for row in finding.figures["one_by_one"]}
    for once in finding.figures["at_once"]:
        one = steps.get(once["length"])
        lines.append(f"{once['length']:>6}  {_cells(once)}" + (f"  {_cells(one)}" if one else ""))
    return "\n".join([*lines, verdict])


def _nats(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def _cells(reading: dict[str, Any]) -> str:
    if reading["kl"] is None:
        return f"{'not numbers':^27}"
    return f"{reading['kl']:>9.2g} {'same' if reading['same_token'] else 'other':>6} {reading['max_error']:>10.2g}"
