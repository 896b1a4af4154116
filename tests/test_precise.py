"""A variant with its guilty operations in f32: the same weights, another XML, and nothing left behind."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from edge import files, precise
from edge.cli import _run
from edge.errors import DeviceError, ModelError, OutputError
from edge.export.verify_ir import check_fusions
from edge.files import HOME_VARIABLE
from edge.infer import core
from edge.manifest import Manifest
from tests.conftest import write_checkpoint

SIZES: dict[str, Any] = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
XML, BIN = "openvino_model.xml", "openvino_model.bin"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("precise")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(place / "home"))
        source = write_checkpoint(place / "c", **SIZES)
        assert _run(["export", str(source), str(place / "out"), "--weights", "int8"]) == 0
    return place / "out"


@pytest.fixture
def folder(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    return Path(shutil.copytree(exported, tmp_path / "model"))


def marked(folder: Path) -> set[str]:
    return {str(node.get_friendly_name()) for node in core().read_model(folder / XML).get_ops() if precise.marked(node)}


def test_it_marks_what_overflows_and_shares_the_weights(folder: Path, tmp_path: Path) -> None:
    before = marked(folder)
    made = precise.variant(folder, tmp_path / "cache")
    more = marked(made) - before
    assert {name.replace("layers.1", "layers.0") for name in more} == {
        f"model.layers.0.{name}"
        for name in ("self_attn.sdpa", "self_attn.q_proj.scaled", "mlp.gated", "mlp.down_proj", "attention_residual",
                     "mlp_residual")
    }  # fmt: skip
    assert before < marked(made) and marked(folder) == before
    assert (made / BIN).samefile(folder / BIN)
    assert {path.name for path in folder.iterdir()} < {path.name for path in made.iterdir()}
    own = sum(path.stat().st_size for path in made.iterdir() if path.stat().st_nlink == 1)
    assert own < 1.1 * (folder / XML).stat().st_size + 10_000
    assert Manifest.read(made).bytes[XML] == (made / XML).stat().st_size
    assert check_fusions(made / XML).passed, "the marks cost no fusion"


def test_it_is_used_again_until_the_model_changes(folder: Path, tmp_path: Path) -> None:
    made = precise.variant(folder, tmp_path / "cache")
    (made / "was here").touch()
    assert precise.variant(folder, tmp_path / "cache") == made and (made / "was here").exists()
    shutil.copyfile(folder / BIN, tmp_path / "bin")  # as a new export would: another file in its place
    (tmp_path / "bin").replace(folder / BIN)
    assert precise.variant(folder, tmp_path / "cache") == made and not (made / "was here").exists()
    assert (made / BIN).samefile(folder / BIN)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [made.name]


def test_those_of_models_that_are_gone_are_removed(folder: Path, tmp_path: Path) -> None:
    """They would keep the bytes of a model that its owner deleted."""
    gone = Path(shutil.copytree(folder, tmp_path / "gone"))
    old = precise.variant(gone, tmp_path / "cache")
    shutil.rmtree(gone)
    precise.variant(folder, tmp_path / "cache")
    assert not old.exists()


def test_where_no_link_can_be_made(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link", str(source))

    monkeypatch.setattr(os, "link", refuse)
    made = precise.variant(folder, tmp_path / "cache")
    assert (made / BIN).read_bytes() == (folder / BIN).read_bytes()
    monkeypatch.setattr(precise, "_COPIED_BYTES", 1000)
    with pytest.raises(DeviceError, match="Invalid cross-device link"):
        precise.variant(folder, tmp_path / "other")
    assert list((tmp_path / "other").iterdir()) == []


def test_several_at_once_get_the_same(folder: Path, tmp_path: Path) -> None:
    """As two programs do that start together: threads hold the lock's file apart as processes do."""
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: precise.variant(folder, tmp_path / "cache"), range(4)))
    assert len(set(made)) == 1 and marked(made[0]) > marked(folder)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [made[0].name]


def test_a_cache_that_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        precise.variant(folder, tmp_path / "file" / "cache")
    with (
        files.alone(tmp_path / "held"),
        pytest.raises(OutputError, match="another process"),
        files.alone(tmp_path / "held", 0.1),
    ):
        pass


def test_a_graph_that_is_no_xml(folder: Path, tmp_path: Path) -> None:
    data = (folder / XML).read_bytes()
    (folder / XML).write_bytes(data.replace(b"</layers>", b"</layerz>"))
    with pytest.raises(ModelError, match=r"openvino_model\.xml is damaged"):
        precise.variant(folder, tmp_path / "cache")


def test_no_model_no_variant(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no exported model"):
        precise.variant(tmp_path, tmp_path / "cache")
