"""The GLM-4 decoder in numpy, in the plainest words: what an exported graph is held against.

Written from the definition (transformers `models/glm/modeling_glm.py`), not from the graph: pairs are
rotated where they lie, KV heads are repeated by copying, the mask is a triangle. One sequence, no
cache, float32, a layer at a time, so that only one layer is ever in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge.model.spec import GlmSpec

Array = NDArray[np.float32]


class Tensor(Protocol):
    """A tensor of the checkpoint: a `Weight`, or one that is restored from elsewhere."""

    def f32(self) -> Array:
        """Its values."""

    def rows(self, index: NDArray[np.int64]) -> Tensor:
        """Some rows of a matrix."""

    def times(self, x: Array) -> Array:
        """x [S, columns] times the transposed matrix: [S, rows]."""


def logits(spec: GlmSpec, weight: Callable[[str], Tensor], token_ids: Sequence[int]) -> Array:
    """Logits [S, vocab] of every position of one sequence of S tokens."""
    hidden = hidden_states(spec, weight, token_ids)
    head = "model.embed_tokens.weight" if spec.tie_word_embeddings else "lm_head.weight"
    return weight(head).times(hidden)


def hidden_states(spec: GlmSpec, weight: Callable[[str], Tensor], token_ids: Sequence[int]) -> Array:
    """Output of the last norm, [S, hidden]."""
    hidden = weight("model.embed_tokens.weight").rows(np.asarray(token_ids)).f32()
    for i in range(spec.num_layers):
        hidden = layer(spec, weight, hidden, i)
    return last_norm(spec, weight, hidden)


def layer(spec: GlmSpec, weight: Callable[[str], Tensor], hidden: Array, i: int) -> Array:
    """Layer i applied to hidden states [S, hidden] at positions 0, 1, …."""
    prefix = f"model.layers.{i}."
    cos, sin = _rotary(spec, len(hidden))
    normed = _rms_norm(hidden, weight(prefix + "input_layernorm.weight"), spec)
    attended = _attention(spec, weight, prefix + "self_attn.", normed, cos, sin)
    if spec.four_norms:
        attended = _rms_norm(attended, weight(prefix + "post_self_attn_layernorm.weight"), spec)
    hidden = hidden + attended
    normed = _rms_norm(hidden, weight(prefix + "post_attention_layernorm.weight"), spec)
    fed = _mlp(spec, weight, prefix + "mlp.", normed)
    if spec.four_norms:
        fed = _rms_norm(fed, weight(prefix + "post_mlp_layernorm.weight"), spec)
    return hidden + fed


def last_norm(spec: GlmSpec, weight: Callable[[str], Tensor], hidden: Array) -> Array:
    """The norm before the head."""
    return _rms_norm(hidden, weight("model.norm.weight"), spec)


def _rms_norm(x: Array, scale: Tensor, spec: GlmSpec) -> Array:
    variance = np.mean(x * x, axis=-1, keepdims=True)
    normed: Array = scale.f32() * (x / np.sqrt(variance + np.float32(spec.rms_norm_eps)))
    return normed


def _rotary(spec: GlmSpec, length: int) -> tuple[Array, Array]:
    """cos and sin [S, 1, rotary_dim / 2] of each pair's angle."""
    frequencies, scale = spec.rotary_frequencies()
    angles = np.outer(np.arange(length), frequencies)
    cos, sin = scale * np.cos(angles), scale * np.sin(angles)
    return cos.astype(np.float32)[:, None], sin.astype(np.float32)[:, None]


def _rotate(x: Array, cos: Array, sin: Array, rotary_dim: int) -> Array:
    """Turn the pairs (0, 1), (2, 3), … of x [S, heads, head_dim] by their angles."""
    out = x.copy()
    even, odd = x[..., 0:rotary_dim:2], x[..., 1:rotary_dim:2]
    out[..., 0:rotary_dim:2] = even * cos - odd * sin
    out[..., 1:rotary_dim:2] = odd * cos + even * sin
    return out


def _attention(spec: GlmSpec, weight: Callable[[str], Tensor], prefix: str, x: Array, cos: Array, sin: Array) -> Array:
    def project(name: str, heads: int) -> Array:
        out = weight(f"{prefix}{name}_proj.weight").times(x)
        if spec.attention_bias:
            out = out + weight(f"{prefix}{name}_proj.bias").f32()
        return out.reshape(len(x), heads, spec.head_dim)

    query = _rotate(project("q", spec.num_heads), cos, sin, spec.rotary_dim)
    key = _rotate(project("k", spec.num_kv_heads), cos, sin, spec.rotary_dim)
    value = project("v", spec.num_kv_heads)
    group = spec.num_heads // spec.num_kv_heads
    key, value = np.repeat(key, group, axis=1), np.repeat(value, group, axis=1)
    scores = np.einsum("qhd,khd->hqk", query, key) / np.float32(np.sqrt(spec.head_dim))
    scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    scores /= scores.sum(axis=-1, keepdims=True)
    out = np.einsum("hqk,khd->qhd", scores, value).reshape(len(x), spec.q_size)
    return weight(prefix + "o_proj.weight").times(out)


def _mlp(spec: GlmSpec, weight: Callable[[str], Tensor], prefix: str, x: Array) -> Array:
    both = weight(prefix + "gate_up_proj.weight").times(x)
    gate, up = both[:, : spec.intermediate_size], both[:, spec.intermediate_size :]
    with np.errstate(over="ignore"):  # a gate below -88 is shut: gate / inf
        gated = gate / (1 + np.exp(-gate)) * up
    return weight(prefix + "down_proj.weight").times(gated)
