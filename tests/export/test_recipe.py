"""Presets per device, what is refused and in which words, and sizes before they are made."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from edge.errors import RecipeError
from edge.export.recipe import Recipe, layer_weights, matrices
from edge.model.spec import GlmSpec

POCKET = GlmSpec("glm", 49152, 576, 1536, 30, 9, 3, 64, 64, 1e5, 1e-5, False, True, 8192, (2,))
GLM4_9B = GlmSpec("glm", 151552, 4096, 13696, 40, 32, 2, 128, 64, 1e4, 1.5625e-7, True, False, 131072, (151329,))
NARROW = dataclasses.replace(POCKET, hidden_size=60, intermediate_size=88, num_heads=6, head_dim=10, rotary_dim=10)


PRESETS = [(target, weights) for target in ("cpu", "igpu") for weights in ("int4", "int8", "bf16", "fp16")]


@pytest.mark.parametrize(("target", "weights"), [*PRESETS, ("npu", "int4")])
@pytest.mark.parametrize("spec", [POCKET, GLM4_9B, NARROW], ids=["pocket", "9b", "narrow"])
def test_every_preset_passes_its_own_check(target: str, weights: str, spec: GlmSpec) -> None:
    Recipe.for_target(target, spec, weights=weights).check(spec, target)


def test_small_models_are_calibrated_and_large_ones_are_not() -> None:
    assert Recipe.for_target("cpu", POCKET).needs_calibration
    assert not Recipe.for_target("cpu", GLM4_9B).needs_calibration
    assert not Recipe.for_target("npu", POCKET).needs_calibration


SMALL_GROUPS = dataclasses.replace(POCKET, intermediate_size=1504)  # 32 is the largest group that fits


@pytest.mark.parametrize(
    ("spec", "group"),
    [(POCKET, 64), (GLM4_9B, -1), (NARROW, -1), (SMALL_GROUPS, -1)],
    ids=["pocket", "9b", "narrow", "groups of 32"],
)
def test_npu_groups(spec: GlmSpec, group: int) -> None:
    recipe = Recipe.for_target("npu", spec)
    assert (recipe.group_size, recipe.symmetric, recipe.ratio) == (group, True, 1.0)


def test_an_option_left_out_keeps_the_preset() -> None:
    preset = Recipe.for_target("cpu", POCKET)
    assert Recipe.for_target("cpu", POCKET, group_size=None, symmetric=None, ratio=None, backup=None) == preset
    assert Recipe.for_target("cpu", POCKET, group_size=64, symmetric=True) == dataclasses.replace(
        preset, group_size=64, symmetric=True
    )


@pytest.mark.parametrize(
    ("target", "fields", "said", "way_out"),
    [
        ("cpu", {"group_size": 128}, "128 does not divide the 576 inputs of q_proj", "16, 32, 64, or -1"),
        ("cpu", {"group_size": 0}, "a group size of 0", "16, 32, 64, or -1"),
        ("cpu", {"ratio": 1.5}, "1.5", "up to 1"),
        ("cpu", {"ratio": -0.1}, "-0.1", "up to 1"),
        ("cpu", {"ratio": 0.0}, "0.0", "--weights int8"),
        ("npu", {"weights": "int8"}, "int8 weights", "symmetric int4"),
        ("npu", {"weights": "bf16"}, "bf16 weights", "symmetric int4"),
        ("cpu", {"group_size": 4}, "no kernels for a group size of 4", "16, 32, 64"),
        ("npu", {"symmetric": False}, "asym", "symmetric"),
        ("npu", {"ratio": 0.8}, "0.8", "all layers in 4 bits"),
        ("npu", {"backup": "none"}, "none", "int8_sym"),
        ("npu", {"group_size": 32}, "groups of 32 weights", "groups of 64 or more, or -1"),
    ],
)
def test_refused(target: str, fields: dict[str, Any], said: str, way_out: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.for_target(target, POCKET, **fields).check(POCKET, target)
    assert said in caught.value.message
    assert way_out in caught.value.hint


@pytest.mark.parametrize("weights", ["int8", "bf16", "fp16"])
@pytest.mark.parametrize("fields", [{"group_size": 64}, {"ratio": 0.5}, {"backup": "int8_sym"}, {"awq": True}])
def test_int4_options_mean_nothing_elsewhere(weights: str, fields: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=f"{next(iter(fields))} .* means nothing with {weights}"):
        Recipe.for_target("cpu", POCKET, weights=weights, **fields).check(POCKET, "cpu")


def test_the_manifest_can_carry_it() -> None:
    recipe = Recipe.for_target("cpu", POCKET)
    loaded = json.loads(json.dumps(recipe.to_dict()))
    assert Recipe(**loaded) == recipe


def test_layer_weights() -> None:
    assert layer_weights(POCKET) == 30 * 576 * (576 * 2 + 192 * 2 + 1536 * 3)
    assert len(matrices(POCKET)) == 180


def test_estimated_bytes_of_9b() -> None:
    # Measured for this shape: 5.4 GB in symmetric int4 with group 128, int8 embedding and head.
    recipe = Recipe("int4", group_size=128, symmetric=True, backup="int8_asym")
    assert recipe.estimated_bytes(GLM4_9B) == pytest.approx(5.4e9, rel=0.03)


@pytest.mark.parametrize("target", ["cpu", "igpu", "npu"])
@pytest.mark.parametrize("spec", [POCKET, GLM4_9B], ids=["pocket", "9b"])
@pytest.mark.parametrize("calibrate", [True, False])
def test_calibration_is_the_users_choice(target: str, spec: GlmSpec, calibrate: bool) -> None:
    recipe = Recipe.for_target(target, spec, calibrate=calibrate)
    recipe.check(spec, target)
    assert recipe.needs_calibration == calibrate
    preset = Recipe.for_target(target, spec)
    assert (recipe.group_size, recipe.ratio, recipe.backup) == (preset.group_size, preset.ratio, preset.backup)


@pytest.mark.parametrize("weights", ["int8", "bf16", "fp16"])
def test_there_is_nothing_to_calibrate_outside_4_bits(weights: str) -> None:
    with pytest.raises(RecipeError, match=f"nothing to calibrate in {weights} weights.*Leave --calibrate out"):
        Recipe.for_target("cpu", POCKET, weights=weights, calibrate=True).check(POCKET, "cpu")
    Recipe.for_target("cpu", POCKET, weights=weights, calibrate=False).check(POCKET, "cpu")
