"""The fast decoder against transformers' own `generate`; it runs here on the CPU, without the CUDA graph."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from edge.errors import ContextError
from edge.model import tokenizer
from edge.runtime.greedy import Decoder, Fast, open_decoder
from tests.conftest import write_checkpoint

PROMPT = [5, 6, 7, 8, 9, 10, 11, 40, 41]
NEW = 24


def theirs(folder: Path, **changes: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **changes).eval()


def generated(model: Any, prompt: list[int], count: int) -> list[int]:
    ids = torch.tensor([prompt], device=model.device)
    with torch.inference_mode():
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, eos_token_id=None,
            pad_token_id=1, repetition_penalty=1.0,
        )  # fmt: skip
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens


@pytest.fixture(scope="module")
def model(tiny: Path) -> Any:
    return theirs(tiny)


@pytest.fixture(scope="module")
def expected(tiny: Path) -> list[int]:
    tokens = generated(theirs(tiny), PROMPT, NEW)
    assert len(set(tokens)) > 3  # a model that repeats one token would prove little
    return tokens


@pytest.mark.parametrize("attention", ["products", "matmul", "sdpa"])
def test_answers_as_transformers_does(model: Any, expected: list[int], attention: Any) -> None:
    decoder = Decoder(model, 64, Fast(compiled="nothing", attention=attention))
    assert decoder.answer(PROMPT, NEW).tokens == expected
    assert decoder.answer(PROMPT, NEW).tokens == expected  # what an answer before left behind is not read
    assert decoder.answer(PROMPT[:3], NEW).tokens == generated(model, PROMPT[:3], NEW)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
@pytest.mark.parametrize(
    "how", [Fast(), Fast(attention="flex"), Fast(compiled="step"), Fast(prefill=True)], ids=lambda how: repr(how)
)
def test_answers_the_same_when_compiled(model: Any, expected: list[int], how: Fast) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert Decoder(model, 64, how).answer(PROMPT, NEW).tokens == expected
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    # once for all layers, and the two ends; a prefill has a layer of its own
    assert graphs == (1 if how.compiled == "step" else 4 if how.prefill else 3)


POCKET_PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a lighthouse keeper who",
    "def mean(values):",
    "1, 2, 3, 5, 8,",
    "Water boils at a lower temperature on a mountain because",
)


@pytest.fixture(scope="module", params=["cpu", "cuda"])
def pocket_model(request: pytest.FixtureRequest, pocket_checkpoint: Path) -> Iterator[Any]:
    """The pocket checkpoint in f32."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here")
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False  # that has 10 bits of f32's 23
    yield theirs(pocket_checkpoint).to(request.param)
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture(scope="module")
def pocket_said(pocket_model: Any, pocket_checkpoint: Path) -> list[tuple[list[int], list[int]]]:
    """Prompts, and what transformers answers."""
    encode = tokenizer.load(pocket_checkpoint).encode
    prompts = [list(encode(text, add_special_tokens=False)) for text in POCKET_PROMPTS]
    return [(prompt, generated(pocket_model, prompt, NEW)) for prompt in prompts]


@pytest.mark.model
@pytest.mark.parametrize("attention", ["matmul", "sdpa"])
def test_the_pocket_model_answers_as_in_transformers(
    pocket_model: Any, pocket_said: list[tuple[list[int], list[int]]], attention: Any
) -> None:
    """On CUDA with what the reference uses there: layers compiled, and a step as one graph."""
    on_cuda = pocket_model.device.type == "cuda"
    decoder = Decoder(pocket_model, 64, Fast(compiled="layer" if on_cuda else "nothing", attention=attention))
    assert [decoder.answer(prompt, NEW).tokens for prompt, _ in pocket_said] == [answer for _, answer in pocket_said]
    assert len({tuple(answer) for _, answer in pocket_said}) == len(POCKET_PROMPTS)


def test_four_norms_and_yarn_are_decoded_too(tmp_path: Path) -> None:
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "factor": 4.0,
            "original_max_position_embeddings": 16}  # fmt: skip
    folder = write_checkpoint(tmp_path / "glm4", model_type="glm4", architectures=["Glm4ForCausalLM"],
                             rope_parameters=rope, max_position_embeddings=64)  # fmt: skip
    model = theirs(folder)
    expected = generated(model, PROMPT, NEW)
    assert Decoder(model, 64, Fast(compiled="nothing")).answer(PROMPT, NEW).tokens == expected


def test_the_model_works_on_as_before(tiny: Path) -> None:
    """q, k and v become views of one matrix; a second decoder finds them so."""
    model = theirs(tiny)
    before = generated(model, PROMPT, NEW)
    first = Decoder(model, 64, Fast(compiled="nothing"))
    attention = model.model.layers[0].self_attn
    place = attention.q_proj.weight.data_ptr()
    second = Decoder(model, 64, Fast(compiled="nothing"))
    assert attention.q_proj.weight.data_ptr() == place  # nothing was copied again
    assert attention.k_proj.weight.data_ptr() == place + attention.q_proj.weight.numel() * 4
    assert generated(model, PROMPT, NEW) == before
    assert first.answer(PROMPT, NEW).tokens == second.answer(PROMPT, NEW).tokens == before


def test_a_stop_token_ends_the_answer(model: Any, expected: list[int]) -> None:
    decoder = Decoder(model, 64, Fast(compiled="nothing", attention="sdpa"))
    stop = expected[4]
    until = expected.index(stop) + 1
    answer = decoder.answer(PROMPT, NEW, [stop])
    assert answer.tokens == expected[:until]
    assert answer.ttft_s > 0 and answer.decode_s >= 0
    assert decoder.answer(PROMPT, 1).tokens == expected[:1]


def test_more_than_the_capacity_is_refused(model: Any) -> None:
    decoder = Decoder(model, 16, Fast(compiled="nothing"))
    assert len(decoder.answer(PROMPT, 7).tokens) == 7
    with pytest.raises(ContextError, match="9 tokens and an answer of 8 do not fit the reference's 16"):
        decoder.answer(PROMPT, 8)


def test_what_cannot_be_compiled_is_said_and_decoded_without(
    model: Any, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no compiler here\nand more")

    monkeypatch.setattr(torch, "compile", broken)
    decoder, how, reason = open_decoder(model, 64, Fast())
    assert reason == "RuntimeError: no compiler here"
    assert how == Fast(compiled="nothing", attention="sdpa")
    assert decoder.answer(PROMPT, NEW).tokens == expected
