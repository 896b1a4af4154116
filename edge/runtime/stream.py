"""A generation that calls back from its own thread → an iterator of chunks, with cancel. Knows no OpenVINO."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Protocol

from edge.messages import Chunk, FinishReason, Usage
from edge.runtime.metrics import Arrivals
from edge.runtime.prefix import Reading
from edge.runtime.text import TextBuffer


class Write(Protocol):
    """Where a generation writes what has just come."""

    def __call__(self, ids: Sequence[int], log_probs: Sequence[float] = (), /) -> bool:
        """Take the ids, which may be none, and their log-probabilities where asked for; False: please end."""


Produce = Callable[[Write], object]
"""Runs one generation to its end, calling Write on the way."""


class Turn(Protocol):
    """What a generation holds while it runs: a lock where they come one after the other, else a semaphore."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Wait for a place, at most so many seconds."""

    def release(self) -> None:
        """Give the place to the next."""


# On Windows a blocked wait does not see Ctrl-C; a short one does when it ends.
POLL_SECONDS = 0.05


def stream_tokens(
    produce: Produce,
    *,
    decode: Callable[[Sequence[int]], str],
    reading: Reading,
    stop_ids: frozenset[int],
    stop: Sequence[str],
    lock: Turn,
    cancelled: threading.Event,
    started: float,
) -> Generator[Chunk, None, None]:
    """Run `produce` in a thread of its own and yield what it writes as text.

    Ends when `produce` does, at a stop string, or when `cancelled` is set. A cancelled stream ends at once,
    also while the prompt is still being read; the thread ends at its next token and only then gives `lock`
    back, so that the next generation waits for it. Closing the iterator cancels.

    Args:
        produce: the generation. What it raises is raised here.
        decode: ids → text, see `TextBuffer`.
        reading: the prompt's, for the usage; `produce` may complete it before the first token.
        stop_ids: ids that end the answer; the generation may write them, the text never has them.
        stop: strings that end the answer.
        lock: held while the generation runs.
        cancelled: set from outside to end the stream; set here when the reader goes away.
        started: when the answer was asked for, by `time.perf_counter`.
    """
    arrivals = Arrivals(started)
    text = TextBuffer(decode, stop)
    events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
    reason: FinishReason = "cancelled"
    rest = ""

    def write(ids: Sequence[int], log_probs: Sequence[float] = (), /) -> bool:
        if ids:
            events.put((time.perf_counter(), tuple(ids), tuple(log_probs)))
        return not cancelled.is_set()

    def work() -> None:
        outcome: BaseException | None = None
        try:
            produce(write)
        except BaseException as error:
            outcome = error
        lock.release()  # first, so that who has the last chunk can ask the next question
        events.put(outcome)

    try:
        if _acquire(lock, cancelled):
            try:
                threading.Thread(target=work, name="generation").start()
            except BaseException:
                lock.release()
                raise
            reason = "length"
            unsent: tuple[int, ...] = ()
            unsaid: tuple[float, ...] = ()
            stop_id = None
            while (event := _next(events, cancelled)) is not None:
                if isinstance(event, BaseException):
                    raise event
                at, ids, log_probs = event
                if cancelled.is_set():
                    break
                ids, stop_id = _until_stop(ids, stop_ids)
                arrivals.add(at, len(ids) + (stop_id is not None))
                piece = text.push(ids)
                unsent, unsaid = unsent + ids, unsaid + log_probs[: len(ids)]
                if piece:
                    yield Chunk(piece, token_ids=unsent, log_probs=unsaid)
                    unsent, unsaid = (), ()
                if stop_id is not None or text.stopped:
                    reason = "stop"
                    break
            if reason != "stop" and cancelled.is_set():
                reason = "cancelled"
            rest = text.finish()
            usage = _usage(reading, arrivals, reason, stop_id)
            yield Chunk(rest, usage=usage, token_ids=unsent, log_probs=unsaid)
        else:
            yield Chunk("", usage=_usage(reading, arrivals, reason))
    finally:
        cancelled.set()


class Linked(threading.Event):
    """Is also set where another is; setting it leaves the other alone. To be looked at, not waited for."""

    def __init__(self, outer: threading.Event | None) -> None:
        super().__init__()
        self._outer = outer

    def is_set(self) -> bool:
        """Whether either is."""
        return super().is_set() or (self._outer is not None and self._outer.is_set())


class Running:
    """The streams of one engine that have begun and not ended, so that they can be cancelled from outside."""

    def __init__(self) -> None:
        # No lock: `cancel` may run in a signal handler, in the middle of the thread that would hold it.
        self._events: set[threading.Event] = set()
        self._shut = False
        self._since = object()  # the latest cancel

    def asked(self) -> object:
        """To be taken where a stream is asked for: what is cancelled from then on, before it begins, it is, too."""
        return self._since

    @contextlib.contextmanager
    def begin(self, outer: threading.Event | None = None, *, asked: object = None) -> Iterator[threading.Event]:
        """The event that cancels one stream, for as long as the stream is there; `outer` cancels it, too.

        Args:
            asked: what `asked` gave when the stream was asked for; left out, that is now.
        """
        event = Linked(outer)
        self._events.add(event)
        if self._shut or asked not in (None, self._since):  # looked at after adding, so that none slips between
            event.set()
        try:
            yield event
        finally:
            self._events.discard(event)

    def cancel(self) -> None:
        """Cancel them all, those too that wait for their turn, or have been asked for and not begun."""
        self._since = object()
        for event in list(self._events):
            event.set()

    def shut(self) -> None:
        """Cancel them all and, from now on, those that begin."""
        self._shut = True
        self.cancel()


def _acquire(lock: Turn, cancelled: threading.Event) -> bool:
    while not cancelled.is_set():
        if lock.acquire(timeout=POLL_SECONDS):
            return True
    return False


_Event = tuple[float, tuple[int, ...], tuple[float, ...]] | BaseException | None
"""When, which ids, their log-probabilities; or what went wrong; or the end."""


def _next(events: queue.SimpleQueue[_Event], cancelled: threading.Event) -> _Event:
    while True:
        try:
            return events.get(timeout=POLL_SECONDS)
        except queue.Empty:
            if cancelled.is_set():
                return None


def _until_stop(ids: tuple[int, ...], stop_ids: frozenset[int]) -> tuple[tuple[int, ...], int | None]:
    for place, token in enumerate(ids):
        if token in stop_ids:
            return ids[:place], token
    return ids, None


def _usage(reading: Reading, arrivals: Arrivals, reason: FinishReason, stop_id: int | None = None) -> Usage:
    times = arrivals.ttft_seconds, arrivals.tpot_seconds
    return Usage(reading.tokens, arrivals.tokens, *times, reason, reading.cached, stop_id, arrivals.token_seconds)
