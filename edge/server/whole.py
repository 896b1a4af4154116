"""Answers that have ended → what OpenAI's API gives back. Pure."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edge import __version__
from edge.messages import Usage
from edge.runtime.interface import ChatEngine
from edge.server.asking import Asked
from edge.server.replies import (
    Answer,
    Called,
    CalledFunction,
    ChatCompletion,
    Choice,
    Completion,
    Finish,
    Logprobs,
    PromptDetails,
    TextChoice,
    TextLogprobs,
    TokenLogprob,
    Used,
)
from edge.tools.answer import Parsed

if TYPE_CHECKING:
    from edge.server.answering import Ended


@dataclass(frozen=True)
class Head:
    """What stands at the top of an answer, and of each piece of one."""

    id: str
    created: int
    """Unix time."""
    model: str
    system_fingerprint: str
    """Of what answers are made with. The same one, seed and request give the same answer where it is made alone;
    beside others, in a batch, sums are rounded differently, and a token may come out otherwise."""

    @classmethod
    def of(cls, engine: ChatEngine, kind: Literal["chatcmpl", "cmpl"], model: str | None = None) -> Head:
        """A new one; `model` is the name it is served by, if that is another than the engine's, or an adapter's."""
        adapter = model if model in engine.adapters else ""
        made_with = f"{engine.name}|{adapter}|{engine.device}|{engine.context_length}|{__version__}"
        return cls(
            f"{kind}-{uuid.uuid4().hex}", int(time.time()), model or engine.name,
            f"fp_{hashlib.sha256(made_with.encode()).hexdigest()[:12]}",
        )  # fmt: skip


def used(asked: Asked, usages: dict[int, Usage]) -> Used:
    """Tokens of all answers; a prompt is counted once, however many answers it has."""
    firsts = [usages[index] for index in range(0, len(asked.parts), asked.n)]
    prompt = sum(usage.prompt_tokens for usage in firsts)
    made = sum(usage.completion_tokens for usage in usages.values())
    cached = [usage.cached_tokens for usage in firsts if usage.cached_tokens is not None]
    out = Used(prompt_tokens=prompt, completion_tokens=made, total_tokens=prompt + made)
    if cached:
        out.prompt_tokens_details = PromptDetails(cached_tokens=sum(cached))
    return out


def finish(asked: Asked, reason: Finish) -> Finish:
    """The reason in the words of the request's time."""
    return "function_call" if reason == "tool_calls" and asked.functions else reason


def chat(head: Head, asked: Asked, ended: Sequence[Ended]) -> ChatCompletion:
    """A chat's answer."""
    wants_logprobs = asked.parts[0].sampling.log_probs
    choices = [
        Choice(
            index=one.index, message=_message(one.parsed, functions=asked.functions),
            logprobs=Logprobs(content=list(one.tokens), refusal=None) if wants_logprobs else None,
            finish_reason=finish(asked, one.reason),
        )
        for one in sorted(ended, key=lambda one: one.index)
    ]  # fmt: skip
    return ChatCompletion(
        id=head.id, object="chat.completion", created=head.created, model=head.model,
        system_fingerprint=head.system_fingerprint, choices=choices,
        usage=used(asked, {one.index: one.usage for one in ended}),
    )  # fmt: skip


def completion(head: Head, asked: Asked, ended: Sequence[Ended]) -> Completion:
    """What texts go on with."""
    wants_logprobs = asked.parts[0].sampling.log_probs
    choices = [
        TextChoice(
            index=one.index, text=(asked.echo[one.index // asked.n] if asked.echo else "") + one.parsed.content,
            logprobs=text_logprobs(one.tokens, 0) if wants_logprobs else None, finish_reason=one.reason,
        )
        for one in sorted(ended, key=lambda one: one.index)
    ]  # fmt: skip
    return Completion(
        id=head.id, object="text_completion", created=head.created, model=head.model,
        system_fingerprint=head.system_fingerprint, choices=choices,
        usage=used(asked, {one.index: one.usage for one in ended}),
    )  # fmt: skip


def text_logprobs(tokens: Sequence[TokenLogprob], offset: int) -> TextLogprobs:
    """In the older form; `offset` is where in the text the first of them stands."""
    offsets, written = [], b""
    for token in tokens:
        offsets.append(offset + len(written.decode(errors="ignore")))
        written += bytes(token.bytes or ())
    return TextLogprobs(
        tokens=[token.token for token in tokens], token_logprobs=[token.logprob for token in tokens],
        top_logprobs=None, text_offset=offsets,
    )  # fmt: skip


def _message(parsed: Parsed, *, functions: bool) -> Answer:
    content = parsed.content if parsed.content or not parsed.calls else None
    message = Answer(role="assistant", content=content, refusal=None)
    if parsed.reasoning:
        message.reasoning_content = parsed.reasoning
    if parsed.calls and functions:
        message.function_call = CalledFunction(name=parsed.calls[0].name, arguments=parsed.calls[0].arguments)
    elif parsed.calls:
        message.tool_calls = [
            Called(id=call.id, type="function", function=CalledFunction(name=call.name, arguments=call.arguments))
            for call in parsed.calls
        ]
    return message
