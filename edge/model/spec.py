"""What a GLM-4 checkpoint is, read from its `config.json` and checked before anything is spent.

The tensor vocabulary is that of the Hugging Face `glm` layout (`GlmForCausalLM`,
transformers `models/glm/modeling_glm.py`); see `tensor_shapes`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import CheckpointError, UnsupportedModelError
from edge.model import layouts

SUPPORTED_MODEL_TYPES = ("glm", "chatglm", "glm4")


# A 128K context cannot have been trained on the default base: the number was lost in a conversion.
_SUSPECT_CONTEXT, _SUSPECT_THETA = 131072, 10000.0


@dataclass(frozen=True)
class Yarn:
    """YaRN: rotary frequencies stretched to a context `factor` times `original_context` (arXiv 2309.00071)."""

    factor: float
    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None

    def frequencies(self, plain: NDArray[np.float64], theta: float) -> NDArray[np.float64]:
        """Slow rotations are interpolated, fast ones kept, those between are blended."""
        dim = 2 * len(plain)

        def channel(rotations: float) -> float:
            """Where a channel turns `rotations` times over the original context."""
            return dim * math.log(self.original_context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

        low = max(math.floor(channel(self.beta_fast)), 0)
        high = min(math.ceil(channel(self.beta_slow)), dim - 1)
        ramp = np.clip((np.arange(len(plain)) - low) / max(high - low, 0.001), 0, 1)
        return plain / self.factor * ramp + plain * (1 - ramp)

    @property
    def scale(self) -> float:
        """What cos and sin are multiplied with."""
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


@dataclass(frozen=True)
class GlmSpec:
    """The numbers that define a GLM-4 decoder.

    `rotary_dim` is how many of the first `head_dim` channels of each head are rotated; GLM rotates
    adjacent pairs (0,1), (2,3), …. `context_length` is in tokens.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotary_dim: int
    rope_theta: float
    rms_norm_eps: float
    attention_bias: bool
    tie_word_embeddings: bool
    context_length: int
    stop_ids: tuple[int, ...]
    four_norms: bool = False
    """`glm4`: attention and MLP are normed on their way out, too."""
    yarn: Yarn | None = None

    @property
    def q_size(self) -> int:
        """Rows of the query projection."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Rows of the key and of the value projection."""
        return self.num_kv_heads * self.head_dim

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of the checkpoint, in the order in which they are used.

        Linear weights are [out, in]. `gate_up_proj` stacks the gate's rows above the up rows.
        """
        hidden, ffn = self.hidden_size, self.intermediate_size
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, hidden)}
        for i in range(self.num_layers):
            layer = f"model.layers.{i}."
            shapes[layer + "input_layernorm.weight"] = (hidden,)
            for name, rows in (("q", self.q_size), ("k", self.kv_size), ("v", self.kv_size)):
                shapes[f"{layer}self_attn.{name}_proj.weight"] = (rows, hidden)
                if self.attention_bias:
                    shapes[f"{layer}self_attn.{name}_proj.bias"] = (rows,)
            shapes[layer + "self_attn.o_proj.weight"] = (hidden, self.q_size)
            shapes[layer + "post_attention_layernorm.weight"] = (hidden,)
            if self.four_norms:
                shapes[layer + "post_self_attn_layernorm.weight"] = (hidden,)
                shapes[layer + "post_mlp_layernorm.weight"] = (hidden,)
            shapes[layer + "mlp.gate_up_proj.weight"] = (2 * ffn, hidden)
            shapes[layer + "mlp.down_proj.weight"] = (hidden, ffn)
        shapes["model.norm.weight"] = (hidden,)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, hidden)
        return shapes

    def rotary_frequencies(self) -> tuple[NDArray[np.float64], float]:
        """Radians a position for each rotated pair, [rotary_dim / 2], and the scale of cos and sin."""
        plain = self.rope_theta ** -(np.arange(0, self.rotary_dim, 2, dtype=np.float64) / self.rotary_dim)
        return (plain, 1.0) if self.yarn is None else (self.yarn.frequencies(plain, self.rope_theta), self.yarn.scale)

    def transformers_config(self) -> dict[str, Any]:
        """The same in the keys of transformers' `GlmConfig` or, of four norms, `Glm4Config`; whatever the layout."""
        rope: dict[str, Any] = {
            "rope_type": "default", "rope_theta": self.rope_theta,
            "partial_rotary_factor": self.rotary_dim / self.head_dim,
        }  # fmt: skip
        if self.yarn is not None:
            rope |= {
                "rope_type": "yarn", "factor": self.yarn.factor, "beta_fast": self.yarn.beta_fast,
                "beta_slow": self.yarn.beta_slow, "original_max_position_embeddings": self.yarn.original_context,
                "attention_factor": self.yarn.scale,
            }  # fmt: skip
        return {
            "model_type": "glm4" if self.four_norms else "glm",
            "vocab_size": self.vocab_size, "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size, "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads, "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim, "rms_norm_eps": self.rms_norm_eps, "attention_bias": self.attention_bias,
            "tie_word_embeddings": self.tie_word_embeddings, "max_position_embeddings": self.context_length,
            "eos_token_id": list(self.stop_ids), "pad_token_id": None, "rope_parameters": rope,
        }  # fmt: skip

    def parameter_count(self) -> int:
        """Number of weights and biases, a tied head counted once."""
        total = 0
        for shape in self.tensor_shapes().values():
            size = 1
            for dim in shape:
                size *= dim
            total += size
        return total

    @classmethod
    def from_folder(cls, folder: Path) -> GlmSpec:
        """Read and check `folder/config.json`.

        Raises:
            CheckpointError: no readable `config.json`, or a value in it that cannot be.
            UnsupportedModelError: a model of another kind.
        """
        spec = cls.from_config(read_json(folder / "config.json"), origin=str(folder))
        layouts.refuse_speech(folder)
        return spec

    @classmethod
    def from_config(cls, config: dict[str, Any], origin: str = "config.json") -> GlmSpec:
        """Build the spec from a parsed `config.json`; `origin` names it in errors."""
        layouts.refuse_vision(config, origin)
        model_type = config.get("model_type")
        if model_type not in SUPPORTED_MODEL_TYPES:
            kind = "names no model_type" if model_type is None else f"is a model of type {model_type!r}, not GLM-4"
            raise UnsupportedModelError(
                f"{origin} {kind}",
                hint=f"Supported model types: {', '.join(SUPPORTED_MODEL_TYPES)} "
                "(for example zai-org/glm-4-9b-chat-hf), or 'pocket' to try things out.",
            )
        if quantised := config.get("quantization_config"):
            method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else quantised
            raise UnsupportedModelError(
                f"{origin} is already quantised ({method})",
                hint="Export the original bf16 or fp16 checkpoint instead.",
            )
        if model_type == "chatglm":
            config = layouts.glm_config(config, origin)
        reader = _Reader(config, origin)
        heads = reader.positive_int("num_attention_heads")
        hidden = reader.positive_int("hidden_size")
        head_dim = reader.positive_int("head_dim", default=hidden // heads)
        rope = reader.section("rope_parameters")
        factor = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 0.5))
        theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
        if not isinstance(factor, (int, float)):
            raise reader.fault("partial_rotary_factor", factor, "must be a number")
        if isinstance(theta, bool) or not isinstance(theta, (int, float)) or theta <= 0:
            raise reader.fault("rope_theta", theta, "must be a positive number")
        eps = config.get("rms_norm_eps", 1.5625e-07)
        if not isinstance(eps, (int, float)):
            raise reader.fault("rms_norm_eps", eps, "must be a number")
        rotary_dim = int(head_dim * factor)
        yarn = _yarn(reader.section("rope_scaling") or rope, origin)
        context = reader.positive_int("max_position_embeddings", default=131072)
        if yarn is not None:  # published configs keep the original length beside the stretching
            context = max(context, int(yarn.factor * yarn.original_context))
        spec = cls(
            model_type=str(model_type),
            vocab_size=reader.positive_int("vocab_size"),
            hidden_size=hidden,
            intermediate_size=reader.positive_int("intermediate_size"),
            num_layers=reader.positive_int("num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=reader.positive_int("num_key_value_heads", default=heads),
            head_dim=head_dim,
            rotary_dim=rotary_dim,
            rope_theta=float(theta),
            rms_norm_eps=float(eps),
            attention_bias=bool(config.get("attention_bias", True)),
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            context_length=context,
            stop_ids=_stop_ids(config.get("eos_token_id"), origin),
            four_norms=model_type == "glm4",
            yarn=yarn,
        )
        if spec.num_heads % spec.num_kv_heads:
            raise reader.fault("num_key_value_heads", spec.num_kv_heads, f"must divide the {heads} attention heads")
        if not 0 < rotary_dim <= head_dim or rotary_dim % 2:
            raise reader.fault("partial_rotary_factor", factor, f"must rotate an even part of the {head_dim} channels")
        if spec.context_length >= _SUSPECT_CONTEXT and spec.rope_theta == _SUSPECT_THETA and spec.yarn is None:
            chatglm = model_type == "chatglm"
            key, chat, long = ("rope_ratio", 500, 10000) if chatglm else ("rope_theta", 5000000, 100000000)
            raise UnsupportedModelError(
                f"{origin} claims a context of {spec.context_length:,} tokens at the RoPE base 10000, with which GLM-4 "
                "writes nonsense",
                hint=f'A conversion lost the base. Set "{key}"'
                f"{' in rope_parameters' if 'rope_theta' in rope else ''} in config.json to {chat} (glm-4-9b-chat) or "
                f"{long} (glm-4-9b-chat-1m).",
            )
        if config.get("hidden_act", "silu") != "silu":
            raise reader.fault("hidden_act", config["hidden_act"], "must be 'silu'")
        return spec


def read_json(path: Path) -> dict[str, Any]:
    """Parse a JSON object from `path`, with a sentence for each way that can fail."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} is no checkpoint: it has no {path.name}",
            hint="Name a folder that holds config.json, the tokenizer and *.safetensors files (GGUF is not read), "
            "or use 'pocket'.",
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error})", hint="Download the file again.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object", hint="Download the file again.")
    return value


class _Reader:
    """Reads numbers out of a config and blames the right key."""

    def __init__(self, config: dict[str, Any], origin: str) -> None:
        self.config = config
        self.origin = origin

    def positive_int(self, key: str, default: int | None = None) -> int:
        value = self.config.get(key)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise self.fault(key, value, "must be a positive whole number")
        return value

    def section(self, key: str) -> dict[str, Any]:
        value = self.config.get(key) or {}
        if not isinstance(value, dict):
            raise self.fault(key, value, "must be an object")
        return value

    def fault(self, key: str, value: Any, must: str) -> CheckpointError:
        return CheckpointError(
            f"{self.origin}: {key} is {value!r}, but {must}",
            hint="The config does not describe a GLM-4 model; compare it with the published one.",
        )


def _yarn(rope: dict[str, Any], origin: str) -> Yarn | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    try:
        if kind != "yarn" or rope.get("mscale") or rope.get("truncate", True) is not True:
            raise ValueError(kind)
        return Yarn(
            factor=float(rope["factor"]),
            original_context=int(rope["original_max_position_embeddings"]),
            beta_fast=float(rope.get("beta_fast") or 32),
            beta_slow=float(rope.get("beta_slow") or 1),
            attention_factor=rope.get("attention_factor"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UnsupportedModelError(
            f"{origin} asks for RoPE scaling that is not understood: {rope}",
            hint='Supported is {"rope_type": "yarn", "factor": …, "original_max_position_embeddings": …}; without it '
            "the model runs within its original context length.",
        ) from error


def _stop_ids(value: Any, origin: str) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(item, int) and item >= 0 for item in ids):
        raise CheckpointError(f"{origin}: eos_token_id is {value!r}", hint="It must be a token id or a list of them.")
    return tuple(ids)
