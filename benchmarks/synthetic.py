"""Checkpoints in GLM-4's real shapes with random weights: for measuring exports, never for answers."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import TensorSpec, serialize_file

from edge.model import layouts
from edge.model.spec import GlmSpec

GLM_4_9B_CHAT: dict[str, Any] = {
    "architectures": ["GlmForCausalLM"],
    "model_type": "glm",
    "vocab_size": 151552,
    "hidden_size": 4096,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "attention_bias": True,
    "rms_norm_eps": 1.5625e-07,
    "rope_theta": 5000000.0,
    "partial_rotary_factor": 0.5,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "eos_token_id": [151329, 151336, 151338],
    "pad_token_id": 151329,
    "torch_dtype": "bfloat16",
}
SHAPES: dict[str, dict[str, Any]] = {
    "9b": {},
    # Just above a billion parameters: exported by the same road as 9B, in a fifteenth of its time.
    "small": {"hidden_size": 2048, "intermediate_size": 6912, "num_attention_heads": 16, "num_hidden_layers": 10},
}
"""What differs from GLM-4-9B."""
LAYOUTS = ("glm", "chatglm")
_TILE = 1 << 24
_SHARD_BYTES = 2_000_000_000
_SCALE = 0.02  # about what trained weights of this size have


def config_of(shape: str = "9b", layers: int | None = None) -> dict[str, Any]:
    """The `glm` config of a shape; `layers` replaces its number of layers."""
    config = {**GLM_4_9B_CHAT, **SHAPES[shape]}
    return config if layers is None else {**config, "num_hidden_layers": layers}


def write(
    folder: Path, layers: int | None = None, seed: int = 0, *, layout: str = "glm", shape: str = "9b"
) -> None:  # fmt: skip
    """A checkpoint of `layers` layers, bf16, sharded; a small byte-level tokenizer beside it.

    `layout` is `glm` or `chatglm`, the original one. Values are drawn once, 2^24 of them, and reused from a random
    place for each tensor: nine thousand million draws would take longer than the export that is to be measured.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(shape, layers)
    spec = GlmSpec.from_config(config)
    shapes = spec.tensor_shapes()
    if layout == "chatglm":
        shapes, config = _chatglm_shapes(spec), _chatglm_config(spec)
    values = _values(shapes, seed)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, dims in shapes.items():
        bytes_ = 2 * int(np.prod(dims))
        if size + bytes_ > _SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = dims
        size += bytes_
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        arrays = dict(itertools.islice(values, len(shard)))
        specs = {
            name: TensorSpec(dtype="bfloat16", shape=array.shape, data_ptr=array.ctypes.data, data_len=array.nbytes)
            for name, array in arrays.items()
        }
        serialize_file(specs, folder / file, {"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
    total = sum(2 * int(np.prod(dims)) for dims in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": config["eos_token_id"]}))
    _write_tokenizer(folder)


def tensors(spec: GlmSpec, seed: int = 0) -> Iterator[tuple[str, NDArray[np.uint16]]]:
    """Name and bf16 bit patterns of what `write` would write in the `glm` layout, without the disk."""
    return _values(spec.tensor_shapes(), seed)


def _values(shapes: dict[str, tuple[int, ...]], seed: int) -> Iterator[tuple[str, NDArray[np.uint16]]]:
    rng = np.random.default_rng(seed)
    draws = (rng.standard_normal(_TILE, dtype=np.float32) * _SCALE).view(np.uint32)
    tile = (draws >> 16).astype("<u2")
    ones = np.uint16(0x3F80)
    for name, dims in shapes.items():
        count = int(np.prod(dims))
        start = int(rng.integers(_TILE))
        values = np.full(count, ones, "<u2") if "norm" in name else np.resize(np.roll(tile, start), count)
        yield name, values.reshape(dims)


def _chatglm_shapes(spec: GlmSpec) -> dict[str, tuple[int, ...]]:
    """The same tensors under the original names, q, k and v stacked, and the table that came along."""
    sources = layouts.chatglm_sources(spec.num_layers, spec.q_size, spec.kv_size, bias=spec.attention_bias)
    shapes: dict[str, tuple[int, ...]] = {"transformer.rotary_pos_emb.inv_freq": (spec.rotary_dim // 2,)}
    for name, dims in spec.tensor_shapes().items():
        source, _ = sources[name]
        rows = dims[0] + (shapes[source][0] if source in shapes else 0)
        shapes[source] = (rows, *dims[1:])
    return shapes


def _chatglm_config(spec: GlmSpec) -> dict[str, Any]:
    return {
        "architectures": ["ChatGLMModel"],
        "model_type": "chatglm",
        "add_bias_linear": False,
        "add_qkv_bias": spec.attention_bias,
        "apply_residual_connection_post_layernorm": False,
        "eos_token_id": list(spec.stop_ids),
        "ffn_hidden_size": spec.intermediate_size,
        "hidden_size": spec.hidden_size,
        "kv_channels": spec.head_dim,
        "layernorm_epsilon": spec.rms_norm_eps,
        "multi_query_attention": True,
        "multi_query_group_num": spec.num_kv_heads,
        "num_attention_heads": spec.num_heads,
        "num_layers": spec.num_layers,
        "original_rope": True,
        "padded_vocab_size": spec.vocab_size,
        "pad_token_id": GLM_4_9B_CHAT["pad_token_id"],
        "post_layer_norm": True,
        "rmsnorm": True,
        "rope_ratio": spec.rope_theta / 1e4,
        "seq_length": spec.context_length,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True), AddedToken("<|user|>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for message in messages %}<|user|>{{ message['content'] }}{% endfor %}"
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
