"""What the NPU's road through OpenVINO asks for: fixed shapes, chosen before the model is compiled.

Pure facts, for the export that rehearses a model and for the runtime that loads one.
"""

from __future__ import annotations

from typing import Any

from edge.errors import ContextError, UsageError

MAX_PROMPT_LEN = 1024
"""Tokens a prompt may have, the whole conversation included: OpenVINO's default."""
MIN_RESPONSE_LEN = 128
"""Tokens that the answer always has room for: OpenVINO's default."""
ALIGNMENT = 64
"""OpenVINO rounds both lengths up to multiples of it."""
PREFILL_CHUNK = 1024
"""A longer prompt is read in chunks of so many tokens, and its length rounded up to them."""

REHEARSED = "on the CPU, not on NPU hardware"
"""What has to stand beside every result of a rehearsal."""


def rehearsal_properties(max_prompt: int = MAX_PROMPT_LEN, min_response: int = MIN_RESPONSE_LEN) -> dict[str, Any]:
    """Properties with which the device "NPU" compiles a model for its fixed shapes, but runs it on the CPU.

    That shows shapes, prompt limits and the cache; not the NPU's compiler, nor its arithmetic.
    """
    return {
        "NPU_USE_NPUW": "YES",
        "NPUW_LLM": "YES",
        "NPUW_DEVICES": "CPU",
        "NPUW_ONLINE_PIPELINE": "NONE",
        "NPUW_LLM_BATCH_DIM": 0,
        "NPUW_LLM_SEQ_LEN_DIM": 2,
        "NPUW_LLM_MAX_PROMPT_LEN": max_prompt,
        "NPUW_LLM_MIN_RESPONSE_LEN": min_response,
    }


def check_prompt(tokens: int, max_prompt: int = MAX_PROMPT_LEN) -> None:
    """Refuse a prompt that the compiled shapes have no room for.

    Raises:
        ContextError: with both numbers.
    """
    if tokens > max_prompt:
        raise ContextError(
            f"the prompt has {tokens:,} tokens, where the model is compiled for at most {max_prompt:,} on the NPU",
            hint="Shorten the prompt or start a new conversation, or compile for longer prompts (MAX_PROMPT_LEN).",
        )


def npu_lengths(context: int | None) -> tuple[int, int]:
    """MAX_PROMPT_LEN and MIN_RESPONSE_LEN for a conversation of `context` tokens; OpenVINO's own for None.

    Their sum is never above `context`. OpenVINO rounds both up to 64, and a prompt longer than a chunk of the prefill
    up to whole chunks (1,024 on older compilers), so that they are chosen rounded. What the chunks leave over
    is the answer's.

    Raises:
        UsageError: the context is too short for any prompt and an answer.
    """
    if context is None:
        return MAX_PROMPT_LEN, MIN_RESPONSE_LEN
    left = context - MIN_RESPONSE_LEN
    step = PREFILL_CHUNK if left >= PREFILL_CHUNK else ALIGNMENT
    prompt = left // step * step
    if prompt <= 0:
        raise UsageError(
            f"a context of {context:,} tokens leaves the NPU no room for a prompt",
            hint=f"It takes at least {MIN_RESPONSE_LEN + ALIGNMENT} tokens, {MIN_RESPONSE_LEN} of them for the answer.",
        )
    return prompt, (context - prompt) // ALIGNMENT * ALIGNMENT
