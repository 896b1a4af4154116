from __future__ import annotations

from pathlib import Path

import pytest

from edge import __version__
from edge.runtime import probes_packages
from edge.runtime.finding import Finding, Patient
from edge.runtime.machine import Machine, Package
from edge.runtime.probes_packages import misfits, packages, python
from tests.laptops import PACKAGES, machine


def with_packages(root: Path, **changes: Package | None) -> Machine:
    known = {**PACKAGES, **{name.replace("_", "-"): found for name, found in changes.items()}}
    return machine(root, packages={name: found for name, found in known.items() if found is not None})


def found(which: Machine) -> dict[str, Finding]:
    return {finding.name: finding for finding in packages(Patient(which))}


def test_all_in_order(tmp_path: Path) -> None:
    findings = found(with_packages(tmp_path))
    assert {name: finding.state for name, finding in findings.items()} == {"openvino": "ok", "packages": "ok"}
    assert findings["packages"].figures["versions"] == {"numpy": "2.4.6", "openvino": "2026.4.1"}


def test_what_is_too_old_or_missing_has_the_line_for_it(tmp_path: Path) -> None:
    ours = Package(__version__, ("numpy<3,>=1.26", "rich>=13"))
    finding = found(with_packages(tmp_path, glm4_edge=ours, numpy=Package("1.24.0")))["packages"]
    assert finding.state == "problem"
    assert "and 1.24.0 is installed" in finding.what and "rich>=13, which is not installed" in finding.what
    assert finding.mend == 'python -m pip install "numpy<3,>=1.26" "rich>=13"'


def test_requirements_of_requirements_count(tmp_path: Path) -> None:
    which = with_packages(tmp_path, numpy=Package("2.7.0"))
    finding = found(which)["packages"]
    assert finding.state == "problem" and "openvino needs numpy<2.6.0,>=1.16.6, and 2.7.0 is installed" in finding.what


def test_extras_and_other_systems_ask_for_nothing(tmp_path: Path) -> None:
    ours = Package(__version__, ('gradio<7; extra == "ui"', 'pywin32; sys_platform == "amiga"'))
    assert found(with_packages(tmp_path, glm4_edge=ours))["packages"].state == "ok"


@pytest.mark.parametrize(
    ("torchvision", "state"),
    [(Package("0.27.0", ("torch==2.12.0",)), "warning"), (Package("0.28.0", ("torch==2.13.0",)), "ok")],
)  # fmt: skip
def test_a_neighbour_that_does_not_fit_is_a_warning(tmp_path: Path, torchvision: Package, state: str) -> None:
    finding = found(with_packages(tmp_path, torch=Package("2.13.0+cpu"), torchvision=torchvision))["packages"]
    assert finding.state == state
    if state == "warning":
        assert finding.mend == 'python -m pip install "torch==2.12.0"'


def test_an_optimum_intel_that_wants_another_transformers(tmp_path: Path) -> None:
    optimum = Package("2.2.0", ("transformers<=5.0",))
    finding = found(with_packages(tmp_path, transformers=Package("5.5.4"), optimum_intel=optimum))["packages"]
    assert finding.state == "warning" and "optimum-intel needs transformers<=5.0" in finding.what


def test_prereleases_count_as_what_they_are(tmp_path: Path) -> None:
    which = with_packages(tmp_path, openvino=Package("2026.4.1.dev20260901"))
    assert "openvino" not in misfits(which, ["glm4-edge"])


def test_a_requirement_that_nobody_can_read_is_passed_over(tmp_path: Path) -> None:
    assert misfits(with_packages(tmp_path, numpy=Package("2.4.6", ("what ever (",))), ["numpy"]) == {}


def test_an_openvino_of_another_release_is_named_once_with_one_line(tmp_path: Path) -> None:
    findings = packages(Patient(with_packages(tmp_path, openvino_genai=Package("2026.3.0.0"))))
    wrong = [finding for finding in findings if finding.state != "ok"]
    assert [finding.name for finding in wrong] == ["openvino"]
    assert wrong[0].state == "problem" and "2026.3.0.0" in wrong[0].what
    assert wrong[0].mend == (
        "python -m pip install --force-reinstall --no-deps openvino==2026.4.1 "
        '"openvino-genai==2026.4.1.*" "openvino-tokenizers==2026.4.1.*"'
    )


def test_two_distributions_of_openvino_are_taken_apart(tmp_path: Path) -> None:
    finding = found(with_packages(tmp_path, openvino_nightly=Package("2026.5.0.dev20261001")))["openvino"]
    assert finding.state == "problem" and "same folder" in finding.what
    assert finding.mend and finding.mend.startswith("python -m pip uninstall -y openvino-nightly, then")


def test_without_genai_nothing_runs(tmp_path: Path) -> None:
    finding = found(with_packages(tmp_path, openvino_genai=None))["openvino"]
    assert finding.state == "problem" and "openvino-genai is not installed" in finding.what


def test_code_that_is_newer_than_what_was_installed(tmp_path: Path) -> None:
    findings = packages(Patient(with_packages(tmp_path, glm4_edge=Package("0.0.1"))))
    assert any(finding.state == "warning" and "0.0.1 is what was installed" in finding.what for finding in findings)


def test_a_folder_that_was_not_installed_is_a_note(tmp_path: Path) -> None:
    findings = found(with_packages(tmp_path, glm4_edge=None))
    assert findings["packages"].state == "note" and findings["openvino"].state == "ok"


@pytest.mark.parametrize(
    ("encoding", "system", "state", "mend"),
    [
        ("utf-8", "Linux", "ok", None), ("UTF8", "Windows", "ok", None),
        ("cp1252", "Windows", "warning", "setx PYTHONUTF8 1, then open a new terminal"),
        ("ascii", "Linux", "warning", "export PYTHONUTF8=1"), ("", "Linux", "warning", "export PYTHONUTF8=1"),
    ],
)  # fmt: skip
def test_an_output_that_cannot_show_chinese(
    tmp_path: Path, encoding: str, system: str, state: str, mend: str | None
) -> None:
    (finding,) = python(Patient(machine(tmp_path, encoding=encoding, system=system)))
    assert (finding.state, finding.mend) == (state, mend)


def test_a_32_bit_python_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes_packages.struct, "calcsize", lambda letter: 4)
    (finding,) = python(Patient(machine(tmp_path)))
    assert finding.state == "problem" and "32-bit" in finding.what


def test_the_packages_here_are_judged_as_pip_does() -> None:
    """What the tests run with was installed by pip, so it fits."""
    assert misfits(Machine(), ["glm4-edge"]) == {}
