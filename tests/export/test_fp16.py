"""Adversarial weights: right in f32, beyond 65504 in f16 unless the graph is guarded."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from edge import precise
from edge.cli import _run
from edge.export import fp16, graph
from edge.export.verify_ir import check_fusions
from edge.files import HOME_VARIABLE
from edge.infer import EXACT, infer, kl_divergence
from edge.model import forward
from edge.model.checkpoint import Checkpoint
from tests.conftest import write_checkpoint, write_safetensors

IDS = np.arange(3, 15)
SIZES: dict[str, Any] = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
LARGE = {"q_proj.": 80.0, "k_proj.": 80.0, "gate_up_proj": 30.0, "down_proj": 25.0, "v_proj.": 8.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "glm": {},
    "glm4": {"model_type": "glm4", "architectures": ["Glm4ForCausalLM"]},
    "no-bias": {"attention_bias": False},
    "tied": {"tie_word_embeddings": True},
}


def wild(folder: Path, **changes: Any) -> Checkpoint:
    """A legal checkpoint with scores, gated products and a residual stream beyond f16."""
    checkpoint = Checkpoint(write_checkpoint(folder, seed=3, scale=0.12, **SIZES, **changes))
    tensors = {}
    for name in checkpoint.spec.tensor_shapes():
        factor = next((factor for part, factor in LARGE.items() if part in name), 1.0)
        values = (checkpoint.weight(name).f32() * np.float32(factor)).astype(np.float32)
        tensors[name] = (values.view(np.uint32) >> 16).astype("<u2")
    del checkpoint
    write_safetensors(folder / "model.safetensors", tensors)
    return Checkpoint(folder)


def saved(model: ov.Model, folder: Path, *, marks: bool = True) -> ov.Model:
    folder.mkdir(exist_ok=True)
    ov.save_model(model, folder / "openvino_model.xml", compress_to_fp16=False)
    if marks:
        assert precise.mark(folder / "openvino_model.xml") > 0
    return ov.Core().read_model(folder / "openvino_model.xml")


def run(model: ov.Model) -> np.ndarray:
    return infer(ov.Core().compile_model(model, "CPU", EXACT), IDS, 0)


def is_right(logits: np.ndarray, expected: np.ndarray) -> bool:
    if not np.isfinite(logits).all():
        return False
    agreement = (logits.argmax(-1) == expected.argmax(-1)).mean()
    return bool(agreement > 0.9 and np.abs(logits - expected).max() < 0.02 * np.abs(expected).max())


def largest(checkpoint: Checkpoint) -> dict[str, float]:
    """The largest value of each kind that the definition's own arithmetic meets."""
    spec, weight = checkpoint.spec, checkpoint.weight
    hidden = weight("model.embed_tokens.weight").rows(IDS).f32()
    found = {"scores": 0.0, "fed": 0.0, "residual": 0.0}
    einsum, mlp = np.einsum, forward._mlp

    def watched_einsum(formula: str, *arrays: Any) -> Any:
        out = einsum(formula, *arrays)
        if formula == "qhd,khd->hqk":
            found["scores"] = max(found["scores"], float(np.abs(out).max()))
        return out

    def watched_mlp(*args: Any) -> Any:
        out = mlp(*args)
        found["fed"] = max(found["fed"], float(np.abs(out).max()))
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward.np, "einsum", watched_einsum)
        patch.setattr(forward, "_mlp", watched_mlp)
        for i in range(spec.num_layers):
            hidden = forward.layer(spec, weight, hidden, i)
            found["residual"] = max(found["residual"], float(np.abs(hidden).max()))
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_activations_beyond_f16_give_the_right_logits(variant: str, tmp_path: Path) -> None:
    checkpoint = wild(tmp_path / "c", **VARIANTS[variant])
    beyond = largest(checkpoint)
    assert min(beyond["scores"], beyond["fed"]) > 65504, beyond
    assert variant == "glm4" or beyond["residual"] > 65504  # glm4 norms what it adds
    expected = forward.logits(checkpoint.spec, checkpoint.weight, IDS.tolist())
    model = saved(fp16.guard(graph.build_model(checkpoint.spec, checkpoint.weight)), tmp_path / "guarded")
    np.testing.assert_allclose(run(model), expected, atol=1e-4 * np.abs(expected).max())
    assert is_right(run(fp16.simulated(model)), expected)


