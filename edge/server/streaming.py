"""What happens while answers are made → the pieces of a streamed reply. Pure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from edge.messages import Usage
from edge.server.answering import Ended, Happening, Piece, Void
from edge.server.asking import Asked
from edge.server.faults import ReplacedError
from edge.server.replies import (
    CalledDelta,
    CalledFunction,
    ChatChunk,
    ChunkChoice,
    Completion,
    Delta,
    Finish,
    Logprobs,
    Reply,
    TextChoice,
    TokenLogprob,
)
from edge.server.whole import Head, finish, text_logprobs, used
from edge.tools.answer import ArgumentsDelta, CallStart, ReasoningDelta, TextDelta


class Writer(ABC):
    """Writes the pieces of one reply, in order.

    Args:
        usage: end with a piece that has the usage (`stream_options.include_usage`); the others have null there.
    """

    def __init__(self, head: Head, asked: Asked, *, usage: bool) -> None:
        self.head, self.asked = head, asked
        self._usage = usage
        self._usages: dict[int, Usage] = {}
        self._sent: set[int] = set()
        self._log_probs = asked.parts[0].sampling.log_probs

    def begin(self) -> list[Reply]:
        """What comes before everything."""
        return []

    def write(self, event: Happening) -> list[Reply]:
        """The pieces of what has happened, which may be none.

        Raises:
            ReplacedError: an answer begins again, of which something has been sent.
        """
        if isinstance(event, Void) and event.index in self._sent:
            raise ReplacedError
        if isinstance(event, Piece):
            self._sent.add(event.index)
            return self._piece(event)
        if isinstance(event, Ended):
            self._usages[event.index] = event.usage
            return [self._last(event)]
        return []

    def end(self) -> list[Reply]:
        """What comes after everything."""
        if not self._usage:
            return []
        last = self._reply([])
        last.usage = used(self.asked, self._usages)
        return [last]

    @abstractmethod
    def _piece(self, event: Piece) -> list[Reply]: ...

    @abstractmethod
    def _last(self, event: Ended) -> Reply: ...

    @abstractmethod
    def _reply(self, choices: list[Any]) -> Any: ...


class ChatWriter(Writer):
    """Of a chat."""

    def begin(self) -> list[Reply]:
        """See `Writer.begin`: whose turn it is."""
        first = Delta(role="assistant", content="")
        return [self._chunk(index, first) for index in range(len(self.asked.parts))]

    def _piece(self, event: Piece) -> list[Reply]:
        deltas = [self._delta(each) for each in event.events] or [Delta(content="")]
        log_probs = Logprobs(content=list(event.tokens), refusal=None) if event.tokens else None
        texts = [n for n, delta in enumerate(deltas) if delta.content is not None]
        with_log_probs = texts[-1] if texts else 0
        return [
            self._chunk(event.index, delta, log_probs if n == with_log_probs else None)
            for n, delta in enumerate(deltas)
        ]  # fmt: skip

    def _delta(self, event: TextDelta | ReasoningDelta | CallStart | ArgumentsDelta) -> Delta:
        match event:
            case TextDelta(text):
                return Delta(content=text)
            case ReasoningDelta(text):
                return Delta(reasoning_content=text)
            case CallStart(index, one, name):
                function = CalledFunction(name=name, arguments="")
                call = CalledDelta(index=index, id=one, type="function", function=function)
            case ArgumentsDelta(index, text):
                function = CalledFunction(arguments=text)
                call = CalledDelta(index=index, function=function)
        return Delta(function_call=function) if self.asked.functions else Delta(tool_calls=[call])

    def _last(self, event: Ended) -> Reply:
        return self._chunk(event.index, Delta(), reason=finish(self.asked, event.reason))

    def _chunk(
        self, index: int, delta: Delta, log_probs: Logprobs | None = None, reason: Finish | None = None
    ) -> ChatChunk:  # fmt: skip
        return self._reply([ChunkChoice(index=index, delta=delta, logprobs=log_probs, finish_reason=reason)])

    def _reply(self, choices: list[ChunkChoice]) -> ChatChunk:
        head = self.head
        chunk = ChatChunk(id=head.id, object="chat.completion.chunk", created=head.created, model=head.model,
                          system_fingerprint=head.system_fingerprint, choices=choices)  # fmt: skip
        if self._usage:
            chunk.usage = None  # set, and so written
        return chunk


class TextWriter(Writer):
    """Of texts that are gone on with."""

    def __init__(self, head: Head, asked: Asked, *, usage: bool) -> None:
        super().__init__(head, asked, usage=usage)
        self._lengths: dict[int, int] = {}

    def begin(self) -> list[Reply]:
        """See `Writer.begin`: the prompts, if they are to be given back."""
        return [
            self._choice(index, self.asked.echo[index // self.asked.n])
            for index in range(len(self.asked.parts) if self.asked.echo else 0)
        ]

    def _piece(self, event: Piece) -> list[Reply]:
        text = "".join(each.text for each in event.events if isinstance(each, TextDelta))
        return [self._choice(event.index, text, event.tokens)]

    def _last(self, event: Ended) -> Reply:
        return self._choice(event.index, "", reason=event.reason)

    def _choice(
        self, index: int, text: str, tokens: tuple[TokenLogprob, ...] = (), reason: Finish | None = None
    ) -> Completion:  # fmt: skip
        at = self._lengths.get(index, 0)
        self._lengths[index] = at + len(text)
        log_probs = text_logprobs(tokens, at) if self._log_probs and tokens else None
        return self._reply([TextChoice(index=index, text=text, logprobs=log_probs, finish_reason=reason)])

    def _reply(self, choices: list[TextChoice]) -> Completion:
        head = self.head
        piece = Completion(id=head.id, object="text_completion", created=head.created, model=head.model,
                           system_fingerprint=head.system_fingerprint, choices=choices)  # fmt: skip
        if self._usage:
            piece.usage = None
        return piece


def event(reply: Reply) -> bytes:
    """A server-sent event."""
    return f"data: {reply.json_text()}\n\n".encode()


def error_event(reply: Reply) -> bytes:
    """One that tells what went wrong in the middle of the stream; nothing follows it."""
    return f"event: error\ndata: {reply.json_text()}\n\n".encode()


def comment(text: str) -> bytes:
    """What readers of events pass over; it keeps the connection alive."""
    return f": {' '.join(text.split())}\n\n".encode()


DONE = b"data: [DONE]\n\n"
