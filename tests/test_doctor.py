"""`glm4-edge doctor` as it is typed, on the machine that runs the tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner, Result

from edge.cli import cli
from edge.commands.doctor import table
from edge.runtime import doctor as module
from edge.runtime.finding import Finding

FINDINGS = [
    Finding("memory", "ok", "8 GB"),
    Finding("NPU", "problem", "it may not be opened", "sudo usermod -aG render $USER"),
]


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "examine", lambda folder, progress: FINDINGS)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["doctor", *arguments])


def test_this_machine_is_told_truly() -> None:
    """In a process of its own, as it is typed."""
    done = subprocess.run(
        [sys.executable, "-m", "edge", "doctor", "--json"], capture_output=True, text=True, timeout=120
    )
    told = json.loads(done.stdout)
    assert done.returncode == (1 if told["problems"] else 0)
    assert "examining this machine" in done.stderr
    findings: dict[str, Any] = {finding["name"]: finding for finding in told["findings"]}
    assert {"system", "python", "openvino", "packages", "processor", "cores", "memory", "bandwidth", "devices", "GPU",
            "NPU", "cache folder"} <= set(findings)  # fmt: skip
    assert told["machine"]["memory_bytes"] == psutil.virtual_memory().total
    assert "CPU" in findings["devices"]["figures"]["devices"]
    assert 1e9 < findings["bandwidth"]["figures"]["best_bytes_per_second"] < 4e12
    assert findings["python"]["figures"]["version"] == ".".join(map(str, sys.version_info[:3]))
    assert not any("could not be examined" in finding["what"] for finding in told["findings"])


def test_the_table_gives_a_line_and_its_mend(made_up: None) -> None:
    done = run()
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["ok", "memory", "8", "GB"]
    assert lines[1].startswith("problem  NPU") and lines[2].strip() == "→ sudo usermod -aG render $USER"
    assert lines[-1] == "2 findings, 1 problem, 0 warnings"
    assert done.exit_code == 1 and "\x1b" not in done.stdout


def test_without_a_problem_the_exit_code_is_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "examine", lambda folder, progress: FINDINGS[:1])
    assert run().exit_code == 0


def test_colours_are_for_a_terminal(made_up: None) -> None:
    assert "\x1b[31m" in CliRunner().invoke(cli, ["doctor"], color=True).stdout
    assert "\x1b[31mproblem" in table(FINDINGS)


def test_json_has_a_problem_and_ends_with_1(made_up: None) -> None:
    done = run("--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["findings"][1] == {
        "name": "NPU", "state": "problem", "what": "it may not be opened", "mend": "sudo usermod -aG render $USER",
        "figures": {},
    }  # fmt: skip


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    done = run(str(tmp_path))
    assert done.exit_code == 1
    assert "holds no exported model" in done.stdout and "glm4-edge export MODEL OUT" in done.stdout


@pytest.mark.model
def test_the_pocket_model_here(pocket_dir: Path) -> None:
    done = run(str(pocket_dir), "--json")
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert findings["model checks"]["state"] == findings["model versions"]["state"] == "ok"
    read = (pocket_dir / "openvino_model.bin").stat().st_size  # its embedding is its head, too
    assert findings["bandwidth"]["figures"]["bytes_per_token"] == read
    assert findings["memory"]["figures"]["needed_bytes"] > read
