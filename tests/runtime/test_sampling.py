from __future__ import annotations

from typing import Any

import pytest

from edge.errors import UsageError
from edge.messages import Sampling
from edge.runtime import sampling


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1},
        {"repetition_penalty": 0.0}, {"seed": -1}, {"seed": 2**32}, {"max_new_tokens": 0},
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_named(values: dict[str, Any]) -> None:
    (name, value), *_ = values.items()
    with pytest.raises(UsageError) as caught:
        sampling.check(Sampling(**values))
    assert name in caught.value.message
    assert str(value) in caught.value.message


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(UsageError, match="stop string is empty"):
        sampling.check(Sampling(stop=("x", "")))


@pytest.mark.parametrize(
    "values",
    [{}, {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "seed": 0, "max_new_tokens": 1, "repetition_penalty": 1.0}],
)
def test_edges_are_allowed(values: dict[str, Any]) -> None:
    sampling.check(Sampling(**values))


@pytest.mark.parametrize(
    ("values", "model_draws", "expected"),
    [
        ({}, False, False), ({}, True, True), ({"temperature": 0}, True, False), ({"temperature": 0.7}, False, True),
        ({"top_p": 0.9}, False, True), ({"top_k": 5}, False, True), ({"temperature": 0, "top_p": 0.9}, True, False),
        ({"seed": 3}, False, False),
    ],
)  # fmt: skip
def test_what_draws(values: dict[str, Any], model_draws: bool, expected: bool) -> None:
    assert sampling.draws(Sampling(**values), model_draws) is expected
