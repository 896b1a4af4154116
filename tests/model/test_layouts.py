"""The same weights in each published layout are the same model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.errors import CheckpointError, UnsupportedModelError
from edge.model import forward
from edge.model.checkpoint import Checkpoint
from edge.model.spec import GlmSpec
from tests.conftest import TINY_CONFIG, split_into_shards, write_chatglm, write_checkpoint, write_safetensors

CHATGLM = {
    "model_type": "chatglm", "num_layers": 2, "hidden_size": 48, "ffn_hidden_size": 96, "padded_vocab_size": 160,
    "num_attention_heads": 6, "kv_channels": 8, "multi_query_attention": True, "multi_query_group_num": 2,
    "add_qkv_bias": True, "layernorm_epsilon": 1.5625e-07, "seq_length": 131072, "rope_ratio": 500,
    "eos_token_id": [1, 2], "rmsnorm": True, "post_layer_norm": True, "original_rope": True,
}  # fmt: skip


@pytest.mark.parametrize("changes", [{}, {"attention_bias": False}, {"num_key_value_heads": 1}])
def test_chatglm_and_glm_are_one_model(tmp_path: Path, changes: dict[str, Any]) -> None:
    glm = Checkpoint(write_checkpoint(tmp_path / "glm", **changes))
    chatglm = Checkpoint(write_chatglm(tmp_path / "chatglm", tmp_path / "glm"))
    assert dataclasses.replace(chatglm.spec, model_type="glm") == glm.spec
    ids = list(range(3, 20))
    expected = forward.logits(glm.spec, glm.weight, ids)
    np.testing.assert_array_equal(forward.logits(chatglm.spec, chatglm.weight, ids), expected)


def test_glm4_has_two_more_norms_a_layer(tmp_path: Path) -> None:
    """That they are applied where transformers does is in tests/export/test_graph.py."""
    glm = Checkpoint(write_checkpoint(tmp_path / "glm"))
    glm4 = Checkpoint(write_checkpoint(tmp_path / "glm4", model_type="glm4"))
    extra = set(glm4.spec.tensor_shapes()) - set(glm.spec.tensor_shapes())
    assert {name.rsplit(".", 2)[1] for name in extra} == {"post_self_attn_layernorm", "post_mlp_layernorm"}


def test_the_published_glm_4_9b_chat_config(shared_data: Path) -> None:
    folder = shared_data / "glm4-tokenizer" / "hf-config"
    spec = GlmSpec.from_folder(folder)
    assert spec == GlmSpec(
        "chatglm", 151552, 4096, 13696, 40, 32, 2, 128, 64, 5e6, 1.5625e-07, True, False, 131072,
        (151329, 151336, 151338),
    )  # fmt: skip
    names = set(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"])
    from edge.model import layouts

    sources = layouts.chatglm_sources(40, spec.q_size, spec.kv_size, bias=True)
    assert set(sources) == set(spec.tensor_shapes())
    assert {source for source, _ in sources.values()} == names - {"transformer.rotary_pos_emb.inv_freq"}


def test_rope_ratio_scales_the_base() -> None:
    assert GlmSpec.from_config(CHATGLM).rope_theta == 5e6
    assert GlmSpec.from_config({**CHATGLM, "rope_ratio": 10000}).rope_theta == 1e8
    short = {**CHATGLM, "seq_length": 8192}
    del short["rope_ratio"]
    assert GlmSpec.from_config(short).rope_theta == 1e4


def test_without_multi_query_every_head_has_its_own_keys() -> None:
    assert GlmSpec.from_config({**CHATGLM, "multi_query_attention": False}).num_kv_heads == 6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rmsnorm": False}, "rmsnorm is False"),
        ({"add_bias_linear": True}, "add_bias_linear is True"),
        ({"original_rope": False}, "original_rope is False"),
        ({"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm is True"),
        ({"pre_seq_len": 128}, "pre_seq_len 128"),
        ({"vision_config": {"hidden_size": 8}}, "is a vision model"),
        ({"padded_vocab_size": 65024}, "is ChatGLM2, ChatGLM3 or CodeGeeX2, not GLM-4"),
        ({"padded_vocab_size": None, "vocab_size": 130528}, "is ChatGLM-6B, not GLM-4"),
    ],
)
def test_relatives_of_glm4_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        GlmSpec.from_config({**CHATGLM, **change})
    assert said in caught.value.message


def test_a_lost_rope_base_is_caught() -> None:
    """transformers' own conversion script writes 10000 whatever the ratio was."""
    config = {**TINY_CONFIG, "max_position_embeddings": 131072}
    with pytest.raises(UnsupportedModelError, match="131,072 tokens at the RoPE base 10000") as caught:
        GlmSpec.from_config(config)
    assert "5000000" in caught.value.hint


