"""The weights of an exported model as intel-extension-for-transformers takes them: the same numbers on the same grid.

Read by the names that our own export gives. What the export does for devices that compute in f16 (a smaller residual
stream, RoPE's halves apart) is taken back: the other runtime has the checkpoint's own arithmetic.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import ModelError
from edge.infer import core
from edge.manifest import MODEL_FILE, OURS, Manifest

_KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj")
_NORMS = ("input_layernorm", "post_attention_layernorm")
_BITS = {"u4": 4, "i4": 4, "u8": 8, "i8": 8}
_UNSCALED = "/unscaled"  # see `edge.export.fp16`
_KEYS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
         "num_key_value_heads", "head_dim", "attention_bias", "rms_norm_eps", "max_position_embeddings")  # fmt: skip


@dataclass
class Part:
    """A layer's tensors by the names of transformers, or those of embedding and head."""

    tensors: dict[str, NDArray[Any]] = field(default_factory=dict)
    matrices: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of those tensors that are rounded: `bits`, `group_size` and the `parts` that lie beside them."""


def config(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Of the model, in the keys of transformers 4.49: it does not know `rope_parameters`, and would take 10000.

    Raises:
        ModelError: it is of a kind that this transformers or this reading does not have.
    """
    if manifest.exporter != OURS:
        raise ModelError(
            f"{folder} was traced by {manifest.exporter}, and ITREX takes its weights by our names",
            hint="Export it with glm4-edge's own exporter.",
        )
    given = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rope = {**(given.get("rope_scaling") or {}), **(given.get("rope_parameters") or {})}
    if given.get("model_type") != "glm":
        raise ModelError(
            f"{folder} is of the kind {given.get('model_type')}, which ITREX's transformers 4.49 does not know",
            hint="ITREX runs GLM-4 as in glm-4-9b-chat; use --runtime openvino for the others.",
        )
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise ModelError(
            f"{folder} stretches its context by {rope.get('rope_type', rope.get('type'))}, which is not done on ITREX",
            hint="Use --runtime openvino.",
        )
    found = {key: given[key] for key in _KEYS if key in given}
    share = rope.get("partial_rotary_factor", given.get("partial_rotary_factor", 0.5))
    theta = rope.get("rope_theta", given.get("rope_theta", 10000.0))
    head = found.setdefault("head_dim", found["hidden_size"] // found["num_attention_heads"])
    return {
        **found, "rope_theta": float(theta), "partial_rotary_factor": float(share), "head_dim": head,
        "tie_word_embeddings": False, "pad_token_id": 0,
    }  # fmt: skip


def parts(folder: Path, config: dict[str, Any]) -> Iterator[Part]:
    """Embedding and last norm; the head; then one layer after the other. Each is to be let go before the next."""
    reader = _Reader(folder, config)
    yield reader.beginning()
    yield reader.head()
    for number in range(config["num_hidden_layers"]):
        yield reader.layer(number)


class _Reader:
    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self._folder, self._config = folder, config
        self._model = core().read_model(folder / MODEL_FILE)
        self._nodes = {node.get_friendly_name(): node for node in self._model.get_ops()}

    def beginning(self) -> Part:
        part = Part()
        self._matrix(part, "model.embed_tokens.weight")
        part.tensors["model.norm.weight"] = self._vector("model.norm.weight")
        return part

    def head(self) -> Part:
        part = Part()
        source = "lm_head.weight" if "lm_head.weight" in self._nodes else "model.embed_tokens.weight"
        self._matrix(part, "lm_head.weight", source=source)
        return part

    def layer(self, number: int) -> Part:
        part, place = Part(), f"model.layers.{number}"
        for norm in _NORMS:
            part.tensors[f"{place}.{norm}.weight"] = self._vector(f"{place}.{norm}.weight")
        for kind in _KINDS:
            name = f"{place}.{'mlp' if kind in _KINDS[4:] else 'self_attn'}.{kind}"
            order = self._order(kind)
            self._matrix(part, f"{name}.weight", order)
            if f"{name}.bias_add" in self._nodes:
                adds = self._nodes.get(f"{name}.bias_add{_UNSCALED}") or self._nodes[f"{name}.bias_add"]
                values = adds.input_value(1).get_node().get_data(dtype=np.float32).reshape(-1)
                part.tensors[f"{name}.bias"] = np.ascontiguousarray(values if order is None else values[order])
        factors = self._factors(f"{place}.mlp.gated")
        if factors is not None:
            name = f"{place}.mlp.down_proj.weight"
            if name not in part.matrices:
                part.tensors[name] = part.tensors[name] * factors
            else:
                part.tensors[f"{name}.factors"] = factors
                part.matrices[name]["parts"].append("factors")
        return part

    def _node(self, name: str) -> Any:
        try:
            return self._nodes[name]
        except KeyError as error:
            raise ModelError(
                f"{self._folder} has no {name}", hint="Export the model again with this version of glm4-edge."
            ) from error

    def _vector(self, name: str) -> NDArray[np.float32]:
        values: NDArray[np.float32] = self._node(name).get_data(dtype=np.float32).reshape(-1)
        return values

    def _matrix(self, part: Part, name: str, order: NDArray[np.int64] | None = None, source: str | None = None) -> None:
        source = source or name
        node = self._node(source)
        rows = int(node.get_output_shape(0)[0])
        pick: Any = slice(None) if order is None else order
        if node.get_element_type().get_type_name() not in _BITS:
            values = node.get_data(dtype=np.float32).reshape(rows, -1)
            part.tensors[name] = np.ascontiguousarray(values[pick])
            return
        values = _signed(node, rows)
        scale = self._node(f"{source}/scale").get_data(dtype=np.float32).reshape(rows, -1)
        part.tensors[name] = np.ascontiguousarray(values[pick])
        part.tensors[f"{name}.scale"] = np.ascontiguousarray(scale[pick])
        beside = ["scale"]
        if f"{source}/zero_point" in self._nodes:
            zero = _signed(self._nodes[f"{source}/zero_point"], rows)
            part.tensors[f"{name}.zero_point"] = np.ascontiguousarray(zero[pick])
            beside.append("zero_point")
        bits = _BITS[node.get_element_type().get_type_name()]
        part.matrices[name] = {"bits": bits, "group_size": values.shape[1] // scale.shape[1], "parts": beside}

    def _order(self, kind: str) -> NDArray[np.int64] | None:
        """Which row of ours is each of the checkpoint's, where RoPE's pairs were taken apart."""
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(kind)
        if heads is None:
            return None
        size = self._config["head_dim"]
        rotary = int(size * self._config["partial_rotary_factor"])
        head = np.arange(size)
        head[:rotary:2], head[1:rotary:2] = np.arange(rotary // 2), rotary // 2 + np.arange(rotary // 2)
        order: NDArray[np.int64] = (np.arange(self._config[heads])[:, None] * size + head).reshape(-1)
        return order

    def _factors(self, name: str) -> NDArray[np.float32] | None:
        """What the gated product is multiplied with for the weights' sake (AWQ)."""
        size = self._config["intermediate_size"]
        for branch in self._node(name).input_values():
            node = branch.get_node()
            for value in node.input_values() if node.get_type_name() == "Multiply" else ():
                source = value.get_node()
                while source.get_type_name() in ("Convert", "Reshape"):
                    source = source.input_value(0).get_node()
                if source.get_type_name() == "Constant" and np.prod(source.get_output_shape(0)) == size:
                    factors: NDArray[np.float32] = source.get_data(dtype=np.float32).reshape(-1)
                    return factors
        return None


def _signed(node: Any, rows: int) -> NDArray[np.int8]:
    """A Constant of 4 or 8 bits as signed numbers [rows, columns]; unsigned ones less half their range."""
    kind = node.get_element_type().get_type_name()
    data: NDArray[Any] = np.atleast_1d(node.data).reshape(-1).view(np.uint8)
    if _BITS[kind] == 4:
        data = np.stack([data & 15, data >> 4], axis=1).reshape(-1)[: int(np.prod(node.get_output_shape(0)))]
        if kind == "i4":
            data ^= 8  # 0 to 15 in the order of the numbers
        data -= 8  # below 0 it goes round, as a signed byte reads it
    elif kind == "u8":
        data = data ^ 128
    values: NDArray[np.int8] = data.view(np.int8).reshape(rows, -1)
    return values
