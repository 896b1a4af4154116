"""The reference against transformers' own loading, in every layout, and the command that keeps it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge.cli import _run
from edge.errors import CheckpointError, ContextError, DeviceError, ResourceError
from edge.model.checkpoint import Checkpoint
from edge.runtime import reference
from edge.runtime.prompts import Prompt
from edge.runtime.refstore import Reference
from tests.conftest import write_chatglm, write_checkpoint

IDS = [5, 6, 7, 8, 9, 10, 11, 40, 41]
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "factor": 4.0,
        "original_max_position_embeddings": 64}  # fmt: skip
GLM4 = {"model_type": "glm4", "architectures": ["Glm4ForCausalLM"]}
VARIANTS: dict[str, dict[str, Any]] = {
    "glm": {}, "tied": {"tie_word_embeddings": True}, "no-bias": {"attention_bias": False}, "glm4": GLM4,
    "glm4-yarn": {**GLM4, "rope_parameters": YARN},
}  # fmt: skip


def weights_of(folder: Path) -> reference.Weights:
    checkpoint = Checkpoint(folder)
    spec = checkpoint.spec
    return reference.Weights(
        spec.transformers_config(), checkpoint.tensors(), len(spec.tensor_shapes()), spec.parameter_count()
    )


def logits(model: Any) -> Any:
    with torch.inference_mode():
        return model(torch.tensor([IDS])).logits[0]


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_loads_what_transformers_loads(variant: str, dtype: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = write_checkpoint(tmp_path / "tiny", **VARIANTS[variant])
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=reference.TORCH_TYPES[dtype]).eval()
    ours = reference.load(weights_of(folder), "cpu", dtype)
    assert type(ours) is type(theirs)
    assert torch.equal(logits(ours), logits(theirs))


def test_the_original_layout_gives_the_same_without_remote_code(tmp_path: Path) -> None:
    glm = write_checkpoint(tmp_path / "glm", max_position_embeddings=8192)
    chatglm = write_chatglm(tmp_path / "chatglm", glm)
    assert torch.equal(
        logits(reference.load(weights_of(chatglm), "cpu", "f32")), logits(reference.load(weights_of(glm), "cpu", "f32"))
    )


def test_what_is_kept_is_what_the_model_says(tiny: Path) -> None:
    model = reference.load(weights_of(tiny), "cpu", "f32")
    found = reference.forced(model, IDS, top_k=7)
    all_logits = logits(model).double()
    log_probs = all_logits.log_softmax(-1).numpy()
    top = all_logits[:-1].topk(7)
    assert np.array_equal(found.top_ids, top.indices.numpy())
    assert np.allclose(found.top_logits, top.values.numpy(), atol=1e-5)
    assert np.allclose(found.log_sum_exp, all_logits.logsumexp(-1)[:-1].numpy(), atol=1e-5)
    assert np.allclose(found.next_log_probs, [log_probs[i, token] for i, token in enumerate(IDS[1:])], atol=1e-5)


def test_rows_are_the_same_in_pieces(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = reference.load(weights_of(tiny), "cpu", "f32")
    whole = reference.forced(model, IDS, top_k=7)
    monkeypatch.setattr(reference, "_ROWS", 3)
    pieces = reference.forced(model, IDS, top_k=7)
    assert np.array_equal(whole.top_ids, pieces.top_ids)
    assert np.allclose(whole.next_log_probs, pieces.next_log_probs, atol=1e-5)


def test_answers_and_their_positions_fit_together(tiny: Path) -> None:
    model = reference.load(weights_of(tiny), "cpu", "f32")
    prompts = [Prompt("a", "en", IDS), Prompt("b", "zh", IDS[:4])]
    made = reference.answer(model, prompts, max_new_tokens=12, top_k=1000, stop_ids=[])
    for prompt, entry, numbers in zip(prompts, made.entries, made.positions, strict=True):
        assert (entry.id, entry.prompt_tokens, entry.answer_tokens) == (prompt.id, len(prompt.token_ids), 12)
        assert list(numbers.tokens[: entry.prompt_tokens]) == prompt.token_ids
        assert numbers.top_ids.shape == (entry.prompt_tokens + 11, model.config.vocab_size)  # no more than there are
        assert list(numbers.top_ids[entry.prompt_tokens - 1 :, 0]) == list(numbers.tokens[entry.prompt_tokens :])
        assert entry.unlike_forced == 0 and entry.ttft_s > 0 and entry.decode_s > 0
    assert made.decoding["compiled"] == "nothing" and made.decoding["fallback"] is None


def test_refusals(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = reference.load(weights_of(tiny), "cpu", "f32")
    with pytest.raises(ContextError, match="'a' of 9 tokens and an answer of 248 are longer than the 256"):
        reference.answer(model, [Prompt("a", "en", IDS)], max_new_tokens=248, top_k=5, stop_ids=[])
    model.lm_head.weight.data[3] = float("nan")
    with pytest.raises(CheckpointError, match="after the prompt 'a' are not finite"):
        reference.answer(model, [Prompt("a", "en", IDS)], max_new_tokens=2, top_k=5, stop_ids=[])
    with pytest.raises(DeviceError, match="'tpu' is no device"):
        reference.choose("tpu", None)
    assert reference.choose("cpu", None) == ("cpu", "f32") and reference.choose("CUDA:1", None) == ("cuda:1", "bf16")
    huge = weights_of(tiny)
    monkeypatch.setattr(reference.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    with pytest.raises(ResourceError, match=r"in f32 takes 0\.0 GB of memory.*--dtype bf16 takes half"):
        reference.load(huge, "cpu", "f32")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_no_cuda_here(tiny: Path) -> None:
    with pytest.raises(DeviceError, match="finds no device cuda here"):
        reference.load(weights_of(tiny), "cuda", "bf16")


def test_the_command_keeps_a_file(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "mine.jsonl"
    prompts.write_text('{"id": "q", "language": "en", "text": "abc"}\n{"id": "t", "text": "abcd", "chat": false}\n')
    path = tmp_path / "tiny.ref"
    words = ["reference", str(tiny), str(path), "--prompts", str(prompts), "--max-new-tokens", "6", "--device", "cpu"]
    assert _run([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    made = Reference.read(path)
    assert said["entries"] == [entry.model_dump() for entry in made.about.entries]
    assert [entry.id for entry in made.about.entries] == ["q", "t"]
    about = made.about
    assert (about.dtype, about.device, about.top_k, about.checkpoint.vocab_size) == ("f32", "cpu", 64, 320)
    assert set(about.checkpoint.sha256) == {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    }
    assert {"torch", "transformers", "glm4-edge"} <= set(about.versions)
    assert _run(words) == 0
    spoken = capsys.readouterr()
    assert "2 prompts" in spoken.out and "decode" in spoken.err


def test_the_command_without_torch_names_the_extra(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.delitem(sys.modules, "edge.runtime.reference", raising=False)
    monkeypatch.delitem(sys.modules, "edge.runtime.greedy", raising=False)
    monkeypatch.delattr("edge.runtime.reference", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert _run(["reference", str(tiny), str(tmp_path / "x.ref")]) == 1
    assert 'pip install "glm4-edge[reference]"' in capsys.readouterr().err
    assert not (tmp_path / "x.ref").exists()
