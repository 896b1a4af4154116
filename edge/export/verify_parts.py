"""Holds the finished IR of a large model against its checkpoint: rows of every matrix, and whole sampled layers.

The whole of a 9B model in f32 fits no laptop; one layer does. Each sampled layer is cut out of the IR as it
lies on the disk, run in f32 on real hidden states, and compared with the definition on the checkpoint's
weights: wrong wiring, bytes, rows or scales show. What the other layers hold is seen by reading some rows of each
of their matrices.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops

from edge.export import ir
from edge.export.fp16 import POST_NORM, UNSCALED, residual_scale
from edge.infer import EXACT, core
from edge.manifest import Check
from edge.model import forward
from edge.model.checkpoint import Checkpoint
from edge.model.rotary import rotary_row_order
from edge.model.spec import GlmSpec

_TOKENS = 16
_HEAD_ROWS = 4096
_ROWS = 16  # of every matrix
_BROKEN = 0.5  # relative error; 4 bits leave about 0.1 on random weights, a wrong matrix leaves 1 or more
_HINT = "Choose more bits (--weights int8) if this is its checkpoint at all; else export the model again."


def check_parts(model_file: Path, checkpoint: Checkpoint) -> Check:
    """Compare the first and the last layer, the embedding and the head; `check_rows` looks into every matrix.

    Figures are relative errors: of what a layer adds to its input, of embedded tokens, of logits.
    """
    spec = checkpoint.spec
    rng = np.random.default_rng(0)
    ids = rng.integers(0, spec.vocab_size, _TOKENS)
    hidden = checkpoint.weight("model.embed_tokens.weight").rows(ids).f32()
    errors = {"embedding": _relative(_embed(model_file, ids), hidden)}
    for i in sorted({0, spec.num_layers - 1}):
        expected = forward.layer(spec, checkpoint.weight, hidden, i) - hidden
        errors[f"layer {i}"] = _relative(_layer(model_file, hidden, i) - hidden, expected)
    name = "model.embed_tokens.weight" if spec.tie_word_embeddings else "lm_head.weight"
    head = checkpoint.weight(name)
    rows = np.sort(rng.choice(spec.vocab_size, min(_HEAD_ROWS, spec.vocab_size), replace=False))
    expected = forward.last_norm(spec, checkpoint.weight, hidden) @ head.rows(rows).f32().T
    errors["head"] = _relative(_head(model_file, hidden, rows), expected)
    worst = max(errors, key=lambda part: errors[part] if np.isfinite(errors[part]) else np.inf)
    message = None
    if not errors[worst] < _BROKEN:
        message = f"{worst} of the finished model is not the checkpoint's: relative error {errors[worst]:.3g}"
    figures = {part: round(error, 4) if np.isfinite(error) else None for part, error in errors.items()}
    return Check(name="parts", passed=not message, figures=figures, message=message, hint=_HINT if message else None)


def check_rows(model_file: Path, checkpoint: Checkpoint, *, ours: bool = True) -> Check:
    """Compare some rows of every matrix, and of an IR of ours every norm and bias, with the checkpoint's.

    Args:
        ours: the IR is of this program, with q and k in half-split order; else they are as in the checkpoint.

    Figures: relative errors, the mean by kind and the worst.
    """
    spec = checkpoint.spec
    model = core().read_model(model_file)
    rng = np.random.default_rng(0)
    errors: dict[str, list[float]] = {}
    worst_name, worst = "", 0.0
    unknown = 0
    for weight in ir.weights_of(model):
        source = source_name(weight)
        if source is None or weight.shape != spec.tensor_shapes().get(source):
            unknown += 1
            continue
        index = np.sort(rng.choice(weight.shape[0], min(_ROWS, weight.shape[0]), replace=False))
        order = row_order(spec, weight.kind) if ours else None
        expected = checkpoint.weight(source).rows(index if order is None else order[index]).f32()
        got = weight.rows(index)
        factors = ir.channel_factors(weight) if weight.kind == "down_proj" else None
        error = _relative(got if factors is None else got * factors, expected)
        error = error if np.isfinite(error) else np.inf
        errors.setdefault(weight.kind, []).append(error)
        if error > worst:
            worst_name, worst = source, error
    vectors, wrong = _vectors(model, checkpoint) if ours else (0, [])
    means = {kind: float(np.mean(found)) for kind, found in errors.items()}
    figures: dict[str, Any] = {
        "matrices": sum(map(len, errors.values())), "rows_of_each": _ROWS, "unknown_matrices": unknown,
        "mean_error": {kind: round(mean, 4) if np.isfinite(mean) else None for kind, mean in means.items()},
        "worst": worst_name, "worst_error": round(worst, 4) if np.isfinite(worst) else None,
        "norms_and_biases": vectors,
    }  # fmt: skip
    message, hint = None, None
    if not worst < _BROKEN:
        message = f"{worst_name} of the finished model is not the checkpoint's: relative error {worst:.3g}"
        hint = _HINT
    elif wrong:
        message = f"{wrong[0]} of the finished model is not the checkpoint's, nor are {len(wrong) - 1} other vectors"
        hint = "Export the model again."
    elif unknown or not errors:
        message = f"{unknown} matrices bear names or shapes that the checkpoint does not have; they were not compared"
        hint = "Name the checkpoint that the model was made from."
    passed = bool(errors) and worst < _BROKEN and not wrong and not (ours and unknown)
    return Check(name="rows", passed=passed, figures=figures, message=message, hint=hint)


def source_name(weight: ir.IrWeight) -> str | None:
    """The checkpoint's name of a matrix."""
    if weight.kind in (ir.EMBEDDING, ir.TIED):
        return "model.embed_tokens.weight"
    if weight.kind == ir.HEAD:
        return "lm_head.weight"
    if weight.layer is None:
        return None
    module = "mlp" if weight.kind in ("gate_up_proj", "down_proj") else "self_attn"
    return f"model.layers.{weight.layer}.{module}.{weight.kind}.weight"


