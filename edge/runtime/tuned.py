"""The settings that `glm4-edge tune` found best, kept beside the model for the very machine, versions and device."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edge.files import home, write_text
from edge.runtime import choices, devices
from edge.runtime.cores import usable_threads
from edge.runtime.machine import Machine

FILE_NAME = "tuned.json"
FORMAT = 1


@dataclass(frozen=True)
class Tuned:
    """What was found.

    Args:
        aim: what was to be better: chat, ttft, decode or memory.
        words: the settings that differ from the defaults, for a person; empty where the defaults are the best.
        properties: of the plugin.
        step_tokens: of a prompt that are read at once; None: the default.
        ratio: what the aim costs with them, as a multiple of the defaults; 1 where these are kept.
        made: when, UTC.
    """

    aim: str
    words: str = ""
    properties: Mapping[str, Any] = field(default_factory=dict)
    step_tokens: int | None = None
    ratio: float = 1.0
    made: str = field(
        default_factory=lambda: datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    )

    @property
    def said(self) -> str:
        """What they are, in words; "" where the defaults are the best."""
        return f"tuned for {self.aim}: {self.words}" if self.words else ""


def read(folder: Path, device: str) -> Tuned | None:
    """What was found for this model on this device of this machine; None where nothing was, or it holds no more."""
    entries = {**_entries(_spare(folder)), **_entries(folder / FILE_NAME)}
    if not entries:
        return None
    found = entries.get(_key(folder, device))
    try:
        return None if found is None else Tuned(**found)
    except TypeError:  # written by another version
        return None


def keep(folder: Path, device: str, found: Tuned) -> Path:
    """Keep it beside the model or, where nothing may be written there, in the cache; the file."""
    for path in (folder / FILE_NAME, _spare(folder)):
        entries = {**_entries(path), _key(folder, device): asdict(found)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps({"format": FORMAT, "entries": entries}, indent=1) + "\n")
            return path
        except PermissionError:
            if path != folder / FILE_NAME:
                raise
    raise AssertionError("one of the two was written, or raised")


def forget(folder: Path, device: str) -> bool:
    """Take it away; whether there was anything."""
    there = False
    for path in (folder / FILE_NAME, _spare(folder)):
        entries = _entries(path)
        if entries.pop(_key(folder, device), None) is not None:
            there = True
            write_text(path, json.dumps({"format": FORMAT, "entries": entries}, indent=1) + "\n")
    return there


def _entries(path: Path) -> dict[str, dict[str, Any]]:
    """By key; nothing where the file is not there or damaged: the defaults are right, too."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return dict(told["entries"]) if told["format"] == FORMAT else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _spare(folder: Path) -> Path:
    return home() / "tuned" / f"{choices.digest(str(folder.resolve()))}.json"


def _key(folder: Path, device: str) -> str:
    facts = {
        "ir": choices.ir_digest(folder), "device": devices.canonical(device), "identity": devices.identity(device),
        "versions": choices.versions(), "threads": usable_threads(Machine()),
    }  # fmt: skip
    return choices.digest(json.dumps(facts, sort_keys=True))
