"""Arrival times of tokens → the numbers a user reads. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Arrivals:
    """When tokens came, on one monotonic clock, in seconds. A device may hand over several at once."""

    started: float
    """When the answer was asked for."""
    tokens: int = 0
    _first: float | None = field(default=None, repr=False)
    _first_count: int = field(default=0, repr=False)
    _last: float = field(default=0.0, repr=False)

    def add(self, at: float, count: int) -> None:
        """Note that `count` tokens came at time `at`."""
        if count < 1:
            return
        if self._first is None:
            self._first, self._first_count = at, count
        self._last = at
        self.tokens += count

    @property
    def ttft_seconds(self) -> float | None:
        """Time to first token: from the request, waiting included. None while there is none."""
        return None if self._first is None else self._first - self.started

    @property
    def tpot_seconds(self) -> float | None:
        """Mean time for each token after those that came first. None if none did."""
        later = self.tokens - self._first_count
        return None if self._first is None or later < 1 else (self._last - self._first) / later
