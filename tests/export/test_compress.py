"""NNCF does what the recipe says, on tiny models of every variant and, for quality, on the pocket model."""

from __future__ import annotations

import dataclasses

import numpy as np
import openvino as ov
import pytest

from edge.errors import RecipeError
from edge.export.calibration import calibration_samples
from edge.export.compress import compress, weight_bits
from edge.export.graph import build_model
from edge.export.recipe import Recipe, layer_weights
from edge.model.checkpoint import Weight
from edge.model.spec import GlmSpec

TINY = GlmSpec("glm", 128, 64, 96, 2, 4, 2, 16, 8, 1e4, 1e-5, True, False, 128, (1,))
VARIANTS = {
    "bias, untied": TINY,
    "no bias, tied": dataclasses.replace(TINY, attention_bias=False, tie_word_embeddings=True),
}
CALIBRATED = Recipe("int4", 16, ratio=0.8, backup="int8_asym", awq=True, scale_estimation=True)


def made(spec: GlmSpec, recipe: Recipe, scale: float = 1.0) -> ov.Model:
    rng = np.random.default_rng(0)
    weights = {
        name: Weight((rng.standard_normal(shape, np.float32) * np.float32(scale)).view(np.uint32) >> 16, "BF16")
        for name, shape in spec.tensor_shapes().items()
    }
    weights = {name: Weight(weight.raw.astype(np.uint16), "BF16") for name, weight in weights.items()}
    return compress(build_model(spec, weights.__getitem__), recipe, calibration=None, progress=lambda *stage: None)


@pytest.mark.parametrize("spec", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize(
    ("recipe", "four", "eight"),
    [
        (Recipe("int4", 32, backup="int8_asym"), "u4", "u8"),
        (Recipe("int4", 16, symmetric=True, backup="int8_sym", awq=True), "i4", "i8"),
        (Recipe("int4", -1, symmetric=True, backup="int8_sym"), "i4", "i8"),
        (Recipe("int4", 32), "u4", "bf16"),
    ],
    ids=["asym", "sym awq", "per channel", "no backup"],
)
def test_every_layer_in_4_bits(spec: GlmSpec, recipe: Recipe, four: str, eight: str) -> None:
    ends = (1 if spec.tie_word_embeddings else 2) * spec.vocab_size * spec.hidden_size
    assert weight_bits(made(spec, recipe)) == {four: layer_weights(spec), eight: ends}


@pytest.mark.parametrize(("weights", "precision"), [("int8", "u8"), ("bf16", "bf16"), ("fp16", "f16")])
def test_one_precision_for_all(weights: str, precision: str) -> None:
    assert set(weight_bits(made(TINY, Recipe(weights)))) == {precision}


def test_fp16_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(RecipeError, match="beyond fp16's 65504"):
        made(TINY, Recipe("fp16"), scale=40000.0)


def test_calibration_has_to_be_given() -> None:
    model = build_model(TINY, lambda name: Weight(np.zeros(TINY.tensor_shapes()[name], np.float32), "F32"))
    with pytest.raises(RecipeError, match="calibration"):
        compress(model, CALIBRATED, calibration=None, progress=lambda *stage: None)


def test_the_terminal_stays_quiet_and_progress_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[str, int, int]] = []
    weights = {name: np.ones(shape, np.float32) for name, shape in TINY.tensor_shapes().items()}
    model = build_model(TINY, lambda name: Weight(weights[name], "F32"))
    recipe = Recipe("int4", 32, backup="int8_asym")
    compress(model, recipe, calibration=None, progress=lambda *stage: told.append(stage))
    assert capfd.readouterr() == ("", "")
    assert any(stage == "compressing" and total > 1 for stage, _, total in told)


class _Letters:
    """A tokenizer whose ids are the letters' numbers."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [ord(letter) for letter in text]


def test_held_out_text_is_not_what_was_calibrated_with() -> None:
    first, held = calibration_samples(_Letters()), calibration_samples(_Letters(), count=1, length=256, held_out=True)
    assert [len(sample) for sample in first] == [512] * 4
    text = "".join(chr(token) for sample in first for token in sample)
    assert "".join(map(chr, held[0])) not in text
    assert first == calibration_samples(_Letters())
