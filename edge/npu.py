"""What the NPU's road through OpenVINO asks for: fixed shapes, chosen before the model is compiled.

Pure facts, for the export that rehearses a model and for the runtime that loads one.
"""

from __future__ import annotations

from typing import Any

from edge.errors import ContextError

MAX_PROMPT_LEN = 1024
"""Tokens a prompt may have, the whole conversation included: OpenVINO's default."""
MIN_RESPONSE_LEN = 128
"""Tokens that the answer always has room for: OpenVINO's default."""

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
