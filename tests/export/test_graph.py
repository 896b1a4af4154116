"""The graph against transformers' GlmForCausalLM, the official golden outputs, and OpenVINO's fusions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from edge.export.graph import build_model
from edge.export.verify_ir import check_fusions
from edge.infer import EXACT, compiled_layers
from edge.model import forward
from edge.model.checkpoint import Checkpoint, Weight
from edge.model.rotary import rotary_row_order
from edge.model.spec import GlmSpec
from tests.conftest import write_checkpoint

VARIANTS: dict[str, dict[str, Any]] = {
    "glm": {},
    "full-rotary": {"rope_parameters": {"rope_theta": 10000.0, "partial_rotary_factor": 1.0}},
    "no-bias": {"attention_bias": False},
    "tied": {"tie_word_embeddings": True},
    "one-kv-head": {"num_key_value_heads": 1},
    "three-kv-heads": {"num_key_value_heads": 3},
    "all-kv-heads": {"num_key_value_heads": 6},
    "long-base": {"rope_parameters": {"rope_theta": 5000000.0, "partial_rotary_factor": 0.5}},
    "glm4": {"model_type": "glm4", "architectures": ["Glm4ForCausalLM"]},
    "glm4-yarn": {
        "model_type": "glm4",
        "architectures": ["Glm4ForCausalLM"],
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
        },
    },
    "legacy-config": {"rope_parameters": None, "rope_theta": 5000000.0, "partial_rotary_factor": 1.0},
}


@pytest.fixture(params=VARIANTS, scope="module")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    """(OpenVINO infer request, torch model) of the same random checkpoint."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    folder = write_checkpoint(tmp_path_factory.mktemp("glm"), seed=7, **VARIANTS[request.param])
    checkpoint = Checkpoint(folder)
    compiled = ov.Core().compile_model(build_model(checkpoint.spec, checkpoint.weight), "CPU", EXACT)
    torch_model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    yield compiled.create_infer_request(), torch_model


def run(request: Any, ids: np.ndarray, mask: np.ndarray, beams: list[int] | None = None) -> np.ndarray:
    positions = np.maximum(mask.cumsum(-1) - 1, 0)[:, -ids.shape[1] :]
    feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    feeds["beam_idx"] = np.array(beams or range(len(ids)), np.int32)
    return request.infer(feeds)["logits"].copy()


def run_torch(model: Any, ids: np.ndarray, mask: np.ndarray, cache: Any = None) -> tuple[np.ndarray, Any]:
    import torch

    positions = np.maximum(mask.cumsum(-1) - 1, 0)[:, -ids.shape[1] :]
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), position_ids=torch.tensor(positions),
            past_key_values=cache, use_cache=True,
        )  # fmt: skip
    return out.logits.numpy(), out.past_key_values


def test_prefill_and_cached_decode_equal_transformers(pair: tuple[Any, Any]) -> None:
    request, model = pair
    request.reset_state()
    ids = np.random.default_rng(1).integers(3, 160, (1, 12))
    expected, cache = run_torch(model, ids[:, :8], np.ones((1, 8), np.int64))
    got = run(request, ids[:, :8], np.ones((1, 8), np.int64))
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())
    for i in range(8, 12):
        mask = np.ones((1, i + 1), np.int64)
        expected, cache = run_torch(model, ids[:, i : i + 1], mask, cache)
        got = run(request, ids[:, i : i + 1], mask)
        np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


def test_left_padded_batch_equals_transformers(pair: tuple[Any, Any]) -> None:
    request, model = pair
    request.reset_state()
    rng = np.random.default_rng(2)
    ids = rng.integers(3, 160, (2, 9))
    mask = np.ones((2, 9), np.int64)
    mask[0, :4] = 0
    expected, cache = run_torch(model, ids, mask)
    got = run(request, ids, mask)
    real = mask.astype(bool)
    np.testing.assert_allclose(got[real], expected[real], atol=1e-5 * np.abs(expected).max())
    for _ in range(2):
        new = rng.integers(3, 160, (2, 1))
        mask = np.concatenate([mask, np.ones((2, 1), np.int64)], 1)
        expected, cache = run_torch(model, new, mask, cache)
        np.testing.assert_allclose(run(request, new, mask), expected, atol=1e-5 * np.abs(expected).max())


def test_beam_idx_reorders_the_cache(pair: tuple[Any, Any]) -> None:
    request, _ = pair
    ids = np.random.default_rng(3).integers(3, 160, (2, 6))
    new = np.array([[9], [9]])
    request.reset_state()
    run(request, ids, np.ones((2, 6), np.int64))
    straight = run(request, new, np.ones((2, 7), np.int64))
    request.reset_state()
    run(request, ids, np.ones((2, 6), np.int64))
    swapped = run(request, new, np.ones((2, 7), np.int64), beams=[1, 0])
    np.testing.assert_allclose(swapped, straight[::-1], atol=1e-5)
    assert np.abs(straight[0] - straight[1]).max() > 0.01


