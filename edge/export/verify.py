"""Opens what an export made and proves it: right numbers, right bits, every fusion in place."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edge.errors import VerificationError
from edge.export.compress import weight_bits
from edge.export.fp16 import guard
from edge.export.graph import build_model
from edge.export.recipe import Recipe, layer_weights
from edge.manifest import Check
from edge.model import forward
from edge.model.checkpoint import Checkpoint, Weight
from edge.model.spec import GlmSpec

# Full precision everywhere: what is compared is the weights, not a plugin's shortcuts.
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}

_PARITY_BYTES = 2_000_000_000  # f32 weights held at once while graph and definition are compared
_PARITY_VOCABULARY = 4096
_PARITY_TOLERANCE = 1e-4  # of the largest logit; the pocket model reaches 3e-6
_KL_BROKEN = 1.0  # nats; the coarsest 4-bit recipe measured on the pocket model lies at 0.4


def check_graph(checkpoint: Checkpoint, token_ids: Sequence[int]) -> tuple[Check, NDArray[np.float32] | None]:
    """Compare the uncompressed graph with the definition (`edge.model.forward`), prefill and decode.

    A checkpoint too large to be held in f32 is compared on its first layers and part of its
    vocabulary; the figures say how many.

    Returns:
        The check, and the checkpoint's logits [S, vocab] where it was compared whole, else None.

    Raises:
        VerificationError: they differ.
    """
    spec, weight = _sample(checkpoint)
    ids = np.asarray(token_ids) % spec.vocab_size
    expected = forward.logits(spec, weight, ids.tolist())
    request = ov.Core().compile_model(guard(build_model(spec, weight)), "CPU", EXACT).create_infer_request()
    split = max(1, len(ids) - 3)
    parts = [infer(request, ids[:split], 0)]
    parts += [infer(request, ids[i : i + 1], i) for i in range(split, len(ids))]
    scale = float(np.abs(expected).max())
    error = float(np.abs(np.concatenate(parts) - expected).max())
    figures = {
        "max_error": error, "logit_scale": scale, "tokens": len(ids),
        "layers": spec.num_layers, "of_layers": checkpoint.spec.num_layers,
    }  # fmt: skip
    if not error <= _PARITY_TOLERANCE * scale:
        raise VerificationError(
            f"the graph's logits differ from the model's definition by {error:.3g} at scale {scale:.3g}",
            hint="Nothing was kept. This is a fault of glm4-edge or of this OpenVINO version: report it.",
        )
    check = Check(name="graph parity", passed=True, figures=figures)
    return check, expected if spec is checkpoint.spec else None


def check_fusions(model_file: Path, spec: GlmSpec) -> Check:
    """Compile for the CPU, with and without paged attention, and count what fused.

    Raises:
        VerificationError: an attention or a RoPE stayed in pieces, which would run slowly.
    """
    core = ov.Core()
    figures: dict[str, Any] = {}
    for backend, attention in (("SDPA", "ScaledDotProductAttention"), ("PA", "PagedAttention")):
        model = core.read_model(model_file)
        if backend == "PA":
            from openvino._offline_transformations import paged_attention_transformation

            paged_attention_transformation(model)
        counts = compiled_layers(core.compile_model(model, "CPU"))
        found = {"rope": counts["RoPE"], "attention": counts[attention]}
        left = {name: counts[name] for name in ("Softmax", "StridedSlice") if counts[name]}
        if found != {"rope": 2 * spec.num_layers, "attention": spec.num_layers} or left:
            raise VerificationError(
                f"compiled with {backend}, {found} fused and {left or 'nothing'} stayed, where {spec.num_layers} "
                f"layers need {2 * spec.num_layers} fused RoPE and {spec.num_layers} fused attentions",
                hint="Nothing was kept, because the model would run slowly. Report it with your OpenVINO version.",
            )
        figures[backend] = found
    return Check(name="fusions", passed=True, figures=figures)


def check_weights(model_file: Path, recipe: Recipe, spec: GlmSpec) -> Check:
    """Count the weights by their number of bits in the finished IR.

    Raises:
        VerificationError: none has the bits that were asked for, or the share in 4 bits is not the recipe's.
    """
    counts = weight_bits(ov.Core().read_model(model_file))
    total = sum(counts.values())
    four = sum(count for name, count in counts.items() if name in ("u4", "i4"))
    wanted = {"int4": ("u4", "i4"), "int8": ("u8", "i8"), "bf16": ("bf16",), "fp16": ("f16",)}[recipe.weights]
    if not any(counts.get(name) for name in wanted):
        raise VerificationError(
            f"{recipe.weights} was asked for, but the IR's weights are {counts}",
            hint="Nothing was kept. "
            + (
                f"A ratio of {recipe.ratio} has room for no matrix; give a higher one."
                if recipe.ratio < 1
                else "Report it with your NNCF version."
            ),
        )
    share = four / layer_weights(spec)
    if recipe.weights == "int4" and share > recipe.ratio + 1e-6:
        raise VerificationError(
            f"{share:.1%} of the layers' weights are in 4 bits, where at most {recipe.ratio:.1%} were asked for",
            hint="Nothing was kept. Choose another ratio, or report it with your NNCF version.",
        )
    figures = {"by_precision": counts, "share_in_4_bits": round(four / total, 4)}
    return Check(name="weights", passed=True, figures=figures)


def check_compression(model_file: Path, reference: NDArray[np.float32], token_ids: Sequence[int]) -> Check:
    """How far the compressed model's predictions lie from the checkpoint's `reference` logits for `token_ids`.

    Raises:
        VerificationError: the compressed model is broken (not finite, or another model altogether).
    """
    ids = np.asarray(token_ids)
    core = ov.Core()
    logits = infer(core.compile_model(core.read_model(model_file), "CPU", EXACT), ids, 0)
    divergence = kl_divergence(reference, logits)
    kl = float(divergence.mean())
    agreement = float((reference.argmax(-1) == logits.argmax(-1)).mean())
    if not np.isfinite(logits).all() or not kl < _KL_BROKEN:
        raise VerificationError(
            f"the compressed model has lost its mind: KL divergence {kl:.3g}, top-1 agreement {agreement:.1%}",
            hint="Nothing was kept. Choose more bits (--weights int8) or smaller groups (--group-size 32).",
        )
    figures = {"kl_mean": round(kl, 5), "kl_max": round(float(divergence.max()), 4),
               "top1_agreement": round(agreement, 4), "tokens": len(ids)}  # fmt: skip
    return Check(name="compression", passed=True, figures=figures)


def infer(compiled: Any, token_ids: NDArray[np.int64], past: int) -> NDArray[np.float32]:
    """Logits [S, vocab] for S tokens of one sequence after `past` cached ones.

    `compiled` is a compiled model or, to keep its cache between calls, an infer request.
    """
    total = past + len(token_ids)
    run = compiled.infer if isinstance(compiled, ov.InferRequest) else compiled
    out = run(
        {
            "input_ids": token_ids[None],
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(past, total)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
    )
    logits: NDArray[np.float32] = out["logits"][0].copy()
    return logits


def kl_divergence(reference: NDArray[np.float32], logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """KL(reference ‖ logits) of each row, in nats; both [S, vocab]."""
    p, q = _log_softmax(reference), _log_softmax(logits)
    divergence: NDArray[np.float64] = (np.exp(p) * (p - q)).sum(-1)
    return divergence


def compiled_layers(compiled: ov.CompiledModel) -> Counter[str]:
    """How many nodes of each type the plugin made."""
    nodes = compiled.get_runtime_model().get_ordered_ops()
    return Counter(str(node.get_rt_info()["layerType"].value) for node in nodes)


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    out: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return out


def _sample(checkpoint: Checkpoint) -> tuple[GlmSpec, Callable[[str], Weight]]:
    """The whole model, or as many first layers and vocabulary rows as may be held in f32."""
    spec = checkpoint.spec
    if 4 * spec.parameter_count() <= _PARITY_BYTES:
        return spec, checkpoint.weight
    vocab = min(spec.vocab_size, _PARITY_VOCABULARY)
    small = dataclasses.replace(spec, vocab_size=vocab, num_layers=1)
    per_layer = dataclasses.replace(small, num_layers=2).parameter_count() - small.parameter_count()
    layers = max(1, min(spec.num_layers, (_PARITY_BYTES // 4 - (small.parameter_count() - per_layer)) // per_layer))

    def weight(name: str) -> Weight:
        found = checkpoint.weight(name)
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            return Weight(found.raw[:vocab], found.dtype)
        return found

    return dataclasses.replace(small, num_layers=layers), weight
