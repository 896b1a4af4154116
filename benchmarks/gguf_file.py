"""A GLM-4 checkpoint → GGUF in bf16, for llama.cpp: every weight as it is, one tensor in memory at a time.

llama.cpp's `chatglm` is the architecture of glm-4-9b-chat: q, k and v apart, gate and up stacked, adjacent pairs
rotated. So the checkpoint's tensors go in under other names and nothing else is done to them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np

from edge.model.checkpoint import Checkpoint
from edge.model.spec import GlmSpec

_LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
_WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_NORMAL, _CONTROL, _UNUSED = 1, 3, 5  # kinds of tokens in a GGUF


def gguf_name(name: str) -> str:
    """What llama.cpp calls a tensor of `GlmSpec.tensor_shapes`."""
    stem, _, ending = name.rpartition(".")
    if stem in _WHOLE:
        return f"{_WHOLE[stem]}.{ending}"
    number, _, part = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{number}.{_LAYER[part]}.{ending}"


def write(checkpoint: Checkpoint, out: Path) -> None:
    """Write the file, and beside it first, so that there is a whole one or none.

    Raises:
        ClickException: llama.cpp's `chatglm` is another model.
    """
    from gguf import GGMLQuantizationType, GGUFWriter

    spec = checkpoint.spec
    if spec.four_norms or spec.yarn is not None:
        raise click.ClickException(f"{checkpoint.folder} is not of glm-4-9b-chat's architecture, which is written here")
    part = out.with_name(out.name + ".part")
    part.unlink(missing_ok=True)
    writer = GGUFWriter(part, "chatglm")
    _facts(writer, spec)
    _vocabulary(writer, checkpoint.folder, spec)
    names = list(spec.tensor_shapes())
    for name in names:
        weight = checkpoint.weight(name)
        count = int(np.prod(weight.shape))
        if _plain(name):
            writer.add_tensor_info(gguf_name(name), weight.shape, np.dtype(np.float32), 4 * count)
        else:
            kind = GGMLQuantizationType[weight.dtype]
            writer.add_tensor_info(gguf_name(name), weight.shape, weight.raw.dtype, weight.raw.nbytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name in names:
        weight = checkpoint.weight(name)
        # a copy, whatever the shard's own alignment is
        writer.write_tensor_data(weight.f32() if _plain(name) else np.ascontiguousarray(weight.raw))
    writer.close()
    part.replace(out)


def _plain(name: str) -> bool:
    """Norms and biases: vectors, which llama.cpp keeps in f32."""
    return name.endswith("bias") or "norm" in name


def _facts(writer: Any, spec: GlmSpec) -> None:
    writer.add_context_length(spec.context_length)
    writer.add_embedding_length(spec.hidden_size)
    writer.add_feed_forward_length(spec.intermediate_size)
    writer.add_block_count(spec.num_layers)
    writer.add_head_count(spec.num_heads)
    writer.add_head_count_kv(spec.num_kv_heads)
    writer.add_key_length(spec.head_dim)
    writer.add_value_length(spec.head_dim)
    writer.add_layer_norm_rms_eps(spec.rms_norm_eps)
    writer.add_rope_dimension_count(spec.rotary_dim)
    writer.add_rope_freq_base(spec.rope_theta)
    writer.add_vocab_size(spec.vocab_size)


def _vocabulary(writer: Any, folder: Path, spec: GlmSpec) -> None:
    """The checkpoint's tokens and merges. Token ids alone are ever asked for, but reading them is part of a load.

    Without merges, as beside random weights, none: llama.cpp does not load such a vocabulary.
    """
    told = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    if not told["model"]["merges"]:
        writer.add_tokenizer_model("none")
        return
    tokens, kinds = [f"[PAD{i}]" for i in range(spec.vocab_size)], [_UNUSED] * spec.vocab_size
    for token, number in told["model"]["vocab"].items():
        tokens[number], kinds[number] = token, _NORMAL
    for added in told["added_tokens"]:
        tokens[added["id"]], kinds[added["id"]] = added["content"], _CONTROL
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in told["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(spec.stop_ids[0])
