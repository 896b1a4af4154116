from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from edge.bench.case import LATER_TOKENS, Case, Load, Measured, Prompts, Sample, cases
from edge.errors import UsageError
from edge.messages import Message


def encode(conversation: Sequence[Message]) -> list[int]:
    """A template of three tokens before and two after, and a token for each letter."""
    return [1, 2, 3, *[1000 + ord(letter) for letter in conversation[0].content], 8, 9]


def sample(*times: float, number: int = 1) -> Sample:
    return Sample(number, 32, 32, times, times[-1])


def test_times_of_a_sample() -> None:
    one = sample(0.5, 0.6, 0.8)
    assert one.ttft_seconds == 0.5
    assert one.tpot_seconds == pytest.approx(0.15)
    assert one.steps == pytest.approx([0.1, 0.2])


def test_tokens_that_come_together_share_the_time_since_those_before() -> None:
    one = sample(1.0, 1.0, 1.0, 1.6, 1.6)
    assert one.tpot_seconds == pytest.approx(0.3)
    assert sample(1.0, 2.0, 2.0, 3.0).steps == pytest.approx([0.5, 0.5, 1.0])
    assert one.steps == pytest.approx([0.3, 0.3])


def test_one_token_has_no_tpot() -> None:
    assert sample(0.5).tpot_seconds is None
    assert sample(0.5).steps == []


def test_every_combination_is_a_case_and_what_does_not_fit_is_told() -> None:
    found, left_out = cases([32, 1000], [16], [1, 4], later=True, context=1024)
    assert [case.name for case in found] == [
        "32 in, 16 out", "32 in, 16 out, later turn",
        "32 in, 16 out, 4 at once", "32 in, 16 out, 4 at once, later turn",
        "1,000 in, 16 out", "1,000 in, 16 out, 4 at once",
    ]  # fmt: skip
    assert len(left_out) == 2 and "later turn" in left_out[0] and "1,024" in left_out[0]


def test_nothing_that_fits_is_refused() -> None:
    with pytest.raises(UsageError, match="1,024"):
        cases([2000], [16], [1], later=True, context=1024)


def test_random_prompts_stand_in_the_template_and_differ_by_seed() -> None:
    prompts = Prompts(encode, 5000)
    one, same, other = prompts.first(100, "1"), prompts.first(100, "1"), prompts.first(100, "2")
    assert len(one) == 100 and one[:3] == (1, 2, 3) and one[-2:] == (8, 9)
    assert one == same != other
    assert all(1000 <= token < 4500 for token in one[3:-2])
    assert len(set(one[3:-2])) > 80


def test_a_later_prompt_stands_behind_what_came_before() -> None:
    prompts = Prompts(encode, 5000)
    before = [*prompts.first(50, "1"), 7, 7]
    later = prompts.later(before, "1")
    assert list(later[:52]) == before and len(later) == 52 + LATER_TOKENS and later[-2:] == (8, 9)


def test_a_prompt_shorter_than_the_template_is_refused() -> None:
    prompts = Prompts(encode, 5000)
    assert len(prompts.first(prompts.shortest, "1")) == prompts.shortest == 6
    with pytest.raises(UsageError, match="no room"):
        prompts.first(5, "1")


def test_what_was_measured_comes_back_from_a_file() -> None:
    measured = Measured("a", "CPU", {"name": "a"}, {}, [Load(1.0, 2.0, 0.1)], [(Case(32), sample(0.5, 0.6))])
    again = Measured.from_json(json.loads(json.dumps(measured.to_json())))
    assert again == measured
    told = measured.to_json()
    told["samples"][0]["token_seconds"] = []
    with pytest.raises(ValueError, match="times"):
        Measured.from_json(told)