@pytest.mark.parametrize("missing", ["scaled q", "scaled residual", "marks"])
def test_without_any_of_the_guards_they_are_wrong(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = wild(tmp_path / "c")
    expected = forward.logits(checkpoint.spec, checkpoint.weight, IDS.tolist())
    if missing == "scaled q":
        monkeypatch.setattr(graph, "_query_factor", lambda spec: 1.0)
    model = graph.build_model(checkpoint.spec, checkpoint.weight)
    if missing != "scaled residual":
        model = fp16.guard(model)
    model = saved(model, tmp_path / "lacking", marks=missing != "marks")
    np.testing.assert_allclose(run(model), expected, atol=1e-4 * np.abs(expected).max())  # in f32 nothing is missed
    assert not is_right(run(fp16.simulated(model)), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_guards_change_neither_logits_nor_weights_nor_fusions(variant: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "c", **SIZES, **VARIANTS[variant]))
    plain = graph.build_model(checkpoint.spec, checkpoint.weight)
    without, before = run(plain), matrices(plain)
    guarded = fp16.guard(plain)
    after = matrices(guarded)
    assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)
    model = saved(guarded, tmp_path / "guarded")
    np.testing.assert_allclose(run(model), without, atol=1e-6 * np.abs(without).max())
    check = check_fusions(tmp_path / "guarded" / "openvino_model.xml")
    fused = {"rope": 4, "attention": 2}
    assert (check.figures["SDPA"], check.figures["PA"]) == (fused, fused)
    assert fp16.residual_scale(model) == fp16.RESIDUAL_SCALE
    assert fp16.residual_scale(graph.build_model(checkpoint.spec, checkpoint.weight)) == 1.0


def matrices(model: ov.Model) -> dict[str, np.ndarray]:
    nodes = [node for node in model.get_ops() if node.get_type_name() == "Constant"]
    return {n.get_friendly_name(): n.data.copy() for n in nodes if n.get_output_element_type(0) == ov.Type.bf16}


def test_a_mark_is_read_back_and_survives_another_saving(tiny: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tiny)
    model = saved(fp16.guard(graph.build_model(checkpoint.spec, checkpoint.weight)), tmp_path / "first")
    names = {node.get_friendly_name() for node in model.get_ops() if precise.marked(node)}
    assert names == {
        node.get_friendly_name() for node in model.get_ops() if precise.PRECISE in node.get_friendly_name()
    }
    assert {"model.norm/precise.square", "rotary/precise.angles"} <= names
    again = saved(model, tmp_path / "second", marks=False)
    assert {node.get_friendly_name() for node in again.get_ops() if precise.marked(node)} == names
    file = tmp_path / "second" / "openvino_model.xml"
    assert precise.mark(file) == len(names)  # marking twice leaves one mark
    layers = [layer for layer in ElementTree.parse(file).iter("layer") if precise.PRECISE in str(layer.get("name"))]
    assert all(len(layer.findall("rt_info/attribute")) == 1 for layer in layers)


def test_the_simulation_rounds_as_f16_does() -> None:
    values = np.array([[1.0003, 65519, 65520, -70000, 3e-8, 1e-8, np.inf]], np.float32)
    parameter = graph.ops.parameter([-1, -1], ov.Type.f32, name="x")
    product = graph.ops.multiply(parameter, graph.ops.constant(np.float32(1.0)))
    total = graph.ops.add(product, graph.ops.constant(np.float32(0.0)))
    model = fp16.simulated(ov.Model([graph.ops.result(total)], [parameter], "x"))
    got = ov.Core().compile_model(model, "CPU", EXACT)({"x": values})[0]
    with np.errstate(over="ignore"):
        assert np.array_equal(got, values.astype(np.float16).astype(np.float32))


def test_a_fully_masked_row_stays_finite_in_f16(tmp_path: Path) -> None:
    """Padding on the left, as the NPU's static shapes have it."""
    checkpoint = wild(tmp_path / "c")
    model = saved(fp16.guard(graph.build_model(checkpoint.spec, checkpoint.weight)), tmp_path / "guarded")
    compiled = ov.Core().compile_model(fp16.simulated(model), "CPU", EXACT)
    pad = 5
    mask = np.r_[np.zeros(pad, np.int64), np.ones(len(IDS), np.int64)][None]
    positions = np.r_[np.zeros(pad, np.int64), np.arange(len(IDS))][None]
    feeds = {"input_ids": np.r_[np.zeros(pad, np.int64), IDS][None], "attention_mask": mask, "position_ids": positions}
    padded = compiled({**feeds, "beam_idx": np.zeros(1, np.int32)})["logits"][0]
    expected = forward.logits(checkpoint.spec, checkpoint.weight, IDS.tolist())
    assert np.isfinite(padded).all() and is_right(padded[pad:], expected)


@pytest.mark.parametrize("target", ["igpu", "npu"])
def test_a_wild_model_goes_through_the_whole_export(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    wild(tmp_path / "c")
    options = ["--for", target] + (["--group-size", "16", "--sym", "--ratio", "1"] if target == "igpu" else [])
    assert _run(["export", str(tmp_path / "c"), str(tmp_path / "out"), *options]) == 0
    model = ov.Core().read_model(tmp_path / "out" / "openvino_model.xml")
    exact, half = run(model), run(fp16.simulated(model))
    assert np.isfinite(half).all()
    assert kl_divergence(exact, half).mean() < 0.02
    assert fp16.residual_scale(model) == fp16.RESIDUAL_SCALE and any(precise.marked(node) for node in model.get_ops())
