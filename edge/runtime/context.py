"""The conversation a user has, what of it the model reads, and the room that leaves for an answer. Pure.

A conversation that outgrows the context loses whole turns, the oldest first: a question with its answer and what tools
observed in between. It loses more than it must, because of the prefix cache: that serves a prompt as far as it begins
like an earlier one, and a dropped turn changes everything behind the system prompt. Were just enough dropped, every
further turn would drop another and have the whole context read anew. Dropped down to three quarters, that happens once
in many turns.

What is dropped follows from the conversation alone: its turns are gone through as they came. So the same ones stay
dropped as it goes on, though nobody remembers which they were, and a server that is sent the whole history each time
decides as a chat does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edge.errors import ContextError, OutputError, UsageError
from edge.files import write_text
from edge.messages import FinishReason, Message

FORMAT = "glm4-edge conversation 1"
_ROLES = ("user", "assistant", "observation")
_REASONS = ("stop", "length", "cancelled")

Policy = Literal["trim", "refuse"]
KEEP = 0.75
"""Share of the room that is filled after turns were dropped."""
_ANSWER = 1024


def room_for_answer(prompt_tokens: int, context_length: int, max_new_tokens: int | None) -> int:
    """How many tokens the answer may have.

    Raises:
        ContextError: the prompt leaves room for none.
    """
    room = context_length - prompt_tokens
    if room < 1:
        raise ContextError(
            f"the conversation has {_count(prompt_tokens)}, and a context of {context_length:,} has room for "
            f"{context_length - 1:,} and one of the answer",
            hint="Make the message shorter, or load the model with a longer context.",
        )
    return room if max_new_tokens is None else min(room, max_new_tokens)


@dataclass(frozen=True)
class Fitted:
    """What the model reads of a conversation."""

    messages: tuple[Message, ...]
    dropped_turns: int
    """Oldest turns that it no longer reads."""
    tokens: int
    """Of `messages`, as counted."""


def answer_reserve(limit: int, max_new_tokens: int | None = None) -> int:
    """Tokens to keep free for the answer: those asked for, or 1,024, but never more than a quarter of the context."""
    return max(1, min(_ANSWER if max_new_tokens is None else max_new_tokens, limit // 4))


def context_for(prompt_tokens: int, max_new_tokens: int | None = None) -> int:
    """The shortest context that has room for a prompt and what `answer_reserve` keeps for its answer."""
    answer = _ANSWER if max_new_tokens is None else max_new_tokens
    return max(prompt_tokens + 1, min(prompt_tokens + answer, 4 * (prompt_tokens - 1) // 3 + 1))


def fit(
    messages: Sequence[Message],
    count_tokens: Callable[[Sequence[Message]], int],
    limit: int,
    reserve: int,
    *,
    policy: Policy = "trim",
    keep: float = KEEP,
) -> Fitted:
    """Drop as many of the oldest turns as it takes for the rest and the answer to fit.

    System messages at the beginning and the last turn always stay. A conversation that fits is counted once; of one
    that does not, each message is counted alone, the template's part of it taken off, and the result counted whole.

    Args:
        count_tokens: of messages as the model would read them, the opening of the answer included.
        limit: tokens of the context.
        reserve: tokens of it that are the answer's.

    Raises:
        ContextError: the last turn alone does not fit, or anything does not and `policy` is "refuse".
    """
    room = limit - reserve
    total = count_tokens(messages)
    if total <= room:
        return Fitted(tuple(messages), 0, total)
    if policy == "refuse":
        raise ContextError(
            f"the conversation has {total:,} tokens, and {room:,} are left for it of a context of {limit:,}",
            hint="Start a new conversation, or load the model with a longer context.",
        )
    head, turns = _parts(messages)
    alone = [count_tokens([message]) for message in messages]
    # Every message counted alone brings the template's opening and closing along; together they have it once.
    frame = (sum(alone) - total) / (len(alone) - 1) if len(alone) > 1 else 0.0
    sizes = [size - frame for size in alone]
    start = _walk(turns, sizes, sum(sizes[:head]) + frame, room, keep)
    while True:
        kept = (*messages[:head], *messages[turns[start] :])
        tokens = count_tokens(kept)
        if tokens <= room:
            return Fitted(kept, start, tokens)
        if start == len(turns) - 1:
            raise ContextError(
                f"the message has {_count(tokens)}, the chat template's and the system prompt's included, and the "
                f"context of {limit:,} has room for {room:,}",
                hint="Make the message shorter, or load the model with a longer context.",
            )
        start += 1


def _count(tokens: int) -> str:
    return f"{tokens:,} token" + ("" if tokens == 1 else "s")


def dropped_sentence(dropped_turns: int, limit: int) -> str:
    """What a chat says when turns are dropped."""
    what = "turn is" if dropped_turns == 1 else f"{dropped_turns} turns are"
    return f"The conversation has outgrown the context of {limit:,} tokens: its oldest {what} no longer read."


def _parts(messages: Sequence[Message]) -> tuple[int, list[int]]:
    """How many messages are the system's at the beginning, and where each turn begins."""
    head = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    begins = [i for i in range(head, len(messages)) if messages[i].role == "user" or i == head]
    return head, begins or [head]


