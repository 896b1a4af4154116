"""Which adapters a user asked for. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.errors import UsageError

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf)", re.IGNORECASE)


@dataclass(frozen=True)
class Asked:
    """An adapter's folder, and how strongly it is wanted: 1 is as it was trained."""

    folder: Path
    scale: float = 1.0

    @property
    def name(self) -> str:
        """By which a request asks for it: its folder's."""
        return self.folder.name

    @property
    def label(self) -> str:
        """Its name, and its scale where that is not 1."""
        scale = str(self.scale).removesuffix(".0")  # all of it: two scales are two exports
        return self.name + ("" if self.scale == 1 else f" at {scale}")


@dataclass(frozen=True)
class Loras:
    """What a model is loaded with.

    Args:
        asked: the adapters.
        per_request: each answer has one of them, or none; else all answers have all.
    """

    asked: tuple[Asked, ...] = ()
    per_request: bool = False

    @property
    def choices(self) -> tuple[tuple[str, ...], ...]:
        """The names that may be on at the same time; the first is none, which gives the model without them."""
        names = tuple(each.name for each in self.asked)
        if not names:
            return ()
        return ((), *((name,) for name in names)) if self.per_request else ((), names)

    @property
    def usual(self) -> tuple[str, ...]:
        """What an answer gets that asks for nothing."""
        return () if self.per_request or not self.asked else self.choices[-1]


def parse(text: str) -> Asked:
    """`PATH` or `PATH:SCALE`; only a number behind the last colon is a scale, as Windows' paths have one, too.

    Raises:
        UsageError: the scale is no number to multiply with.
    """
    path, colon, tail = text.rpartition(":")
    scale = 1.0
    if not (colon and path and _NUMBER.fullmatch(tail.strip())) or Path(text).expanduser().exists():
        path = text
    else:
        scale = float(tail)
        if not math.isfinite(scale):
            raise UsageError(f"the scale {tail} of {path} is no number", hint="Write PATH:SCALE, such as ./lora:0.5.")
    folder = Path(path).expanduser().absolute()
    if ".." in folder.parts:  # which would be its name
        folder = folder.resolve()
    return Asked(folder.parent if folder.name == WEIGHTS else folder, scale)


def parse_all(texts: Sequence[str]) -> tuple[Asked, ...]:
    """Several; each has a name of its own.

    Raises:
        UsageError: a scale that is none, or two adapters of one name.
    """
    asked = tuple(parse(text) for text in texts)
    names = [each.name for each in asked]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(
            f"two adapters are called {twice!r}", hint="Their folders' names tell them apart: rename one of them."
        )
    return asked
