from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.runtime import probes_memory
from edge.runtime.finding import Finding, Patient
from edge.runtime.machine import Machine, Memory
from edge.runtime.probes_memory import (
    Bandwidth,
    bandwidth,
    bytes_per_token,
    last_level_cache,
    measure_bandwidth,
    memory,
    needed_bytes,
)
from tests.laptops import machine, manifest, write

CPU = "sys/devices/system/cpu"


def examined(which: Machine, folder: Path | None = None, probe: Any = memory) -> Finding:
    (finding,) = probe(Patient(which, folder, manifest() if folder is not None else None))
    return finding


def test_the_need_is_what_was_measured_at_9b() -> None:
    """9.9 GB resident for an IR of 5.4 GB, and 20 KB of cache for a token in u8."""
    assert needed_bytes(manifest(), Path(), 0) == pytest.approx(9.99e9, rel=0.02)
    assert needed_bytes(manifest(), Path(), 1000) - needed_bytes(manifest(), Path(), 0) == 20_480_000


@pytest.mark.parametrize(
    ("total", "available", "state", "mend"),
    [(32, 24, "ok", None), (16, 6, "warning", "close other programs"), (8, 6, "problem", "--weights int4")],
)
def test_the_need_against_what_is_there(
    tmp_path: Path, total: int, available: int, state: str, mend: str | None
) -> None:
    which = machine(tmp_path, memory=lambda: Memory(total * 10**9, available * 10**9, 0))
    finding = examined(which, tmp_path)
    assert finding.state == state
    assert (mend is None and finding.mend is None) or (mend is not None and mend in (finding.mend or ""))
    assert "10.1 GB" in finding.what


def test_a_containers_limit_is_what_there_is(tmp_path: Path) -> None:
    which = machine(tmp_path)
    write(tmp_path, **{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "8000000000\n",
                       "sys/fs/cgroup/memory.current": "3000000000\n"})  # fmt: skip
    assert "5.0 GB of 8.0 GB are available to this container" in examined(which).what
    finding = examined(which, tmp_path)
    assert finding.state == "problem" and finding.mend and "docker run --memory" in finding.mend


def test_a_token_reads_all_but_an_embedding_that_is_only_looked_up(tmp_path: Path) -> None:
    size = 5_400_000_000
    assert bytes_per_token(manifest(), tmp_path) == size
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 4096, "tie_word_embeddings": True}))
    assert bytes_per_token(manifest(), tmp_path) == size
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 4096}))
    assert bytes_per_token(manifest(), tmp_path) == size - 151552 * 4096
    assert bytes_per_token(manifest(recipe={"weights": "bf16"}), tmp_path) == size - 2 * 151552 * 4096


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
        return Bandwidth(54e9, 50e9, threads, size)

    monkeypatch.setattr(probes_memory, "measure_bandwidth", measured)
    finding = examined(machine(tmp_path), tmp_path, bandwidth)
    assert asked == [(4, 256 << 20)]
    assert finding.state == "ok" and "at most 10 tokens/s" in finding.what
    assert finding.figures["most_tokens_per_second"] == 10.0


def test_a_busy_memory_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes_memory, "measure_bandwidth", lambda threads, size: Bandwidth(50e9, 20e9, threads, size))
    finding = examined(machine(tmp_path), None, bandwidth)
    assert finding.state == "note" and "below 20 GB/s" in finding.what


def test_little_memory_is_not_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes_memory, "measure_bandwidth", lambda threads, size: Bandwidth(1.0, 1.0, threads, size))
    which = machine(tmp_path, memory=lambda: Memory(10**9, 400 << 20, 0))
    assert examined(which, None, bandwidth).figures["buffer_bytes"] == 100 << 20
