"""A proof that cannot fail proves nothing: each check is shown a model that is wrong."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from edge import infer
from edge.export import ir, verify, verify_ir
from edge.export.graph import build_model
from edge.export.recipe import Recipe
from edge.export.store import Store
from edge.export.streaming import write_model
from edge.export.verify_parts import check_parts, check_rows
from edge.model import forward
from edge.model.checkpoint import Checkpoint, Weight
from tests.conftest import write_checkpoint

IDS = list(range(3, 40))
SIZES: dict[str, Any] = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
FOUR_BITS = Recipe("int4", group_size=16, symmetric=True, backup="int8_sym")


def stream(checkpoint: Checkpoint, recipe: Recipe, folder: Path) -> Path:
    folder.mkdir()
    file = folder / "openvino_model.xml"
    store = Store(folder / "parts", file.with_suffix(".bin"))
    write_model(checkpoint, recipe, store, file, lambda stage, done, total: None)
    return file


def save(model: ov.Model, folder: Path) -> Path:
    ov.save_model(model, folder / "openvino_model.xml", compress_to_fp16=False)
    return folder / "openvino_model.xml"


def test_a_right_graph_passes(tiny: Path) -> None:
    check, reference = verify.check_graph(Checkpoint(tiny), IDS)
    assert reference is not None and reference.shape == (len(IDS), 320)
    assert check.figures["layers"] == check.figures["of_layers"] == 2
    assert check.figures["max_error"] < 1e-5 * check.figures["logit_scale"]


@pytest.mark.parametrize("fault", ["rows not reordered", "wrong base", "gate and up swapped"])
def test_a_wrong_graph_is_caught(tiny: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint(tiny)
    right = build_model

    def wrong(spec, weight):  # type: ignore[no-untyped-def]
        if fault == "wrong base":
            return right(dataclasses.replace(spec, rope_theta=5e6), weight)
        if fault == "gate and up swapped":
            half = spec.intermediate_size
            order = np.r_[half : 2 * half, 0:half]
            return right(spec, lambda name: weight(name).rows(order) if "gate_up" in name else weight(name))
        return right(spec, weight)

    if fault == "rows not reordered":
        monkeypatch.setattr("edge.export.graph.rotary_row_order", lambda heads, dim, rotary: np.arange(heads * dim))
    monkeypatch.setattr(verify, "build_model", wrong)
    check, _ = verify.check_graph(checkpoint, IDS)
    assert not check.passed and "differ from the model's definition" in str(check.message)


def test_a_large_checkpoint_is_sampled(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint(tiny)
    monkeypatch.setattr(verify, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(verify, "PARITY_ROWS", 64)
    check, reference = verify.check_graph(checkpoint, IDS)
    assert reference is None and check.passed
    assert check.figures["layers"] == 1 and check.figures["of_layers"] == 2
    assert check.figures["channels"] == 64 and check.figures["of_channels"] == 96
    assert check.figures["max_error"] < 1e-5 * check.figures["logit_scale"]


def test_unfused_rope_is_caught(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same arithmetic with Split instead of Slice is right and slow."""
    from edge.export import graph

    def split(x, begin, end):  # type: ignore[no-untyped-def]
        size = x.get_output_partial_shape(0)[-1].get_length() if hasattr(x, "get_output_partial_shape") else None
        parts = graph.ops.variadic_split(x, graph._i64(-1), graph._i64([begin or end, size - (begin or end)]))
        return parts.output(1 if begin else 0)

    monkeypatch.setattr(graph, "_channels", split)
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "c", rope_parameters={"partial_rotary_factor": 1.0}))
    path = save(build_model(checkpoint.spec, checkpoint.weight), tmp_path)
    check = verify_ir.check_fusions(path)
    assert not check.passed and "0 of 4 rotary embeddings" in str(check.message)
    foreign = verify_ir.check_fusions(path, ours=False)
    assert foreign.passed and foreign.message == check.message, "slow is not wrong"


