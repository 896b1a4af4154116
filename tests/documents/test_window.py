"""What is kept of files that do not fit, and what is told of the rest."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.documents.document import Document, Unit, assemble, places, without
from edge.documents.window import GAP, scores, whole, window
from edge.documents.wrap import wrap
from edge.errors import ContextError


def count(text: str) -> int:
    """Words and signs, and seven of a template."""
    return 7 + len(re.findall(r"\w+|\S", text))


def filler(number: int) -> str:
    return f"Paragraph {number} speaks of rivers, of trade and of winters that were long and cold. " * 3


def report(unit: Unit = "paragraph", needle: int = 70) -> Document:
    parts = ["The annals of Wendelbury", *(filler(number) for number in range(1, 100))]
    parts[needle] += "The silver compass was found by Oskar Lindqvist."
    return assemble("annals.docx", unit, parts)


def test_the_wrapper_is_the_demos() -> None:
    assert wrap([("a.md", "A\n"), ("b.py", "B")], "Why?") == (
        "[File Name]\na.md\n[File Content]\nA\n\n\n\n[File Name]\nb.py\n[File Content]\nB\n\n\n2 files uploaded.\nWhy?"
    )


def test_what_fits_is_read_whole() -> None:
    document = report()
    prompt = window([document], "Who found the compass?", count, 100_000)
    assert prompt == whole([document], "Who found the compass?", count)
    assert prompt.files[0].text == document.text and prompt.files[0].left == () and prompt.files[0].share == 1
    assert prompt.tokens == count(prompt.text)


def test_the_passage_that_is_asked_about_is_kept_and_the_head() -> None:
    prompt = window([report()], "Who found the silver compass?", count, 400)
    assert prompt.tokens <= 400
    assert "Oskar Lindqvist" in prompt.text and "The annals of Wendelbury" in prompt.text and GAP in prompt.text
    read = prompt.files[0]
    assert 0 < read.share < 0.1
    assert re.search(r"paragraphs \d+–\d+ and \d+–100", read.left_places())
    numbers = [int(found) for found in re.findall(r"Paragraph (\d+)", prompt.text)]
    assert numbers == sorted(numbers)


@pytest.mark.parametrize(
    ("unit", "said"), [("page", "pages "), ("slide", "slides "), ("row", "rows "), ("line", "line")]
)
def test_the_left_out_is_told_in_the_files_own_units(unit: Unit, said: str) -> None:
    assert said in window([report(unit)], "Who found the silver compass?", count, 400).files[0].left_places()


def test_a_question_in_chinese() -> None:
    parts = [f"第{number}章讲述了河流、贸易与漫长的冬天。" * 8 for number in range(60)]
    parts[41] += "银罗盘是林德奎斯特发现的。"
    prompt = window([assemble("年鉴.pdf", "page", parts)], "谁发现了银罗盘？", len, 1200)
    assert "林德奎斯特" in prompt.text and len(prompt.text) <= 1200


def test_every_file_keeps_its_head() -> None:
    other = assemble(
        "other.csv", "row", ["name,town\n", *(f"Person {number},Town {number}\n" for number in range(400))]
    )
    prompt = window([report(), other], "Where does person 333 live?", count, 600)
    assert "The annals" in prompt.text and "name,town" in prompt.text and "Person 333,Town 333" in prompt.text


def test_a_page_that_is_longer_than_a_passage_is_read_in_part() -> None:
    pages = [" ".join(filler(number) for number in range(9)) for _ in range(3)]
    pages[1] += " The silver compass lay there."
    read = window([assemble("r.pdf", "page", pages)], "Where lay the silver compass?", count, 500).files[0]
    assert "silver compass" in read.text and "page 3, parts of pages 1–2" in read.left_places()


def test_a_question_without_a_word_of_the_file_reads_from_the_beginning() -> None:
    read = window([report()], "Zusammenfassung?", count, 600).files[0]
    assert len(read.spans) == 1 and read.spans[0][0] == 0


def test_no_room_for_anything_is_refused() -> None:
    with pytest.raises(ContextError, match="the question, the files' names and the chat template have"):
        window([report()], "Why? " * 200, count, 100)


def test_words_are_met_without_case_plural_or_width() -> None:
    texts = ["The PENGUINS left.", *["Nothing here."] * 5]
    assert scores(texts, "penguin")[0] > 0 and scores(texts, "ｐenguins")[0] > 0
    assert scores(texts, "the nothing") == [scores(texts, "the")[0], *[0.0] * 5]


def test_places() -> None:
    document = assemble("r.pdf", "page", [f"page {number} text" for number in range(1, 10)])
    marks = document.marks
    assert places(document, [(0, 5)]) == "part of page 1"
    assert places(document, [(0, marks[1])]) == "page 1"
    assert places(document, [(0, marks[1] + 4), (marks[6], marks[7])]) == "pages 1 and 7, part of page 2"
    assert places(document, [(marks[n], marks[n] + 4) for n in range(0, 9, 2)]) == "parts of pages 1, 3, 5, 7 and 9"
    spread = [f"row {number}\n" for number in range(40)]
    rows = assemble("r.csv", "row", spread)
    assert places(rows, [(rows.marks[n], rows.marks[n + 1]) for n in range(0, 30, 3)]).endswith("16 and 4 places more")


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.text(alphabet="ab cé。好\n.", min_size=0, max_size=300), min_size=1, max_size=12),
    unit=st.sampled_from(["page", "paragraph", "row", "line"]),
    room=st.integers(40, 900),
)
def test_nothing_is_lost_between_what_is_read_and_what_is_told(parts: list[str], unit: Unit, room: int) -> None:
    document = assemble("r", unit, parts)
    if not document.text.strip():
        return
    try:
        prompt = window([document], "b c 好?", len, room)
    except ContextError:
        return
    read = prompt.files[0]
    assert prompt.tokens == len(prompt.text) <= room
    assert without(document, [*read.spans, *read.left]) == ()
    for begin, end in read.spans:
        assert all(end <= left or right <= begin for left, right in read.left)
        assert document.text[begin:end].strip("\n") in read.text
    assert bool(read.left) == bool(read.left_places()) == (read.share < 1)
