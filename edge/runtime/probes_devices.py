"""Findings about GPU and NPU: of what is in the machine, the first step that keeps OpenVINO from seeing it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge.runtime.drivers import (
    GPU,
    INTEL,
    LIBRARY_FOLDERS,
    NPU,
    WINDOWS_PAGE,
    Kind,
    install_line,
)
from edge.runtime.finding import Finding, Patient, State, gb
from edge.runtime.machine import Machine

_LOG_IN_AGAIN = "then log out and in again"
_GROUP_USES = 0o060
_OPENCL_DRIVER = "igdrcl"
_ICD_FILES = ("etc/OpenCL/vendors/*.icd", "run/opengl-driver/etc/OpenCL/vendors/*.icd")


@dataclass(frozen=True)
class Card:
    """A device on the PCI bus."""

    address: str
    product: str
    """The maker's number for it."""
    driver: str | None
    """The kernel module that holds it."""
    nodes: tuple[str, ...] = ()
    """Files through which programs use it, as the kernel names them: /dev/dri/renderD128."""


def sight(patient: Patient) -> list[Finding]:
    """Whether OpenVINO can be asked at all."""
    seen = patient.machine.sight
    if seen.fault is not None:
        mend = "python -m pip install --force-reinstall openvino, or update the driver of the GPU or NPU"
        return [Finding("devices", "problem", seen.fault, mend)]
    return [Finding("devices", "ok", f"OpenVINO sees {', '.join(seen.devices)}", figures={"devices": seen.devices})]


def gpu(patient: Patient) -> list[Finding]:
    """Intel's integrated and discrete graphics."""
    return _examine(patient.machine, GPU)


def npu(patient: Patient) -> list[Finding]:
    """The neural processor of a Core Ultra."""
    return _examine(patient.machine, NPU)


def cards(machine: Machine, kind: Kind) -> list[Card]:
    """Intel's devices of a kind on the PCI bus."""
    found = []
    for folder in machine.glob("sys/bus/pci/devices/*"):
        base = f"sys/bus/pci/devices/{folder.name}"
        if machine.text(f"{base}/vendor") == INTEL and (machine.text(f"{base}/class") or "")[:6] in kind.pci_classes:
            link = folder / "driver"
            driver = link.resolve().name if link.exists() else None
            nodes = tuple(f"{kind.folder}/{node.name}" for node in machine.glob(f"{base}/{kind.nodes}"))
            found.append(Card(folder.name, machine.text(f"{base}/device") or "?", driver, nodes))
    return found


def _examine(machine: Machine, kind: Kind) -> list[Finding]:
    seen = {name: facts for name, facts in machine.sight.devices.items() if name.split(".")[0] == kind.device}
    there = cards(machine, kind)
    figures: dict[str, Any] = {
        "cards": [vars(card) for card in there],
        "nodes": [_node(machine, node) for card in there for node in card.nodes],
        "packages": _installed(machine, kind),
        "seen": {name: dict(facts) for name, facts in seen.items()},
        "openvino_says": machine.sight.reasons.get(kind.device),
    }
    name = kind.device
    if seen and len(seen) >= len(there):
        return [Finding(name, "ok", "; ".join(_told(device, facts) for device, facts in seen.items()), figures=figures)]
    if machine.system == "Windows":
        what = f"OpenVINO sees no {kind.title}"
        mend = f"if Device Manager lists one under {kind.windows}, update its driver from {WINDOWS_PAGE}"
        return [Finding(name, "note", what, mend, figures)]
    if machine.wsl and not there:
        what = f"OpenVINO sees no {kind.title} in WSL"
        mend = f"if Windows has one, update its driver there, and here: {install_line(kind, machine.os_release)}"
        return [Finding(name, "note", what, mend, figures)]
    if not there:
        return [Finding(name, "note", f"this machine has no {kind.title} on its PCI bus", figures=figures)]
    state: State = "warning" if seen else "problem"  # some of several are usable
    fault = next(_faults(machine, kind, there))
    return [replace(fault, state=state, figures=figures)]


def _told(device: str, facts: Any) -> str:
    told = f"{device} is {facts.get('name', 'of unknown name')}"
    if facts.get("driver") is not None:
        told += f", driver {facts['driver']}"
    return told + (f", {gb(facts['memory_bytes'])} of memory" if facts.get("memory_bytes") else "")


