"""`glm4-edge doctor`: is this machine ready, and what would make it better?"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from edge.report import progress_lines

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge.runtime.finding import Finding

_COLOURS = {"ok": "green", "note": "cyan", "warning": "yellow", "problem": "red"}


@click.command(short_help="Examine this machine, and say how to mend what is wrong.")
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the findings and their figures as JSON.")
def doctor(model: str | None, as_json: bool) -> None:
    """Examine this machine and, given an exported MODEL, whether that will run well on it.

    Processor, cores, memory and how fast it is read, drivers and permissions of GPU and NPU, versions of packages,
    room on the disk. With every finding stands the line that mends it. The exit code is 0 if nothing is broken.
    """
    from edge.commands.named import exported
    from edge.runtime.doctor import document, examine

    folder = exported(model) if model is not None else None
    with progress_lines() as progress:
        findings = examine(folder, progress=progress)
    click.echo(json.dumps(document(findings, folder), indent=2, allow_nan=False) if as_json else table(findings))
    if any(finding.state == "problem" for finding in findings):
        click.get_current_context().exit(1)


def table(findings: Sequence[Finding]) -> str:
    """Findings for a person: state, name and sentence of each, what mends it below."""
    lines = []
    for finding in findings:
        state = click.style(f"{finding.state:<8}", fg=_COLOURS[finding.state])
        lines.append(f"{state} {finding.name:<14} {finding.what}")
        if finding.mend:
            lines.append(f"{'':<23} → {finding.mend}")
    count = {state: sum(finding.state == state for finding in findings) for state in ("problem", "warning")}
    told = [f"{number} {state}{'s' * (number != 1)}" for state, number in count.items()]
    lines.append(f"{len(findings)} findings, {', '.join(told)}")
    return "\n".join(lines)
