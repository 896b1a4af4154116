"""Findings about the processor: what it can do, its cores, and how many of them are ours."""

from __future__ import annotations

import re

from edge.runtime.cores import count_cores, usable_threads
from edge.runtime.finding import Finding, Patient
from edge.runtime.machine import Machine, processor_name

_X86 = {"x86_64", "amd64", "i386", "i686", "x86"}


def features(machine: Machine) -> frozenset[str] | None:
    """Of the processor, under the names of /proc/cpuinfo; None where they cannot be read."""
    found = re.search(r"^flags\s*:\s*(.+)$", machine.text("proc/cpuinfo") or "", re.MULTILINE)
    return frozenset(found[1].split()) if found else machine.other_features()


def processor(patient: Patient) -> list[Finding]:
    """Name, and the instructions that int4 models run on."""
    machine = patient.machine
    name = processor_name(machine)
    if machine.architecture.lower() not in _X86:
        what = f"{name} ({machine.architecture}) is no x86 processor, on which alone glm4-edge was measured"
        return [Finding("processor", "note", what, figures={"name": name, "architecture": machine.architecture})]
    known = features(machine)
    seen = machine.sight.devices.get("CPU", {})
    figures = {"name": name, "openvino_capabilities": seen.get("capabilities")}
    if known is None:
        what = f"{name}; which instructions it has cannot be read here"
        return [Finding("processor", "note", what, "python -m pip install archspec", figures)]
    has = {
        "avx2": "avx2" in known,
        "avx512": "avx512f" in known,
        "vnni": bool(known & {"avx512_vnni", "avx_vnni"}),
        "bf16": bool(known & {"avx512_bf16", "amx_bf16"}),
        "amx": "amx_tile" in known,
        "avx512_fp16": "avx512_fp16" in known,
    }
    figures |= has
    titles = {"avx2": "AVX2", "avx512": "AVX-512", "vnni": "VNNI", "bf16": "BF16", "amx": "AMX",
              "avx512_fp16": "AVX512-FP16"}  # fmt: skip
    there = [title for key, title in titles.items() if has[key]]
    if not has["avx2"]:
        what = f"{name} has no AVX2, which OpenVINO's fast routines are written for: answers will come slowly"
        mend = "use a processor of 2015 or later" + ("; in a virtual machine, pass the host's processor through"
                                                     if "hypervisor" in known else "")  # fmt: skip
        return [Finding("processor", "warning", what, mend, figures)]
    if not has["vnni"]:
        what = (
            f"{name} has {', '.join(there)}, but no VNNI: products of 8-bit numbers take several instructions each, "
            "so prompts are read more slowly"
        )
        return [Finding("processor", "note", what, figures=figures)]
    missing = [title for key, title in titles.items() if not has[key]]
    without = f"; without {', '.join(missing)}, which int4 does not need" if missing else ""
    return [Finding("processor", "ok", f"{name} has {', '.join(there)}{without}", figures=figures)]


def cores(patient: Patient) -> list[Finding]:
    """Cores by kind, and what limits how many this process has."""
    machine = patient.machine
    found = count_cores(machine)
    affinity, quota = machine.affinity(), machine.processor_limit()
    figures = {**vars(found), "affinity": affinity, "quota": quota, "threads": usable_threads(machine)}
    kinds = [
        f"{count} {title}"
        for count, title in (
            (found.performance, "performance"), (found.efficient, "efficient"), (found.low_power, "low-power"),
        )
        if count
    ]  # fmt: skip
    what = f"{found.physical or '?'} cores, {found.logical or '?'} logical"
    if kinds:
        what += f": {', '.join(kinds)}"
    if affinity is not None and found.logical and affinity < found.logical:
        what += f"; this process may run on {affinity} of the logical ones only"
        mend = "start it without taskset, or give the container more processors (docker run --cpuset-cpus)"
        return [Finding("cores", "warning", what, mend, figures)]
    if quota is not None and found.logical and quota < found.logical:
        what += f"; a cgroup gives this process the time of {quota:g}"
        return [Finding("cores", "warning", what, "give the container more (docker run --cpus)", figures)]
    return [Finding("cores", "ok", what, figures=figures)]
