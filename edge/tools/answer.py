"""What an answer holds: text, thoughts and calls, as they come and as they are in the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from edge.messages import FinishReason


@dataclass(frozen=True)
class TextDelta:
    """More of the text."""

    text: str


@dataclass(frozen=True)
class ReasoningDelta:
    """More of the thought."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """A call has begun; it has no arguments yet."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class ArgumentsDelta:
    """More of the arguments of a call, as JSON."""

    index: int
    text: str


Event = TextDelta | ReasoningDelta | CallStart | ArgumentsDelta


@dataclass
class Call:
    """A tool call."""

    id: str
    name: str
    arguments: str = ""
    """JSON; of a call that is not valid: whatever came."""
    valid: bool = False
    """The arguments are a JSON object, whole. Whether it fits the tool's schema is not looked at."""


@dataclass
class Parsed:
    """An answer taken apart."""

    content: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)
    truncated: bool = False
    """The arguments of a call were cut off."""

    def finish_reason(self, engine: FinishReason) -> Literal["stop", "length", "tool_calls"]:
        """OpenAI's word for why the answer ended: a call that was cut off is a matter of length, not a call to run."""
        if engine == "length" or self.truncated:
            return "length"
        return "tool_calls" if self.calls else "stop"