def test_each_input_has_one_name(tiny: Path) -> None:
    """Of two, `get_any_name` takes one by chance: optimum-intel then hands over no beam_idx."""
    checkpoint = Checkpoint(tiny)
    names = [port.get_names() for port in build_model(checkpoint.spec, checkpoint.weight).inputs]
    assert names == [{"input_ids"}, {"attention_mask"}, {"position_ids"}, {"beam_idx"}]


def test_graph_equals_the_numpy_definition(tiny: Path) -> None:
    checkpoint = Checkpoint(tiny)
    ids = np.arange(3, 40)
    compiled = ov.Core().compile_model(build_model(checkpoint.spec, checkpoint.weight), "CPU", EXACT)
    expected = forward.logits(checkpoint.spec, checkpoint.weight, ids.tolist())
    got = run(compiled.create_infer_request(), ids[None], np.ones((1, len(ids)), np.int64))[0]
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


def test_row_order_is_a_permutation_that_gathers_even_rows_first() -> None:
    order = rotary_row_order(num_heads=2, head_dim=6, rotary_dim=4)
    assert order.tolist() == [0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11]


def test_golden_outputs_of_the_official_code(shared_data: Path) -> None:
    """li-plus/chatglm.cpp's tiny GLM-4: weights and outputs of THUDM's own modelling code, f32."""
    raw = np.fromfile(shared_data / "glm4-tiny-golden" / "glm4_model.data", dtype="<f4")
    at = 0

    def take(*shape: int) -> np.ndarray:
        nonlocal at
        count = int(np.prod(shape))
        at += count
        return raw[at - count : at].reshape(shape)

    layer = "model.layers.0."
    tensors = {"model.embed_tokens.weight": take(5, 32), layer + "input_layernorm.weight": take(32)}
    qkv, bias = take(48, 32), take(48)
    for name, rows in (("q", slice(0, 32)), ("k", slice(32, 40)), ("v", slice(40, 48))):
        tensors[f"{layer}self_attn.{name}_proj.weight"] = np.ascontiguousarray(qkv[rows])
        tensors[f"{layer}self_attn.{name}_proj.bias"] = np.ascontiguousarray(bias[rows])
    tensors[layer + "self_attn.o_proj.weight"] = take(32, 32)
    tensors[layer + "post_attention_layernorm.weight"] = take(32)
    tensors[layer + "mlp.gate_up_proj.weight"] = take(96, 32)
    tensors[layer + "mlp.down_proj.weight"] = take(32, 48)
    tensors["model.norm.weight"] = take(32)
    tensors["lm_head.weight"] = np.eye(32, dtype=np.float32)  # the outputs are hidden states: look straight at them
    spec = GlmSpec("glm", 5, 32, 48, 1, 8, 2, 4, 2, 10000.0, 1.5625e-07, True, False, 128, (1,))
    weights = {name: Weight(value, "F32") for name, value in tensors.items()}
    request = ov.Core().compile_model(build_model(spec, weights.__getitem__), "CPU", EXACT).create_infer_request()
    total = 0
    for count in (3, 1, 1):
        ids = take(count).view("<i4").astype(np.int64)
        total += count
        got = run(request, ids[None], np.ones((1, total), np.int64))[0]
        np.testing.assert_allclose(got, take(count, 32), atol=1e-5)
    assert at == len(raw)


@pytest.mark.parametrize("variant", ["glm", "full-rotary", "one-kv-head", "all-kv-heads"])
def test_everything_fuses_on_both_backends(variant: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "checkpoint", **VARIANTS[variant]))
    model = build_model(checkpoint.spec, checkpoint.weight)
    ov.save_model(model, tmp_path / "openvino_model.xml", compress_to_fp16=False)
    check = check_fusions(tmp_path / "openvino_model.xml")
    assert check.passed and check.message is None
    fused = {"rope": 4, "attention": 2}
    assert check.figures == {"layers": 2, "SDPA": fused, "PA": fused}


def test_cache_stays_inside_the_attention(tiny: Path) -> None:
    checkpoint = Checkpoint(tiny)
    counts = compiled_layers(ov.Core().compile_model(build_model(checkpoint.spec, checkpoint.weight), "CPU"))
    assert counts["ScaledDotProductAttention"] == 2
    assert counts["MemoryInput"] == counts["MemoryOutput"] == 4
    assert counts["Softmax"] == counts["StridedSlice"] == 0


def test_parameters_carry_their_name_twice(tiny: Path) -> None:
    checkpoint = Checkpoint(tiny)
    model = build_model(checkpoint.spec, checkpoint.weight)
    for name in ("input_ids", "attention_mask", "position_ids", "beam_idx"):
        assert model.input(name).get_node().get_friendly_name() == name
