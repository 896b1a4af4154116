"""Findings about Python and its packages: what is installed against what is asked for."""

from __future__ import annotations

import re
import struct
import sys

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from edge import __version__
from edge.runtime.finding import Finding, Patient, State
from edge.runtime.machine import Machine

OURS = "glm4-edge"
_OPENVINO = ("openvino", "openvino-genai", "openvino-tokenizers")
_SECOND_OPENVINO = ("openvino-dev", "openvino-nightly", "openvino-runtime")
"""Distributions that write into the same folder `openvino` as the distribution of that name."""
_NEIGHBOURS = ("optimum-intel", "optimum-onnx", "optimum", "torchvision", "torchaudio")
"""Not needed, but where they are and do not fit, what imports them fails."""


def python(patient: Patient) -> list[Finding]:
    """The interpreter, and whether it can print what models say."""
    machine = patient.machine
    bits, version = 8 * struct.calcsize("P"), ".".join(map(str, sys.version_info[:3]))
    figures = {"version": version, "bits": bits, "encoding": machine.encoding}
    if bits < 64:
        what = f"Python {version} is a {bits}-bit program, and OpenVINO has none such"
        return [Finding("python", "problem", what, "install a 64-bit Python from https://www.python.org", figures)]
    if not machine.encoding.lower().replace("-", "").startswith("utf"):
        what = f"Python {version} writes to its output in {machine.encoding or 'an unknown encoding'}, not in UTF-8: "
        what += "Chinese answers cannot be shown"
        windows = machine.system == "Windows"
        mend = "setx PYTHONUTF8 1, then open a new terminal" if windows else "export PYTHONUTF8=1"
        return [Finding("python", "warning", what, mend, figures)]
    return [Finding("python", "ok", f"Python {version}, output in {machine.encoding}", figures=figures)]


def packages(patient: Patient) -> list[Finding]:
    """Versions against the requirements of this program, of what it needs, and of what stands beside it."""
    machine = patient.machine
    ours = machine.package(OURS)
    if ours is None:
        what = f"{OURS} runs from a folder and is not installed, so its requirements cannot be compared"
        return [Finding("packages", "note", what, "python -m pip install ."), *openvino_family(machine)]
    needed, optional = misfits(machine, [OURS]), misfits(machine, _NEIGHBOURS)
    findings = openvino_family(machine)
    named = set(_OPENVINO) if any(finding.state == "problem" for finding in findings) else set()
    needed = {name: found for name, found in needed.items() if name not in named}
    optional = {name: found for name, found in optional.items() if name not in needed and name not in named}
    kinds: list[tuple[State, dict[str, tuple[str, str]]]] = [("problem", needed), ("warning", optional)]
    for state, wrong in kinds:
        if wrong:
            what = "; ".join(told for told, _ in wrong.values())
            line = " ".join(f'"{requirement}"' for _, requirement in wrong.values())
            figures = {"misfits": {name: requirement for name, (_, requirement) in wrong.items()}}
            findings.append(Finding("packages", state, what, f"python -m pip install {line}", figures))
    if ours.version != __version__:
        what = f"{OURS} {__version__} runs, and {ours.version} is what was installed: requirements may have changed"
        findings.append(Finding("packages", "warning", what, "python -m pip install ."))
    if not needed and not optional:
        asked = [Requirement(text) for text in ours.requires]
        names = [each.name for each in asked if _applies(each)]
        versions = {name: found.version for name in names if (found := machine.package(name)) is not None}
        what = f"{len(versions)} packages fit what {OURS} {ours.version} asks for"
        findings.append(Finding("packages", "ok", what, figures={"versions": versions}))
    return findings


def misfits(machine: Machine, roots: list[str] | tuple[str, ...]) -> dict[str, tuple[str, str]]:
    """Packages that `roots`, or what they need in turn, ask for in another version than is installed.

    Returns:
        name → a sentence, and the requirement that is not met. Roots that are not installed ask for nothing.
    """
    wrong: dict[str, tuple[str, str]] = {}
    seen, waiting = set(), list(roots)
    while waiting:
        name = _canonical(waiting.pop())
        package = machine.package(name)
        if name in seen or package is None:
            continue
        seen.add(name)
        for text in package.requires:
            try:
                asked = Requirement(text)
            except InvalidRequirement:  # of an old package; pip passes over it, too
                continue
            if not _applies(asked):
                continue
            found, key = machine.package(asked.name), _canonical(asked.name)
            wanted = f"{asked.name}{asked.specifier}"
            if found is None:
                wrong.setdefault(key, (f"{name} needs {wanted}, which is not installed", wanted))
            elif not asked.specifier.contains(found.version, prereleases=True):
                wrong.setdefault(key, (f"{name} needs {wanted}, and {found.version} is installed", wanted))
            waiting.append(asked.name)
    return wrong


def openvino_family(machine: Machine) -> list[Finding]:
    """OpenVINO and what was compiled against it: of different releases they end the process when loaded."""
    versions = {name: found.version if (found := machine.package(name)) else None for name in _OPENVINO}
    figures = {"versions": dict(versions)}
    second = {name: found.version for name in _SECOND_OPENVINO if (found := machine.package(name)) is not None}
    openvino = versions["openvino"]
    again = f"python -m pip install --force-reinstall --no-deps {' '.join(_pinned(openvino))}"
    if second:
        told = ", ".join(f"{name} {version}" for name, version in second.items())
        what = f"{told} is installed beside openvino {openvino}, and both write into the same folder"
        mend = f"python -m pip uninstall -y {' '.join(second)}, then {again}"
        return [Finding("openvino", "problem", what, mend, {**figures, "second": second})]
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        what = f"{', '.join(missing)} is not installed"
        return [Finding("openvino", "problem", what, f"python -m pip install {OURS}", figures)]
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    if len({_release(version) for version in versions.values() if version}) > 1:
        what = f"{told} are not of one release; loading them together can end the process"
        return [Finding("openvino", "problem", what, again, figures)]
    return [Finding("openvino", "ok", told, figures=figures)]


def _pinned(openvino: str | None) -> list[str]:
    """All three of OpenVINO's own release; the other two count one place more."""
    if openvino is None:
        return list(_OPENVINO)
    release = ".".join(map(str, _release(openvino)))
    return [f"openvino=={release}", *(f'"{name}=={release}.*"' for name in _OPENVINO[1:])]


def _release(version: str) -> tuple[int, ...]:
    try:
        return (*Version(version).release, 0, 0)[:3]
    except InvalidVersion:
        return (0, 0, 0)


def _applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
