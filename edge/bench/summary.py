"""Samples → the figures a user reads, each beside what the machine's limits allow. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edge.bench.case import Case, Measured
from edge.bench.counts import Counts

FEWEST_OF_A_HUNDRED = 100
"""Times, below which none of them is the slowest in a hundred."""


@dataclass(frozen=True)
class Figures:
    """Of one case; seconds, and tokens a second. What was not measured is None."""

    case: Case
    samples: int
    prompt_tokens: float
    read_tokens: float | None
    ttft: float
    ttft_p90: float
    tpot: float | None
    """Median over the answers of their mean."""
    step_p50: float | None
    """Of the times between tokens, over all answers."""
    step_p90: float | None
    step_p99: float | None
    """None of fewer than a hundred, too."""
    prefill_rate: float | None
    """Tokens of the prompt that had to be read, all requests together, to the first token of the last."""
    decode_rate: float | None
    """Of one answer."""
    throughput: float
    """Tokens of all answers of a round by its time, prefill included."""
    ttft_limit: float | None
    """What the machine's limits alone would take; not said of several prompts at once."""
    tpot_limit: float | None
    busy_elsewhere: float | None
    steps: int
    """Times between tokens that the quantiles are of."""

    @property
    def ttft_share(self) -> float | None:
        """Of what the machine could do, 0 to 1."""
        return None if self.ttft_limit is None else self.ttft_limit / self.ttft

    @property
    def tpot_share(self) -> float | None:
        """Of what the machine could do, 0 to 1."""
        return None if self.tpot_limit is None or self.tpot is None else self.tpot_limit / self.tpot


def figures(measured: Measured) -> list[Figures]:
    """Of every case."""
    return [_figures(measured, case) for case in measured.cases()]


def _figures(measured: Measured, case: Case) -> Figures:
    samples = measured.of(case)
    steps = [step for sample in samples for step in sample.steps]
    tpots = [sample.tpot_seconds for sample in samples if sample.tpot_seconds is not None]
    rounds = [[each for each in samples if each.round == number] for number in sorted({s.round for s in samples})]
    prompt = statistics.fmean(sample.prompt_tokens for sample in samples)
    known = [sample for sample in samples if sample.read_tokens is not None]
    read = statistics.fmean(sample.read_tokens or 0 for sample in known) if len(known) == len(samples) else None
    tpot = statistics.median(tpots) if tpots else None
    prefill_limit, decode_limit = _limits(measured, case, round(prompt), None if read is None else round(read))
    busy = [sample.busy_elsewhere for sample in samples if sample.busy_elsewhere is not None]
    return Figures(
        case=case,
        samples=len(samples),
        prompt_tokens=prompt,
        read_tokens=read,
        ttft=statistics.median(sample.ttft_seconds for sample in samples),
        ttft_p90=quantile([sample.ttft_seconds for sample in samples], 0.9),
        tpot=tpot,
        step_p50=quantile(steps, 0.5) if steps else None,
        step_p90=quantile(steps, 0.9) if steps else None,
        step_p99=quantile(steps, 0.99) if len(steps) >= FEWEST_OF_A_HUNDRED else None,
        prefill_rate=None
        if read is None
        else statistics.median(
            sum(each.read_tokens or 0 for each in made) / max(each.ttft_seconds for each in made) for made in rounds
        ),
        decode_rate=1 / tpot if tpot else None,
        throughput=statistics.median(
            sum(len(each.token_seconds) for each in made) / max(each.seconds for each in made) for made in rounds
        ),
        ttft_limit=prefill_limit,
        tpot_limit=decode_limit,
        busy_elsewhere=statistics.fmean(busy) if busy else None,
        steps=len(steps),
    )


def _limits(measured: Measured, case: Case, prompt: int, read: int | None) -> tuple[float | None, float | None]:
    """Seconds to the first token and for each further one that the machine's limits alone would take."""
    if measured.limits is None or measured.counts is None or not measured.limits["bandwidth"]:
        return None, None
    counts = Counts(**measured.counts)
    bandwidth, rate = measured.limits["bandwidth"], measured.limits["flop_rate"]
    return (
        None if case.together > 1 or read is None else counts.prefill_seconds(prompt, max(read, 1), 1, bandwidth, rate),
        counts.decode_seconds(prompt + case.new_tokens / 2, case.together, bandwidth, rate),
    )


def facts(measured: Measured) -> list[dict[str, Any]]:
    """The same for a program."""
    return [
        {**asdict(found), "name": measured.name, "device": measured.device,
         "ttft_share": found.ttft_share, "tpot_share": found.tpot_share}
        for found in figures(measured)
    ]  # fmt: skip


def disturbance(measured: Measured) -> float:
    """The largest share of the processors that others had in any case; 0 where it is not known."""
    return max((found.busy_elsewhere or 0.0 for found in figures(measured)), default=0.0)


def quantile(values: Iterable[float], share: float) -> float:
    """The value below which `share` of them lie, between the two nearest in proportion.

    Raises:
        ValueError: there are none.
    """
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values")
    place = share * (len(ordered) - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    return low + (high - low) * (place - math.floor(place))


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, smallest and largest."""
    return statistics.median(values), min(values), max(values)
