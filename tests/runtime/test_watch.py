"""Garbage is seen, and no honest text is taken for it."""

from __future__ import annotations

import ipaddress
import json
import pickletools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.runtime.watch import RUN, Watch

ROOT = Path(__file__).parents[2]


def first(ids: Iterable[int], watch: Watch) -> tuple[int, str] | None:
    """After how many tokens something is said, and what."""
    for count, token in enumerate(ids, 1):
        reason = watch.push([token])
        if reason is not None:
            return count, reason
    return None


def test_one_token_for_ever_is_told_once() -> None:
    watch = Watch([5, 6])
    found = first([1, 2, 3] + [7] * 1000, watch)
    assert found == (3 + RUN, f"the answer repeats one token (7) {RUN} times in a row")
    assert watch.push([7] * 500) is None


@pytest.mark.parametrize("circle", [[7, 8], [7, 8, 9], [7, 7, 8, 9]])
def test_a_short_circle_is_told(circle: list[int]) -> None:
    found = first([1, 2] + circle * 400, Watch())
    assert found is not None and found[0] == 2 + RUN
    assert f"circle of {len(circle)} tokens" in found[1]


def test_pieces_of_any_size_come_to_the_same() -> None:
    ids = [1, 2, 3] + [7, 8] * 400
    assert Watch().push(ids) == first(ids, Watch())[1]  # type: ignore[index]


def test_what_the_prompt_holds_may_be_repeated_longer() -> None:
    """Somebody asked to write it two hundred times."""
    assert first([7] * 3 * RUN, Watch([1, 7, 2])) is None
    assert first([7] * 4 * RUN, Watch([1, 7, 2])) is not None
    assert first([7, 8] * RUN, Watch([7] + [1] * 2000)) is not None, "it stands too far back"


def test_a_sentence_that_comes_back_is_no_garbage() -> None:
    assert first(list(range(12)) * 300, Watch()) is None
    assert first(([7] * (RUN - 1) + [1]) * 20, Watch()) is None


TABLE = "| device | tokens/s | memory |\n| --- | ---: | ---: |\n" + "| | | |\n" * 8 + "|" + " --- |" * 24 + "\n"
RULES = ("-" * 80 + "\n" + "=" * 120 + "\n" + "\n" * 30 + " " * 100 + "x\n" + "# " + "*" * 78 + "\n") * 2
CODE = "weights = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]\n" * 4 + "\treturn 1e-9 * 100000000000000000000\n"


ASKED = (
    "zeros = [" + "0, " * 100 + "0]",
    "[" + "null, " * 80 + "null]",
    "!" * 200,
    "yes " * 150,
    'shellcode = b"' + "\\x90" * 64 + '"',
    "buffalo " * 100,
)
"""Somebody's answers to "write a list of one hundred zeros" and the like."""


def texts() -> Iterable[str]:
    yield from (TABLE, RULES, CODE, *ASKED)
    yield from (Path(str(module.__file__)).read_text(encoding="utf-8") for module in (ipaddress, pickletools))
    yield from (path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("*.md")))
    yield from (path.read_text(encoding="utf-8") for path in sorted((ROOT / "edge").rglob("*.py")))
    yield from (path.read_text(encoding="utf-8") for path in sorted((ROOT / "benchmarks").rglob("*.md")))
    # The honest text with the longest runs that were found: numbers printed to their last digit, in a table.
    numpy_tests = Path(np.__file__).parent / "_core" / "tests"
    yield from (path.read_text(encoding="utf-8") for path in sorted(numpy_tests.glob("test_scalarprint.py")))


@pytest.mark.model
def test_no_honest_text_trips(pocket_checkpoint: Path) -> None:
    tokenizer = _tokenizer(pocket_checkpoint)
    tripped = [(text[:60], found) for text in texts() if (found := first(_ids(tokenizer, text), Watch()))]
    assert tripped == []


def test_no_honest_text_in_glm4s_tokens_trips(shared_data: Path) -> None:
    tokenizer = _tokenizer(shared_data / "glm4-tokenizer")
    answers = [json.loads(line) for line in (shared_data / "mt_bench" / "gpt-4.jsonl").read_text("utf-8").splitlines()]
    said = [turn for answer in answers for choice in answer["choices"] for turn in choice["turns"]]
    novels = [path.read_text(encoding="utf-8") for path in sorted((shared_data / "long-texts").glob("*.txt"))]
    honest = [*texts(), *said, *novels]
    tripped = [(text[:60], found) for text in honest if (found := first(_ids(tokenizer, text), Watch()))]
    assert tripped == [] and sum(map(len, honest)) > 1_000_000


def _tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)
