"""Who is answered now, who waits, and who is sent away. All of it in the event loop's thread."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

from edge.server.faults import RefusedError

_REMEMBERED = 32
_LONGEST_RETRY_SECONDS = 60


class Ticket:
    """A request's place in the queue, then at the engine."""

    def __init__(self, count: int, start: Callable[[], None]) -> None:
        self.count = count
        """Answers it would have made at once."""
        self.begun: float | None = None
        """When its turn came, by `time.monotonic`."""
        self._start = start

    def begin(self) -> None:
        """Its turn has come."""
        self.begun = time.monotonic()
        self._start()


class Gate:
    """Lets in as many as the engine answers at once, in the order of their coming.

    Args:
        places: answers that the engine makes at once, which may change.
        longest: requests that may wait.
    """

    def __init__(self, places: Callable[[], int], longest: int) -> None:
        self._places = places
        self._longest = longest
        self._waiting: deque[Ticket] = deque()
        self._inside: list[Ticket] = []
        self._seconds: deque[float] = deque(maxlen=_REMEMBERED)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests being answered."""
        return len(self._inside)

    def take(self, count: int, start: Callable[[], None]) -> Ticket:
        """Queue up; `start` is called when the turn has come, which may be before this returns.

        Raises:
            RefusedError: the queue is full; see `check`.
        """
        ticket = Ticket(count, start)
        self.check(ticket)
        self._waiting.append(ticket)
        self._admit()
        return ticket

    def check(self, ticket: Ticket | None = None) -> None:
        """Refuse what neither begins now nor may wait.

        Args:
            ticket: None: the smallest request.

        Raises:
            RefusedError: 429, and when to come again.
        """
        ticket = ticket or Ticket(1, lambda: None)
        if (self._waiting or not self._fits(ticket)) and len(self._waiting) >= self._longest:
            retry = self._retry_seconds()
            raise RefusedError(
                f"{self.running} requests are being answered and {self.waiting} wait, which is all there is room for",
                hint=f"Ask again in {retry} s, or start the server with a larger --queue.",
                code="queue_full", status=429, retry_seconds=retry,
            )  # fmt: skip

    def leave(self, ticket: Ticket) -> None:
        """Go, answered or not; from the queue, or from the engine."""
        if ticket in self._waiting:
            self._waiting.remove(ticket)
        elif ticket in self._inside:
            self._inside.remove(ticket)
            assert ticket.begun is not None
            self._seconds.append(time.monotonic() - ticket.begun)
        self._admit()

    def _fits(self, ticket: Ticket) -> bool:
        places = self._places()
        return sum(min(one.count, places) for one in self._inside) + min(ticket.count, places) <= places

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0]):
            ticket = self._waiting.popleft()
            self._inside.append(ticket)
            ticket.begin()

    def _retry_seconds(self) -> int:
        """About when a place will be free: by the last answers, and those that run.

        One that runs is likely to go on for about as long as it has run, whatever those before it took.
        """
        now = time.monotonic()
        before = sum(self._seconds) / len(self._seconds) if self._seconds else 1.0
        running = [max(before, 2 * (now - one.begun)) for one in self._inside if one.begun is not None]
        mean = sum(running) / len(running) if running else before
        return min(_LONGEST_RETRY_SECONDS, max(1, math.ceil(mean * (self.waiting + 1) / max(1, self._places()))))
