"""Answers that outlive a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edge.batch.journal import FORMAT, Journal, check, encoded, partial
from edge.errors import OutputError, UsageError

BEGUN = {"input": "abc", "setting": {"temperature": 0.5, "system": None}}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def record(number: int) -> dict[str, Any]:
    return {"custom_id": f"line-{number}", "response": {"status_code": 200, "body": "你好" * number}, "error": None}


def test_answers_are_kept_as_they_come_and_written_in_order(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with Journal.take_up(out, BEGUN) as journal:
        for number in (3, 1, 2):
            journal.add(number, record(number))
        assert not out.exists() and journal.record(1) == record(1)
        journal.finish(out, [1, 2, 3])
    assert [json.loads(line) for line in out.read_bytes().splitlines()] == [record(1), record(2), record(3)]
    assert names(tmp_path) == ["out.jsonl"]


def test_a_journal_torn_anywhere_gives_its_whole_lines(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with Journal.take_up(out, BEGUN) as journal:
        for number in (2, 1):
            journal.add(number, record(number))
    whole = partial(out).read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == 10]
    for size in range(len(whole) + 1):
        partial(out).write_bytes(whole[:size])
        with Journal.take_up(out, BEGUN) as journal:
            there = sum(size >= end for end in ends)
            assert journal.done == frozenset([2, 1][: max(0, there - 1)])
            journal.add(9, record(9))
            assert journal.record(9) == record(9)
        with Journal.take_up(out, BEGUN) as journal:  # and nothing half is left between them
            assert 9 in journal.done and len(journal.done) == max(0, there - 1) + 1


@pytest.mark.parametrize(
    "bad",
    [b"{}", b"[]", b"{", b'{"line": 7}', b'{"line": 7, "record": {}}', b'{"line": "7", "record": {"custom_id": "a"}}',
     b'{"record": {"custom_id": "a", "response": null, "error": {"message": "x"}}}', b"[" * 100_000, b"\xff", b"",
     b'{"line": 7, "record": {"custom_id": "a", "response": null, "error": null}}'],
    ids=lambda bad: bad[:40].decode(errors="replace"),
)  # fmt: skip
def test_a_line_without_an_answer_costs_no_other_one(bad: bytes, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with Journal.take_up(out, BEGUN) as journal:
        for number in (1, 2):
            journal.add(number, record(number))
    head, first, second = partial(out).read_bytes().splitlines(keepends=True)
    partial(out).write_bytes(head + first + bad + b"\n" + second)
    with Journal.take_up(out, BEGUN) as journal:
        assert journal.done == {1, 2}
        journal.add(3, record(3))
        assert [journal.record(number) for number in (1, 2, 3)] == [record(1), record(2), record(3)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"input": "other"}, "was begun with another input"),
        ({"setting": {"temperature": 1, "system": None}}, "another setting: temperature was 0.5 and is 1"),
        ({"setting": {"temperature": 0.5, "system": "x"}}, 'another setting: system was null and is "x"'),
        ({"model": {"created": "later"}}, "was begun with another model"),
    ],
)
def test_another_input_or_setting_is_refused_and_nothing_lost(changes: Any, said: str, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with Journal.take_up(out, BEGUN) as journal:
        journal.add(1, record(1))
    before = partial(out).read_bytes()
    with pytest.raises(UsageError, match=said) as raised:
        Journal.take_up(out, BEGUN | changes)
    assert str(partial(out)) in raised.value.hint
    assert partial(out).read_bytes() == before
    check(out, {"input": "abc"})  # what is not named is not looked at


@pytest.mark.parametrize("content", [b"something else\n", b"{}\n", b'{"format": "glm4-edge batch 0"}\n', b"[1]\n"])
def test_what_is_no_journal_is_left_alone(content: bytes, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    partial(out).write_bytes(content)
    with pytest.raises(UsageError, match="is no batch of this version that was begun"):
        Journal.take_up(out, BEGUN)
    assert partial(out).read_bytes() == content


def test_an_output_that_cannot_be_written_keeps_the_answers(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with Journal.take_up(out, BEGUN) as journal:
        journal.add(1, record(1))
        out.mkdir()
        with pytest.raises(OutputError, match="cannot be written"):
            journal.finish(out, [1])
    assert names(tmp_path) == [".out.jsonl.partial", "out.jsonl"]
    assert json.loads(partial(out).read_bytes().splitlines()[0])["format"] == FORMAT


def test_without_an_answer_nothing_was_begun(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with Journal.take_up(out, BEGUN):
        header = partial(out).read_bytes()
    assert names(tmp_path) == []
    for killed in (header, header[:-9], header + b'{"line": 1, "rec'):
        partial(out).write_bytes(killed)
        with Journal.take_up(out, BEGUN | {"input": "other"}) as journal:
            assert journal.done == frozenset()
            journal.add(1, record(1))
        check(out, {"input": "other"})
        partial(out).unlink()


def test_half_a_character_is_an_escape() -> None:
    assert encoded({"a": "你"}) == '{"a": "你"}\n'.encode()
    assert json.loads(encoded({"a": "\ud800"})) == {"a": "\ud800"}