def test_missing_bits_are_caught(tiny: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tiny)
    path = save(build_model(checkpoint.spec, checkpoint.weight), tmp_path)
    check = verify_ir.check_weights(path, Recipe("bf16"))
    assert check.passed and check.figures["by_precision"].keys() == {"bf16"}
    for wrong in (Recipe("int8"), Recipe("fp16"), Recipe("int4", group_size=8, symmetric=True, backup="int8_sym")):
        assert not verify_ir.check_weights(path, wrong).passed
    nothing = verify_ir.check_weights(path, Recipe("int4", group_size=16, ratio=0.1, backup="none"))
    assert "no matrix is in 4 bits" in str(nothing.message) and "higher" in str(nothing.hint)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"group_size": 32}, "is in i4 sym, groups of 16, where the recipe (int4, groups of 32)"),
        ({"symmetric": False}, "is in i4 sym"),
        ({"backup": "int8_asym"}, "model.embed_tokens.weight is in i8 sym, per channel"),
        ({"ratio": 0.5}, "100.0% of the layers' weights are in 4 bits, where at most 50.0%"),
    ],
)
def test_another_recipe_than_the_weights_is_caught(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "c", **SIZES))
    file = stream(checkpoint, FOUR_BITS, tmp_path / "out")
    right = verify_ir.check_weights(file, FOUR_BITS)
    assert right.passed and right.figures["share_in_4_bits"] > 0.5
    assert right.figures["kinds"]["down_proj"] == {"i4 sym, groups of 16": 2}
    assert right.figures["kinds"]["head"] == {"i8 sym, per channel": 1}
    wrong = verify_ir.check_weights(file, dataclasses.replace(FOUR_BITS, **change))
    assert not wrong.passed and said in str(wrong.message)


def test_what_nncf_noted_is_a_recipe(tmp_path: Path) -> None:
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "c", **SIZES))
    file = stream(checkpoint, FOUR_BITS, tmp_path / "out")
    assert ir.recipe_of(ov.Core().read_model(file)) == FOUR_BITS


def test_rows_are_read_as_the_plugin_reads_them(tmp_path: Path) -> None:
    """Scales, zero points and nibbles, for every form a matrix can have."""
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "c", **SIZES))
    for number, recipe in enumerate(
        (FOUR_BITS, Recipe("int4", 16, backup="int8_asym"), Recipe("int4", -1), Recipe("int8"))
    ):
        model = ov.Core().read_model(stream(checkpoint, recipe, tmp_path / f"out{number}"))
        for weight in ir.weights_of(model):
            port = {"MatMul": 1, "Gather": 0}[weight.consumer.get_type_name()]
            part = ov.Model([ov.opset13.result(weight.consumer.input_value(port))], [], "weight")
            expected = ov.Core().compile_model(part, "CPU", infer.EXACT)({})[0]
            index = np.array([7, 0, 31])
            np.testing.assert_allclose(weight.rows(index), expected[index], atol=2e-3 * np.abs(expected).max())