def _walk(turns: list[int], sizes: list[float], fixed: float, room: int, keep: float) -> int:
    """The first turn that is kept, after every turn was asked in its order.

    A past turn decides by its question, as it did when it was the last: its answer was not there yet.
    """
    ends = [*turns[1:], len(sizes)]
    whole = [sum(sizes[begin:end]) for begin, end in zip(turns, ends, strict=True)]
    start, before = 0, fixed
    for now, begin in enumerate(turns):
        asked = before + sizes[begin] if begin < len(sizes) else before
        if asked > room:
            while start < now and asked > keep * room:
                asked -= whole[start]
                before -= whole[start]
                start += 1
        before += whole[now]
    return start


@dataclass(frozen=True)
class Turn:
    """A message, and for an answer why it ended; a cancelled one is a part of an answer."""

    message: Message
    finish_reason: FinishReason | None = None


@dataclass
class Conversation:
    """A system prompt and the turns so far."""

    system: str | None = None
    turns: list[Turn] = field(default_factory=list)

    def messages(self) -> list[Message]:
        """What the model reads."""
        opening = [Message("system", self.system)] if self.system else []
        return opening + [turn.message for turn in self.turns]

    def ask(self, text: str) -> None:
        """Add what the user said."""
        self.turns.append(Turn(Message("user", text)))

    def take_back(self) -> None:
        """Forget the question that got no answer."""
        self.turns.pop()

    def answer(self, text: str, reason: FinishReason) -> None:
        """Add what the model said."""
        self.turns.append(Turn(Message("assistant", text), reason))

    def save(self, path: Path, model: str) -> None:
        """Write the conversation as JSON, whole or not at all.

        Raises:
            OutputError: the file cannot be written.
        """
        if not path.parent.is_dir():
            raise OutputError(f"there is no folder {path.parent}", hint="Make it first, or name another.")
        messages = [
            {"role": turn.message.role, "content": turn.message.content}
            | ({"finish_reason": turn.finish_reason} if turn.finish_reason else {})
            for turn in self.turns
        ]
        content = {"format": FORMAT, "model": model, "system": self.system, "messages": messages}
        write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> Conversation:
        """Read what `save` wrote.

        Raises:
            UsageError: there is no such file, or it is no conversation.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise UsageError(
                f"{path} cannot be read ({error.strerror or error})", hint="Name a file that /save wrote."
            ) from error
        except ValueError as error:  # also what is no UTF-8
            raise _no_conversation(path, "it is not JSON") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise _no_conversation(path, f'its "format" is not "{FORMAT}"')
        system, messages = content.get("system"), content.get("messages")
        if not (system is None or isinstance(system, str)):
            raise _no_conversation(path, 'its "system" is not a text')
        if not isinstance(messages, list):
            raise _no_conversation(path, 'its "messages" are not a list')
        return cls(system, [_turn(path, number, item) for number, item in enumerate(messages, 1)])


def _turn(path: Path, number: int, item: Any) -> Turn:
    if not isinstance(item, dict):
        raise _no_conversation(path, f"message {number} is not an object")
    role, text, reason = item.get("role"), item.get("content"), item.get("finish_reason")
    if role not in _ROLES:
        raise _no_conversation(path, f"message {number} has the role {json.dumps(role)}")
    if not isinstance(text, str):
        raise _no_conversation(path, f"message {number} has no text as content")
    if not (reason is None or reason in _REASONS):
        raise _no_conversation(path, f"message {number} has the finish_reason {json.dumps(reason)}")
    return Turn(Message(role, text), reason)


def _no_conversation(path: Path, why: str) -> UsageError:
    return UsageError(f"{path} is no saved conversation: {why}", hint="Name a file that /save wrote.")
