"""What an engine reads of a conversation, and what its reader is told of the rest."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from edge.errors import ContextError
from edge.messages import Conversation, Message, Sampling, Tokens
from edge.runtime.context import Fitted, Policy, answer_reserve, dropped_sentence, fit
from edge.runtime.interface import ChatEngine


def fitted(
    engine: ChatEngine, conversation: Conversation, sampling: Sampling, policy: Policy
) -> tuple[Conversation, str | None]:
    """What the engine is to read of `conversation`, and a sentence where that is less than at the question before.

    It follows from the conversation alone, so that many may be held at once. A raw text or tokens pass as they are.

    Raises:
        ContextError: what must be read does not fit, or something does not and `policy` is "refuse".
    """
    if isinstance(conversation, str | Tokens):
        return conversation, None
    now = _fit(engine, conversation, sampling, policy)
    if not now.dropped_turns:
        return now.messages, None
    asked = [number for number, each in enumerate(conversation, 1) if each.role in ("user", "observation")]
    before = 0
    if len(asked) > 1:
        with contextlib.suppress(ContextError):
            before = _fit(engine, conversation[: asked[-2]], sampling, policy).dropped_turns
    if now.dropped_turns <= before:
        return now.messages, None
    return now.messages, dropped_sentence(now.dropped_turns, engine.max_prompt or engine.context_length)


def prompt_room(engine: ChatEngine, max_new_tokens: int | None = None) -> int:
    """Tokens that a prompt may have so that there is room for the answer: see `answer_reserve`."""
    return engine.max_prompt or engine.context_length - answer_reserve(engine.context_length, max_new_tokens)


def _fit(engine: ChatEngine, messages: Sequence[Message], sampling: Sampling, policy: Policy) -> Fitted:
    reserve = answer_reserve(engine.context_length, sampling.max_new_tokens)
    room = prompt_room(engine, sampling.max_new_tokens)
    try:
        return fit(messages, engine.count_tokens, room + reserve, reserve, policy=policy)
    except ContextError:
        if engine.max_prompt is not None:
            raise
        # A last message that leaves less than that for the answer is better read than refused.
        return fit(messages, engine.count_tokens, engine.context_length, 1, policy=policy)
