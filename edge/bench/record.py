"""A run of the benchmark as a file: what was measured, on which machine, with which versions, every raw sample."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from edge.bench.case import Measured
from edge.bench.summary import facts
from edge.errors import UsageError
from edge.files import write_text

FORMAT = 1
_PACKAGES = ("glm4-edge", "openvino", "openvino-genai", "openvino-tokenizers")


@dataclass
class Record:
    """A run."""

    made: str
    """When, UTC, ISO 8601."""
    machine: dict[str, Any]
    versions: dict[str, str]
    rounds: int
    measured: list[Measured]
    left_out: Sequence[str] = ()
    """What was asked for and not measured, in sentences."""

    @classmethod
    def now(cls, measured: list[Measured], rounds: int, left_out: Sequence[str]) -> Record:
        """Of what has just been measured here."""
        made = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        return cls(made, machine(), versions(*_PACKAGES), rounds, measured, left_out)

    def write(self, path: Path) -> None:
        """Put it into a file, whole or not at all."""
        write_text(path, json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")

    def to_json(self) -> dict[str, Any]:
        """For a file, and for a program: the figures that a user is shown, and every sample they are made of."""
        return {
            "format": FORMAT, "made": self.made, "machine": self.machine, "versions": self.versions,
            "rounds": self.rounds, "left_out": list(self.left_out),
            "figures": [found for each in self.measured for found in facts(each)],
            "measured": [each.to_json() for each in self.measured],
        }  # fmt: skip

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read a file that `write` made.

        Raises:
            UsageError: there is none, or it is something else, or a newer version wrote it.
        """
        hint = "Name a file that glm4-edge bench --out wrote."
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"{path} cannot be read ({error.strerror})", hint=hint) from error
        except ValueError as error:
            raise UsageError(f"{path} is no JSON file", hint=hint) from error
        try:
            if told["format"] > FORMAT:
                raise UsageError(f"{path} was written by a newer glm4-edge", hint="Update this one.")
            return cls(
                told["made"], told["machine"], told["versions"], told["rounds"],
                [Measured.from_json(each) for each in told["measured"]], told["left_out"],
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"{path} is no record of a benchmark ({error})", hint=hint) from error


def machine() -> dict[str, Any]:
    """The processor's name, cores and memory; nothing that says whose machine it is."""
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": int(psutil.virtual_memory().total),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def versions(*names: str) -> dict[str, str]:
    """Of installed packages; those that are not there are left out."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    listed = Path("/proc/cpuinfo")
    if listed.is_file():
        for line in listed.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def same_machine(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two records may come from one machine, as far as both tell."""
    told = [name for name in ("cpu", "cores", "memory_bytes", "system") if name in one and name in other]
    return bool(told) and all(one[name] == other[name] for name in told)