def test_yarn_stretches_the_context() -> None:
    rope = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    config = {**TINY_CONFIG, "model_type": "glm4", "max_position_embeddings": 32768, "rope_scaling": rope}
    spec = GlmSpec.from_config(config)
    assert spec.context_length == 131072 and spec.yarn is not None
    with pytest.raises(UnsupportedModelError, match="scaling that is not understood"):
        GlmSpec.from_config({**config, "rope_scaling": {"type": "longrope", "factor": 4.0}})
    with pytest.raises(UnsupportedModelError, match="scaling that is not understood"):
        GlmSpec.from_config({**config, "rope_scaling": {"type": "yarn"}})


def test_a_lost_ratio_is_caught_in_the_layouts_own_word() -> None:
    with pytest.raises(UnsupportedModelError, match="131,072 tokens at the RoPE base 10000") as caught:
        GlmSpec.from_config({**CHATGLM, "rope_ratio": 1})
    assert '"rope_ratio" in config.json to 500' in caught.value.hint


def test_groups_that_the_weights_do_not_have(tmp_path: Path) -> None:
    """Slices of a query_key_value with more groups would have every shape right and every number wrong."""
    write_checkpoint(tmp_path / "glm", num_key_value_heads=3)
    folder = write_chatglm(tmp_path / "chatglm", tmp_path / "glm")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "multi_query_group_num": 2}))
    with pytest.raises(CheckpointError, match=r"has shape \[96, 48\], but config.json asks for 80 rows"):
        Checkpoint(folder)


def test_a_vision_tower_without_a_word_in_the_config(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "glm")
    folder = write_chatglm(tmp_path / "chatglm", tmp_path / "glm")
    split_into_shards(folder, 1)
    write_safetensors(folder / "eyes.safetensors", {"transformer.vision.boi": np.zeros(4, "<u2")})
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["transformer.vision.boi"] = "eyes.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnsupportedModelError, match="is a vision model"):
        Checkpoint(folder)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "added_tokens.json"])
def test_a_speech_model_is_known_by_its_tokens(tmp_path: Path, file: str) -> None:
    write_checkpoint(tmp_path / "glm")
    folder = write_chatglm(tmp_path / "chatglm", tmp_path / "glm")
    (folder / file).write_text(json.dumps({"<|audio_0|>": 152353, "1": {"content": "<|audio_0|>"}}))
    with pytest.raises(UnsupportedModelError, match="is a speech model"):
        GlmSpec.from_folder(folder)


NINE = {"num_hidden_layers": 40, "hidden_size": 4096, "intermediate_size": 13696, "num_attention_heads": 32,
        "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 151552, "partial_rotary_factor": 0.5,
        "eos_token_id": [151329, 151336, 151338]}  # fmt: skip
THIRTY_TWO = {**NINE, "num_hidden_layers": 61, "hidden_size": 6144, "intermediate_size": 23040,
              "num_attention_heads": 48, "attention_bias": False}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "billions"),
    [
        ({**NINE, "model_type": "glm", "rope_theta": 5e6}, 9.4),
        ({**NINE, "model_type": "glm", "rope_theta": 1e8, "num_key_value_heads": 4}, 9.5),
        ({**NINE, "model_type": "glm", "rope_theta": 1e4, "max_position_embeddings": 8192}, 9.4),
        ({**NINE, "model_type": "glm4", "rope_theta": 1e4, "max_position_embeddings": 32768}, 9.4),
        ({**THIRTY_TWO, "model_type": "glm4", "rope_theta": 1e4, "max_position_embeddings": 32768}, 32.6),
    ],
    ids=["glm-4-9b-chat-hf", "glm-4-9b-chat-1m-hf", "glm-4-9b-hf", "GLM-4-9B-0414", "GLM-4-32B-0414"],
)
def test_the_published_shapes(config: dict[str, Any], billions: float) -> None:
    spec = GlmSpec.from_config(config)
    assert round(spec.parameter_count() / 1e9, 1) == billions
    assert spec.stop_ids == (151329, 151336, 151338)


def test_codegeex4_is_a_glm4(tmp_path: Path) -> None:
    """codegeex4-all-9b: the chatglm layout, GLM-4's vocabulary and ratio."""
    spec = GlmSpec.from_config({**CHATGLM, "_name_or_path": "THUDM/codegeex4-all-9b", "padded_vocab_size": 151552})
    assert (spec.rope_theta, spec.vocab_size) == (5e6, 151552)


def test_a_chatglm_tensor_that_is_missing_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "glm", attention_bias=False)
    folder = write_chatglm(tmp_path / "chatglm", tmp_path / "glm")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "add_qkv_bias": True}))
    with pytest.raises(CheckpointError, match=r"q_proj\.bias is missing"):
        Checkpoint(folder)
