"""Prompt sets: those shipped, and the user's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edge.errors import UsageError
from edge.runtime import prompts


class Words:
    """A tokenizer of one token a word, with a beginning of its own unless told otherwise."""

    chat_template: str | None = "template"

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [1] * add_special_tokens + [len(word) for word in text.split()]

    def apply_chat_template(self, messages: list[dict[str, str]], **how: Any) -> str:
        assert how == {"add_generation_prompt": True, "tokenize": False}
        return f"<user> {messages[0]['content']} <assistant>"


def test_the_shipped_set_has_both_languages_and_all_lengths() -> None:
    texts = prompts.shipped()
    assert {text.language for text in texts} == {"en", "zh"}
    for language in ("en", "zh"):
        mine = [text for text in texts if text.language == language]
        assert {text.tokens for text in mine} == {None, 128, 512, 1024}
        assert {text.chat for text in mine} == {True, False}


def test_shipped_texts_reach_their_lengths_in_glm4s_tokens(shared_data: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(shared_data / "glm4-tokenizer" / "tokenizer.json"))
    for text in prompts.shipped():
        if text.tokens is not None:
            assert len(tokenizer.encode(text.text).ids) > 0.95 * text.tokens, text.id


def test_a_message_goes_through_the_template_and_a_text_does_not() -> None:
    texts = [prompts.PromptText("a", "en", "one three", chat=True), prompts.PromptText("b", "en", "one three")]
    chat, plain = prompts.encode(texts, Words())
    assert chat.token_ids == [6, 3, 5, 11]  # the template writes its own beginning
    assert plain.token_ids == [1, 3, 5]
    base = Words()
    base.chat_template = None
    assert prompts.encode(texts, base)[0].token_ids == [1, 3, 5]


def test_a_text_is_cut_or_goes_on_in_pieces(tmp_path: Path) -> None:
    long = " ".join(["word"] * 2050)
    (cut,) = prompts.encode([prompts.PromptText("a", "en", long, tokens=128)], Words())
    assert len(cut.token_ids) == 128
    (tmp_path / "mine.txt").write_text(long, encoding="utf-8")
    pieces = prompts.encode(prompts.read(tmp_path / "mine.txt"), Words())
    assert [(piece.id, len(piece.token_ids)) for piece in pieces] == [("mine 1", 1024), ("mine 2", 1024), ("mine 3", 3)]


def test_a_last_piece_of_one_token_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text(" ".join(["word"] * 1024), encoding="utf-8")
    assert [len(piece.token_ids) for piece in prompts.encode(prompts.read(tmp_path / "mine.txt"), Words())] == [1024]


def test_lines_of_the_users(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"text": "Why?"}\n\n{"id": "b", "language": "de", "text": "Warum?", "chat": false}\n', "utf-8")
    first, second = prompts.read(path)
    assert (first.id, first.language, first.chat) == ("1", "text", True)
    assert (second.id, second.language, second.chat) == ("b", "de", False)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("Why?", "line 1 of .* is no prompt"),
        ('{"text": "Why?", "temperature": 1}', "no object of chat, id, language, text, tokens"),
        ('{"id": "a"}', "'text'"),
        ('{"text": 3}', "text is words"),
        ('{"text": "Why?", "tokens": 1}', "tokens a whole number above 1"),
        ('{"text": "Why?", "tokens": "7"}', "tokens a whole number above 1"),
        ('{"text": "Why?", "tokens": 2.5}', "tokens a whole number above 1"),
        ('{"text": "Why?", "tokens": true}', "tokens a whole number above 1"),
        ('{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}', "two prompts 'a'"),
        ("\n", "holds no prompts"),
    ],
)
def test_what_is_no_prompt_is_refused_by_line(line: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(UsageError, match=says):
        prompts.read(path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_bytes(b"\xff\xfe\xff")
    for path in (tmp_path / "mine.txt", tmp_path / "none.txt"):
        with pytest.raises(UsageError, match="cannot be read"):
            prompts.read(path)


def test_a_prompt_of_one_token_is_refused() -> None:
    with pytest.raises(UsageError, match="'a' has 1 tokens"):
        prompts.encode([prompts.PromptText("a", "en", "")], Words())


def test_the_shipped_file_is_plain_json_lines() -> None:
    text = Path(prompts.__file__).with_name("prompts.jsonl").read_text(encoding="utf-8")
    assert len([json.loads(line) for line in text.splitlines()]) == len(prompts.shipped())
