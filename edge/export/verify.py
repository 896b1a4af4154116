"""Holds a model against its checkpoint as a whole: the graph before it is compressed, the answers after it is."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.export.fp16 import guard
from edge.export.graph import build_model
from edge.infer import EXACT, core, infer, kl_divergence
from edge.manifest import Check
from edge.model import forward
from edge.model.checkpoint import Checkpoint, Weight
from edge.model.spec import GlmSpec

WHOLE_BYTES = 2_000_000_000
"""Of a model's weights in f32, up to which it is compared whole."""
PARITY_ROWS = 4096
"""Entries of the vocabulary and channels of the MLP that are compared of a larger one."""
_PARITY_TOKENS = 32
_PARITY_TOLERANCE = 1e-4  # of the largest logit; the pocket model reaches 3e-6
_KL_BROKEN = 1.0  # nats; the coarsest 4-bit recipe measured on the pocket model lies at 0.4


def check_graph(checkpoint: Checkpoint, token_ids: Sequence[int]) -> tuple[Check, NDArray[np.float32] | None]:
    """Compare the uncompressed graph with the definition (`edge.model.forward`), prefill and decode.

    A checkpoint too large to be held in f32 is compared on its first layer, with part of its vocabulary and of
    the MLP's channels: all layers are built alike, and every size is one number to the builder.

    Returns:
        The check, and the checkpoint's logits [S, vocab] where it was compared whole, else None.
    """
    spec, weight = _sample(checkpoint)
    whole = spec is checkpoint.spec
    ids = np.asarray(token_ids if whole else token_ids[:_PARITY_TOKENS]) % spec.vocab_size
    expected = forward.logits(spec, weight, ids.tolist())
    request = core().compile_model(guard(build_model(spec, weight)), "CPU", EXACT).create_infer_request()
    split = max(1, len(ids) - 3)
    parts = [infer(request, ids[:split], 0)]
    parts += [infer(request, ids[i : i + 1], i) for i in range(split, len(ids))]
    scale = float(np.abs(expected).max())
    error = float(np.abs(np.concatenate(parts) - expected).max())
    figures = {
        "max_error": error, "logit_scale": scale, "tokens": len(ids),
        "layers": spec.num_layers, "of_layers": checkpoint.spec.num_layers,
        "channels": spec.intermediate_size, "of_channels": checkpoint.spec.intermediate_size,
    }  # fmt: skip
    message = hint = None
    if not error <= _PARITY_TOLERANCE * scale:
        message = f"the graph's logits differ from the model's definition by {error:.3g} at scale {scale:.3g}"
        hint = "This is a fault of glm4-edge or of this OpenVINO version: report it."
    check = Check(name="graph parity", passed=message is None, figures=figures, message=message, hint=hint)
    return check, expected if whole else None


def check_compression(model_file: Path, reference: NDArray[np.float32], token_ids: Sequence[int]) -> Check:
    """How far the model's predictions lie from the checkpoint's `reference` logits [S, vocab] for `token_ids`.

    A broken model (not finite, or another model altogether) fails.
    """
    ids = np.asarray(token_ids)
    logits = infer(core().compile_model(core().read_model(model_file), "CPU", EXACT), ids, 0)
    if logits.shape != reference.shape:
        return Check(
            name="compression", passed=False, figures={},
            message=f"the model gives logits of shape {list(logits.shape)}, the checkpoint {list(reference.shape)}",
            hint="It is not this checkpoint's: name the one it was made from.",
        )  # fmt: skip
    divergence = kl_divergence(reference, logits)
    kl = float(divergence.mean())
    agreement = float((reference.argmax(-1) == logits.argmax(-1)).mean())
    finite = bool(np.isfinite(logits).all())
    figures = {
        "kl_mean": round(kl, 5) if finite else None, "kl_max": round(float(divergence.max()), 4) if finite else None,
        "top1_agreement": round(agreement, 4), "tokens": len(ids),
    }  # fmt: skip
    message = hint = None
    if not finite or not kl < _KL_BROKEN:
        message = f"the model has lost its mind: KL divergence {kl:.3g}, top-1 agreement {agreement:.1%}"
        hint = (
            "Choose more bits (--weights int8) or smaller groups (--group-size 32), if this is its checkpoint at all."
        )
    return Check(name="compression", passed=message is None, figures=figures, message=message, hint=hint)


def _sample(checkpoint: Checkpoint) -> tuple[GlmSpec, Callable[[str], Weight]]:
    """The whole model or, of one too large for that, a layer with less vocabulary and fewer channels in the MLP."""
    spec = checkpoint.spec
    if 4 * spec.parameter_count() <= WHOLE_BYTES:
        return spec, checkpoint.weight
    vocab, ffn = min(spec.vocab_size, PARITY_ROWS), min(spec.intermediate_size, PARITY_ROWS)

    def weight(name: str) -> Weight:
        found = checkpoint.weight(name)
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            return Weight(found.raw[:vocab], found.dtype)
        if name.endswith("gate_up_proj.weight"):
            return found.rows(np.r_[:ffn, spec.intermediate_size : spec.intermediate_size + ffn])
        if name.endswith("down_proj.weight"):
            return Weight(np.ascontiguousarray(found.raw[:, :ffn]), found.dtype)
        return found

    tensors = functools.cache(weight)  # the graph looks at the arrays for as long as it lives
    return dataclasses.replace(spec, vocab_size=vocab, intermediate_size=ffn, num_layers=1), tensors
