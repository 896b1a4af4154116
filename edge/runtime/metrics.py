"""Arrival times of tokens → the numbers a user reads. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Arrivals:
    """When tokens came, on one monotonic clock, in seconds. A device may hand over several at once."""

    started: float
    """When the answer was asked for."""
    times: list[float] = field(default_factory=list)
    """Of each token."""

    def add(self, at: float, count: int) -> None:
        """Note that `count` tokens came at time `at`."""
        self.times += [at] * count

    @property
    def tokens(self) -> int:
        """How many came."""
        return len(self.times)

    @property
    def token_seconds(self) -> tuple[float, ...]:
        """When each token came, in seconds after the request."""
        return tuple(at - self.started for at in self.times)

    @property
    def ttft_seconds(self) -> float | None:
        """Time to first token: from the request, waiting included. None while there is none."""
        return self.times[0] - self.started if self.times else None

    @property
    def tpot_seconds(self) -> float | None:
        """Mean time for each token after those that came first. None if none did."""
        later = self.tokens - self.times.count(self.times[0]) if self.times else 0
        return None if later < 1 else (self.times[-1] - self.times[0]) / later
