"""auto-round beside our recipes: its numbers become our IR's bit by bit, or are refused; arms have the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from benchmarks import autoround
from benchmarks.autoround_grid import LaidLayers, layout, on_grid
from edge.export import streaming
from edge.export.quantize import Quantized, quantize
from edge.export.recipe import Recipe
from edge.export.store import Store
from edge.model.checkpoint import Checkpoint, Weight
from tests.conftest import write_checkpoint

GROUP = 16


def silent(stage: str, done: int, total: int) -> None:
    """Progress nobody looks at."""


def as_left_by_auto_round(made: Quantized) -> tuple[Any, Any, Any]:
    """Dequantised weights, scales and zero points of a matrix in groups, in auto-round's shapes and types."""
    rows, groups, _ = made.shape

    def numbers(packed: Any) -> Any:
        return np.stack([packed & 15, packed >> 4], -1).reshape(-1).astype(np.float32)

    data = numbers(made.data).reshape(made.shape)
    scale = made.scale.reshape(rows, groups)
    if made.zero_point is None:
        zero = None
        data = np.where(data > 7, data - 16, data)
        moved = data
    else:
        zero = numbers(made.zero_point)[: rows * groups].reshape(rows, groups)
        moved = data - zero[..., None]
    return (moved * scale.astype(np.float32)[..., None]).reshape(rows, -1).astype(np.float32), scale, zero


def rounded(symmetric: bool, rows: int = 6, columns: int = 48) -> Quantized:
    values = np.random.default_rng(1).standard_normal((rows, columns), dtype=np.float32)
    return quantize(Weight(values, "F32"), "w", bits=4, symmetric=symmetric, group_size=GROUP)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("rows", [6, 7])  # 21 zero points: an odd number
def test_the_numbers_behind_dequantised_weights_are_found(symmetric: bool, rows: int) -> None:
    made = rounded(symmetric, rows)
    found = on_grid("w", *as_left_by_auto_round(made))
    assert found.shape == made.shape and found.bits == 4
    assert found.data.tobytes() == made.data.tobytes()
    assert found.scale.tobytes() == made.scale.tobytes() and found.scale.shape == made.scale.shape
    assert (found.zero_point is None) == symmetric
    if found.zero_point is not None and made.zero_point is not None:
        assert found.zero_point.tobytes() == made.zero_point.tobytes()


def test_what_our_ir_cannot_say_is_refused() -> None:
    values, scale, zero = as_left_by_auto_round(rounded(symmetric=False))
    beside = values.copy()
    beside[3, 5] += 0.4 * float(scale[3, 0])
    with pytest.raises(click.ClickException, match=r"w: weights 0\.[34]\d* of a step beside the grid"):
        on_grid("w", beside, scale, zero)
    beyond = values.copy()
    beyond[2, 20] += 16 * float(scale[2, 1])
    with pytest.raises(click.ClickException, match="in places from 0 to"):
        on_grid("w", beyond, scale, zero)
    with pytest.raises(click.ClickException, match="not all are numbers of f16"):
        on_grid("w", values, scale.astype(np.float32) * np.float32(1 + 2**-15), zero)
    with pytest.raises(click.ClickException, match="not all are numbers of f16"):
        on_grid("w", values, np.zeros_like(scale), zero)
    with pytest.raises(click.ClickException, match="not whole numbers from 0 to 15"):
        on_grid("w", values, scale, zero + np.float32(0.5))
    with pytest.raises(click.ClickException, match="not whole numbers from 0 to 15"):
        on_grid("w", values, scale, zero + np.float32(9))
    with pytest.raises(click.ClickException, match="beside the grid"):
        on_grid("w", np.full_like(values, np.nan), scale, zero)


@pytest.mark.parametrize("symmetric", [True, False])
def test_tuned_matrices_take_their_places_in_the_model(symmetric: bool, tmp_path: Path) -> None:
    """What rounding to the nearest would have tuned makes, byte for byte, the model that rounding makes."""
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "glm"))
    recipe = Recipe("int4", group_size=GROUP, symmetric=symmetric, backup="int8_asym")
    names = [name for name, shape in checkpoint.spec.tensor_shapes().items() if "layers" in name and len(shape) == 2]
    in_4_bits = frozenset(name for name in names if "v_proj" not in name)
    tuned: dict[str, Any] = {}
    for name in in_4_bits:
        stem = name.removesuffix("weight")
        values, scale, zero = as_left_by_auto_round(
            quantize(checkpoint.weight(name), name, bits=4, symmetric=symmetric, group_size=GROUP)
        )
        tuned |= {name: values, stem + "scale": scale} | ({} if zero is None else {stem + "zero_point": zero})
    written = []
    for number, given in enumerate((None, tuned)):
        file = tmp_path / str(number) / "model.xml"
        file.parent.mkdir()
        store = Store(file.parent / "parts", file.with_suffix(".bin"))
        layers = LaidLayers(checkpoint, recipe, in_4_bits, given)
        streaming.write_model(checkpoint, recipe, store, file, silent, make_layer=layers.make_layer)
        written.append(file.with_suffix(".bin").read_bytes())
        import openvino as ov

        assert layout(ov.Core().read_model(file)) == in_4_bits
    assert written[0] == written[1]


