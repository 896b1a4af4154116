"""Holds the finished IR of a large model against its checkpoint, a layer at a time.

The whole of a 9B model in f32 fits no laptop; one layer does. Each sampled layer is cut out of the IR as it
lies on the disk, run in f32 on real hidden states, and compared with the definition on the checkpoint's
weights: wrong bytes, rows or scales in any of its matrices show.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops

from edge.errors import VerificationError
from edge.export.fp16 import residual_scale
from edge.manifest import Check
from edge.model import forward
from edge.model.checkpoint import Checkpoint

_TOKENS = 16
_HEAD_ROWS = 4096
_BROKEN = 0.5  # relative error; 4 bits leave about 0.1 on random weights, a wrong matrix leaves 1 or more


def check_parts(model_file: Path, checkpoint: Checkpoint, properties: dict[str, Any]) -> Check:
    """Compare the first, a middle and the last layer, the embedding and the head.

    Figures are relative errors: of what a layer adds to its input, of embedded tokens, of logits.

    Raises:
        VerificationError: one of them is not what the checkpoint says.
    """
    spec = checkpoint.spec
    rng = np.random.default_rng(0)
    ids = rng.integers(0, spec.vocab_size, _TOKENS)
    hidden = checkpoint.weight("model.embed_tokens.weight").rows(ids).f32()
    errors = {"embedding": _relative(_embed(model_file, ids, properties), hidden)}
    for i in sorted({0, spec.num_layers // 2, spec.num_layers - 1}):
        expected = forward.layer(spec, checkpoint.weight, hidden, i) - hidden
        got = _layer(model_file, hidden, i, properties) - hidden
        errors[f"layer {i}"] = _relative(got, expected)
    name = "model.embed_tokens.weight" if spec.tie_word_embeddings else "lm_head.weight"
    head = checkpoint.weight(name)
    rows = np.sort(rng.choice(spec.vocab_size, min(_HEAD_ROWS, spec.vocab_size), replace=False))
    expected = forward.last_norm(spec, checkpoint.weight, hidden) @ head.rows(rows).f32().T
    errors["head"] = _relative(_head(model_file, hidden, spec.num_layers, properties)[:, rows], expected)
    worst = max(errors, key=lambda part: errors[part] if np.isfinite(errors[part]) else np.inf)
    if not errors[worst] < _BROKEN:
        raise VerificationError(
            f"{worst} of the finished model is not the checkpoint's: relative error {errors[worst]:.3g}",
            hint="Nothing was kept. Choose more bits (--weights int8), or report it with the checkpoint's name.",
        )
    return Check(name="parts", passed=True, figures={part: round(error, 4) for part, error in errors.items()})


def _embed(model_file: Path, ids: NDArray[np.int64], properties: dict[str, Any]) -> NDArray[np.float32]:
    model = ov.Core().read_model(model_file)
    output = _named(model, "model.embed_tokens").output(0)
    part = ov.Model([ops.result(output)], [model.input("input_ids").get_node()], "embedding")
    return _run(part, {"input_ids": ids[None]}, properties) / np.float32(residual_scale(model))


def _layer(model_file: Path, hidden: NDArray[np.float32], i: int, properties: dict[str, Any]) -> NDArray[np.float32]:
    model = ov.Core().read_model(model_file)
    scale = np.float32(residual_scale(model))  # before the cut, which takes the embedding away
    before = "model.embed_tokens" if i == 0 else f"model.layers.{i - 1}.mlp_residual"
    parameter = _cut(model, before, hidden.shape[-1])
    own = [sink for sink in model.get_sinks() if sink.get_variable_id().startswith(f"past_key_values.{i}.")]
    end = ops.result(_named(model, f"model.layers.{i}.mlp_residual").output(0))
    part = ov.Model([end], own, [*model.get_parameters(), parameter], "layer")
    positions = np.arange(len(hidden))[None]
    feeds = {
        "hidden": hidden[None] * scale, "attention_mask": np.ones_like(positions), "position_ids": positions,
        "input_ids": np.zeros_like(positions), "beam_idx": np.zeros(1, np.int32),
    }  # fmt: skip
    return _run(part, feeds, properties) / scale


def _head(
    model_file: Path, hidden: NDArray[np.float32], layers: int, properties: dict[str, Any]
) -> NDArray[np.float32]:
    model = ov.Core().read_model(model_file)
    scale = np.float32(residual_scale(model))
    parameter = _cut(model, f"model.layers.{layers - 1}.mlp_residual", hidden.shape[-1])
    part = ov.Model([ops.result(_named(model, "lm_head").output(0))], [parameter], "head")
    return _run(part, {"hidden": hidden[None] * scale}, properties)


def _cut(model: ov.Model, name: str, size: int) -> Any:
    """Let a Parameter `hidden` take the place of the node `name`."""
    parameter = ops.parameter([-1, -1, size], ov.Type.f32, name="hidden")
    parameter.output(0).set_names({"hidden"})
    _named(model, name).output(0).replace(parameter.output(0))
    return parameter


def _named(model: ov.Model, name: str) -> Any:
    return next(node for node in model.get_ops() if node.get_friendly_name() == name)


def _run(part: ov.Model, feeds: dict[str, Any], properties: dict[str, Any]) -> NDArray[np.float32]:
    out: NDArray[np.float32] = ov.Core().compile_model(part, "CPU", properties)(feeds)[0][0]
    return out.copy()


def _relative(got: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(got - expected) / max(float(np.linalg.norm(expected)), 1e-12))