def test_lengths_of_a_right_model(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint(tiny)
    path = save(build_model(checkpoint.spec, checkpoint.weight), tmp_path)
    check = verify_ir.check_lengths(path, 320, 256, seconds=60)
    assert check.passed and check.figures["lengths"] == [n for n in verify_ir.LENGTHS if n < 256]
    assert check.figures["max_difference"] < 1e-5 * check.figures["logit_scale"]
    short = verify_ir.check_lengths(path, 320, 256, seconds=0).figures
    assert short["lengths"] == [n for n in verify_ir.LENGTHS if n <= 65] and short["cut_short"]
    monkeypatch.setattr(verify_ir, "LARGE", 1000)
    monkeypatch.setattr(verify_ir, "_VOCABULARY", 64)
    sampled = verify_ir.check_lengths(path, 320, 256, seconds=60)
    assert sampled.passed and sampled.figures["layers"] == 1 and sampled.figures["of_layers"] == 2


def test_a_cache_that_is_read_wrongly_is_caught(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions that start anew in decode: right at once, wrong step by step."""
    checkpoint = Checkpoint(tiny)
    path = save(build_model(checkpoint.spec, checkpoint.weight), tmp_path)
    right = infer.infer

    def forgetful(request: Any, ids: Any, past: int) -> Any:
        if not past:
            return right(request, ids, past)
        request.reset_state()
        return right(request, ids, 0)

    monkeypatch.setattr(verify_ir, "infer", forgetful)
    check = verify_ir.check_lengths(path, 320, 256, lengths=(7, 8))
    assert not check.passed and "logits" in str(check.message)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_parts_of_a_right_model_pass(tied: bool, tmp_path: Path) -> None:
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "c", num_hidden_layers=3, tie_word_embeddings=tied, **SIZES))
    figures = check_parts(stream(checkpoint, FOUR_BITS, tmp_path / "out"), checkpoint).figures
    assert figures.keys() == {"embedding", "layer 0", "layer 2", "head"}
    assert figures["embedding"] < 0.02 and figures["layer 2"] < 0.3


@pytest.mark.parametrize(
    "name",
    ["model.embed_tokens", "model.layers.0.self_attn.k_proj", "model.layers.1.mlp.gate_up_proj",
     "model.layers.2.mlp.down_proj", "model.layers.2.self_attn.o_proj", "lm_head"],
)  # fmt: skip
def test_wrong_bytes_in_any_sampled_part_are_caught(name: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "c", num_hidden_layers=3, **SIZES))
    file = stream(checkpoint, FOUR_BITS, tmp_path / "out")
    layer = next(node for node in ElementTree.parse(file).iter("layer") if node.get("name") == name + ".weight")
    data = layer.find("data")
    assert data is not None
    offset, size = int(str(data.get("offset"))), int(str(data.get("size")))
    with file.with_suffix(".bin").open("rb+") as weights:
        weights.seek(offset)
        weights.write(np.random.default_rng(0).bytes(size))
    checks = [check_rows(file, checkpoint)]
    if "layers.1." not in name:  # the parts are the first and the last layer, and the ends
        checks.append(check_parts(file, checkpoint))
    for check in checks:
        assert not check.passed and "of the finished model is not the checkpoint's" in str(check.message)


def test_a_matrix_that_is_no_number_is_not_forgotten(tmp_path: Path) -> None:
    """Whatever is compared after it."""
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "c", num_hidden_layers=3, **SIZES))
    file = stream(checkpoint, FOUR_BITS, tmp_path / "out")
    name = "model.layers.0.self_attn.q_proj.weight/scale"
    data = next(node for node in ElementTree.parse(file).iter("layer") if node.get("name") == name).find("data")
    assert data is not None
    with file.with_suffix(".bin").open("rb+") as weights:
        weights.seek(int(str(data.get("offset"))))
        weights.write(np.full(int(str(data.get("size"))) // 2, np.nan, np.float16).tobytes())
    check = check_rows(file, checkpoint)
    assert not check.passed and "layers.0.self_attn.q_proj" in str(check.message)


@pytest.mark.parametrize("recipe", [FOUR_BITS, Recipe("int4", 16, backup="int8_asym", awq=True), Recipe("bf16")])
def test_rows_and_vectors_of_a_right_model_pass(recipe: Recipe, tmp_path: Path) -> None:
    """AWQ scales the columns of down_proj, which is undone for the comparison."""
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "c", num_hidden_layers=3, **SIZES))
    check = check_rows(stream(checkpoint, recipe, tmp_path / "out"), checkpoint)
    assert check.passed and check.figures["matrices"] == 20
    assert check.figures["norms_and_biases"] == 3 * 5 + 1
    assert check.figures["worst_error"] < (0.2 if recipe.weights == "int4" else 1e-6)


def test_a_wrong_norm_is_caught(tmp_path: Path) -> None:
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "c", **SIZES))
    file = stream(checkpoint, FOUR_BITS, tmp_path / "out")
    other = Checkpoint(write_checkpoint(tmp_path / "c2", **SIZES))
    other._weights["model.layers.1.input_layernorm.weight"] = other.weight("model.layers.0.input_layernorm.weight")
    check = check_rows(file, other)
    assert not check.passed and "model.layers.1.input_layernorm.weight" in str(check.message)


def test_a_model_that_lost_its_mind_is_caught(tiny: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tiny)
    same = save(build_model(checkpoint.spec, checkpoint.weight), tmp_path)
    reference = forward.logits(checkpoint.spec, checkpoint.weight, IDS)
    check = verify.check_compression(same, reference, IDS)
    assert check.passed and check.figures["kl_mean"] < 1e-6 and check.figures["top1_agreement"] == 1
    rng = np.random.default_rng(0)

    def noise(name: str) -> Weight:
        shape = checkpoint.weight(name).shape
        return Weight(rng.standard_normal(shape, dtype=np.float32), "F32")

    weights = {name: noise(name) for name in checkpoint.spec.tensor_shapes()}
    (tmp_path / "noise").mkdir()
    other = save(build_model(checkpoint.spec, weights.__getitem__), tmp_path / "noise")
    broken = verify.check_compression(other, reference, IDS)
    assert not broken.passed and "lost its mind" in str(broken.message)


def test_kl_divergence_of_known_distributions() -> None:
    p = np.log(np.array([[0.5, 0.5], [0.9, 0.1]], np.float32))
    q = np.log(np.array([[0.5, 0.5], [0.5, 0.5]], np.float32))
    expected = [0.0, 0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5)]
    np.testing.assert_allclose(infer.kl_divergence(p, q), expected, atol=1e-6)
