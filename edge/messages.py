"""What the rooms hand to each other: messages in, chunks and numbers out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from edge.grammar import Grammar

SPECIAL = re.compile(r"<(?=\|\w+\|>)|<(?=(?:sop|eop)>)|\[(?=(?:g|s)?MASK\])")
"""The first character of what a chat template writes to begin and end turns, such as `<|user|>` and `[gMASK]`."""
Role = Literal["system", "user", "assistant", "observation"]
FinishReason = Literal["stop", "length", "cancelled"]
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how far it is, and how far it goes (0: unknown)."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str
    metadata: str = ""
    """Of an assistant's turn that calls a tool: the tool's name; `content` are its arguments then."""
    tools: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    """Of a system turn: what may be called, as OpenAI's API describes it (`{"type": "function", "function": …}`), or
    GLM-4's built-in tools by their type alone."""


@dataclass(frozen=True)
class Tokens:
    """A prompt that is tokens already, special ones included."""

    ids: tuple[int, ...]


Conversation = Sequence[Message] | str | Tokens
"""What a model is asked: turns, which its chat template writes out, or a text or tokens to go on with as they stand."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; the field's own names.

    `None` leaves a value to the model's `generation_config.json`. `temperature` 0 means greedy.
    `max_new_tokens` is bounded by what is left of the context.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    presence_penalty: float | None = None
    """Taken once from the logit of every token that the answer already has."""
    frequency_penalty: float | None = None
    """The same for every time it has it."""
    grammar: Grammar | None = None
    """What the answer must look like; None: anything."""
    log_probs: bool = False
    """Give the log-probability of each token with it."""
    ignore_eos: bool = False
    """Go on past the tokens that end an answer, up to `max_new_tokens`: for measuring."""
    adapters: tuple[str, ...] | None = None
    """Names of the LoRA adapters that are on; None: as the model was loaded."""
    keep_special: bool = False
    """Leave special tokens in the text, such as the `<|assistant|>` between two calls of tools."""


@dataclass(frozen=True)
class Usage:
    """Numbers of one generation. A time that could not be measured is None, never 0."""

    prompt_tokens: int
    completion_tokens: int
    ttft_seconds: float | None
    """From the request to the first token."""
    tpot_seconds: float | None
    """Mean time for each token after the first; None below two tokens."""
    finish_reason: FinishReason
    cached_tokens: int | None = None
    """Of the prompt, what came from the prefix cache and was not read again; None where that is not known."""
    stop_id: int | None = None
    """The stop token that ended the answer; None where something else did."""
    token_seconds: tuple[float, ...] = ()
    """When each token came, in seconds after the request; those that came together have the same."""

    @property
    def tokens_per_second(self) -> float | None:
        """Decode throughput, 1 / TPOT."""
        return None if not self.tpot_seconds else 1.0 / self.tpot_seconds


@dataclass(frozen=True)
class Chunk:
    """A piece of the answer. A chunk is not a token: it may hold several, or part of none.

    The last chunk of a generation carries `usage`; its text may be empty.
    """

    text: str
    usage: Usage | None = None
    token_ids: tuple[int, ...] = field(default=())
    notice: str | None = None
    """Something about the answer, for the person, not part of it: one line."""
    restart: bool = False
    """What came of this answer before is void; it begins again."""
    log_probs: tuple[float, ...] = ()
    """Of each of `token_ids`, in nats, where they were asked for."""
