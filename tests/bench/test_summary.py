from __future__ import annotations

from dataclasses import asdict

import pytest

from edge.bench.case import Case, Measured, Sample
from edge.bench.counts import Counts
from edge.bench.roofline import Limits, better
from edge.bench.summary import figures, quantile

COUNTS = Counts(weight_bytes=1000, weight_flop=100.0, head_flop=50.0, kv_bytes=1.0, attention_flop=2.0, step_tokens=256)


def measured(case: Case, *samples: Sample) -> Measured:
    return Measured("a", "CPU", {}, {}, [], [(case, each) for each in samples])


def test_figures_of_one_request_a_round() -> None:
    case = Case(100, 3)
    first, second = (
        Sample(1, 100, 100, (0.5, 0.6, 0.7), 0.75, 0.2),
        Sample(2, 100, 100, (1.0, 1.2, 1.4), 1.5, 0.0),
    )
    (found,) = figures(measured(case, first, second))
    assert found.samples == 2
    assert found.ttft == pytest.approx(0.75) and found.ttft_p90 == pytest.approx(0.95)
    assert found.tpot == pytest.approx(0.15)
    assert found.decode_rate == pytest.approx(1 / 0.15)
    assert found.prefill_rate == pytest.approx((200 + 100) / 2)
    assert found.throughput == pytest.approx((3 / 0.75 + 3 / 1.5) / 2)
    assert found.step_p90 == pytest.approx(0.2) and found.busy_elsewhere == pytest.approx(0.1)
    assert found.ttft_limit is None and found.ttft_share is None and found.tpot_share is None


def test_the_slowest_in_a_hundred_is_not_said_of_fewer() -> None:
    case = Case(100, 101)
    times = tuple(0.5 + 0.1 * place for place in range(101))
    (few,) = figures(measured(case, Sample(1, 100, 100, times[:-1], 11.0)))
    assert (few.steps, few.step_p99) == (99, None) and few.step_p90 == pytest.approx(0.1)
    (enough,) = figures(measured(case, Sample(1, 100, 100, times, 11.0)))
    assert enough.steps == 100 and enough.step_p99 == pytest.approx(0.1)


def test_requests_at_once_share_a_rounds_time() -> None:
    case = Case(100, 2, together=2)
    samples = [Sample(1, 100, 100, (0.5, 0.6), 1.0), Sample(1, 100, 100, (0.8, 0.9), 1.0)]
    (found,) = figures(measured(case, *samples))
    assert found.throughput == pytest.approx(4.0)
    assert found.prefill_rate == pytest.approx(200 / 0.8)


def test_limits_of_memory_and_of_arithmetic() -> None:
    slow_memory, slow_arithmetic = (1000.0, 1e12), (1e12, 100.0)
    assert COUNTS.decode_seconds(0, 1, *slow_memory) == pytest.approx(1.0)
    assert COUNTS.decode_seconds(500, 2, *slow_memory) == pytest.approx(2.0)
    assert COUNTS.decode_seconds(0, 1, *slow_arithmetic) == pytest.approx(1.5)
    assert COUNTS.prefill_seconds(300, 300, 1, *slow_memory) == pytest.approx(2.0), "the weights are read twice"
    work = 300 * 100 + 50 + 2 * 300 * 301 / 2
    assert COUNTS.prefill_seconds(300, 300, 1, *slow_arithmetic) == pytest.approx(work / 100)
    assert COUNTS.prefill_seconds(300, 1, 1, *slow_arithmetic) == pytest.approx((100 + 50 + 2 * 300) / 100)


def test_shares_are_of_the_limits() -> None:
    case = Case(256, 3)
    one = measured(case, Sample(1, 256, 256, (2.0, 4.0, 6.0), 6.0))
    one.limits, one.counts = asdict(Limits(1000.0, (1000.0,), 1e12)), asdict(COUNTS)
    (found,) = figures(one)
    assert found.ttft_share == pytest.approx(0.5)
    assert found.tpot_share == pytest.approx((1000 + 257.5) / 1000 / 2)
    one.limits["bandwidth"] = None
    assert figures(one)[0].ttft_share is None


def test_the_better_of_two_looks_at_the_limits_is_taken() -> None:
    one = Limits(10.0, (9.0, 10.0), 5.0, {"f32": 5.0, "bf16": 2.0}, (1, 2, 3))
    other = Limits(12.0, (12.0,), 6.0, {"f32": 4.0, "bf16": 6.0}, (1, 2, 3))
    best = better(one, other)
    assert best == Limits(12.0, (9.0, 10.0, 12.0), 6.0, {"f32": 5.0, "bf16": 6.0}, (1, 2, 3))


@pytest.mark.parametrize(("share", "value"), [(0.0, 1.0), (0.5, 2.5), (0.9, 3.7), (1.0, 4.0)])
def test_quantiles(share: float, value: float) -> None:
    assert quantile([4.0, 1.0, 3.0, 2.0], share) == pytest.approx(value)
