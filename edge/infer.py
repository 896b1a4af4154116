"""Running an IR for its numbers: tokens in, logits out."""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

# Full precision everywhere: what is compared is the weights, not a plugin's shortcuts.
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


@functools.cache
def core() -> ov.Core:
    """The process's one Core, which is never taken down.

    OpenVINO's CPU plugin sets a signal stack when it comes and restores the one before when it goes. Of two Cores
    the first to go would leave a stack that is no longer there, and Ctrl-C would end in a segmentation fault.
    """
    return ov.Core()


def infer(compiled: Any, token_ids: NDArray[np.int64], past: int) -> NDArray[np.float32]:
    """Logits [S, vocab] for S tokens of one sequence after `past` cached ones.

    `compiled` is a compiled model or, to keep its cache between calls, an infer request.
    """
    logits: NDArray[np.float32] = infer_rows(compiled, token_ids[None], past)[0]
    return logits


def infer_rows(
    compiled: Any, token_ids: NDArray[np.int64], past: int, rows: NDArray[np.int32] | None = None
) -> NDArray[np.float32]:
    """Logits [B, S, vocab] for S tokens of each of B sequences, all after `past` cached ones.

    Args:
        compiled: see `infer`.
        token_ids: [B, S].
        rows: [B], of which sequence of the call before each goes on; None: each of itself.
    """
    count, total = len(token_ids), past + token_ids.shape[1]
    request = compiled if isinstance(compiled, ov.InferRequest) else compiled.create_infer_request()
    feeds = {
        "input_ids": token_ids,
        "attention_mask": np.ones((count, total), np.int64),
        "position_ids": np.arange(past, total)[None].repeat(count, 0),
        "beam_idx": np.arange(count, dtype=np.int32) if rows is None else rows,
    }
    wanted = {name for port in request.model_inputs for name in port.get_names()}
    out = request.infer({name: value for name, value in feeds.items() if name in wanted})
    logits: NDArray[np.float32] = out["logits"].copy()
    return logits


def compiled_layers(compiled: ov.CompiledModel) -> Counter[str]:
    """How many nodes of each type the plugin made."""
    nodes = compiled.get_runtime_model().get_ordered_ops()
    return Counter(str(node.get_rt_info()["layerType"].value) for node in nodes)


def kl_divergence(reference: NDArray[np.float32], logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """KL(reference ‖ logits) of each row, in nats; both [S, vocab]."""
    p, q = _log_softmax(reference), _log_softmax(logits)
    divergence: NDArray[np.float64] = (np.exp(p) * (p - q)).sum(-1)
    return divergence


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    out: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return out
