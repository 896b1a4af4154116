from __future__ import annotations

import json
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from edge.files import HOME_VARIABLE
from edge.manifest import Check, Manifest
from edge.runtime import doctor, probes_cpu, probes_memory, probes_system
from edge.runtime.doctor import document, examine
from edge.runtime.finding import Finding, Patient
from edge.runtime.machine import Sight
from edge.runtime.probes_model import checks, target, versions
from edge.runtime.probes_system import disk, hypervisor, system
from tests.laptops import CPU_SEEN, PACKAGES, Package, machine, manifest, write, write_model

Usage = namedtuple("Usage", "total used free")


def test_a_probe_that_fails_is_a_finding_and_the_others_go_on(tmp_path: Path) -> None:
    def broken(patient: Patient) -> list[Finding]:
        raise ZeroDivisionError("no cores")

    findings = examine(machine=machine(tmp_path), probes=(broken, system))
    assert [finding.name for finding in findings] == ["broken", "system"]
    assert findings[0].state == "warning" and "ZeroDivisionError: no cores" in findings[0].what
    assert findings[0].figures["where"].startswith("test_doctor.py:")


def test_ctrl_c_is_no_finding(tmp_path: Path) -> None:
    def stopped(patient: Patient) -> list[Finding]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        examine(machine=machine(tmp_path), probes=(stopped,))


def test_progress_counts_the_probes(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    examine(machine=machine(tmp_path), probes=(system, system), progress=lambda *what: told.append(what))
    assert [(done, total) for _, done, total in told] == [(0, 2), (1, 2)]


def test_a_folder_without_a_model_is_a_problem_and_the_machine_is_examined(tmp_path: Path) -> None:
    findings = examine(tmp_path, machine=machine(tmp_path / "root"), probes=(system, checks, versions, target))
    assert [(finding.name, finding.state) for finding in findings] == [("model", "problem"), ("system", "ok")]
    assert findings[0].mend == "Make one with: glm4-edge export MODEL OUT"


def test_a_damaged_model_is_a_problem(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "openvino_model.bin").write_bytes(b"12345")
    (finding,) = examine(tmp_path, machine=machine(tmp_path / "root"), probes=())
    assert finding.state == "problem" and "openvino_model.bin" in finding.what


def test_a_model_without_its_config_is_a_problem(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "config.json").unlink()
    (finding,) = examine(tmp_path, machine=machine(tmp_path / "root"), probes=())
    assert finding.state == "problem" and "config.json" in finding.what


def test_a_whole_model_is_examined(tmp_path: Path) -> None:
    write_model(tmp_path)
    findings = examine(tmp_path, machine=machine(tmp_path / "root"), probes=(checks, versions, target))
    assert {finding.name: finding.state for finding in findings} == {
        "model": "ok", "model checks": "ok", "model versions": "ok", "model device": "ok",
    }  # fmt: skip


def judged(probe: Any, tmp_path: Path, made: Manifest | None = None, **facts: Any) -> Finding:
    (finding,) = probe(Patient(machine(tmp_path, **facts), tmp_path, made or manifest()))
    return finding


def test_a_check_that_failed_or_warned_at_export(tmp_path: Path) -> None:
    warned = Check(name="template", passed=True, figures={}, message="it is slow", hint="Give another")
    failed = Check(name="weights", passed=False, figures={}, message="they are zero", hint="Export the model again")
    finding = judged(checks, tmp_path, manifest(checks=[warned]))
    assert (finding.state, finding.what, finding.mend) == ("warning", "template: it is slow", "Give another")
    finding = judged(checks, tmp_path, manifest(checks=[warned, failed]))
    assert (finding.state, finding.what) == ("problem", "weights: they are zero")
    assert judged(checks, tmp_path, manifest(checks=[])).mend == f"glm4-edge verify {tmp_path}"


def test_another_openvino_than_it_was_proved_with(tmp_path: Path) -> None:
    now = {**PACKAGES, "openvino": Package("2026.4.2")}
    finding = judged(versions, tmp_path, packages=now)
    assert finding.state == "note" and "openvino 2026.4.1, now 2026.4.2" in finding.what
    assert finding.mend == f"glm4-edge verify {tmp_path}"


@pytest.mark.parametrize(
    ("exported_for", "devices", "state", "mend"),
    [
        ("cpu", ["CPU"], "ok", None), ("igpu", ["CPU", "GPU.0", "GPU.1"], "ok", None),
        ("npu", ["CPU", "NPU"], "ok", None),
        ("npu", ["CPU"], "warning", "--for cpu"), ("igpu", ["CPU"], "warning", "--for cpu"),
        ("cpu", ["CPU", "NPU"], "note", "--for npu"),
    ],
)  # fmt: skip
def test_the_device_it_was_made_for(
    tmp_path: Path, exported_for: str, devices: list[str], state: str, mend: str | None
) -> None:
    finding = judged(target, tmp_path, manifest(target=exported_for), seen=Sight({name: {} for name in devices}))
    assert finding.state == state
    assert (mend or "") in (finding.mend or "") and (finding.mend is None) == (mend is None)


def test_nothing_is_said_of_devices_that_could_not_be_listed(tmp_path: Path) -> None:
    assert target(Patient(machine(tmp_path, seen=Sight(fault="it crashed")), tmp_path, manifest())) == []


def test_what_stands_between_system_and_hardware(tmp_path: Path) -> None:
    which = machine(tmp_path)
    (finding,) = system(Patient(which))
    assert (finding.state, finding.what) == ("ok", "Ubuntu 26.04 LTS, kernel 6.17.0-8-generic")
    write(
        tmp_path,
        **{
            ".dockerenv": "",
            "proc/cpuinfo": "flags : avx2 hypervisor\n",
            "sys/class/dmi/id/sys_vendor": "QEMU\n",
            "sys/class/dmi/id/product_name": "Standard PC\n",
        },
    )
    (finding,) = system(Patient(which))
    assert finding.state == "note"
    assert "in a virtual machine (QEMU Standard PC), in a container (docker)" in finding.what
    assert hypervisor(machine(tmp_path / "bare")) is None


@pytest.mark.parametrize(("free", "state"), [(50, "ok"), (4, "warning")])
def test_room_for_a_compiled_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, state: str) -> None:
    monkeypatch.setattr(probes_system.shutil, "disk_usage", lambda place: Usage(10**12, 0, free * 10**9))
    cache, beside = disk(Patient(machine(tmp_path), tmp_path, manifest()))
    assert (cache.state, beside.state) == (state, "ok")
    assert "5.4 GB" in cache.what or state == "ok"
    assert cache.mend is None or HOME_VARIABLE in cache.mend


