"""What the machine says while something is measured: memory, energy, heat, and who else was at work."""

from __future__ import annotations

import contextlib
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

_ROOT = Path("/")
_POWER = "sys/class/powercap"
_THROTTLES = "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count"
_PERIOD_SECONDS = 0.1


class MemoryWatch:
    """Looks at this process's memory ten times a second, and keeps the largest figures. A context manager.

    Where a model runs in a process below this one, `with_children` adds that.
    """

    def __init__(self) -> None:
        self.anonymous: int | None = None
        """Bytes that belong to no file, at their peak; None where the system does not tell."""
        self.resident = 0
        """Bytes in memory, pages of mapped files included, at their peak."""
        self._processes = [psutil.Process()]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory watch", daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    def _run(self) -> None:
        while not self._over.wait(_PERIOD_SECONDS):
            self._look()

    def with_children(self) -> None:
        """From now on count those processes, too, that this one has begun by now."""
        self._processes = [psutil.Process(), *psutil.Process().children()]

    def _look(self) -> None:
        memories = []
        for process in self._processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                memories.append(process.memory_info())
        self.resident = max(self.resident, sum(int(memory.rss) for memory in memories))
        known = [each for each in map(_anonymous, memories) if each is not None]
        if known:
            self.anonymous = max(self.anonymous or 0, sum(known))


def _anonymous(memory: Any) -> int | None:
    if sys.platform == "win32":
        return int(memory.private)
    if sys.platform == "linux":
        return int(memory.rss) - int(memory.shared)  # of statm, which is read in one line; shared: of files
    return None


@dataclass(frozen=True)
class Reading:
    """Counters at one moment; differences are what counts."""

    energy_microjoules: dict[str, int]
    """By the name of the processor's package; empty where it cannot be read."""
    wraps: dict[str, int]
    throttled: int | None
    """Times that cores were slowed down for heat; None where the system does not count."""


def look(root: Path = _ROOT) -> Reading:
    """Read them now."""
    energy, wraps = {}, {}
    for folder in sorted((root / _POWER).glob("intel-rapl:*")):
        if folder.name.count(":") > 1:  # part of a package that is counted already
            continue
        used, most = _number(folder / "energy_uj"), _number(folder / "max_energy_range_uj")
        if used is not None:
            energy[folder.name], wraps[folder.name] = used, most or 0
    counts = [_number(path) for path in root.glob(_THROTTLES)]
    known = [count for count in counts if count is not None]
    return Reading(energy, wraps, sum(known) if known else None)


def between(before: Reading, after: Reading) -> dict[str, Any]:
    """Joules and throttlings from one reading to another; None where they cannot be read."""
    joules = None
    if before.energy_microjoules and before.energy_microjoules.keys() == after.energy_microjoules.keys():
        used = 0
        for name, start in before.energy_microjoules.items():
            step = after.energy_microjoules[name] - start
            used += step if step >= 0 else step + before.wraps[name]
        joules = used / 1e6
    throttled = None
    if before.throttled is not None and after.throttled is not None:
        throttled = after.throttled - before.throttled
    return {"energy_joules": joules, "throttled": throttled}


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # not there, or not for this user
        return None


class Elsewhere:
    """The share of the processors that others have, from its making to `share`."""

    def __init__(self) -> None:
        self._all, self._idle, self._own = _times()

    def share(self) -> float | None:
        """0 to 1; None if too little time has passed to tell."""
        whole, idle, own = (now - then for now, then in zip(_times(), (self._all, self._idle, self._own), strict=True))
        return None if whole < 0.05 else min(max((whole - idle - own) / whole, 0.0), 1.0)


_TWICE = ("guest", "guest_nice", "interrupt", "dpc")  # the system counts them among others, too


def _times() -> tuple[float, float, float]:
    """Processor seconds of the machine, of these the idle ones, and those of this process."""
    machine = psutil.cpu_times()._asdict()
    counted = {name: value for name, value in machine.items() if name not in _TWICE}
    own = psutil.Process().cpu_times()
    return sum(counted.values()), machine["idle"] + machine.get("iowait", 0.0), own.user + own.system
