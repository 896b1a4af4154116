"""What comes before an answer: a request is read by a thread, as the event loop sees it. It may take long, or forever.

A thread cannot be ended. So few are had, each keeps its place until it is done, and nobody waits for one longer than
he wants to; they do not hold up the end of the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from edge.server.faults import CutShortError, RefusedError

AT_ONCE = 4
"""Requests read at the same time: more would only take the processor from each other."""
_RETRY_SECONDS = 5
Result = TypeVar("Result")


class GoneError(Exception):
    """Who asked has gone."""


def in_thread(
    function: Callable[..., Result], *arguments: Any, after: Callable[[], None] = lambda: None
) -> asyncio.Future[Result]:
    """Have a thread of its own call a function.

    Args:
        after: called by the event loop when the function has ended, whether anybody still waits for it or not.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def ended(result: Result | None, error: BaseException | None) -> None:
        if not future.done() and error is not None:
            future.set_exception(error)
        elif not future.done():
            future.set_result(result)  # type: ignore[arg-type]
        after()

    def run() -> None:
        result, error = None, None
        try:
            result = function(*arguments)
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it everybody who would hear it
            loop.call_soon_threadsafe(ended, result, error)

    threading.Thread(target=run, name="reading", daemon=True).start()
    return future


class Readers:
    """The threads that read requests, and who waits for one. All of it in the event loop's thread.

    Args:
        longest: requests that may wait.
    """

    def __init__(self, longest: Callable[[], int]) -> None:
        self._longest = longest
        self._busy = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._watched: set[asyncio.Future[None]] = set()

    async def read(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """What the function gives, when a thread is free for it.

        Raises:
            RefusedError: too many wait.
        """
        if self._busy >= AT_ONCE:
            if len(self._waiting) >= self._longest():
                raise RefusedError(
                    f"{self._busy} requests are being read and {len(self._waiting)} wait for that, which is all there "
                    "is room for", hint=f"Ask again in {_RETRY_SECONDS} s.", code="queue_full", status=429,
                    retry_seconds=_RETRY_SECONDS,
                )  # fmt: skip
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn  # who ends gives his place to us
            except asyncio.CancelledError:
                if turn in self._waiting:
                    self._waiting.remove(turn)
                elif turn.done() and not turn.cancelled():
                    self._free()  # it came just now
                raise
        else:
            self._busy += 1
        return await in_thread(function, *arguments, after=self._free)

    async def watched(
        self, what: Awaitable[Result], seconds: float, gone: asyncio.Future[None] | None = None
    ) -> Result:  # fmt: skip
        """Wait for something, but not longer than is of use.

        Args:
            gone: done when who asked has gone.

        Raises:
            asyncio.TimeoutError: it was not there in time.
            GoneError: who asked has gone.
            CutShortError: see `end_all`.
        """
        task = asyncio.ensure_future(what)
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watched.add(over)
        others: Sequence[asyncio.Future[Any]] = [over] if gone is None else [over, gone]
        try:
            await asyncio.wait([task, *others], timeout=max(0.0, seconds), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if over.done():
                raise CutShortError
            if gone is not None and gone.done():
                raise GoneError
            raise asyncio.TimeoutError
        finally:
            task.cancel()
            self._watched.discard(over)

    def end_all(self) -> int:
        """End the waiting of all that is watched; how many that were."""
        ended = [over for over in self._watched if not over.done()]
        for over in ended:
            over.set_result(None)
        return len(ended)

    def _free(self) -> None:
        """A thread has ended; the next takes its place."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._busy -= 1