def test_a_cache_that_may_not_be_written_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes_system.os, "access", lambda place, mode: False)
    (cache,) = disk(Patient(machine(tmp_path)))
    assert cache.state == "problem" and str(tmp_path) in cache.what


def test_a_cache_below_another_users_folder_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(folder: Path) -> Path:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(probes_system, "existing_part", forbidden)
    (cache,) = disk(Patient(machine(tmp_path)))
    assert cache.state == "problem" and HOME_VARIABLE in (cache.mend or "")
    assert cache.figures["free_bytes"] is None


def test_the_document_is_plain_and_stable(tmp_path: Path) -> None:
    findings = examine(machine=machine(tmp_path), probes=tuple(p for p in doctor.PROBES if p.__name__ != "bandwidth"))
    told = json.loads(json.dumps(document(findings, machine=machine(tmp_path))))
    assert list(told) == ["machine", "folder", "findings", "problems"]
    assert all(set(finding) == {"name", "state", "what", "mend", "figures"} for finding in told["findings"])
    assert told["machine"]["cpu"] == CPU_SEEN["CPU"]["name"]
    assert told["machine"]["cores"]["physical"] == 4
    assert told["problems"] == 0


def test_a_cache_folder_below_a_file_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (finding,) = disk(Patient(machine(tmp_path, home=tmp_path / "file" / "home")))
    assert finding.state == "problem" and f"{tmp_path / 'file'} is no folder" in finding.what
    assert HOME_VARIABLE in (finding.mend or "")


def test_odd_cgroup_files_end_no_examination(tmp_path: Path) -> None:
    which = machine(tmp_path, home=tmp_path)
    groups = {"memory.max": "500000000", "memory.current": "max", "cpu.max": "100000 0"}
    write(tmp_path, **{"proc/self/cgroup": "garbage\n0::/\n"}, **{f"sys/fs/cgroup/{n}": t for n, t in groups.items()})
    findings = examine(machine=which, probes=(probes_memory.memory, probes_cpu.cores))
    assert [finding.name for finding in findings] == ["memory", "cores"]
    assert not any("could not be examined" in finding.what for finding in findings)
    json.dumps(document(findings, machine=which), allow_nan=False)
