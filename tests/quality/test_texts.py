"""Texts, cut into windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge.errors import UsageError
from edge.quality import texts


class Letters:
    """A tokenizer of letters."""

    def encode(self, text: str, **how: Any) -> list[int]:
        assert how == {"add_special_tokens": False}
        return [*map(ord, text)]


def test_windows_share_nothing_and_end_with_the_tokens() -> None:
    found = texts.windows({"a": "abcdefghijk", "b": "xyz"}, Letters(), window=4, tokens=10)
    assert [(each.id, "".join(map(chr, each.token_ids))) for each in found] == [
        ("a 1", "abcd"), ("a 2", "efgh"), ("b 1", "xyz"),
    ]  # fmt: skip
    assert texts.digest([[1, 2], [3]]) != texts.digest([[1], [2, 3]])


def test_a_file_is_named_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("One.", encoding="utf-8")
    assert texts.read(tmp_path / "mine.txt") == {"mine.txt": "One."}
    assert list(texts.read(None)) == ["en", "zh"]
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\xd8")
    for name, said in (("no.txt", "cannot be read"), ("empty.txt", "is empty"), ("binary.txt", "cannot be read")):
        with pytest.raises(UsageError, match=said):
            texts.read(tmp_path / name)
    with pytest.raises(UsageError, match="has 2 tokens"):
        texts.windows({"a": "ab"}, Letters(), window=4, tokens=10)
