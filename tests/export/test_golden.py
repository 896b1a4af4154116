"""Golden logits are what the IR's own bits say: in every layout, in every form of weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge import golden as goldens
from edge.cli import _run
from edge.export import golden, ir, verify_ir
from edge.files import HOME_VARIABLE
from edge.infer import EXACT, core, infer
from edge.model import forward
from edge.model.checkpoint import Checkpoint
from edge.model.spec import GlmSpec
from tests.conftest import write_chatglm, write_checkpoint

SIZES: dict[str, Any] = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
GLM4 = {"model_type": "glm4", "architectures": ["Glm4ForCausalLM"]}
RECIPES = {
    "data-free": ["--group-size", "16", "--ratio", "1", "--no-calibrate"],
    "calibrated": ["--group-size", "16"],
    "npu": ["--for", "npu"],
    "int8": ["--weights", "int8"],
    "bf16": ["--weights", "bf16"],
    "fp16": ["--weights", "fp16"],
}


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    monkeypatch.setattr(verify_ir, "LENGTHS", (1, 2, 8))


def export(source: Path, out: Path, options: list[str]) -> dict[str, Any]:
    """What edge.json says after an export."""
    assert _run(["export", str(source), str(out), *options]) == 0
    made: dict[str, Any] = json.loads((out / "edge.json").read_text())
    return made


def figures(made: dict[str, Any]) -> dict[str, Any]:
    return next(check["figures"] for check in made["checks"] if check["name"] == "golden")


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_form_of_weights_is_restored(recipe: str, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "c", **SIZES, max_position_embeddings=512)
    made = export(source, tmp_path / "out", RECIPES[recipe])
    told = figures(made)
    assert told["compiled"] and told["kl_max_exact"] < 1e-8 and told["lengths"] == list(goldens.LENGTHS)
    assert told["sha256"] == hashlib.sha256((tmp_path / "out" / goldens.FILE_NAME).read_bytes()).hexdigest()
    assert made["bytes"][goldens.FILE_NAME] == (tmp_path / "out" / goldens.FILE_NAME).stat().st_size
    kept = goldens.read(tmp_path / "out")
    assert kept is not None
    model = core().read_model(tmp_path / "out" / "openvino_model.xml")
    logits = infer(core().compile_model(model, "CPU", EXACT), kept.token_ids, 0)
    np.testing.assert_allclose(kept.logits, logits[np.array(kept.lengths) - 1], atol=1e-4 * np.abs(logits).max())
    expected = goldens.known_log_probs(logits[:-1], kept.token_ids[1:])
    np.testing.assert_allclose(kept.log_probs, expected, atol=1e-3)


@pytest.mark.parametrize("layout", ["chatglm", "glm4", "tied", "no-bias", "short"])
def test_every_layout_is_restored(layout: str, tmp_path: Path) -> None:
    changes = {"glm4": GLM4, "tied": {"tie_word_embeddings": True}, "no-bias": {"attention_bias": False},
               "short": {"max_position_embeddings": 64}}.get(layout, {})  # fmt: skip
    source = write_checkpoint(tmp_path / "c", **SIZES, **changes)
    if layout == "chatglm":
        source = write_chatglm(tmp_path / "chatglm", source)
    told = figures(export(source, tmp_path / "out", RECIPES["data-free"]))
    assert told["kl_max_exact"] < 1e-8
    assert max(told["lengths"]) == (33 if layout == "short" else 129)


def test_uncompressed_they_are_the_checkpoints(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "c", **SIZES)
    export(source, tmp_path / "out", RECIPES["bf16"])
    kept, checkpoint = goldens.read(tmp_path / "out"), Checkpoint(source)
    assert kept is not None
    expected = forward.logits(checkpoint.spec, checkpoint.weight, kept.token_ids.tolist())
    np.testing.assert_allclose(kept.logits, expected[np.array(kept.lengths) - 1], atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("columns", [128, 48, 6])
def test_blocks_are_the_rows_that_a_look_at_single_ones_gives(
    columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 6 columns a row of 4-bit weights ends in the middle of a pair of bytes."""
    import openvino as ov
    from openvino import opset13 as ops

    from edge.export.datafree import decompression
    from edge.export.quantize import quantize
    from edge.model.checkpoint import Weight

    values = np.random.default_rng(0).standard_normal((40, columns)).astype(np.float32)
    monkeypatch.setattr(golden, "_ROOM", 15 * columns)  # the last block is a smaller one
    monkeypatch.setattr(golden, "_BLOCK", 7 * columns)
    for bits, symmetric in ((4, True), (4, False), (8, True), (8, False)):
        for size in (-1, columns // 2):
            made = quantize(Weight(values, "F32"), "w", bits=bits, symmetric=symmetric, group_size=size)
            x = ops.parameter([-1, columns], ov.Type.f32)
            model = ov.Model([ops.matmul(x, decompression(made), False, True)], [x], "m")
            (weight,) = ir.weights_of(model)
            found = np.empty((40, columns), np.float32)
            golden._Numbers(weight).fill(0, found)
            assert np.array_equal(found, weight.rows(np.arange(40)))
            assert np.abs(found - values).max() < 0.6
            inputs = np.random.default_rng(1).standard_normal((3, columns)).astype(np.float32)
            product = golden._Matrix(weight, None, None).times(inputs)
            np.testing.assert_allclose(product, inputs @ found.T, rtol=1e-5, atol=1e-5)


def test_a_damaged_model_is_not_what_the_golden_logits_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    export(write_checkpoint(tmp_path / "c", **SIZES), out, RECIPES["data-free"])
    kept = goldens.read(out)
    assert kept is not None
    other = goldens.Golden(kept.token_ids, kept.log_probs, kept.lengths, kept.logits[:, :-1])
    assert "another model's" in str(golden.check_golden(out / "openvino_model.xml", other).message)
    data = bytearray((out / "openvino_model.bin").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    (out / "openvino_model.bin").write_bytes(data)
    check = golden.check_golden(out / "openvino_model.xml", kept)
    assert not check.passed and check.hint and check.figures["kl_max_exact"] > 1e-3
    capsys.readouterr()
    assert _run(["verify", str(out)]) == 1
    assert "FAILED   golden" in capsys.readouterr().out


def test_the_text_opens_as_the_tokenizer_opens_one(tmp_path: Path) -> None:
    """GLM-4's own puts [gMASK]<sop> before every text, and the model is not itself without them."""

    class Opening:
        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return ([7, 8] if add_special_tokens else []) + list(text.encode())

    assert golden.token_ids(Opening(), 8192)[:2].tolist() == [7, 8]
    assert len(golden.token_ids(Opening(), 8192)) == 321 and len(golden.token_ids(Opening(), 40)) == 33


def test_a_model_that_says_nan_keeps_no_golden_logits(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "c", **SIZES)
    export(source, tmp_path / "out", RECIPES["bf16"])
    file = tmp_path / "out" / "openvino_model.xml"
    kept = golden.compute(file, GlmSpec.from_folder(source), np.arange(40), lambda stage, done, total: None)
    kept.logits[0, 0] = np.nan
    assert "not finite" in str(golden.check_golden(file, kept).message)
