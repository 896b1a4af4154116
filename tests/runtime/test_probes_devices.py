"""Laptops whose GPU or NPU is there and not usable, each for another reason."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest

from edge.runtime.drivers import GPU, NPU, install_line
from edge.runtime.finding import Finding, Patient
from edge.runtime.machine import Machine, Sight
from edge.runtime.probes_devices import cards, gpu, npu, sight
from tests.laptops import CPU_SEEN, add_card, add_libraries, machine, write

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="names in /sys have colons, and its links are links")
NPU_LIBRARIES = ("libze_loader.so.1", "libze_intel_npu.so.1", "libnpu_driver_compiler.so")


def examined(which: Machine, probe: Any = npu) -> Finding:
    (finding,) = probe(Patient(which))
    return finding


def test_a_machine_without_is_no_problem(tmp_path: Path) -> None:
    for probe, kind in ((gpu, "GPU"), (npu, "NPU")):
        finding = examined(machine(tmp_path), probe)
        assert (finding.state, finding.mend) == ("note", None)
        assert f"no Intel {kind}" in finding.what


def test_another_makers_card_is_not_intels(tmp_path: Path) -> None:
    add_card(tmp_path, "GPU", driver="i915")
    write(tmp_path, **{"sys/bus/pci/devices/0000:00:02.0/vendor": "0x10de\n"})
    assert cards(machine(tmp_path), GPU) == []


def test_a_bridge_of_intel_is_no_gpu(tmp_path: Path) -> None:
    add_card(tmp_path, "GPU", driver="i915")
    write(tmp_path, **{"sys/bus/pci/devices/0000:00:02.0/class": "0x060000\n"})
    assert cards(machine(tmp_path), GPU) == []


def test_what_openvino_sees_is_told_with_driver_and_memory(tmp_path: Path) -> None:
    add_card(tmp_path, "GPU", driver="xe")
    facts = {"name": "Intel(R) Arc(TM) Graphics (iGPU)", "driver": "32.0.101", "memory_bytes": 16_000_000_000}
    finding = examined(machine(tmp_path, seen=Sight({**CPU_SEEN, "GPU": facts})), gpu)
    assert (finding.state, finding.mend) == ("ok", None)
    assert finding.what == "GPU is Intel(R) Arc(TM) Graphics (iGPU), driver 32.0.101, 16.0 GB of memory"


def test_without_a_kernel_module(tmp_path: Path) -> None:
    add_card(tmp_path, "NPU", driver=None)
    finding = examined(machine(tmp_path))
    assert finding.state == "problem"
    assert "no kernel module holds the Intel NPU at 0000:00:0b.0 (8086:7d1d, kernel 6.17.0-8-generic)" in finding.what
    assert finding.mend and finding.mend.startswith('sudo modprobe "$(cat /sys/bus/pci/devices/0000:00:0b.0/modalias)"')


def test_given_to_a_virtual_machine(tmp_path: Path) -> None:
    add_card(tmp_path, "GPU", driver="vfio-pci")
    finding = examined(machine(tmp_path), gpu)
    assert (finding.state, "virtual machine" in finding.what) == ("problem", True)


def test_a_module_that_could_not_start_the_device(tmp_path: Path) -> None:
    add_card(tmp_path, "NPU", driver="intel_vpu")
    (tmp_path / "sys/bus/pci/devices/0000:00:0b.0/accel/accel0").rmdir()
    finding = examined(machine(tmp_path))
    assert (finding.state, "could not start it" in finding.what) == ("problem", True)
    assert finding.mend and "linux-firmware" in finding.mend


def test_a_container_that_was_not_given_the_device(tmp_path: Path) -> None:
    add_card(tmp_path, "GPU", driver="i915", node=False)
    write(tmp_path, **{".dockerenv": ""})
    finding = examined(machine(tmp_path), gpu)
    assert "not passed into this container" in finding.what
    assert finding.mend and finding.mend.startswith("docker run --device /dev/dri ")


def test_a_node_that_is_missing_outside_a_container(tmp_path: Path) -> None:
    add_card(tmp_path, "GPU", driver="i915", node=False)
    assert "/dev/dri/renderD128 is not there" in examined(machine(tmp_path), gpu).what


@pytest.mark.parametrize(
    ("facts", "what", "mend"),
    [
        ({}, "the group render, which the user is not in", "sudo usermod -aG render $USER, then log out and in again"),
        ({"my_lasting_groups": lambda: frozenset({"render"})}, "joined after logging in", "newgrp render"),
        ({"my_groups": lambda: frozenset({"render"})}, "a container or a sandbox forbids it", "docker run"),
        ({"group_of": lambda path: "root"}, "its group is root, and it should be render",
         "sudo chown root:render /dev/accel/accel0"),
        ({"group_of": lambda path: "video"}, "belongs to the group video", "sudo usermod -aG video $USER"),
    ],
    ids=["not a member", "not logged in again", "a member", "root's", "video"],
)  # fmt: skip
def test_a_node_that_may_not_be_opened(tmp_path: Path, facts: dict[str, Any], what: str, mend: str) -> None:
    add_card(tmp_path, "NPU", driver="intel_vpu")
    add_libraries(tmp_path, *NPU_LIBRARIES)
    finding = examined(machine(tmp_path, may_open=lambda path: False, **facts))
    assert finding.state == "problem"
    assert "/dev/accel/accel0" in finding.what and what in finding.what
    assert finding.mend and mend in finding.mend
    assert finding.figures["nodes"][0]["may_open"] is False


def test_a_node_that_its_group_may_not_write(tmp_path: Path) -> None:
    add_card(tmp_path, "NPU", driver="intel_vpu")
    (tmp_path / "dev/accel/accel0").chmod(0o600)
    finding = examined(machine(tmp_path, may_open=lambda path: False))
    assert finding.mend and "sudo chmod g+rw /dev/accel/accel0" in finding.mend


@pytest.mark.parametrize("missing", NPU_LIBRARIES)
def test_a_library_of_the_npu_that_is_not_installed(tmp_path: Path, missing: str) -> None:
    add_card(tmp_path, "NPU", driver="intel_vpu")
    add_libraries(tmp_path, *(name for name in NPU_LIBRARIES if name != missing))
    finding = examined(machine(tmp_path))
    assert finding.state == "problem" and missing in finding.what
    assert finding.mend and finding.mend.startswith("sudo apt install libze1")


def test_a_library_on_the_users_own_path_counts(tmp_path: Path) -> None:
    add_card(tmp_path, "NPU", driver="intel_vpu")
    add_libraries(tmp_path, *NPU_LIBRARIES[1:])
    write(tmp_path, **{f"opt/npu/{NPU_LIBRARIES[0]}": ""})
    finding = examined(machine(tmp_path, environ={"LD_LIBRARY_PATH": "/opt/npu"}))
    assert "OpenVINO does not see it" in finding.what


def test_opencl_without_intels_driver(tmp_path: Path) -> None:
    add_card(tmp_path, "GPU", driver="xe")
    assert "libOpenCL.so.1" in examined(machine(tmp_path), gpu).what
    add_libraries(tmp_path, "libOpenCL.so.1")
    write(tmp_path, **{"etc/OpenCL/vendors/pocl.icd": "libpocl.so\n"})
    finding = examined(machine(tmp_path), gpu)
    assert "igdrcl" in finding.what
    assert finding.mend == "sudo apt install intel-opencl-icd ocl-icd-libopencl1"


def test_all_in_place_and_still_unseen_gives_openvinos_own_words(tmp_path: Path) -> None:
    add_card(tmp_path, "GPU", driver="xe")
    add_libraries(tmp_path, "libOpenCL.so.1")
    write(tmp_path, **{"etc/OpenCL/vendors/intel.icd": "/usr/lib/x86_64-linux-gnu/intel-opencl/libigdrcl.so\n"})
    finding = examined(machine(tmp_path, seen=Sight(CPU_SEEN, {"GPU": "clGetPlatformIDs error -1001"})), gpu)
    assert finding.state == "problem"
    assert finding.what.endswith("OpenVINO does not see it: clGetPlatformIDs error -1001")


def test_one_of_two_gpus_unseen_is_a_warning(tmp_path: Path) -> None:
    add_card(tmp_path, "GPU", driver="xe")
    add_card(tmp_path, "GPU", driver=None, address="0000:03:00.0")
    finding = examined(machine(tmp_path, seen=Sight({**CPU_SEEN, "GPU": {"name": "iGPU"}})), gpu)
    assert finding.state == "warning" and "0000:03:00.0" in finding.what


def test_versions_of_the_drivers_packages(tmp_path: Path) -> None:
    status = (
        "Package: intel-level-zero-npu\nStatus: install ok installed\nVersion: 1.35.0\n\n"
        "Package: libze1\nStatus: deinstall ok config-files\nVersion: 1.20\n"
    )
    write(tmp_path, **{"var/lib/dpkg/status": status})
    assert examined(machine(tmp_path)).figures["packages"] == {"intel-level-zero-npu": "1.35.0"}


@pytest.mark.parametrize(
    ("release", "line"),
    [
        ({"ID": "ubuntu", "ID_LIKE": "debian"}, "sudo apt install"),
        ({"ID": "linuxmint", "ID_LIKE": "ubuntu debian"}, "sudo apt"),
        ({"ID": "fedora"}, "sudo dnf install"), ({"ID": "rocky", "ID_LIKE": "rhel centos fedora"}, "sudo dnf"),
        ({"ID": "arch"}, "sudo pacman -S"), ({"ID": "manjaro", "ID_LIKE": "arch"}, "sudo pacman"),
        ({"ID": "opensuse-tumbleweed", "ID_LIKE": "opensuse suse"}, "sudo zypper"), ({"ID": "nixos"}, "hardware."),
        ({"ID": "slackware"}, "install the packages of https://"), ({}, "install the packages of https://"),
    ],
)  # fmt: skip
def test_each_family_has_its_own_line(release: dict[str, str], line: str) -> None:
    assert install_line(GPU, release).startswith(line)
    assert install_line(NPU, release)


def test_windows_points_to_its_device_manager(tmp_path: Path) -> None:
    finding = examined(machine(tmp_path, system="Windows"))
    assert finding.state == "note"
    assert finding.mend and "Neural processors" in finding.mend and "https://www.intel.com" in finding.mend


def test_wsl_points_to_both_sides(tmp_path: Path) -> None:
    which = machine(tmp_path)
    write(tmp_path, **{"proc/sys/kernel/osrelease": "6.6.87.2-microsoft-standard-WSL2\n"})
    finding = examined(which, gpu)
    assert finding.state == "note" and finding.mend and "intel-opencl-icd" in finding.mend


def test_an_openvino_that_crashes_is_a_problem_and_hides_no_hardware(tmp_path: Path) -> None:
    add_card(tmp_path, "NPU", driver="intel_vpu")
    add_libraries(tmp_path, *NPU_LIBRARIES)
    which = machine(tmp_path, seen=Sight(fault="listing OpenVINO's devices ended with exit code -11"))
    assert examined(which, sight).state == "problem"
    assert "could not be asked" in examined(which).what
    closed = dataclasses.replace(which, may_open=lambda path: False)
    assert "/dev/accel/accel0" in examined(closed).what
