from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import psutil
import pytest

from edge.runtime import cores as cores_module
from edge.runtime.cores import Cores, count_cores, usable_threads
from edge.runtime.cores_windows import parse
from edge.runtime.finding import Finding, Patient
from edge.runtime.machine import Machine
from edge.runtime.probes_cpu import cores, features, processor
from tests.laptops import machine, write

CPU = "sys/devices/system/cpu"


def flags(root: Path, words: str) -> Machine:
    which = machine(root)
    write(root, **{"proc/cpuinfo": f"model name\t: Some CPU\nflags\t\t: {words}\n"})
    return which


def examined(which: Machine, probe: Any = processor) -> Finding:
    (finding,) = probe(Patient(which))
    return finding


@pytest.mark.parametrize(
    ("words", "state", "said"),
    [
        ("sse4_2", "warning", "no AVX2"),
        ("sse4_2 avx2", "note", "no VNNI"),
        ("avx2 avx_vnni", "ok", "Some CPU has AVX2, VNNI; without AVX-512"),
        ("avx2 avx512f avx512_vnni avx512_bf16 amx_tile amx_int8 amx_bf16 avx512_fp16", "ok",
         "Some CPU has AVX2, AVX-512, VNNI, BF16, AMX, AVX512-FP16"),
    ],
)  # fmt: skip
def test_what_a_processor_lacks_is_said_with_what_it_costs(tmp_path: Path, words: str, state: str, said: str) -> None:
    finding = examined(flags(tmp_path, words))
    assert finding.state == state and said in finding.what


def test_a_virtual_machine_that_hides_avx2_is_told_how_not_to(tmp_path: Path) -> None:
    assert "pass the host's processor" in (examined(flags(tmp_path, "sse4_2 hypervisor")).mend or "")
    assert "pass the host's processor" not in (examined(flags(tmp_path, "sse4_2")).mend or "")


def test_unknown_features_are_unknown_not_absent(tmp_path: Path) -> None:
    which = machine(tmp_path)
    (tmp_path / "proc/cpuinfo").unlink()
    assert features(which) is None
    finding = examined(which)
    assert finding.state == "note" and "avx2" not in finding.figures


def test_features_come_from_elsewhere_where_there_is_no_proc(tmp_path: Path) -> None:
    which = machine(tmp_path, other_features=lambda: frozenset({"avx2", "avx_vnni"}))
    (tmp_path / "proc/cpuinfo").unlink()
    assert examined(which).state == "ok"


def test_another_architecture_is_a_note(tmp_path: Path) -> None:
    assert examined(machine(tmp_path, architecture="aarch64")).state == "note"


def meteor_lake(root: Path) -> Machine:
    """6 P cores with two threads each, 8 E cores, 2 low-power E cores on another tile, without the L3."""
    which = machine(root, affinity=lambda: 22)
    siblings = {cpu: f"{cpu - cpu % 2}-{cpu - cpu % 2 + 1}" for cpu in range(12)}
    files = {f"{CPU}/online": "0-21\n", "sys/devices/cpu_core/cpus": "0-11\n", "sys/devices/cpu_atom/cpus": "12-21\n"}
    for cpu in range(22):
        files[f"{CPU}/cpu{cpu}/topology/thread_siblings_list"] = siblings.get(cpu, str(cpu))
        files[f"{CPU}/cpu{cpu}/cache/index2/size"] = "2048K\n"
        if cpu < 20:
            files[f"{CPU}/cpu{cpu}/cache/index3/size"] = "24576K\n"
            files[f"{CPU}/cpu{cpu}/cache/index3/shared_cpu_list"] = "0-19\n"
    write(root, **files)
    return which


def test_cores_by_kind(tmp_path: Path) -> None:
    assert count_cores(meteor_lake(tmp_path)) == Cores(22, 16, 6, 8, 2)
    finding = examined(meteor_lake(tmp_path), cores)
    assert finding.state == "ok"
    assert finding.what == "16 cores, 22 logical: 6 performance, 8 efficient, 2 low-power"


def test_cores_that_are_switched_off_do_not_count(tmp_path: Path) -> None:
    which = meteor_lake(tmp_path)
    write(tmp_path, **{f"{CPU}/online": "0-11\n"})
    assert count_cores(which) == Cores(12, 6)


def test_cores_that_are_all_alike_are_of_no_kind(tmp_path: Path) -> None:
    assert count_cores(machine(tmp_path)) == Cores(4, 4)


def test_fewer_cores_than_there_are_is_a_warning(tmp_path: Path) -> None:
    finding = examined(machine(tmp_path, affinity=lambda: 2), cores)
    assert finding.state == "warning" and "2 of the logical ones only" in finding.what
    assert finding.mend and "taskset" in finding.mend


def test_a_share_of_the_time_is_a_warning(tmp_path: Path) -> None:
    which = machine(tmp_path)
    write(tmp_path, **{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"})
    finding = examined(which, cores)
    assert finding.state == "warning" and "the time of 1.5" in finding.what
    assert usable_threads(which) == 2


def test_threads_are_physical_cores_that_may_be_used(tmp_path: Path) -> None:
    assert usable_threads(meteor_lake(tmp_path / "hybrid")) == 16
    assert usable_threads(machine(tmp_path / "plain", affinity=lambda: 3)) == 3


def record(efficiency: int, relation: int = 0, size: int = 48) -> bytes:
    return struct.pack("<IIBB", relation, size, 1, efficiency).ljust(size, b"\0")


def test_windows_records_are_read() -> None:
    records = record(2) * 6 + record(1) * 8 + record(0) * 2 + record(9, relation=3, size=76)
    assert parse(records) == {2: 6, 1: 8, 0: 2}
    assert parse(b"") == {}


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ({2: 6, 1: 8, 0: 2}, (6, 8, 2)), ({1: 6, 0: 8}, (6, 8, None)),
        ({0: 4}, (None, None, None)), (None, (None, None, None)),
    ],
)  # fmt: skip
def test_windows_classes_become_kinds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: Any, expected: tuple[Any, ...]
) -> None:
    monkeypatch.setattr(cores_module, "core_kinds", lambda: kinds)
    found = count_cores(machine(tmp_path, system="Windows"))
    assert (found.performance, found.efficient, found.low_power) == expected
    assert found.logical


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="/proc tells what to compare with")
def test_this_processor_is_told_truly() -> None:
    finding = examined(Machine())
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    words = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    assert finding.figures.get("avx2", False) == ("avx2" in words)
    assert finding.figures.get("amx", False) == ("amx_tile" in words)


@pytest.mark.parametrize(
    ("limits", "threads"),
    [({"affinity": lambda: 2}, 2), ({"affinity": lambda: None}, 4), ({"quota": "150000 100000"}, 2),
     ({"quota": "garbage 0"}, 4), ({"quota": "0 100000"}, 4)],
)  # fmt: skip
def test_threads_are_what_this_process_may_use(tmp_path: Path, limits: dict[str, Any], threads: int) -> None:
    quota = limits.pop("quota", None)
    which = machine(tmp_path, **limits)
    if quota is not None:
        write(tmp_path, **{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": quota})
    assert usable_threads(which) == threads


def test_a_list_of_processors_that_no_machine_has(tmp_path: Path) -> None:
    which = machine(tmp_path)
    write(tmp_path, **{"sys/devices/system/cpu/online": "0-99999999999\n"})
    found = count_cores(which)
    assert found.logical == psutil.cpu_count()
