"""Whether two runs differ, or only the noise does. Pure.

Samples of the same round had the same prompts, and where both were measured in one run, in turn, the same disturbance:
they are taken as pairs. What is said of their median ratio is an interval, a bootstrap's and at least the one that
follows from the signs alone: 95 of 100 repetitions would meet it if nothing but chance differed between rounds. Two
runs made at different times may differ because the machine did: no interval shows that, so such a comparison says so.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge.bench.case import Case, Measured, Sample

Verdict = Literal["faster", "slower", "no difference"]
_DRAWS = 4000
LEVEL = 0.95
_SMALLEST = 0.01
"""A difference below one in a hundred is none that a user meets."""
DISTURBED = 0.1
"""Share of the processors that others had in a run, above which it is not compared with one of another time."""
_FEWEST = 6
"""Pairs: below, even if all say the same, chance alone would too often."""
METRICS: dict[str, Callable[[Sample], float | None]] = {
    "TTFT": lambda sample: sample.ttft_seconds,
    "TPOT": lambda sample: sample.tpot_seconds,
    "whole answer": lambda sample: sample.token_seconds[-1],
}
"""Seconds, of which fewer are better."""


@dataclass(frozen=True)
class Difference:
    """Of one metric in one case: the second run's time as a multiple of the first's."""

    case: Case
    metric: str
    before: float
    after: float
    """Medians, in seconds."""
    ratio: float
    low: float
    high: float
    """Ends of the interval."""
    pairs: int
    doubtful: bool = False
    """The runs were made at different times, and something disturbed one of them."""
    few: bool = False
    """There are too few times to tell anything."""
    lengths: tuple[int, int] | None = None
    """Of prompts that were not the same: how long, in tokens, the other run's were."""

    @property
    def verdict(self) -> Verdict:
        """Of the second run; "no difference" also where it cannot be told."""
        if self.doubtful or self.few or self.low <= 1.0 <= self.high or abs(self.ratio - 1) < _SMALLEST:
            return "no difference"
        return "slower" if self.ratio > 1 else "faster"


def compare(before: Measured, after: Measured, *, seed: int = 0) -> list[Difference]:
    """Every metric of every case that both have."""
    theirs = set(after.cases())
    found = []
    for case in before.cases():
        if case not in theirs:
            continue
        for metric, value in METRICS.items():
            difference = _difference(case, metric, value, before.of(case), after.of(case), seed)
            if difference is not None:
                found.append(difference)
    return found


def _difference(
    case: Case, metric: str, value: Callable[[Sample], float | None],
    before: Sequence[Sample], after: Sequence[Sample], seed: int,
) -> Difference | None:  # fmt: skip
    one, other = _by_round(before, value), _by_round(after, value)
    rounds = sorted(one.keys() & other.keys())
    if not rounds:
        return None
    return _of_pairs(case, metric, [one[number] for number in rounds], [other[number] for number in rounds], seed)


def compare_values(
    case: Case, metric: str, before: Sequence[float], after: Sequence[float], *, seed: int = 0
) -> Difference:
    """The same of values that are pairs already, all above 0."""
    return _of_pairs(case, metric, before, after, seed)


def _of_pairs(case: Case, metric: str, before: Sequence[float], after: Sequence[float], seed: int) -> Difference:
    logs = np.array([math.log(new / old) for old, new in zip(before, after, strict=True)])
    # The median ratio, not the mean: one round that the machine spent elsewhere says nothing.
    draws = np.random.default_rng(seed).integers(0, len(logs), (_DRAWS, len(logs)))
    low, high = np.quantile(np.median(logs[draws], axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    surely_low, surely_high = _exact(np.sort(logs))
    return Difference(
        case=case,
        metric=metric,
        before=statistics.median(before),
        after=statistics.median(after),
        ratio=math.exp(float(np.median(logs))),
        low=math.exp(min(float(low), surely_low)),
        high=math.exp(max(float(high), surely_high)),
        pairs=len(before),
        few=len(before) < _FEWEST,
    )


def _exact(ordered: NDArray[np.float64]) -> tuple[float, float]:
    """Two of the ordered values that have the true median between them in at least 95 of 100 repetitions, whatever the
    noise is like (by the signs alone). Of so few values the bootstrap's interval is too short."""
    count, outside, below = len(ordered), 0.0, 0
    while below < count // 2:
        outside += 2 * math.comb(count, below) / 2**count
        if outside > 1 - LEVEL:
            break
        below += 1
    place = max(below - 1, 0)
    return float(ordered[place]), float(ordered[count - 1 - place])


def _by_round(samples: Sequence[Sample], value: Callable[[Sample], float | None]) -> dict[int, float]:
    """The metric in each round, of several requests at once their mean."""
    values: dict[int, list[float]] = {}
    for sample in samples:
        found = value(sample)
        if found is not None and found > 0:
            values.setdefault(sample.round, []).append(found)
    return {number: statistics.fmean(each) for number, each in values.items()}
