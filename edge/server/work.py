"""One request being answered by a thread, as the event loop sees it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator

from edge.server.answering import Happening
from edge.server.faults import RefusedError
from edge.server.queueing import Gate


def late(seconds: float) -> RefusedError:
    """What is said of an answer that took too long."""
    return RefusedError(
        f"the answer was not there after {seconds:g} s", code="timeout", status=504,
        hint="Ask for fewer tokens, or start the server with a larger --timeout.",
    )  # fmt: skip


class Work:
    """Waits for its turn, has a thread answer, and tells what happens.

    Args:
        gate: see there.
        count: answers to make.
        produce: makes them, in the thread, until the event is set.
        arrived: when the request did, by `time.monotonic`.
        seconds: that it may take since, the waiting included.
        note: told what happens by the event loop, also what comes when nobody waits for it any more.

    Raises:
        RefusedError: the queue is full.
    """

    def __init__(
        self, gate: Gate, count: int, produce: Callable[[threading.Event], Iterator[Happening]], *, arrived: float,
        seconds: float, note: Callable[[Happening], None] = lambda happening: None,
    ) -> None:  # fmt: skip
        self._gate, self._produce, self._note = gate, produce, note
        self._seconds = seconds
        self._deadline = arrived + seconds
        self._loop = asyncio.get_running_loop()
        self._inbox: asyncio.Queue[Happening | BaseException | None] = asyncio.Queue()
        self._cancelled = threading.Event()
        self.beat_seconds = seconds
        """After so much silence `happenings` says so."""
        self._ticket = gate.take(count, self._start)

    @property
    def begun(self) -> float | None:
        """When its turn came, by `time.monotonic`; None while it waits."""
        return self._ticket.begun

    async def happenings(self) -> AsyncGenerator[Happening | None, None]:
        """What happens, until the answers are there; None where nothing has for `beat_seconds`.

        Raises:
            EdgeError: the answer's own, or that it took too long.
            GoneError: see `end`.
        """
        try:
            while True:
                left = self._deadline - time.monotonic()
                try:
                    event = await asyncio.wait_for(self._inbox.get(), max(0.0, min(left, self.beat_seconds)))
                except asyncio.TimeoutError:
                    if time.monotonic() >= self._deadline:
                        raise late(self._seconds) from None
                    yield None
                    continue
                if event is None:
                    return
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            self.close()

    def end(self, error: Exception) -> None:
        """Have `happenings` raise this at its next turn; from the event loop."""
        self._inbox.put_nowait(error)

    def close(self) -> None:
        """Nobody wants the answer any more, or it is there: the engine stops within a token."""
        self._cancelled.set()
        if self._ticket.begun is None:
            self._gate.leave(self._ticket)

    def _start(self) -> None:
        threading.Thread(target=self._run, name="answer", daemon=True).start()

    def _run(self) -> None:
        outcome: BaseException | None = None
        try:
            for event in self._produce(self._cancelled):
                self._tell(self._came, event)
        except BaseException as error:
            outcome = error
        self._tell(self._ended, outcome)

    def _tell(self, function: Callable[..., object], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it everybody who would hear it
            self._loop.call_soon_threadsafe(function, *arguments)

    def _came(self, event: Happening) -> None:
        self._note(event)
        self._inbox.put_nowait(event)

    def _ended(self, outcome: BaseException | None) -> None:
        self._gate.leave(self._ticket)
        self._inbox.put_nowait(outcome)
