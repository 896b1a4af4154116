"""A model written a layer at a time is the model compressed as a whole, bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from edge.export import streaming
from edge.export.compress import compress
from edge.export.graph import build_model
from edge.export.recipe import Recipe
from edge.export.store import Store
from edge.export.verify_ir import check_fusions
from edge.infer import EXACT, infer
from edge.model.checkpoint import Checkpoint
from tests.conftest import write_checkpoint

RECIPES = {
    "sym": Recipe("int4", 16, symmetric=True, backup="int8_sym"),
    "asym awq": Recipe("int4", 16, backup="int8_asym", awq=True),
    "no backup": Recipe("int4", 16, symmetric=True),
    "int8": Recipe("int8"),
    "bf16": Recipe("bf16"),
    "fp16": Recipe("fp16"),
}
SIZES: dict[str, Any] = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


def quiet(stage: str, done: int, total: int) -> None:
    """Progress nobody looks at."""


def write(checkpoint: Checkpoint, recipe: Recipe, folder: Path) -> Path:
    folder.mkdir()
    file = folder / "openvino_model.xml"
    streaming.write_model(checkpoint, recipe, Store(folder / "parts", file.with_suffix(".bin")), file, quiet)
    return file


def weights(model: ov.Model) -> dict[str, tuple[str, list[int], bytes]]:
    """Every weight and scale by its name: type, shape, bytes."""
    return {
        node.get_friendly_name(): (
            node.get_element_type().get_type_name(),
            list(node.get_output_shape(0)),
            np.atleast_1d(node.data).tobytes(),
        )
        for node in model.get_ops()
        if node.get_type_name() == "Constant" and node.get_friendly_name().startswith(("model.", "lm_head"))
        if ".weight" in node.get_friendly_name()
    }


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_equal_to_the_whole_model_at_once(
    recipe: Recipe, tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "_ROWS", 100)  # 320 rows: three full blocks and a rest
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "c", tie_word_embeddings=tied, **SIZES))
    spec = checkpoint.spec
    whole = compress(build_model(spec, checkpoint.weight), recipe, calibration=None, progress=quiet)
    file = write(checkpoint, recipe, tmp_path / "out")
    streamed = ov.Core().read_model(file)
    assert weights(streamed).keys() == weights(whole).keys()
    for name, (kind, shape, data) in weights(whole).items():
        assert weights(streamed)[name] == (kind, shape, data), name
    ids = np.arange(3, 30)
    expected = infer(ov.Core().compile_model(whole, "CPU", EXACT), ids, 0)
    got = infer(ov.Core().compile_model(streamed, "CPU", EXACT), ids, 0)
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())
    assert check_fusions(file).passed


@pytest.mark.parametrize("name", ["sym", "asym awq", "int8"])
def test_the_recipe_is_told_in_the_ir_as_nncf_tells_it(name: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "c", **SIZES))
    whole = compress(build_model(checkpoint.spec, checkpoint.weight), RECIPES[name], calibration=None, progress=quiet)
    ov.save_model(whole, tmp_path / "whole.xml")
    told, nncfs = (
        {key: str(value) for key, value in model.get_rt_info(["nncf", "weight_compression"]).value.items()}
        for model in (
            ov.Core().read_model(write(checkpoint, RECIPES[name], tmp_path / "out")),
            ov.Core().read_model(tmp_path / "whole.xml"),
        )
    )
    assert told == {key: nncfs[key] for key in told} and "mode" in told


@pytest.mark.parametrize("made", [0, 1, 2, 3], ids="after {} parts".format)
@pytest.mark.parametrize("rest", [b"", b"half a part"], ids=["clean", "half a part"])
def test_a_killed_run_goes_on_and_ends_the_same(
    made: int, rest: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "c", num_hidden_layers=3, **SIZES))
    undisturbed = write(checkpoint, RECIPES["sym"], tmp_path / "undisturbed")

    class Killed(Exception):  # noqa: N818
        pass

    keep = Store.keep
    parts: list[str] = []

    def keep_some(self: Store, model: ov.Model, part: str) -> None:
        if len(parts) == made:
            raise Killed
        parts.append(part)
        keep(self, model, part)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "keep", keep_some)
        with pytest.raises(Killed):
            write(checkpoint, RECIPES["sym"], tmp_path / "killed")
    file = tmp_path / "killed" / "openvino_model.xml"
    with file.with_suffix(".bin").open("ab") as data:
        data.write(rest)
    built: list[int] = []
    build_layer = streaming.build_layer

    def count(spec: Any, weight: Any, i: int, form: Any) -> ov.Model:
        built.append(i)
        return build_layer(spec, weight, i, form)

    monkeypatch.setattr(streaming, "build_layer", count)
    streaming.write_model(
        checkpoint, RECIPES["sym"], Store(file.parent / "parts", file.with_suffix(".bin")), file, quiet
    )
    assert sorted(built) == list(range(made, 3))
    assert file.read_bytes() == undisturbed.read_bytes()
    assert file.with_suffix(".bin").read_bytes() == undisturbed.with_suffix(".bin").read_bytes()


def test_a_store_whose_bin_lost_bytes_starts_afresh(tmp_path: Path) -> None:
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "c", **SIZES))
    file = write(checkpoint, RECIPES["sym"], tmp_path / "out")
    with file.with_suffix(".bin").open("rb+") as data:
        data.truncate(10)
    store = Store(tmp_path / "out" / "parts", file.with_suffix(".bin"))
    assert not store.holds("layer-0") and file.with_suffix(".bin").stat().st_size == 0


def test_a_part_the_power_cut_is_made_again(tmp_path: Path) -> None:
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "c", **SIZES))
    file = write(checkpoint, RECIPES["sym"], tmp_path / "out")
    xml, data = file.read_bytes(), file.with_suffix(".bin").read_bytes()
    (tmp_path / "out" / "parts" / "ends.xml").write_bytes(b"")
    store = Store(tmp_path / "out" / "parts", file.with_suffix(".bin"))
    assert store.holds("layer-1") and not store.holds("ends")
    streaming.write_model(checkpoint, RECIPES["sym"], store, file, quiet)
    assert (file.read_bytes(), file.with_suffix(".bin").read_bytes()) == (xml, data)
