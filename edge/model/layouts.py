"""The ways GLM-4 has been published, brought to one: config keys and tensor names of the `glm` layout.

`chatglm` is the original layout (THUDM/glm-4-9b-chat, remote code there, none here): one stacked
query_key_value tensor a layer and config keys of its own. `glm4` (GLM-4-9B-0414, GLM-Z1-9B-0414) is
`glm` with two more norms a layer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge.errors import UnsupportedModelError

# chatglm's key → glm's; keys that both share are not listed.
_CONFIG_KEYS = {
    "padded_vocab_size": "vocab_size",
    "ffn_hidden_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "seq_length": "max_position_embeddings",
    "layernorm_epsilon": "rms_norm_eps",
    "kv_channels": "head_dim",
    "add_qkv_bias": "attention_bias",
}
_SHARED_KEYS = ("hidden_size", "num_attention_heads", "eos_token_id", "pad_token_id", "tie_word_embeddings")
# What ChatGLM's code can also be told to do and no GLM-4 does: (key, the only value handled).
_FIXED = (
    ("rmsnorm", True),
    ("original_rope", True),
    ("post_layer_norm", True),
    ("add_bias_linear", False),
    ("apply_residual_connection_post_layernorm", False),
)
# Older models of the same model_type, some with every number of GLM-4's but words of their own.
_RELATIVES = {65024: "ChatGLM2, ChatGLM3 or CodeGeeX2", 130528: "ChatGLM-6B", 150528: "ChatGLM-6B"}
_SPEECH = '"<|audio_0|>"'  # the first of GLM-4-Voice's codec tokens
_ROPE_BASE = 10000.0
_ROTARY_SHARE = 0.5
_MODULES = {
    "input_layernorm": "input_layernorm",
    "self_attention.dense": "self_attn.o_proj",
    "post_attention_layernorm": "post_attention_layernorm",
    "mlp.dense_h_to_4h": "mlp.gate_up_proj",
    "mlp.dense_4h_to_h": "mlp.down_proj",
}


def glm_config(config: dict[str, Any], origin: str) -> dict[str, Any]:
    """A `chatglm` config in the keys of a `glm` one.

    Raises:
        UnsupportedModelError: it asks for something GLM-4 does not do (ChatGLM2 and 3 among others).
    """
    vocabulary = config.get("padded_vocab_size") or config.get("vocab_size")
    if vocabulary in _RELATIVES:
        raise UnsupportedModelError(
            f"{origin} is {_RELATIVES[vocabulary]}, not GLM-4 (its vocabulary has {vocabulary:,} entries)",
            hint="It shares only the layout's name; export zai-org/glm-4-9b-chat instead.",
        )
    if config.get("pre_seq_len"):
        raise UnsupportedModelError(
            f"{origin} carries a P-tuning prefix (pre_seq_len {config['pre_seq_len']})",
            hint="Export the base model without the prefix; prefixes are not supported.",
        )
    for key, value in _FIXED:
        if config.get(key, value) != value:
            raise UnsupportedModelError(
                f"{origin}: {key} is {config[key]!r}, which no GLM-4 model has",
                hint="This is another model of the ChatGLM family; supported are GLM-4-9B and its chat variants.",
            )
    out = {new: config[old] for old, new in _CONFIG_KEYS.items() if old in config}
    out |= {key: config[key] for key in _SHARED_KEYS if key in config}
    if config.get("multi_query_attention"):
        out["num_key_value_heads"] = config.get("multi_query_group_num", 1)
    else:
        out["num_key_value_heads"] = config.get("num_attention_heads")
    ratio = config.get("rope_ratio", 1)
    if not isinstance(ratio, (int, float)) or ratio <= 0:
        raise UnsupportedModelError(f"{origin}: rope_ratio is {ratio!r}", hint="It must be a positive number.")
    out["rope_theta"] = _ROPE_BASE * ratio
    out["partial_rotary_factor"] = _ROTARY_SHARE
    return out


def refuse_vision(config: dict[str, Any], origin: str) -> None:
    """Raise for a checkpoint that also sees: its language part alone would be another model."""
    if config.get("vision_config"):
        raise UnsupportedModelError(
            f"{origin} is a vision model (it has a vision_config)",
            hint="Vision is not supported; export the text model instead, for example zai-org/glm-4-9b-chat-hf.",
        )


def refuse_speech(folder: Path) -> None:
    """Raise for GLM-4-Voice: its config is GLM-4's, but it answers in tokens of sound between the words."""
    for name in ("tokenizer_config.json", "added_tokens.json"):
        path = folder / name
        if path.is_file() and _SPEECH in path.read_text(encoding="utf-8", errors="replace"):
            raise UnsupportedModelError(
                f"{folder} is a speech model ({name} has tokens for sound)",
                hint="Speech is not supported; export the text model instead, for example zai-org/glm-4-9b-chat-hf.",
            )


def chatglm_sources(num_layers: int, q_size: int, kv_size: int, *, bias: bool) -> dict[str, tuple[str, slice]]:
    """For each `glm` tensor, the `chatglm` tensor and the rows of it that hold the same numbers.

    Rows of query_key_value: first all of q, then k, then v. The order within them is the same in both.
    """
    everything = slice(None)
    sources = {
        "model.embed_tokens.weight": ("transformer.embedding.word_embeddings.weight", everything),
        "model.norm.weight": ("transformer.encoder.final_layernorm.weight", everything),
        "lm_head.weight": ("transformer.output_layer.weight", everything),
    }
    rows = {
        "q": slice(0, q_size),
        "k": slice(q_size, q_size + kv_size),
        "v": slice(q_size + kv_size, q_size + 2 * kv_size),
    }
    for i in range(num_layers):
        old, new = f"transformer.encoder.layers.{i}.", f"model.layers.{i}."
        for theirs, ours in _MODULES.items():
            sources[f"{new}{ours}.weight"] = (f"{old}{theirs}.weight", everything)
        for name, part in rows.items():
            for kind in ("weight", "bias") if bias else ("weight",):
                sources[f"{new}self_attn.{name}_proj.{kind}"] = (f"{old}self_attention.query_key_value.{kind}", part)
    return sources
