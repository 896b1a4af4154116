"""Findings about memory: how much there is, how much a model needs, and how fast it is read."""

from __future__ import annotations

import mmap
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.runtime import plan as plans
from edge.runtime.cores import usable_threads
from edge.runtime.finding import Finding, Patient, gb
from edge.runtime.machine import Machine

_SMALLEST_BUFFER, _LARGEST_BUFFER = 256 << 20, 2 << 30
_CACHES = 4
"""Times the last-level cache that is read, so that most of it comes from memory."""
_UNKNOWN_CACHE = 64 << 20
_SECONDS = 1.0
_CACHE_FOLDERS = "sys/devices/system/cpu/cpu[0-9]*/cache/index3"
_BUSY = 0.6


def memory(patient: Patient) -> list[Finding]:
    """What is there, against what the model needs."""
    machine = patient.machine
    now, room = machine.memory(), machine.room()
    total, available = room.total, room.available
    limited = total < now.total
    figures: dict[str, Any] = {
        "total_bytes": now.total, "available_bytes": available, "swap_bytes": now.swap,
        "limit_bytes": total if limited else None, "needed_bytes": None, "longest_context": None,
    }  # fmt: skip
    there = f"{gb(available)} of {gb(total)} are available" + (" to this container or session" if limited else "")
    if patient.manifest is None or patient.shape is None:
        return [Finding("memory", "ok", there, figures=figures)]
    shape, threads = patient.shape, usable_threads(machine)
    tokens = min(plans.SHORTEST, shape.context_length)
    weighed = plans.plan(shape, tokens, available=available, total=total, threads=threads)
    needed = weighed.needed_bytes
    figures |= {"needed_bytes": needed, "longest_context": weighed.longest_context}
    need = f"the model needs about {gb(needed)} on the CPU with {tokens:,} tokens of conversation"
    if needed > total:
        mend = "use a machine with more memory"
        if limited and needed <= now.total:
            mend = "give the container more memory (docker run --memory)"
        elif patient.manifest.recipe.get("weights") != "int4":
            mend = f"glm4-edge export {patient.manifest.source.model} OUT --weights int4"
        return [Finding("memory", "problem", f"{need}, and there are {gb(total)} in all", mend, figures)]
    if needed > available:
        return [Finding("memory", "warning", f"{need}, and {there}", "close other programs first", figures)]
    what = f"{need}; {there}, enough for {weighed.longest_context:,} tokens"
    return [Finding("memory", "ok", what, figures=figures)]


@dataclass(frozen=True)
class Bandwidth:
    """How fast memory was read, in bytes a second."""

    best: float
    median: float
    """Well below the best: other programs were at the memory meanwhile."""
    threads: int
    buffer_bytes: int


def measure_bandwidth(threads: int, buffer_bytes: int, seconds: float = _SECONDS) -> Bandwidth:
    """Read a buffer again and again with all threads, each its own part of it.

    Taking a maximum is one instruction for each vector that comes from memory, and NumPy lets go of the interpreter
    meanwhile. Each thread also fills its part: memory then lies near the core that reads it.
    """
    parts = [_unasked(max(buffer_bytes // threads // 4, 1)) for _ in range(threads)]
    rates: list[float] = []
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: part.fill(1), parts))
        begin = now = time.perf_counter()
        while not rates or now - begin < seconds:
            start = now
            list(pool.map(np.max, parts))
            now = time.perf_counter()
            rates.append(sum(part.nbytes for part in parts) / (now - start))
    return Bandwidth(max(rates), float(np.median(rates)), threads, sum(part.nbytes for part in parts))


def _unasked(count: int) -> NDArray[np.float32]:
    """Memory on pages of the size that a program gets unasked, as OpenVINO's weights lie on them.

    NumPy asks Linux for huge pages; in a virtual machine those are read twice as fast.
    """
    if sys.platform == "linux":
        return np.frombuffer(mmap.mmap(-1, 4 * count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.float32)
    return np.empty(count, np.float32)


def last_level_cache(machine: Machine) -> int | None:
    """Bytes of all last-level caches together; None where the system does not tell."""
    sizes = {}
    for folder in machine.glob(_CACHE_FOLDERS):
        name = str(folder.relative_to(machine.root))
        shared, size = machine.text(f"{name}/shared_cpu_list"), machine.text(f"{name}/size") or ""
        if size.endswith("K") and size[:-1].isdigit():
            sizes[shared] = int(size[:-1]) << 10
    return sum(sizes.values()) or None


def bandwidth(patient: Patient) -> list[Finding]:
    """Read memory for a second; what it bounds is the speed of answers."""
    machine = patient.machine
    size = max(_SMALLEST_BUFFER, _CACHES * (last_level_cache(machine) or _UNKNOWN_CACHE))
    size = min(size, _LARGEST_BUFFER, max(machine.memory().available // 4, 64 << 20))
    found = measure_bandwidth(usable_threads(machine), size)
    figures: dict[str, Any] = {
        "best_bytes_per_second": round(found.best), "median_bytes_per_second": round(found.median),
        "threads": found.threads, "buffer_bytes": found.buffer_bytes, "bytes_per_token": None,
        "most_tokens_per_second": None,
    }  # fmt: skip
    what = f"{found.best / 1e9:.0f} GB/s read by {found.threads} threads"
    if patient.shape is not None:
        read = patient.shape.weight_bytes - patient.shape.table_bytes
        most = found.best / read
        figures |= {"bytes_per_token": read, "most_tokens_per_second": round(most, 2)}
        what += f"; a token reads {gb(read)} of the model, so one answer has at most {most:.3g} tokens/s on the CPU"
    if found.median < _BUSY * found.best:
        what += f"; half of the time it was below {found.median / 1e9:.0f} GB/s"
        return [Finding("bandwidth", "note", what, "close other programs: they are using the memory, too", figures)]
    return [Finding("bandwidth", "ok", what, figures=figures)]
