"""Findings about the processor: what it can do, its cores, and how many of them are ours."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import psutil

from edge.runtime.cores_windows import core_kinds
from edge.runtime.finding import Finding, Patient
from edge.runtime.machine import Machine, processor_name

_X86 = {"x86_64", "amd64", "i386", "i686", "x86"}
_CPU = "sys/devices/system/cpu"


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


@dataclass(frozen=True)
class Cores:
    """How many cores of each kind; None where the system does not tell."""

    logical: int | None
    physical: int | None
    performance: int | None = None
    efficient: int | None = None
    low_power: int | None = None
    """Efficient cores without a share of the last-level cache."""


def count_cores(machine: Machine) -> Cores:
    """Count physical and logical cores, and those of each kind where a processor has several."""
    if machine.system == "Windows":
        kinds = core_kinds()
        logical, physical = psutil.cpu_count(), psutil.cpu_count(logical=False)
        if kinds is None or len(kinds) < 2:
            return Cores(logical, physical)
        lowest, highest = min(kinds), max(kinds)
        middle = sum(count for kind, count in kinds.items() if kind not in (lowest, highest))
        # Three classes: P, E and LP-E; with two, Windows does not tell which of the latter the lower one is.
        return Cores(logical, physical, kinds[highest], middle or kinds[lowest], kinds[lowest] if middle else None)
    online = _cpus(machine.text(f"{_CPU}/online"))
    if not online:
        return Cores(psutil.cpu_count(), psutil.cpu_count(logical=False))
    fast, slow = (_cpus(machine.text(f"sys/devices/cpu_{kind}/cpus")) & online for kind in ("core", "atom"))
    low = _cpus(machine.text("sys/devices/cpu_lowpower/cpus")) & online
    low |= {cpu for cpu in slow if machine.text(f"{_CPU}/cpu{cpu}/cache/index2/size") and not _shares_l3(machine, cpu)}
    counts: list[int | None] = [_physical(machine, cpus) for cpus in (fast, slow - low, low)]
    if not fast or not (slow or low):
        counts = [None] * 3
    return Cores(len(online), _physical(machine, online), *counts)


def _shares_l3(machine: Machine, cpu: int) -> bool:
    return machine.text(f"{_CPU}/cpu{cpu}/cache/index3/size") is not None


def _physical(machine: Machine, cpus: set[int]) -> int:
    """Cores that hold these logical processors."""
    return len({machine.text(f"{_CPU}/cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in cpus})


def _cpus(text: str | None) -> set[int]:
    """The numbers in a list as the kernel writes it, such as 0-3,8."""
    found: set[int] = set()
    for part in (text or "").split(","):
        if matched := re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip()):
            found |= set(range(int(matched[1]), int(matched[2] or matched[1]) + 1))
    return found


def usable_threads(machine: Machine) -> int:
    """Threads worth starting: one for each physical core that this process may use."""
    cores = count_cores(machine)
    limits = [cores.physical or cores.logical, machine.affinity()]
    quota = machine.processor_limit()
    limits.append(None if quota is None else math.ceil(quota))
    return max(1, min((limit for limit in limits if limit), default=1))


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
