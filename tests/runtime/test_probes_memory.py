from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.runtime import plan as plans
from edge.runtime import probes_memory
from edge.runtime.finding import Finding, Patient
from edge.runtime.machine import Machine, Memory
from edge.runtime.probes_memory import (
    Bandwidth,
    bandwidth,
    last_level_cache,
    measure_bandwidth,
    memory,
)
from tests.laptops import machine, manifest, shape, write

CPU = "sys/devices/system/cpu"


def examined(which: Machine, probe: Any = memory) -> Finding:
    (finding,) = probe(Patient(which))
    return finding


def with_model(which: Machine, probe: Any = memory, **changes: Any) -> Finding:
    (finding,) = probe(Patient(which, Path("model"), manifest(**changes), shape()))
    return finding


@pytest.mark.parametrize(
    ("total", "available", "state", "mend"),
    [(32, 24, "ok", None), (16, 5, "warning", "close other programs"), (5, 4, "problem", "a machine with more memory")],
)
def test_the_need_against_what_is_there(
    tmp_path: Path, total: int, available: int, state: str, mend: str | None
) -> None:
    which = machine(tmp_path, memory=lambda: Memory(total * 10**9, available * 10**9, 0))
    finding = with_model(which)
    assert finding.state == state
    assert (mend is None and finding.mend is None) or (mend is not None and mend in (finding.mend or ""))
    weighed = plans.plan(shape(), plans.SHORTEST, available=available * 10**9, total=total * 10**9, threads=4)
    assert finding.figures["needed_bytes"] == weighed.needed_bytes
    assert finding.figures["longest_context"] == weighed.longest_context


def test_a_model_that_is_too_large_may_be_made_smaller(tmp_path: Path) -> None:
    which = machine(tmp_path, memory=lambda: Memory(5 * 10**9, 4 * 10**9, 0))
    finding = with_model(which, recipe={"weights": "int8"})
    assert finding.mend == "glm4-edge export glm-4-9b OUT --weights int4"


def test_a_containers_limit_is_what_there_is(tmp_path: Path) -> None:
    which = machine(tmp_path)
    write(tmp_path, **{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "5000000000\n",
                       "sys/fs/cgroup/memory.current": "3000000000\n"})  # fmt: skip
    assert "2.0 GB of 5.0 GB are available to this container" in examined(which).what
    finding = with_model(which)
    assert finding.state == "problem" and finding.mend and "docker run --memory" in finding.mend


def test_last_level_caches_are_counted_once_each(tmp_path: Path) -> None:
    assert last_level_cache(machine(tmp_path)) is None
    files = {}
    for cpu, shared in ((0, "0-1"), (1, "0-1"), (2, "2-3"), (3, "2-3")):
        files[f"{CPU}/cpu{cpu}/cache/index3/shared_cpu_list"] = shared
        files[f"{CPU}/cpu{cpu}/cache/index3/size"] = "32768K\n"
    write(tmp_path, **files)
    assert last_level_cache(machine(tmp_path)) == 64 << 20


def test_bandwidth_is_what_one_thread_reads_alone_or_more() -> None:
    """Against a plain copy of NumPy's, which reads and writes; a busy machine gets three tries."""
    source = np.ones(64 << 20, np.uint8)
    for _ in range(3):
        start = time.perf_counter()
        source.copy()
        copied = source.nbytes / (time.perf_counter() - start)
        found = measure_bandwidth(2, 256 << 20, seconds=0.3)
        assert found.median <= found.best < 4e12
        if found.best > copied / 2:
            return
    pytest.fail(f"read at {found.best / 1e9:.1f} GB/s, copied at {copied / 1e9:.1f} GB/s")


def test_every_byte_of_the_buffer_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(probes_memory.np, "max", lambda part: seen.append(part.nbytes))
    found = measure_bandwidth(3, 3 << 20, seconds=0)
    assert seen == [1 << 20] * 3
    assert (found.threads, found.buffer_bytes) == (3, 3 << 20)


def test_what_bandwidth_bounds_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def measured(threads: int, size: int) -> Bandwidth:
        asked.append((threads, size))
        return Bandwidth(47.79e9, 40e9, threads, size)

    monkeypatch.setattr(probes_memory, "measure_bandwidth", measured)
    finding = with_model(machine(tmp_path), bandwidth)
    assert asked == [(4, 256 << 20)]
    assert finding.state == "ok" and "at most 10 tokens/s" in finding.what
    assert finding.figures["most_tokens_per_second"] == 10.0


def test_a_busy_memory_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes_memory, "measure_bandwidth", lambda threads, size: Bandwidth(50e9, 20e9, threads, size))
    finding = examined(machine(tmp_path), bandwidth)
    assert finding.state == "note" and "below 20 GB/s" in finding.what


def test_little_memory_is_not_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes_memory, "measure_bandwidth", lambda threads, size: Bandwidth(1.0, 1.0, threads, size))
    which = machine(tmp_path, memory=lambda: Memory(10**9, 400 << 20, 0))
    assert examined(which, bandwidth).figures["buffer_bytes"] == 100 << 20