def _faults(machine: Machine, kind: Kind, there: list[Card]) -> Iterator[Finding]:
    """What is wrong, from the hardware upwards; the last always comes."""
    title, name = kind.title, kind.device

    def fault(what: str, mend: str) -> Finding:
        return Finding(name, "problem", what, mend)

    for card in there:
        yield from _unbound(machine, kind, card, fault)
        if not card.nodes:
            what = f"the {title} has its kernel module {card.driver}, which could not start it"
            mend = f"sudo dmesg | grep -i {card.driver} gives the reason; firmware that is missing comes with the "
            yield fault(what, mend + "package linux-firmware")
    nodes = [machine.path(node.lstrip("/")) for card in there for node in card.nodes]
    absent = [node for node in nodes if not node.exists()]
    if absent and machine.container:
        place = f"/{absent[0].relative_to(machine.root).as_posix()}"
        what = f"the machine's {title} is not passed into this container: {place} is not there"
        yield fault(what, f"docker run --device {kind.folder} --group-add $(stat -c %g {place}) …")
    if absent:
        place = f"/{absent[0].relative_to(machine.root).as_posix()}"
        yield fault(f"the {title} runs, but {place} is not there", "sudo udevadm trigger && sudo udevadm settle")
    for node in nodes:
        if not machine.may_open(node):
            yield _closed(machine, node, kind)
    install = install_line(kind, machine.os_release)
    for library, words in kind.libraries.items():
        if not _has_library(machine, library):
            yield fault(f"the {title} is there, but {words} ({library}) is not installed", install)
    if kind is GPU and not any(_OPENCL_DRIVER in text for text in _icd_files(machine)):
        yield fault(f"the {title} is there, but Intel's OpenCL driver ({_OPENCL_DRIVER}) is not installed", install)
    if machine.sight.fault is not None:
        yield fault(f"the {title} and its driver are there, but OpenVINO could not be asked about it", install)
    said = machine.sight.reasons.get(name)
    what = f"the {title} and its driver are there, and OpenVINO does not see it" + (f": {said}" if said else "")
    yield fault(what, f"update the driver: {install}")


def _unbound(machine: Machine, kind: Kind, card: Card, fault: Any) -> Iterator[Finding]:
    if card.driver is not None and card.driver.startswith("vfio"):
        what = f"the {kind.title} at {card.address} is given to a virtual machine (kernel module {card.driver})"
        yield fault(what, "end that virtual machine and give the device back to the kernel's own module")
    if card.driver is None:
        kernel = machine.text("proc/sys/kernel/osrelease")
        what = f"no kernel module holds the {kind.title} at {card.address} ({INTEL[2:]}:{card.product[2:]}, kernel "
        what += f"{kernel or 'unknown'})"
        alias = f"/sys/bus/pci/devices/{card.address}/modalias"
        yield fault(what, f'sudo modprobe "$(cat {alias})"; if there is no such module, install a newer kernel')


def _closed(machine: Machine, node: Path, kind: Kind) -> Finding:
    """Who may use the node, and how this user comes to be one of them."""
    place, group = f"/{node.relative_to(machine.root).as_posix()}", machine.group_of(node)
    what = f"{place} may not be opened by this user"
    if group in (None, "root", "nogroup") or node.stat().st_mode & _GROUP_USES != _GROUP_USES:
        what += f": its group is {group or 'unknown'}, and it should be render, with reading and writing"
        mend = f"sudo chown root:render {place} && sudo chmod g+rw {place} && sudo usermod -aG render $USER, "
        return Finding(kind.device, "problem", what, mend + _LOG_IN_AGAIN)
    if group in machine.my_groups():
        what += f", though its group {group} is one of the user's: a container or a sandbox forbids it"
        return Finding(kind.device, "problem", what, f"docker run --device {kind.folder} …")
    if group in machine.my_lasting_groups():
        what += f": it belongs to the group {group}, which the user joined after logging in"
        return Finding(kind.device, "problem", what, f"log out and in again, or: newgrp {group}")
    what += f": it belongs to the group {group}, which the user is not in"
    if machine.container:
        number = node.stat().st_gid
        return Finding(kind.device, "problem", what, f"docker run --device {kind.folder} --group-add {number} …")
    return Finding(kind.device, "problem", what, f"sudo usermod -aG {group} $USER, {_LOG_IN_AGAIN}")


def _node(machine: Machine, place: str) -> dict[str, Any]:
    node = machine.path(place.lstrip("/"))
    group = machine.group_of(node) if node.exists() else None
    return {"path": place, "exists": node.exists(), "group": group, "may_open": machine.may_open(node)}


def _icd_files(machine: Machine) -> list[str]:
    """What the OpenCL loader reads to find drivers."""
    paths = [path for pattern in _ICD_FILES for path in machine.glob(pattern)]
    return [machine.text(path.relative_to(machine.root).as_posix()) or "" for path in paths]


def _has_library(machine: Machine, name: str) -> bool:
    given = [folder.lstrip("/") for folder in machine.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
    return any(machine.path(f"{folder}/{name}").exists() for folder in (*LIBRARY_FOLDERS, *given))


def _installed(machine: Machine, kind: Kind) -> dict[str, str] | None:
    """Versions of the driver's packages where dpkg keeps them; None where another does."""
    text = machine.text("var/lib/dpkg/status")
    if text is None:
        return None
    versions = {}
    for entry in text.split("\n\n"):
        name = re.match(r"Package: (\S+)", entry)
        if name and name[1] in kind.packages and "\nStatus: install ok installed" in entry:
            version = re.search(r"^Version: (\S+)", entry, re.MULTILINE)
            versions[name[1]] = version[1] if version else "?"
    return versions
