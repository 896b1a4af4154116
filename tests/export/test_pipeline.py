"""The export from end to end, killed at its worst moments."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge.cli import _run
from edge.files import HOME_VARIABLE
from tests.conftest import write_chatglm, write_checkpoint

SIZES: dict[str, Any] = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
OPTIONS = ["--weights", "int4", "--group-size", "-1", "--sym", "--ratio", "1", "--for", "npu"]


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))


def export_and_die(checkpoint: Path, out: Path, stage: str, done: int, options: list[str] = OPTIONS) -> int:
    """Run the export in a process that kills itself when it reports this progress."""
    script = (
        "import os, signal, edge.cli, edge.export.pipeline as p\nrun = p.run\np._WORTH_KEEPING = 0\n"
        "def deadly(job, progress):\n"
        "    def report(stage, done, total):\n"
        "        progress(stage, done, total)\n"
        f"        if (stage, done) == ({stage!r}, {done}): os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return run(job, report)\n"
        "p.run = deadly\n"
        f"edge.cli.main({['export', str(checkpoint), str(out), *options]!r})\n"
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120).returncode


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")
def test_killed_again_and_again_the_result_is_the_same(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "c", num_hidden_layers=4, **SIZES)
    assert _run(["export", str(checkpoint), str(tmp_path / "undisturbed"), *OPTIONS]) == 0
    moments = [("compressing layer by layer", 0), ("compressing layer by layer", 2), ("putting the model together", 0),
               ("proving the result", 0)]  # fmt: skip
    for stage, done in moments:
        assert export_and_die(checkpoint, tmp_path / "out", stage, done) == -9
        assert not (tmp_path / "out").exists()
    assert export_and_die(checkpoint, tmp_path / "out", "never", 0) == 0
    for name in ("openvino_model.bin", "openvino_model.xml"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        path.name for path in (tmp_path / "undisturbed").iterdir()
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "home", "out", "undisturbed"]


def test_the_chatglm_layout_exports_to_the_same_model(tmp_path: Path) -> None:
    """And the folder asks nobody for remote code."""
    write_checkpoint(tmp_path / "glm", **SIZES)
    write_chatglm(tmp_path / "chatglm", tmp_path / "glm")
    for layout in ("glm", "chatglm"):
        assert _run(["export", str(tmp_path / layout), str(tmp_path / f"{layout}-out"), *OPTIONS]) == 0
    first, second = tmp_path / "glm-out", tmp_path / "chatglm-out"
    assert (first / "openvino_model.bin").read_bytes() == (second / "openvino_model.bin").read_bytes()
    config = json.loads((second / "config.json").read_text())
    assert config["model_type"] == "glm" and "auto_map" not in config
    transformers = pytest.importorskip("transformers")
    ours = transformers.AutoConfig.from_pretrained(second)
    theirs = transformers.AutoConfig.from_pretrained(first)
    for key in ("vocab_size", "num_key_value_heads", "rope_parameters", "attention_bias", "rms_norm_eps"):
        assert getattr(ours, key) == getattr(theirs, key), key


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")
def test_a_killed_calibration_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "c", num_hidden_layers=3, **SIZES)
    options = ["--calibrate", "--ratio", "0.7", "--group-size", "16"]
    assert _run(["export", str(checkpoint), str(tmp_path / "undisturbed"), *options]) == 0
    for done in (0, 2):
        assert export_and_die(checkpoint, tmp_path / "out", "compressing layer by layer", done, options) == -9
    assert export_and_die(checkpoint, tmp_path / "out", "never", 0, options) == 0
    for name in ("openvino_model.bin", "openvino_model.xml"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()


def test_a_text_of_the_users(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, out, text = write_checkpoint(tmp_path / "c", **SIZES), tmp_path / "out", tmp_path / "text.txt"
    command = ["export", str(checkpoint), str(out), "--calibration-text", str(text)]
    text.write_text("short", encoding="utf-8")
    assert _run([*command, "--no-calibrate"]) == 2
    assert "would not be read" in capsys.readouterr().err
    assert _run(command) == 2
    assert "text.txt has 5 tokens, and 2,048 are needed" in capsys.readouterr().err
    text.write_bytes("Grüße".encode("latin-1"))
    assert _run(command) == 2
    assert "not in UTF-8 (byte 2)" in capsys.readouterr().err
    assert not out.exists()
    text.write_text("The quick brown fox. " * 120, encoding="utf-8")
    assert _run(command) == 0
    digests = json.loads((out / "edge.json").read_text())["source"]["sha256"]
    assert digests["calibration: text.txt"] == hashlib.sha256(text.read_bytes()).hexdigest()
    assert _run(["export", str(checkpoint), str(tmp_path / "shipped")]) == 0
    assert (out / "openvino_model.bin").read_bytes() != (tmp_path / "shipped" / "openvino_model.bin").read_bytes()
