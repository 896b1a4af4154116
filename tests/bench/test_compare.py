from __future__ import annotations

import numpy as np
import pytest

from edge.bench.case import Case, Measured, Sample
from edge.bench.compare import compare

CASE = Case(32, 8)


def measured(name: str, *seconds: float, case: Case = CASE) -> Measured:
    """Rounds whose first token takes so long, and each further one a tenth of it."""
    samples = [
        (case, Sample(number, 32, 32, tuple(each + place * each / 10 for place in range(8)), each * 2))
        for number, each in enumerate(seconds, 1)
    ]
    return Measured(name, "CPU", {}, {}, [], samples)


def verdicts(before: Measured, after: Measured) -> list[str]:
    return [each.verdict for each in compare(before, after)]


def test_a_clear_difference_is_said_in_both_directions() -> None:
    slow = [1.0, 1.1, 0.9, 1.05, 1.0, 0.95, 1.0]
    fast = [each * 0.8 for each in slow]
    (ttft, tpot, whole) = compare(measured("a", *slow), measured("b", *fast))
    assert (ttft.metric, tpot.metric, whole.metric) == ("TTFT", "TPOT", "whole answer")
    assert ttft.verdict == tpot.verdict == "faster"
    assert ttft.ratio == pytest.approx(0.8) and ttft.low <= 0.8 <= ttft.high
    assert verdicts(measured("b", *fast), measured("a", *slow)) == ["slower"] * 3


def test_too_few_rounds_never_differ() -> None:
    assert verdicts(measured("a", 1, 1, 1, 1, 1), measured("b", 2, 2, 2, 2, 2)) == ["no difference"] * 3


def test_less_than_one_in_a_hundred_is_no_difference() -> None:
    assert verdicts(measured("a", *[1.0] * 9), measured("b", *[1.005] * 9)) == ["no difference"] * 3


@pytest.mark.parametrize("rounds", [6, 7, 15])
def test_noise_alone_is_seldom_a_difference(rounds: int) -> None:
    """Of 400 pairs of runs that differ by nothing but noise; the interval is that of 95 in 100."""
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(400):
        one, other = np.exp(0.1 * rng.standard_normal((2, rounds)))
        wrong += verdicts(measured("a", *one), measured("b", *other))[0] != "no difference"
    assert wrong <= 400 * 0.08


def test_pairs_are_of_the_same_round_and_case() -> None:
    before = measured("a", *range(1, 10))
    after = measured("b", *range(1, 10))
    after.samples.reverse()
    assert [each.ratio for each in compare(before, after)] == pytest.approx([1.0] * 3)
    assert compare(before, measured("b", *range(1, 10), case=Case(64, 8))) == []


def test_several_requests_at_once_are_one_pair_a_round() -> None:
    twice = measured("a", *[1.0] * 7)
    twice.samples += measured("a", *[3.0] * 7).samples
    (ttft, *_) = compare(measured("b", *[1.0] * 7), twice)
    assert ttft.pairs == 7 and ttft.after == pytest.approx(2.0)
