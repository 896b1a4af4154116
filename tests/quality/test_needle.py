"""Needles: where they are hidden, and what counts as found."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import pytest

from edge.errors import ContextError, UsageError
from edge.messages import Chunk, Conversation, Message, Sampling
from edge.quality import needle, texts
from edge.runtime.echo import EchoEngine


class Reader(EchoEngine):
    """Finds the number within what it is asked, if it stands in the first `sight` of it."""

    def __init__(self, sight: float = 1.0, **more: Any) -> None:
        super().__init__(**more)
        self.sight = sight
        self.prompts: list[str] = []

    def stream(self, conversation: Conversation, sampling: Sampling, *more: Any) -> Generator[Chunk, None, None]:
        assert not isinstance(conversation, str) and isinstance(conversation, Sequence)
        (message,) = conversation
        assert isinstance(message, Message) and sampling.temperature == 0
        self.prompts.append(message.content)
        seen = message.content[: int(self.sight * len(message.content))]
        numbers = [word for word in seen.replace("。", " ").replace("是", " ").split() if word.strip(".").isdigit()]
        yield Chunk(f"It is {numbers[0].strip('.')}." if numbers else "I do not know.")


def test_needles_are_found_where_they_can_be_seen() -> None:
    engine = Reader(sight=0.5)
    text = "The sea is wide. The sun is hot! Is the moon cold? " * 3
    found = needle.run(engine, [("mine", text)], lengths=[1000, 2000], depths=[0.1, 0.9], needles=2)
    assert [(cell.length, cell.depth) for cell in found.cells] == [(1000, 0.1), (1000, 0.9), (2000, 0.1), (2000, 0.9)]
    assert [cell.found for cell in found.cells] == [[True, True], [False, False]] * 2 and found.share == 0.5
    for cell in found.cells:
        assert all(cell.length - 40 < tokens <= cell.length for tokens in cell.prompt_tokens)
        assert len(set(cell.expected)) == 2 and all(len(number) == 7 for number in cell.expected)
    for prompt, (depth, number) in zip(
        engine.prompts, [(cell.depth, each) for cell in found.cells for each in cell.expected], strict=True
    ):
        assert prompt.count(number) == 1
        assert abs(prompt.index(number) / len(prompt) - depth) < 0.15


def test_a_run_is_the_same_every_time_and_chinese_is_asked_in_chinese() -> None:
    one, other = Reader(), Reader()
    for engine in (one, other):
        found = needle.run(engine, [("zh", texts.shipped("zh"))], lengths=[600], depths=[0, 1])
        assert found.share == 1 and found.cells[0].language == "zh"
    assert one.prompts == other.prompts and "秘密数字是多少" in one.prompts[0]


def test_lengths_that_do_not_fit_are_told() -> None:
    with pytest.raises(ContextError, match="4,096"):
        needle.run(Reader(context_length=4096), [("a", "One. Two.")], lengths=[4096])
    with pytest.raises(UsageError, match="no room for a haystack"):
        needle.run(Reader(), [("a", "One. Two.")], lengths=[128])
    with pytest.raises(UsageError, match="sentences are too long for a prompt of 512 tokens"):
        needle.run(Reader(), [("a", "x" * 399 + ". ")], lengths=[512])


def test_a_text_without_full_stops_fills_its_haystack_too() -> None:
    text = "the sea and the sun and the moon " * 400
    assert "".join(needle.sentences(text)) == text
    found = needle.run(Reader(), [("a", text)], lengths=[4000], depths=[0.5])
    assert found.share == 1 and 3400 < found.cells[0].prompt_tokens[0] <= 4000


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        (8192, (512, 1024, 2048, 4096, 8144)),
        (131072, (512, 1024, 2048, 4096, 8192)),
        (1200, (512, 1024)),
        (300, (252,)),
    ],
)
def test_lengths_are_chosen_by_the_context(context: int, expected: tuple[int, ...]) -> None:
    assert needle.lengths(context) == expected


@pytest.mark.parametrize(
    ("answer", "found"),
    [("It is 1234567.", True), ("1,234,567", True), ("1 234 567", True), ("12345 or 67", False), ("1234568", False)],
)
def test_a_number_is_found_however_it_is_written(answer: str, found: bool) -> None:
    assert needle.found_in(answer, "1234567") is found


@pytest.mark.parametrize("language", texts.LANGUAGES)
def test_sentences_joined_are_the_text(language: str) -> None:
    text = texts.shipped(language)
    parts = needle.sentences(text)
    assert "".join(parts) == text and len(parts) > 30
    assert needle.language(text) == language