def row_order(spec: GlmSpec, kind: str) -> NDArray[np.int64] | None:
    """Which of the checkpoint's rows each row of a matrix of ours is; None: its own."""
    heads = {"q_proj": spec.num_heads, "k_proj": spec.num_kv_heads}.get(kind)
    return None if heads is None else rotary_row_order(heads, spec.head_dim, spec.rotary_dim)


def _vectors(model: ov.Model, checkpoint: Checkpoint) -> tuple[int, list[str]]:
    """How many norms and biases were found by their names, and which differ from the checkpoint's."""
    spec, wrong, found = checkpoint.spec, [], 0
    scale = np.float32(residual_scale(model))
    nodes = {node.get_friendly_name(): node for node in model.get_ops()}
    for name, shape in spec.tensor_shapes().items():
        if len(shape) > 1:
            continue
        place = name.removesuffix(".weight") if name.endswith(".weight") else name + "_add"
        expected = checkpoint.weight(name)
        order = row_order(spec, name.split(".")[-2]) if name.endswith(".bias") else None
        values = (expected if order is None else expected.rows(order)).f32()
        if POST_NORM.fullmatch(name):
            values *= scale
        node = nodes.get(place + UNSCALED) or nodes.get(place)
        constant = None if node is None else node.input_value(1).get_node()
        if constant is None or constant.get_type_name() != "Constant":
            wrong.append(name)
            continue
        found += 1
        if not np.array_equal(constant.get_data(dtype=np.float32).reshape(-1), values):
            wrong.append(name)
    return found, wrong


def _embed(model_file: Path, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    model = core().read_model(model_file)
    entries, places = np.unique(ids, return_inverse=True)
    embedding = next(weight for weight in ir.weights_of(model) if weight.kind in (ir.EMBEDDING, ir.TIED))
    ir.slice_ends(model, entries)
    output = embedding.consumer.output(0)
    part = ov.Model([ops.result(output)], [model.input("input_ids").get_node()], "embedding")
    return _run(part, {"input_ids": places[None]})


def _layer(model_file: Path, hidden: NDArray[np.float32], i: int) -> NDArray[np.float32]:
    model = core().read_model(model_file)
    scale = np.float32(residual_scale(model))  # before the cut, which takes the embedding away
    parameter = _cut(model, i - 1, hidden.shape[-1])
    end: Any = ir.layer_end(model, i)
    end = ops.result(end.output(0))
    part = ov.Model([end], ir.sinks_for(model, [end]), [*model.get_parameters(), parameter], "layer")
    positions = np.arange(len(hidden))[None]
    feeds = {
        "hidden": hidden[None] * scale, "attention_mask": np.ones_like(positions), "position_ids": positions,
        "input_ids": np.zeros_like(positions), "beam_idx": np.zeros(1, np.int32),
    }  # fmt: skip
    return _run(part, feeds) / scale


def _head(model_file: Path, hidden: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    model = core().read_model(model_file)
    scale = np.float32(residual_scale(model))
    ir.slice_ends(model, rows)
    parameter = _cut(model, ir.num_layers(model) - 1, hidden.shape[-1])
    logits = model.output("logits").get_node().input_value(0)
    return _run(ov.Model([ops.result(logits)], [parameter], "head"), {"hidden": hidden[None] * scale})


def _cut(model: ov.Model, layer: int, size: int) -> Any:
    """Let a Parameter `hidden` take the place of what the layer puts out; -1: of the embedded tokens."""
    parameter = ops.parameter([-1, -1, size], ov.Type.f32, name="hidden")
    parameter.output(0).set_names({"hidden"})
    if layer < 0:
        weights = ir.weights_of(model)
        node = next(weight.consumer for weight in weights if weight.kind in (ir.EMBEDDING, ir.TIED))
        if node.get_friendly_name().endswith(UNSCALED):
            (reader,) = node.output(0).get_target_inputs()
            node = reader.get_node()
    else:
        node = ir.layer_end(model, layer)
    node.output(0).replace(parameter.output(0))
    return parameter


def _run(part: ov.Model, feeds: dict[str, Any]) -> NDArray[np.float32]:
    out: NDArray[np.float32] = core().compile_model(part, "CPU", EXACT)(feeds)[0][0]
    return out.copy()


def _relative(got: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(got - expected) / max(float(np.linalg.norm(expected)), 1e-12))
