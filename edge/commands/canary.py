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

    An export keeps golden logits: what the model gives for a known text at prompts of several lengths, computed from
    its own weights without OpenVINO. The device reads the same prompts, at once and one token after the other, and its
    logits are compared: KL divergence, the next token, the largest error, and whether they are numbers at all.

    \b
    Examples:
      glm4-edge canary ./glm4-int4
      glm4-edge canary ./glm4-int4 --device GPU --json
      glm4-edge canary ./glm4-npu --device NPU --rehearse
    """
    from edge import golden as goldens
    from edge.commands.named import exported
    from edge.errors import DeviceError, ModelError
    from edge.manifest import Manifest
    from edge.runtime import devices
    from edge.runtime.canary import thorough
    from edge.runtime.settings import Settings

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
    settings = Settings(resolved, devices.default_properties(resolved, made), rehearse=rehearse)
    with progress_lines() as progress:
        finding = thorough(folder, settings, golden, progress)
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
    """Figures by length for a person: each prompt read at once, then token by token."""
    columns = f"{'KL':>9} {'top 1':>6} {'max error':>10}"
    lines = [f"{'':>6}  {'read at once':^27}  {'token by token':^27}", f"{'tokens':>6}  {columns}  {columns}"]
    for once, steps in zip(finding.figures["at_once"], finding.figures["one_by_one"], strict=True):
        lines.append(f"{once['length']:>6}  {_cells(once)}  {_cells(steps)}")
    lines.append(f"{_where(finding)}: " + ("right" if finding.ok else f"WRONG: {finding.reason}"))
    return "\n".join(lines)


def _cells(reading: dict[str, Any]) -> str:
    if reading["kl"] is None:
        return f"{'not numbers':^27}"
    return f"{reading['kl']:>9.2g} {'same' if reading['same_token'] else 'other':>6} {reading['max_error']:>10.2g}"
