"""Checkpoints in GLM-4's real shapes with random weights: for measuring exports, never for answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import TensorSpec, serialize_file

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
_TILE = 1 << 24
_SHARD_BYTES = 2_000_000_000
_SCALE = 0.02  # about what trained weights of this size have


def write(folder: Path, layers: int = 40, seed: int = 0) -> None:
    """A `glm` checkpoint of `layers` layers, bf16, sharded; a small byte-level tokenizer beside it.

    Values are drawn once, 2^24 of them, and reused from a random place for each tensor: nine thousand
    million draws would take longer than the export that is to be measured.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {**GLM_4_9B_CHAT, "num_hidden_layers": layers}
    rng = np.random.default_rng(seed)
    draws = (rng.standard_normal(_TILE, dtype=np.float32) * _SCALE).view(np.uint32)
    tile = (draws >> 16).astype("<u2")
    ones = np.uint16(0x3F80)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in GlmSpec.from_config(config).tensor_shapes().items():
        bytes_ = 2 * int(np.prod(shape))
        if size + bytes_ > _SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += bytes_
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        arrays: dict[str, NDArray[np.uint16]] = {}
        for name, shape in shard.items():
            count = int(np.prod(shape))
            start = int(rng.integers(_TILE))
            values = np.full(count, ones, "<u2") if "norm" in name else np.resize(np.roll(tile, start), count)
            arrays[name] = values.reshape(shape)
        specs = {
            name: TensorSpec(dtype="bfloat16", shape=array.shape, data_ptr=array.ctypes.data, data_len=array.nbytes)
            for name, array in arrays.items()
        }
        serialize_file(specs, folder / file, {"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": config["eos_token_id"]}))
    _write_tokenizer(folder)


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True), AddedToken("<|user|>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
