"""The conversation a user has, and the room the model's context leaves for an answer. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge.errors import ContextError, OutputError, UsageError
from edge.files import write_text
from edge.messages import FinishReason, Message

_FORMAT = "glm4-edge conversation 1"
_ROLES = ("user", "assistant", "observation")
_REASONS = ("stop", "length", "cancelled")


def room_for_answer(prompt_tokens: int, context_length: int, max_new_tokens: int | None) -> int:
    """How many tokens the answer may have.

    Raises:
        ContextError: the prompt leaves room for none.
    """
    room = context_length - prompt_tokens
    if room < 1:
        raise ContextError(
            f"the conversation has {prompt_tokens:,} tokens, but the model reads at most {context_length - 1:,} "
            "and needs one for the answer",
            hint="Make the message shorter; in a chat, /clear starts afresh.",
        )
    return room if max_new_tokens is None else min(room, max_new_tokens)


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
        content = {"format": _FORMAT, "model": model, "system": self.system, "messages": messages}
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
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise _no_conversation(path, f'its "format" is not "{_FORMAT}"')
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
