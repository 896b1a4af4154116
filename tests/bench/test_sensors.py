from __future__ import annotations

import mmap
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge.bench.sensors import Elsewhere, MemoryWatch, Reading, between, look


def machine(root: Path, energy: int, throttled: int) -> Path:
    package = root / "sys/class/powercap/intel-rapl:0"
    part = root / "sys/class/powercap/intel-rapl:0:0"
    for folder in (package, part):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "energy_uj").write_text(str(energy))
        (folder / "max_energy_range_uj").write_text("1000000")
    for core in range(2):
        folder = root / f"sys/devices/system/cpu/cpu{core}/thermal_throttle"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "core_throttle_count").write_text(str(throttled))
    return root


def test_energy_and_throttling_are_differences(tmp_path: Path) -> None:
    before = look(machine(tmp_path, 500_000, 3))
    assert between(before, look(machine(tmp_path, 900_000, 4))) == {"energy_joules": pytest.approx(0.4), "throttled": 2}


def test_a_counter_that_began_anew_is_seen(tmp_path: Path) -> None:
    before = look(machine(tmp_path, 900_000, 0))
    assert between(before, look(machine(tmp_path, 100_000, 0)))["energy_joules"] == pytest.approx(0.2)


def test_what_cannot_be_read_is_none(tmp_path: Path) -> None:
    assert look(tmp_path) == Reading({}, {}, None)
    assert between(look(tmp_path), look(tmp_path)) == {"energy_joules": None, "throttled": None}


def test_the_peak_of_memory_is_kept() -> None:
    with MemoryWatch() as watch:
        before = watch.resident
        with mmap.mmap(-1, 64 << 20) as filled:  # pages of its own, whatever the heap has free
            for place in range(0, len(filled), 4096):
                filled[place] = 1
            time.sleep(0.3)
    assert watch.resident >= before + (50 << 20)


def test_own_work_is_not_elsewhere() -> None:
    elsewhere, end = Elsewhere(), time.monotonic() + 0.5
    while time.monotonic() < end:
        sum(range(1000))
    share = elsewhere.share()
    assert share is None or 0 <= share <= 1


def test_the_memory_of_a_process_below_counts_where_it_is_asked_for() -> None:
    script = "held = bytearray(b'x' * 200_000_000); print(len(held), flush=True); input()"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child, MemoryWatch() as watch:
        assert child.stdout is not None and child.stdout.readline()
        before = watch.resident
        watch.with_children()
        time.sleep(0.5)
        assert watch.resident > before + 150_000_000
        child.communicate(b"\n")
        time.sleep(0.3)  # it is gone, and that is no fault
    assert watch.resident > before + 150_000_000
