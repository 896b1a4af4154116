"""`glm4-edge canary`: a table for people, figures for programs, and an exit code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edge import golden
from edge.cli import _run
from edge.export import verify_ir
from edge.files import HOME_VARIABLE
from edge.runtime import examining
from edge.runtime.canary import Finding
from edge.runtime.devices import DeviceFacts
from edge.runtime.examining import Examined
from tests.conftest import write_checkpoint
from tests.runtime.test_canary import damaged, flip_bits


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("canary-command")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(place / "home"))
        patch.setattr(verify_ir, "LENGTHS", (1, 2, 8))
        source = write_checkpoint(place / "c", vocab_size=320, hidden_size=64, intermediate_size=128, head_dim=16)
        assert _run(["export", str(source), str(place / "out"), "--for", "npu"]) == 0
    return place / "out"


def test_a_table_by_length(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert _run(["canary", str(exported), "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    rows = out.splitlines()
    assert [int(row.split()[0]) for row in rows[2:-1]] == list(golden.LENGTHS[:-1]), "the model reads 256 tokens"
    assert rows[-1] == "CPU: right" and "reading prompts at once" in err


def test_a_rehearsal_says_that_it_is_one(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert _run(["canary", str(exported), "--rehearse"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "NPU (rehearsed on the CPU, not on NPU hardware): right"


def test_a_damaged_model_ends_with_1(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = damaged(exported, tmp_path / "broken", "model.layers.0.mlp.gate_up_proj.weight", flip_bits)
    capsys.readouterr()
    assert _run(["canary", str(broken), "--device", "CPU", "--json"]) == 1
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert not answer["ok"] and answer["reason"] and answer["device"] == "CPU" and not answer["rehearsal"]
    assert answer["reason"] in err and "glm4-edge verify" in err
    assert _run(["canary", str(broken), "--device", "CPU"]) == 1
    assert "WRONG" in capsys.readouterr().out


def test_a_safer_way_that_is_right(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A GPU that is not here, wrong at one length where it computes in f16."""
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    monkeypatch.setattr("edge.runtime.devices.available", lambda: ["CPU", "GPU"])
    monkeypatch.setattr(examining.examine, "__kwdefaults__", examining.examine.__kwdefaults__ | {
        "present": lambda: ["CPU", "GPU"],
        "look": lambda folder, settings, *_: Examined(settings, Finding(
            settings.precision != "chosen", None if settings.precision != "chosen" else "at 129 tokens it is off",
            {"device": settings.device, "by_length": []},
        )),
    })  # fmt: skip
    assert _run(["canary", str(exported), "--device", "GPU", "--only"]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "GPU: WRONG: at 129 tokens it is off" and "does not compute" in err
    assert _run(["canary", str(exported), "--device", "GPU", "--json"]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert told["ok"] and [(way["precision"], way["ok"]) for way in told["ways"]] == [
        ("chosen", False), ("guilty nodes", True)
    ]  # fmt: skip
    assert "From now on GPU with what overflows f16 in f32 is taken" in err
    monkeypatch.setattr("edge.runtime.devices.describe", lambda folder: [
        DeviceFacts("GPU", "a GPU", None, None, None, (), None)
    ])  # fmt: skip
    assert _run(["devices", str(exported)]) == 0
    assert "verified with what overflows f16 in f32 on 20" in capsys.readouterr().out


def test_what_cannot_be_looked_at(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    older = Path(shutil.copytree(exported, tmp_path / "older"))
    (older / golden.FILE_NAME).unlink()
    assert _run(["canary", str(older)]) == 1
    assert "golden.safetensors is missing" in capsys.readouterr().err
    made = json.loads((exported / "edge.json").read_text())
    without = [check for check in made["checks"] if check["name"] != "golden"]
    (older / "edge.json").write_text(json.dumps({**made, "checks": without}))
    assert _run(["canary", str(older)]) == 1
    assert "holds no golden logits" in capsys.readouterr().err
    (older / "edge.json").write_text(json.dumps({**made, "target": "cpu"}))
    shutil.copy(exported / golden.FILE_NAME, older)
    assert _run(["canary", str(older), "--rehearse"]) == 1
    assert "was exported for cpu" in capsys.readouterr().err
    assert _run(["canary", str(exported), "--rehearse", "--device", "GPU"]) == 2
    assert "GPU is not rehearsed, the NPU is" in capsys.readouterr().err
    assert _run(["canary", str(tmp_path)]) == 1
    assert "holds no exported model" in capsys.readouterr().err
