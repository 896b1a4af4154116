"""What the NPU's road through OpenVINO asks for: fixed shapes, chosen before the model is compiled.

Pure facts, for the export that rehearses a model and for the runtime that loads one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge.errors import ContextError, UsageError

GROUP = 64
"""Weights that share a scale are a multiple of this, or a whole row: the road to the NPU unpacks so many at a time."""
MAX_PROMPT_LEN = 1024
"""Tokens a prompt may have, the whole conversation included: OpenVINO's default."""
MIN_RESPONSE_LEN = 128
"""Tokens that the answer always has room for: OpenVINO's default."""
PREFILL_CHUNK = 256
"""Tokens of a prompt read at once, and kept for the next turn."""
ALIGNMENT = 64
"""OpenVINO rounds both lengths up to multiples of it."""
PROMPT_STEP = 1024
"""A longer prompt's room is a multiple of this; newer compilers would take smaller steps."""

REHEARSED = "on the CPU, not on NPU hardware"
"""What has to stand beside every result of a rehearsal."""


def properties(max_prompt: int = MAX_PROMPT_LEN, min_response: int = MIN_RESPONSE_LEN) -> dict[str, Any]:
    """Properties with which the device "NPU" compiles a language model for its fixed shapes."""
    return {
        "NPU_USE_NPUW": "YES",
        "NPUW_LLM": "YES",
        "NPUW_LLM_BATCH_DIM": 0,
        "NPUW_LLM_SEQ_LEN_DIM": 2,
        "NPUW_LLM_MAX_PROMPT_LEN": max_prompt,
        "NPUW_LLM_MIN_RESPONSE_LEN": min_response,
    }


def rehearsal_properties(max_prompt: int = MAX_PROMPT_LEN, min_response: int = MIN_RESPONSE_LEN) -> dict[str, Any]:
    """Those `properties`, but the model runs on the CPU.

    That shows shapes, prompt limits and the cache; not the NPU's compiler, nor its arithmetic.
    """
    return {**properties(max_prompt, min_response), "NPUW_DEVICES": "CPU", "NPUW_ONLINE_PIPELINE": "NONE"}


def recipe_notes(model: Any) -> dict[str, str]:
    """What NNCF noted in an IR (an `ov.Model`) of its compression; "missing" where it noted nothing."""
    section = ["nncf", "weight_compression"]
    return {
        key: str(model.get_rt_info([*section, key]).value) if model.has_rt_info([*section, key]) else "missing"
        for key in ("mode", "group_size", "ratio")
    }


def refusal(notes: Mapping[str, str]) -> str | None:
    """Why the NPU's compiler does not take an IR with these `recipe_notes`; None where it does.

    It has to be asked before: of other weights the compiler ends the process instead of refusing.
    """
    size = int(notes["group_size"]) if notes["group_size"].lstrip("-").isdigit() else 0
    fits = size == -1 or (size >= GROUP and size % GROUP == 0)
    if notes["mode"] == "int4_sym" and notes["ratio"] in ("1", "1.0") and fits:
        return None
    said = ", ".join(f"{key} {value}" for key, value in notes.items())
    return (
        f"the IR says of itself {said}, where the NPU takes int4_sym with a ratio of 1, in groups of -1 (one scale per "
        f"output channel) or a multiple of {GROUP}"
    )


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
    step = PROMPT_STEP if left >= PROMPT_STEP else ALIGNMENT
    prompt = left // step * step
    if prompt <= 0:
        raise UsageError(
            f"a context of {context:,} tokens leaves the NPU no room for a prompt",
            hint=f"It takes at least {MIN_RESPONSE_LEN + ALIGNMENT} tokens, {MIN_RESPONSE_LEN} of them for the answer.",
        )
    return prompt, (context - prompt) // ALIGNMENT * ALIGNMENT


def npu_properties(max_prompt: int, min_response: int, *, rehearse: bool) -> dict[str, Any]:
    """Properties with which GenAI loads a model on the device "NPU", or only rehearses that on the CPU."""
    rehearsal = {"NPU_USE_NPUW": "YES", "NPUW_DEVICES": "CPU", "NPUW_ONLINE_PIPELINE": "NONE"} if rehearse else {}
    return {
        "MAX_PROMPT_LEN": max_prompt,
        "MIN_RESPONSE_LEN": min_response,
        # Off by default: each turn would read the whole conversation again. What is kept is whole chunks of the
        # prompt, so that one chunk as long as the prompt, also a default, would never be found again.
        "NPUW_LLM_ENABLE_PREFIX_CACHING": "YES",
        "NPUW_LLM_PREFILL_CHUNK_SIZE": min(PREFILL_CHUNK, max_prompt),
        **rehearsal,
    }
