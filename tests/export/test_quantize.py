"""Every bit that our rounding makes is the one NNCF makes."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import pytest
from numpy.typing import NDArray
from openvino import opset13 as ops

from edge.errors import CheckpointError, RecipeError
from edge.export import quantize as module
from edge.export.compress import compress
from edge.export.graph import OV_TYPE
from edge.export.quantize import channel_magnitudes, quantize
from edge.export.recipe import Recipe
from edge.model.checkpoint import Weight


def stored(values: NDArray[np.float32], dtype: str) -> Weight:
    if dtype == "BF16":
        return Weight((values.view(np.uint32) >> 16).astype(np.uint16), dtype)
    return Weight(values.astype({"F16": np.float16, "F32": np.float32}[dtype]), dtype)


def hard_matrix(rows: int, columns: int) -> NDArray[np.float32]:
    """Rows of very different sizes; groups of zeros, of one sign, of equal extremes on both sides, of few values."""
    rng = np.random.default_rng(rows + columns)
    values = rng.standard_normal((rows, columns), dtype=np.float32)
    values *= rng.choice([1e-8, 1e-3, 0.02, 1, 100], size=(rows, 1)).astype(np.float32)
    values[0, :64] = 0
    values[1, :64] = np.abs(values[1, :64])
    values[2, :64] = -np.abs(values[2, :64])
    values[3, 64:128] = np.round(values[3, 64:128] * 3)
    values[4, :2] = 5, -5
    values[5, :2] = -5, 5
    return values


def made_by_nncf(weight: Weight, recipe: Recipe) -> dict[str, tuple[str, list[int], bytes]]:
    constant = ov.op.Constant(ov.Tensor(weight.raw, ov.Shape(weight.shape), OV_TYPE[weight.dtype]), shared_memory=True)
    constant.set_friendly_name("w")
    matrix = constant if weight.dtype == "F32" else ops.convert(constant, "f32")
    x = ops.parameter([-1, weight.shape[1]], ov.Type.f32)
    model = ov.Model([ops.result(ops.matmul(x, matrix, False, True))], [x], "matrix")
    model = compress(model, recipe, calibration=None, progress=lambda *stage: None, part=True)
    return {
        node.get_friendly_name(): (
            node.get_element_type().get_type_name(),
            list(node.get_output_shape(0)),
            np.atleast_1d(node.data).reshape(-1).view(np.uint8).tobytes(),
        )
        for node in model.get_ops()
        if node.get_type_name() == "Constant" and node.get_friendly_name().startswith("w")
    }


RECIPES = {
    "sym": Recipe("int4", group_size=64, symmetric=True, backup="int8_asym"),
    "asym": Recipe("int4", group_size=64, backup="int8_asym"),
    "sym per channel": Recipe("int4", symmetric=True, backup="int8_asym"),
    "asym per channel": Recipe("int4", backup="int8_asym"),
    "int8 sym": Recipe("int8", symmetric=True),
    "int8 asym": Recipe("int8"),
}


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("shape", [(7, 128), (200, 256), (301, 1024)], ids=str)
def test_equal_to_nncf(shape: tuple[int, int], recipe: Recipe, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 1 << 14)  # several blocks and a rest
    weight = stored(hard_matrix(*shape), dtype)
    bits = 4 if recipe.weights == "int4" else 8
    made = quantize(weight, "w", bits=bits, symmetric=recipe.symmetric, group_size=recipe.group_size)
    kind = f"{'i' if recipe.symmetric else 'u'}{bits}"
    expected: dict[str, Any] = {
        "w": (kind, list(made.shape), made.data.tobytes()),
        "w/scale": ("f16", list(made.scale.shape), made.scale.tobytes()),
    }
    if made.zero_point is not None:
        expected["w/zero_point"] = (kind, list(made.scale.shape), made.zero_point.tobytes())
    assert made_by_nncf(weight, recipe) == expected


@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_come_back_within_half_a_step(symmetric: bool) -> None:
    weight = stored(np.random.default_rng(0).standard_normal((40, 96), dtype=np.float32), "F32")
    made = quantize(weight, "w", bits=8, symmetric=symmetric)
    numbers = made.data.reshape(40, 96)
    whole = numbers.view(np.int8).astype(np.float32) if symmetric else numbers.astype(np.float32)
    if made.zero_point is not None:
        whole -= made.zero_point.astype(np.float32)[:, None]
    steps = np.abs(whole - weight.raw / made.scale.astype(np.float32))
    assert steps.max() < (1.05 if symmetric else 0.7)  # the far end of a symmetric grid lies a step short
    assert np.median(steps) < 0.3


def test_magnitudes_do_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = stored(hard_matrix(301, 128), "BF16")
    expected = np.maximum(np.mean(np.abs(weight.f32()), axis=0), np.finfo(np.float32).eps)
    for block in (128, 1 << 12, 1 << 20):
        monkeypatch.setattr(module, "_BLOCK", block)
        assert (channel_magnitudes(weight) == expected).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_damaged_weights_are_refused(wrong: float, dtype: str, symmetric: bool) -> None:
    values = np.ones((8, 64), np.float32)
    values[5, 3] = wrong
    with pytest.raises(CheckpointError, match=r"layer\.weight holds NaN or infinity"):
        quantize(stored(values, dtype), "layer.weight", bits=4, symmetric=symmetric, group_size=32)


def test_a_scale_beyond_fp16_is_refused() -> None:
    with pytest.raises(RecipeError, match="too large for int4"):
        quantize(stored(np.full((2, 64), 1e6, np.float32), "F32"), "w", bits=4, symmetric=True)
