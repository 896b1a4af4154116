from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import pytest

from edge.runtime import machine as module
from edge.runtime.machine import Machine, look, processor_name
from tests.laptops import machine, write


def test_this_machines_openvino_sees_a_cpu() -> None:
    seen = look()
    assert seen.fault is None
    assert seen.devices["CPU"]["name"]
    assert "FP32" in seen.devices["CPU"]["capabilities"]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("import os; os.abort()", "exit code "),
        ("import sys; sys.exit('libze_loader.so.1 is broken')", "libze_loader.so.1 is broken"),
        ("print('no json')", "exit code 0"),
        ("pass", "exit code 0"),
    ],
)
def test_a_child_that_ends_without_an_answer_is_told(script: str, said: str) -> None:
    seen = look((sys.executable, "-c", script))
    assert seen.fault and said in seen.fault
    assert not seen.devices


def test_an_answer_counts_even_if_the_child_crashes_after_it() -> None:
    script = 'import os; os.write(1, b\'{"devices": {"CPU": {}}}\\n\'); os.abort()'
    assert look((sys.executable, "-c", script)).devices == {"CPU": {}}


def test_a_child_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.2)
    seen = look((sys.executable, "-c", "import time; time.sleep(60)"))
    assert seen.fault and "0.2 seconds" in seen.fault


def test_a_processor_has_openvinos_name_where_there_is_no_proc(tmp_path: Path) -> None:
    which = machine(tmp_path, seen=module.Sight({"CPU": {"name": "Some CPU"}}))
    assert processor_name(which) == "Intel(R) Core(TM) Ultra 7 155H"
    (tmp_path / "proc/cpuinfo").unlink()
    assert processor_name(which) == "Some CPU"


def test_openvino_is_asked_once(tmp_path: Path) -> None:
    asked: list[int] = []
    which = machine(tmp_path, look=lambda: asked.append(1) or module.Sight())
    assert which.sight is which.sight
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"proc/self/cgroup": "0::/user.slice/me\n", "sys/fs/cgroup/user.slice/me/memory.max": "max\n",
          "sys/fs/cgroup/user.slice/memory.max": "8000000000\n"}, 8_000_000_000),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "4000000000\n"}, 4_000_000_000),
        ({"proc/self/cgroup": "0::/../../of-the-host\n", "sys/fs/cgroup/memory.max": "4000000000\n"}, 4_000_000_000),
        ({"proc/self/cgroup": "4:memory:/docker/abc\n0::/\n",
          "sys/fs/cgroup/memory/memory.limit_in_bytes": "2000000000\n"}, 2_000_000_000),
        ({"proc/self/cgroup": "4:memory:/a\n",
          "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ({}, None),
        ({"proc/self/cgroup": "garbage\n\n:::\n0::\n", "sys/fs/cgroup/memory.max": "4000000000\n"}, None),
        ({"proc/self/cgroup": "garbage\n0::/\n", "sys/fs/cgroup/memory.max": "²\n"}, None),
    ],
    ids=["a group above", "v2 in a container", "the host's path", "v1 in a container", "v1 without", "none", "garbage",
         "no number"],
)  # fmt: skip
def test_the_memory_that_a_cgroup_leaves(tmp_path: Path, files: dict[str, str], limit: int | None) -> None:
    write(tmp_path, **files)
    assert machine(tmp_path).memory_limit() == limit


def test_what_the_page_cache_holds_is_not_used(tmp_path: Path) -> None:
    write(tmp_path, **{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.current": "5000\n",
                       "sys/fs/cgroup/memory.stat": "anon 1000\ninactive_file 3000\n"})  # fmt: skip
    assert machine(tmp_path).memory_used_of_limit() == 2000


@pytest.mark.parametrize(
    ("limit", "used", "room"),
    [
        ("8000000000", "3000000000", (8_000_000_000, 5_000_000_000)),
        ("8000000000", "9000000000", (8_000_000_000, 0)),
        ("8000000000", "max", (8_000_000_000, 8_000_000_000)),  # no kernel says so, and no plan ends for it
        ("30000000000", "1", (30_000_000_000, 24_000_000_000)),  # the machine itself has less
        ("64000000000", "1", (32_000_000_000, 24_000_000_000)),
        ("max", "1", (32_000_000_000, 24_000_000_000)),
    ],
)  # fmt: skip
def test_the_memory_that_this_process_can_have(tmp_path: Path, limit: str, used: str, room: tuple[int, int]) -> None:
    write(tmp_path, **{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": limit,
                       "sys/fs/cgroup/memory.current": used})  # fmt: skip
    found = machine(tmp_path).room()
    assert (found.total, found.available) == room


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "100000 0\n"}, 1.0),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "0 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "100000 often\n"}, 1.0),
        ({"proc/self/cgroup": "3:cpu:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n"}, 2.0),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "3:cpu,cpuacct:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
        ({"proc/self/cgroup": "3:cpu:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n"}, None),
    ],
)  # fmt: skip
def test_the_processors_that_a_cgroup_leaves(tmp_path: Path, files: dict[str, str], limit: float | None) -> None:
    write(tmp_path, **files)
    assert machine(tmp_path).processor_limit() == limit


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({".dockerenv": ""}, "docker"), ({"run/.containerenv": ""}, "podman"),
        ({"run/systemd/container": "lxc\n"}, "lxc"), ({}, None),
    ],
)  # fmt: skip
def test_containers(tmp_path: Path, files: dict[str, str], kind: str | None) -> None:
    write(tmp_path, **files)
    assert machine(tmp_path).container == kind


def test_this_machine_tells_the_truth_about_itself() -> None:
    here = Machine()
    assert here.memory().total == psutil.virtual_memory().total
    assert here.package("click") is not None and here.package("no-such-package") is None
    assert processor_name(here)
    if sys.platform == "linux":
        assert here.affinity() == len(os.sched_getaffinity(0))
        assert here.number("proc/sys/kernel/pid_max")
        assert here.group_of(Path("/dev/null")) in here.my_groups() or os.getuid() != 0


def test_a_closed_standard_output_has_no_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert Machine().encoding == ""
