"""What commands refuse of adapters, and what an export remembers of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edge.cli import _run
from edge.commands import loading
from edge.errors import ModelError
from edge.lora.asked import Loras, parse_all
from edge.model.spec import GlmSpec
from tests.conftest import TINY_CONFIG, write_checkpoint
from tests.lora.made import write_adapter


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint", vocab_size=320)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "mine", GlmSpec.from_config({**TINY_CONFIG, "vocab_size": 320}))


def test_a_merged_export_needs_a_place(checkpoint: Path, adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["export", str(checkpoint), "--merge-lora", str(adapter)]) == 2
    assert "needs a place" in capsys.readouterr().err


def test_an_adapter_of_another_size_is_refused_before_anything_is_made(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_adapter(tmp_path / "other", GlmSpec.from_config({**TINY_CONFIG, "hidden_size": 64}))
    for extra in ([], ["--dry-run"]):
        assert _run(["export", str(checkpoint), str(tmp_path / "out"), "--merge-lora", str(other), *extra]) == 1
        assert "model of another size" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_same_export_with_another_adapter_is_another(
    checkpoint: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    for options, again in (
        ([], False), (["--merge-lora", str(adapter)], False), (["--merge-lora", str(adapter)], True),
        (["--merge-lora", f"{adapter}:0.5"], False),
    ):  # fmt: skip
        assert _run(["export", str(checkpoint), out, "--weights", "bf16", *options]) == 0
        assert ("in " + out + " already" in capsys.readouterr().err) == again, options


def test_the_same_weights_with_another_alpha_are_another_export(
    checkpoint: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["export", str(checkpoint), str(tmp_path / "out"), "--weights", "bf16", "--merge-lora", str(adapter)]
    assert _run(asked) == 0
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 32}))
    assert _run(asked) == 0
    assert "already" not in capsys.readouterr().err


def test_a_traced_export_is_told_apart(tiny_npu: Path, adapter: Path, tmp_path: Path) -> None:
    """Before it is loaded, and so before its failure is held against a device."""
    folder = Path(shutil.copytree(tiny_npu, tmp_path / "traced"))
    told = json.loads((folder / "edge.json").read_text(encoding="utf-8"))
    (folder / "edge.json").write_text(json.dumps({**told, "exporter": "optimum"}), encoding="utf-8")
    with pytest.raises(ModelError, match="was traced by optimum"):
        loading.check_adapters(folder, Loras(parse_all([str(adapter)])))


def test_serve_refuses_an_adapter_with_the_models_name(
    checkpoint: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(["export", str(checkpoint), str(tmp_path / "out"), "--weights", "bf16"]) == 0
    asked = ["serve", str(tmp_path / "out"), "--port", "0", "--lora", str(adapter), "--name", "mine"]
    assert _run(asked) == 2
    assert "has the model's own name, 'mine'" in capsys.readouterr().err
