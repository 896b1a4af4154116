"""What the doctor found: one thing about a machine or a model, and the line that mends it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edge.manifest import Manifest
from edge.runtime.machine import Machine
from edge.runtime.plan import Shape

State = Literal["ok", "note", "warning", "problem"]
"""Note: good to know; warning: slower or riskier than need be; problem: something does not work."""


@dataclass(frozen=True)
class Finding:
    """One finding.

    Args:
        name: what it is about, in one or two words.
        state: how bad it is.
        what: one sentence with the value, without a full stop.
        mend: the line to type, or what to do; None where nothing is to be mended.
        figures: what the sentence rests on. An unknown one is None.
    """

    name: str
    state: State
    what: str
    mend: str | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Patient:
    """What is examined: a machine and, if one was named, an exported model."""

    machine: Machine
    folder: Path | None = None
    manifest: Manifest | None = None
    """None also where the folder's cannot be read."""
    shape: Shape | None = None
    """The same."""


def gb(size: float) -> str:
    """Bytes for a person."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
