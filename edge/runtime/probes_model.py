"""Findings about an exported model: whole, proved, and fit for the packages and devices that are here."""

from __future__ import annotations

from edge.manifest import Check
from edge.runtime.finding import Finding, Patient, State
from edge.runtime.probes_packages import OURS

_DEVICES = {"cpu": "CPU", "igpu": "GPU", "npu": "NPU"}
_SAME = ("openvino", "openvino-tokenizers")
"""Packages whose version is part of what was proved."""


def checks(patient: Patient) -> list[Finding]:
    """What was proved when it was exported."""
    manifest = patient.manifest
    if manifest is None:
        return []
    failed = [check for check in manifest.checks if not check.passed]
    warned = [check for check in manifest.checks if check.passed and check.message]
    figures = {"passed": [check.name for check in manifest.checks if check.passed],
               "failed": [check.name for check in failed]}  # fmt: skip
    outcomes: list[tuple[list[Check], State]] = [(failed, "problem"), (warned, "warning")]
    for found, state in outcomes:
        if found:
            what = "; ".join(f"{check.name}: {check.message or 'failed'}" for check in found)
            mend = found[0].hint or f"glm4-edge export {manifest.source.model} {patient.folder}"
            return [Finding("model checks", state, what, mend, figures)]
    if not manifest.checks:
        mend = f"glm4-edge verify {patient.folder}"
        return [Finding("model checks", "warning", "edge.json says of no check that it was made", mend, figures)]
    return [Finding("model checks", "ok", f"{len(manifest.checks)} checks passed at export", figures=figures)]


def versions(patient: Patient) -> list[Finding]:
    """What it was exported with against what is installed."""
    manifest = patient.manifest
    if manifest is None:
        return []
    changed = {}
    for name in _SAME:
        then, now = manifest.versions.get(name), patient.machine.package(name)
        if then is not None and now is not None and then != now.version:
            changed[name] = (then, now.version)
    figures = {"exported_with": dict(manifest.versions)}
    if changed:
        told = ", ".join(f"{name} {then}, now {now}" for name, (then, now) in changed.items())
        what = f"exported with {told}: it was proved with another version than it runs on"
        return [Finding("model versions", "note", what, f"glm4-edge verify {patient.folder}", figures)]
    told = ", ".join(f"{name} {manifest.versions[name]}" for name in (OURS, *_SAME) if name in manifest.versions)
    return [Finding("model versions", "ok", f"exported with {told}", figures=figures)]


def target(patient: Patient) -> list[Finding]:
    """The device it was exported for against those that are here."""
    manifest = patient.manifest
    if manifest is None or patient.machine.sight.fault is not None:
        return []
    wanted = _DEVICES.get(manifest.target, manifest.target.upper())
    here = list(patient.machine.sight.devices)
    figures = {"target": manifest.target, "devices": here}
    again = f"glm4-edge export {manifest.source.model} OUT"
    if not any(device.split(".")[0] == wanted for device in here):
        what = f"exported for the {wanted}, which OpenVINO does not see here; it sees {', '.join(here) or 'none'}"
        return [Finding("model device", "warning", what, f"{again} --for cpu", figures)]
    if wanted != "NPU" and "NPU" in here:
        what = f"exported for the {wanted}; the NPU, which is here, does not take it"
        return [Finding("model device", "note", what, f"{again} --for npu", figures)]
    return [Finding("model device", "ok", f"exported for the {wanted}, which is here", figures=figures)]
