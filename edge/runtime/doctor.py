"""Examine a machine and, if one is named, an exported model on it: findings, each with the line that mends it."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edge import __version__
from edge.errors import EdgeError
from edge.manifest import Manifest
from edge.messages import Progress
from edge.runtime import probes_cpu, probes_devices, probes_memory, probes_model, probes_packages, probes_system
from edge.runtime.cores import count_cores
from edge.runtime.finding import Finding, Patient
from edge.runtime.machine import Machine, processor_name
from edge.runtime.plan import Shape

Probe = Callable[[Patient], list[Finding]]
PROBES: tuple[Probe, ...] = (
    probes_system.system,
    probes_packages.python,
    probes_packages.packages,
    probes_cpu.processor,
    probes_cpu.cores,
    probes_memory.memory,
    probes_memory.bandwidth,
    probes_devices.sight,
    probes_devices.gpu,
    probes_devices.npu,
    probes_system.disk,
    probes_model.checks,
    probes_model.versions,
    probes_model.target,
)


def examine(
    folder: Path | None = None,
    *,
    machine: Machine | None = None,
    progress: Progress = lambda stage, done, total: None,
    probes: Sequence[Probe] = PROBES,
) -> list[Finding]:
    """Gather all findings; about two seconds, of which one reads memory.

    A probe that fails becomes a finding of its own: there is always an answer.

    Args:
        folder: an exported model, whose needs are held against the machine.
    """
    machine = machine or Machine()
    findings, manifest, shape = [], None, None
    if folder is not None:
        try:
            manifest, shape = Manifest.read(folder), Shape.read(folder)
        except EdgeError as error:
            findings.append(Finding("model", "problem", error.message, error.hint.rstrip(".")))
        else:
            what = f"{manifest.source.model}, {manifest.architecture.parameters / 1e6:,.0f}M parameters, is whole"
            findings.append(Finding("model", "ok", what, figures={"source": manifest.source.model}))
    patient = Patient(machine, folder, manifest, shape)
    for done, probe in enumerate(probes):
        progress("examining this machine", done, len(probes))
        findings += _guarded(probe, patient)
    return findings


def _guarded(probe: Probe, patient: Patient) -> list[Finding]:
    try:
        return probe(patient)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        what = f"this could not be examined: {type(error).__name__}: {error}"
        figures = {"where": f"{Path(where.filename).name}:{where.lineno}"}
        return [Finding(probe.__name__, "warning", what, "please report it, with the output of --json", figures)]


def document(findings: Sequence[Finding], folder: Path | None = None, machine: Machine | None = None) -> dict[str, Any]:
    """Everything for a program to read: {"machine", "folder", "findings", "problems"}."""
    machine = machine or Machine()
    openvino = machine.package("openvino")
    return {
        "machine": {
            "system": machine.os_release.get("PRETTY_NAME") or machine.system,
            "architecture": machine.architecture,
            "cpu": processor_name(machine),
            "cores": vars(count_cores(machine)),
            "memory_bytes": machine.memory().total,
            "glm4_edge": __version__,
            "openvino": None if openvino is None else openvino.version,
        },
        "folder": None if folder is None else str(folder),
        "findings": [dataclasses.asdict(finding) for finding in findings],
        "problems": sum(finding.state == "problem" for finding in findings),
    }
