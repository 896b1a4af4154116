from __future__ import annotations

import random

import pytest

from edge.errors import UsageError
from edge.npu import npu_lengths


@pytest.mark.parametrize(
    ("context", "lengths"),
    [
        (None, (1024, 128)),
        (1152, (1024, 128)),
        (192, (64, 128)),
        (1024, (896, 128)),
        (2048, (1024, 1024)),
        (4096, (3072, 1024)),
        (32768, (31744, 1024)),
    ],
)
def test_lengths(context: int | None, lengths: tuple[int, int]) -> None:
    assert npu_lengths(context) == lengths


def test_lengths_stay_within_the_context_and_are_rounded() -> None:
    rng = random.Random(0)
    for context in (rng.randint(192, 140_000) for _ in range(2000)):
        prompt, response = npu_lengths(context)
        assert prompt >= 64 and response >= 128 and prompt % 64 == response % 64 == 0
        assert prompt % 1024 == 0 or prompt < 1024  # what OpenVINO would otherwise round up, beyond what was asked
        assert context - 64 < prompt + response <= context


@pytest.mark.parametrize("context", [1, 128, 191])
def test_a_context_without_room(context: int) -> None:
    with pytest.raises(UsageError, match=f"{context} tokens"):
        npu_lengths(context)
