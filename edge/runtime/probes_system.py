"""Findings about the system around the program: where it runs, and room on its disks."""

from __future__ import annotations

import os
import platform
import re
import shutil
from pathlib import Path

from edge.files import HOME_VARIABLE, existing_part
from edge.runtime.finding import Finding, Patient, gb
from edge.runtime.machine import Machine

_LITTLE_ROOM = 2_000_000_000


def system(patient: Patient) -> list[Finding]:
    """The operating system, and what stands between it and the hardware."""
    machine = patient.machine
    name = machine.os_release.get("PRETTY_NAME") or f"{platform.system()} {platform.release()}"
    kernel = machine.text("proc/sys/kernel/osrelease")
    around, virtual = machine.container, hypervisor(machine)
    figures = {"name": name, "kernel": kernel, "hypervisor": virtual, "container": around, "wsl": machine.wsl}
    between = [f"in a virtual machine ({virtual})"] if virtual and not machine.wsl else []
    between += ["in WSL"] if machine.wsl else []
    between += [f"in a container ({around})"] if around else []
    what = name + (f", kernel {kernel}" if kernel else "")
    if not between:
        return [Finding("system", "ok", what, figures=figures)]
    what += f", {', '.join(between)}: it has of processors, memory and devices what it was given"
    return [Finding("system", "note", what, figures=figures)]


def hypervisor(machine: Machine) -> str | None:
    """What virtualises this machine, by the name it gives itself; None on bare metal or where nothing is told."""
    flags = re.search(r"^flags\s*:.*\bhypervisor\b", machine.text("proc/cpuinfo") or "", re.MULTILINE)
    if not flags:
        return None
    told = [machine.text(f"sys/class/dmi/id/{name}") for name in ("sys_vendor", "product_name")]
    return " ".join(part for part in told if part) or machine.text("sys/hypervisor/type") or "of unknown kind"


def disk(patient: Patient) -> list[Finding]:
    """Room where models and compiled blobs are kept and, with a model, beside it."""
    machine, model = patient.machine, 0
    if patient.manifest is not None:
        model = sum(patient.manifest.bytes.values())
    findings = [_room("cache folder", machine.home, max(_LITTLE_ROOM, model))]
    if patient.folder is not None and patient.folder.is_dir():
        findings.append(_room("model folder", patient.folder, 0))
    return findings


def _room(name: str, folder: Path, wanted: int) -> Finding:
    try:
        place = existing_part(folder)
        free, holds = shutil.disk_usage(place).free, place.is_dir()
    except PermissionError:  # of a folder above it, of another user
        place, free, holds = folder, 0, True
    figures = {"folder": str(folder), "free_bytes": free or None}
    if not holds:
        what = f"{folder} cannot be made: {place} is no folder"
        return Finding(name, "problem", what, f"name another folder with {HOME_VARIABLE}", {"folder": str(folder)})
    if wanted and not os.access(place, os.W_OK):
        what = f"{place} may not be written, and what is downloaded or compiled is kept below it"
        return Finding(name, "problem", what, f"name another folder with {HOME_VARIABLE}", figures)
    what = f"{gb(free)} are free at {folder}"
    if free < wanted:
        what += f", where a compiled model or a download may take {gb(wanted)}"
        return Finding(name, "warning", what, f"free some space, or name another folder with {HOME_VARIABLE}", figures)
    return Finding(name, "ok", what, figures=figures)
