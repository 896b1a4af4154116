from __future__ import annotations

import pytest

from edge.runtime.metrics import Arrivals


def arrivals(*events: tuple[float, int]) -> Arrivals:
    result = Arrivals(started=10.0)
    for at, count in events:
        result.add(at, count)
    return result


@pytest.mark.parametrize(
    ("events", "tokens", "ttft", "tpot"),
    [
        ([], 0, None, None),
        ([(10.5, 1)], 1, 0.5, None),
        ([(10.5, 1), (10.75, 1)], 2, 0.5, 0.25),
        ([(10.5, 1), (10.75, 1), (11.5, 1)], 3, 0.5, 0.5),
        ([(10.5, 4)], 4, 0.5, None),
        ([(10.5, 3), (11.0, 2)], 5, 0.5, 0.25),
        ([(10.25, 0), (10.5, 1), (10.75, 1), (20.0, 0)], 2, 0.5, 0.25),
    ],
)
def test_times(events: list[tuple[float, int]], tokens: int, ttft: float | None, tpot: float | None) -> None:
    got = arrivals(*events)
    assert (got.tokens, got.ttft_seconds, got.tpot_seconds) == (tokens, ttft, tpot)


def test_each_token_has_its_time_after_the_request() -> None:
    assert arrivals((10.5, 2), (11.0, 1)).token_seconds == (0.5, 0.5, 1.0)
