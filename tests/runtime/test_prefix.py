from __future__ import annotations

import pytest

from edge.runtime.prefix import PrefixMemory, Reading


@pytest.mark.parametrize(
    ("read", "asked", "expected"),
    [
        ([], range(10), 0),
        ([range(10)], range(20), 10),  # the last, incomplete block of an answer is kept, too
        ([range(10)], [*range(9), 99], 8),  # whole blocks
        ([range(10)], range(10), 9),  # the last token is always read: it gives the next one
        ([range(10), range(14)], range(30), 14),
        ([range(8), range(10)], range(30), 10),
        ([range(9), range(11)], range(30), 9),  # of two ends in the same block, the shorter
        ([range(10)], [99], 0),
    ],
)
def test_what_need_not_be_read_again(read: list[range], asked: range, expected: int) -> None:
    memory = PrefixMemory(block=4)
    for tokens in read:
        memory.add(list(tokens))
    assert memory.expected(list(asked)) == expected


@pytest.mark.parametrize(
    ("expected", "steps", "cached"),
    [(300, 1, 300), (300, 2, None), (0, 2, 0), (0, 1, None), (None, 1, None), (300, None, None)],
)
def test_the_steps_have_to_agree(expected: int | None, steps: int | None, cached: int | None) -> None:
    assert Reading(500, expected, steps, step_tokens=256).cached == cached


def test_a_block_filled_to_the_brim_later_is_not_found_whole() -> None:
    memory = PrefixMemory(block=4)
    memory.add(list(range(6)))
    memory.add(list(range(8)), found=6)
    assert memory.expected(list(range(20))) == 6