def test_auto_round_sees_the_calibration_text_and_leaves_what_is_in_8_bits(tmp_path: Path) -> None:
    from edge.export.calibration import calibration_samples
    from edge.model.tokenizer import load

    folder = write_checkpoint(tmp_path / "glm")
    recipe = Recipe("int4", group_size=GROUP, backup="int8_asym")
    asked: dict[str, Any] = {"iters": 7, "batch": 2, "device": "cpu"}
    job = autoround.job(folder, recipe, frozenset(["model.layers.0.mlp.down_proj.weight"]), length=128, **asked)
    assert [len(text) for text in job["texts"]] == [128] * 16
    assert np.array_equal(np.reshape(job["texts"], (4, 512)), calibration_samples(load(folder)))
    assert "model.layers.0.mlp.down_proj" not in job["left"] and "model.layers.0.self_attn.q_proj" in job["left"]
    assert len(job["left"]) == 6 * Checkpoint(folder).spec.num_layers - 1
    assert (job["group_size"], job["symmetric"], job["iters"], job["batch_size"]) == (GROUP, False, 7, 2)
    with pytest.raises(click.UsageError, match="100 does not divide the 512"):
        autoround.job(folder, recipe, frozenset(), length=100, **asked)


def test_arms_with_other_bits_are_not_compared() -> None:
    row = {"weights": {"u4": 100, "u8": 50}, "bin_bytes": 100_000}
    autoround.check_bits({"a": row, "b": {**row, "bin_bytes": 100_100}})
    with pytest.raises(click.ClickException, match=r"not the same bits: a: .*; b: \{'u4': 99"):
        autoround.check_bits({"a": row, "b": {**row, "weights": {"u4": 99, "u8": 51}}})
    with pytest.raises(click.ClickException, match="in 120000 bytes"):
        autoround.check_bits({"a": row, "b": {**row, "bin_bytes": 120_000}})


def test_a_kept_row_is_of_the_weights_that_were_tuned(tmp_path: Path) -> None:
    recipe, how = Recipe("int4", group_size=GROUP), {"versions": {"openvino": "1"}, "window": 512}
    file = tmp_path / "tuned.safetensors"
    keys = []
    for told in (b"with --length 128", b"with --length 512"):
        file.write_bytes(told)
        keys.append(autoround.key_of(recipe, "auto-round, 50 steps", how, file))
    assert keys[0] != keys[1] and keys[1] == autoround.key_of(recipe, "auto-round, 50 steps", how, file)
    assert keys[0] != autoround.key_of(recipe, "auto-round, 50 steps", how, None)
    assert autoround.key_of(recipe, "a", how, None) != autoround.key_of(recipe, "a", {**how, "window": 256}, None)


def test_earlier_grids_keep_their_machine(tmp_path: Path) -> None:
    kept = Path(autoround.__file__).parent / "results" / "autoround_pocket.json"
    settings = {"text": "wiki.test.raw", "tokens": 4096, "window": 512}
    grids = autoround.taken_up(kept, settings)
    other = {
        **grids["default"],
        "machine": {"cpu": "Another", "cores": 4, "memory_bytes": 1},
        "versions": {"nncf": "9"},
    }
    autoround._write(tmp_path / "made.json", {"settings": settings, "grids": grids | {"asym 32": other}})
    told = (tmp_path / "made.md").read_text(encoding="utf-8").splitlines()
    shipped = kept.with_suffix(".md").read_text(encoding="utf-8").splitlines()
    assert [line for line in told if "asym 32" not in line] == shipped
    assert told[-1] == "- asym 32: Another, 4 cores; nncf 9."
    assert autoround.taken_up(tmp_path / "made.json", settings)["asym 32"] == other
    assert autoround.taken_up(tmp_path / "none.json", settings) == {}
    with pytest.raises(click.UsageError, match=r"was measured with .*512.*: name another --out"):
        autoround.taken_up(kept, {**settings, "window": 256})
