"""The processor's cores by kind, and how many of them this process may use."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import psutil

from edge.runtime.cores_windows import core_kinds
from edge.runtime.machine import Machine

_CPU = "sys/devices/system/cpu"


@dataclass(frozen=True)
class Cores:
    """How many cores of each kind; None where the system does not tell."""

    logical: int | None
    physical: int | None
    performance: int | None = None
    efficient: int | None = None
    low_power: int | None = None
    """Efficient cores without a share of the last-level cache."""


def count_cores(machine: Machine) -> Cores:
    """Count physical and logical cores, and those of each kind where a processor has several."""
    if machine.system == "Windows":
        kinds = core_kinds()
        logical, physical = psutil.cpu_count(), psutil.cpu_count(logical=False)
        if kinds is None or len(kinds) < 2:
            return Cores(logical, physical)
        lowest, highest = min(kinds), max(kinds)
        middle = sum(count for kind, count in kinds.items() if kind not in (lowest, highest))
        # Three classes: P, E and LP-E; with two, Windows does not tell which of the latter the lower one is.
        return Cores(logical, physical, kinds[highest], middle or kinds[lowest], kinds[lowest] if middle else None)
    online = _cpus(machine.text(f"{_CPU}/online"))
    if not online:
        return Cores(psutil.cpu_count(), psutil.cpu_count(logical=False))
    fast, slow = (_cpus(machine.text(f"sys/devices/cpu_{kind}/cpus")) & online for kind in ("core", "atom"))
    low = _cpus(machine.text("sys/devices/cpu_lowpower/cpus")) & online
    low |= {cpu for cpu in slow if machine.text(f"{_CPU}/cpu{cpu}/cache/index2/size") and not _shares_l3(machine, cpu)}
    counts: list[int | None] = [_physical(machine, cpus) for cpus in (fast, slow - low, low)]
    if not fast or not (slow or low):
        counts = [None] * 3
    return Cores(len(online), _physical(machine, online), *counts)


def _shares_l3(machine: Machine, cpu: int) -> bool:
    return machine.text(f"{_CPU}/cpu{cpu}/cache/index3/size") is not None


def _physical(machine: Machine, cpus: set[int]) -> int:
    """Cores that hold these logical processors."""
    return len({machine.text(f"{_CPU}/cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in cpus})


def _cpus(text: str | None) -> set[int]:
    """The numbers in a list as the kernel writes it, such as 0-3,8."""
    found: set[int] = set()
    for part in (text or "").split(","):
        if matched := re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part.strip()):  # Linux has room for 8,192
            found |= set(range(int(matched[1]), int(matched[2] or matched[1]) + 1))
    return found


def usable_threads(machine: Machine) -> int:
    """Threads worth starting: one for each physical core that this process may use."""
    cores = count_cores(machine)
    limits = [cores.physical or cores.logical, machine.affinity()]
    quota = machine.processor_limit()
    limits.append(None if quota is None else math.ceil(quota))
    return max(1, min((limit for limit in limits if limit), default=1))
