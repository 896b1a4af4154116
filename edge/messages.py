"""What the rooms hand to each other: messages in, chunks and numbers out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["system", "user", "assistant", "observation"]
FinishReason = Literal["stop", "length", "cancelled"]
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how far it is, and how far it goes (0: unknown)."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


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
