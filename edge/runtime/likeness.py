"""How alike two models' logits are, and what a model thinks of a text. Pure arithmetic."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def lumped_kl(
    top_ids: NDArray[np.int64], top_logits: NDArray[np.float64], log_sum_exp: NDArray[np.float64],
    logits: NDArray[np.float32],
) -> NDArray[np.float64]:  # fmt: skip
    """KL(p ‖ q) in nats of each row, with all tokens outside the top k as one outcome.

    Lumping outcomes together never raises a KL divergence: this is a lower bound of the whole one, and equal to it
    where the top k are the whole vocabulary. What it leaves out lies in how q spreads the tail's probability.

    Args:
        top_ids, top_logits: [S, k] of the reference p.
        log_sum_exp: [S], of all its logits.
        logits: [S, vocab] of q.
    """
    log_p = top_logits - log_sum_exp[:, None]
    exps, total = _exponentials(logits)
    q = np.take_along_axis(exps, top_ids, 1) / total
    np.put_along_axis(exps, top_ids, 0.0, 1)
    p_tail = np.maximum(1 - np.exp(log_p).sum(1), 0)
    q_tail = exps.sum(1) / total[:, 0]
    tiny = np.finfo(np.float64).tiny
    kl = (np.exp(log_p) * (log_p - np.log(np.maximum(q, tiny)))).sum(1)
    # below 1e-12 the tail of p is what rounding left of 1 minus 1
    tail = np.where(p_tail > 1e-12, p_tail * (np.log(np.maximum(p_tail, tiny)) - np.log(np.maximum(q_tail, tiny))), 0)
    out: NDArray[np.float64] = np.maximum(kl + tail, 0)
    return out


def next_log_probs(logits: NDArray[np.float32], following: NDArray[np.int64]) -> NDArray[np.float64]:
    """Log-probability in nats, by `logits` [S, vocab], of the token that follows each, `following` [S]."""
    total = log_sum_exp(logits)
    out: NDArray[np.float64] = np.take_along_axis(logits, following[:, None], 1)[:, 0].astype(np.float64) - total
    return out


def log_sum_exp(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of all logits [S, vocab] of each row."""
    out: NDArray[np.float64] = np.log(_exponentials(logits)[1][:, 0]) + logits.max(1).astype(np.float64)
    return out


def perplexity(log_probs: NDArray[Any]) -> float:
    """Of tokens with these log-probabilities, in nats."""
    return math.exp(min(-float(log_probs.mean()), 700.0))  # e⁷¹⁰ is more than a float holds


def _exponentials(logits: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """exp(logits - their largest), and the sum of each row as [S, 1]."""
    exps = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return exps, exps.sum(1, keepdims=True)
