"""A request and an engine → an answer, whole or in events as they come. Knows no HTTP.

`answer_chat` and `answer_completion` are all that a program needs that has requests and wants answers.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from edge.messages import Chunk, Sampling, Usage
from edge.runtime.interface import ChatEngine
from edge.runtime.stream import POLL_SECONDS, Linked
from edge.server import asking, whole
from edge.server.asking import Asked
from edge.server.faults import CutShortError
from edge.server.protocol import ChatRequest, CompletionRequest
from edge.server.replies import ChatCompletion, Completion, TokenLogprob
from edge.tools.answer import Event, Parsed, TextDelta
from edge.tools.parse import Parser

_THOUGHT_ENDS = "</think>"
_LEAST_LOGPROB = -9999.0  # what OpenAI writes for none at all


@dataclass(frozen=True)
class Piece:
    """More of one answer."""

    index: int
    events: tuple[Event, ...]
    tokens: tuple[TokenLogprob, ...] = ()
    """Those of the content, where log-probabilities were asked for."""


@dataclass(frozen=True)
class Ended:
    """One answer is there."""

    index: int
    parsed: Parsed
    tokens: tuple[TokenLogprob, ...]
    reason: Literal["stop", "length", "tool_calls"]
    usage: Usage


@dataclass(frozen=True)
class Cut:
    """One answer was ended before its end; what it had come to."""

    index: int
    usage: Usage


@dataclass(frozen=True)
class Void:
    """What came of one answer is void; it begins again, on another device."""

    index: int


@dataclass(frozen=True)
class Notice:
    """Something about the answer, for the person."""

    text: str


Happening = Piece | Ended | Cut | Void | Notice


def answer_chat(
    engine: ChatEngine, request: ChatRequest, cancelled: threading.Event | None = None, *, at_once: int | None = None
) -> ChatCompletion:
    """Answer a chat; returns when the answer is whole. Any number of threads may ask.

    The request's `stream` and `model` are not looked at (`asking.check_model` does the latter). A request is read
    from JSON by `faults.read(ChatRequest, text)`; what is raised becomes OpenAI's form by `faults.describe`.

    Args:
        cancelled: set from any thread to end it.
        at_once: of n answers, how many are made at a time; None: as many as the engine makes.

    Raises:
        EdgeError: UsageError and ContextError if the request is at fault, DeviceError if the device, `CutShortError`.
    """
    asked = asking.chat(engine, request)
    return whole.chat(whole.Head.of(engine, "chatcmpl"), asked, _ended(engine, asked, cancelled, at_once))


def answer_completion(
    engine: ChatEngine, request: CompletionRequest, cancelled: threading.Event | None = None, *,
    at_once: int | None = None,
) -> Completion:  # fmt: skip
    """Go on with a text, or several; otherwise as `answer_chat`."""
    asked = asking.completion(engine, request)
    return whole.completion(whole.Head.of(engine, "cmpl"), asked, _ended(engine, asked, cancelled, at_once))


def _ended(
    engine: ChatEngine, asked: Asked, cancelled: threading.Event | None, at_once: int | None
) -> list[Ended]:  # fmt: skip
    return [event for event in happenings(engine, asked, cancelled, at_once) if isinstance(event, Ended)]


def happenings(
    engine: ChatEngine, asked: Asked, cancelled: threading.Event | None = None, at_once: int | None = None
) -> Generator[Happening, None, None]:
    """Make the answers; what happens, as it happens. Closing the iterator ends them.

    Raises:
        EdgeError: see `answer_chat`. The first fault ends all answers.
    """
    ended = Linked(cancelled)
    try:
        if len(asked.parts) == 1:
            yield from _one(engine, asked, 0, ended)
        else:
            yield from _several(engine, asked, ended, min(at_once or engine.together, len(asked.parts)))
    finally:
        ended.set()


def _several(
    engine: ChatEngine, asked: Asked, ended: threading.Event, at_once: int
) -> Generator[Happening, None, None]:  # fmt: skip
    came: queue.SimpleQueue[Happening | BaseException | None] = queue.SimpleQueue()
    numbers = iter(range(len(asked.parts)))  # `next` of it is one step, which threads may share
    turn = threading.Lock()

    def work() -> None:
        outcome: BaseException | None = None
        try:
            while True:
                with turn:
                    index = next(numbers, None)
                if index is None:
                    break
                with contextlib.closing(_one(engine, asked, index, ended)) as events:
                    for event in events:
                        came.put(event)
        except BaseException as error:
            outcome = error
        came.put(outcome)

    for _ in range(at_once):
        threading.Thread(target=work, name="answers", daemon=True).start()
    running, fault = at_once, None
    while running:
        try:  # in pieces: Windows does not interrupt a long wait
            event = came.get(timeout=POLL_SECONDS)
        except queue.Empty:
            continue
        if event is None or isinstance(event, BaseException):
            fault = fault or event
            running -= 1
            if fault is not None:
                ended.set()
        elif fault is None or isinstance(event, (Ended, Cut)):  # how far the others had come is told
            yield event
    if fault is not None:
        raise fault


class _Reader(Protocol):
    parsed: Parsed
    done: bool

    def push(self, piece: str) -> list[Event]: ...

    def finish(self) -> list[Event]: ...


class _Plain:
    """Text that is nothing but text."""

    done = False

    def __init__(self) -> None:
        self.parsed = Parsed()

    def push(self, piece: str) -> list[Event]:
        self.parsed.content += piece
        return [TextDelta(piece)] if piece else []

    def finish(self) -> list[Event]:
        return []


def _one(engine: ChatEngine, asked: Asked, index: int, cancelled: threading.Event) -> Generator[Happening, None, None]:
    part = asked.parts[index]
    enough = Linked(cancelled)
    reader, tokens = _reader(asked), _Tokens(engine, part.sampling)
    with contextlib.closing(engine.stream(part.conversation, part.sampling, enough)) as chunks:
        for chunk in chunks:
            if chunk.notice:
                yield Notice(chunk.notice)
            if chunk.restart:
                reader, tokens = _reader(asked), _Tokens(engine, part.sampling)
                yield Void(index)
            if not reader.done:
                events = reader.push(chunk.text)
                if chunk.usage is not None:
                    events += reader.finish()
                fresh = tokens.of(chunk, events, over=chunk.usage is not None)
                if events or fresh:
                    yield Piece(index, tuple(events), fresh)
                if reader.done:  # the engine says once more what it has made, and how much
                    enough.set()
            if chunk.usage is not None:
                if chunk.usage.finish_reason == "cancelled" and not reader.done:
                    yield Cut(index, chunk.usage)
                    raise CutShortError
                parsed = reader.parsed
                reason = parsed.finish_reason("stop" if reader.done else chunk.usage.finish_reason)
                yield Ended(index, parsed, tuple(tokens.all), reason, chunk.usage)


def _reader(asked: Asked) -> _Reader:
    if asked.demand is None:
        return _Plain()
    return Parser(
        asked.demand.tools, opened=asked.opened, parallel=asked.demand.parallel, formatted=asked.demand.formatted
    )


class _Tokens:
    """Which tokens wrote the content: those since the last piece of a thought or a call, and none of a stop string."""

    def __init__(self, engine: ChatEngine, sampling: Sampling) -> None:
        self._wanted, self._stops = sampling.log_probs, bool(sampling.stop)
        self.all: list[TokenLogprob] = []
        self._engine = engine
        self._undecided: list[tuple[int, TokenLogprob]] = []
        """With the byte of the answer that each begins at."""
        self._made = 0
        """Bytes that tokens have written."""
        self._said = 0
        """Bytes of the answer's text: what may yet become a stop string is held back, though its tokens are here."""

    def of(self, chunk: Chunk, events: list[Event], *, over: bool) -> tuple[TokenLogprob, ...]:
        """Those that are certain to be of the content by now."""
        if self._wanted:  # an engine may give them, or zeros, unasked
            for token in self._read(chunk):
                written = bytes(token.bytes or ())
                if not self._made and written.startswith(b"\n"):
                    self._said = 1  # GLM-4 opens its turn with it, and the text is without
                self._undecided.append((self._made, token))
                self._made += len(written)
            self._said += len(chunk.text.encode(errors="replace"))
        if _THOUGHT_ENDS in chunk.text and not any(isinstance(event, TextDelta) for event in events):
            self._undecided = []  # it is a token of its own
        if not self._undecided or not (events or over):
            return ()
        stopped = chunk.usage is not None and chunk.usage.finish_reason == "stop" and chunk.usage.stop_id is None
        all_said = not self._stops or (over and not stopped)
        fresh = tuple(token for begin, token in self._undecided if all_said or begin < self._said)
        self._undecided = [] if over else self._undecided[len(fresh) :]
        if events and not any(isinstance(event, TextDelta) for event in events):
            return ()
        self.all += fresh
        return fresh

    def _read(self, chunk: Chunk) -> Iterator[TokenLogprob]:
        for written, value in zip(self._engine.token_bytes(chunk.token_ids), chunk.log_probs, strict=True):
            yield TokenLogprob(
                token=written.decode(errors="backslashreplace"), bytes=list(written), top_logprobs=[],
                logprob=min(value, 0.0) if value > _LEAST_LOGPROB else _LEAST_LOGPROB,
            )  # fmt: skip
