from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edge.errors import ContextError, UsageError
from edge.messages import Message
from edge.runtime.context import Conversation, room_for_answer


@pytest.mark.parametrize(
    ("prompt", "asked", "room"), [(1, None, 99), (99, None, 1), (50, 10, 10), (95, 10, 5), (99, 1, 1)]
)
def test_room(prompt: int, asked: int | None, room: int) -> None:
    assert room_for_answer(prompt, 100, asked) == room


@pytest.mark.parametrize("prompt", [100, 5000])
def test_no_room(prompt: int) -> None:
    with pytest.raises(ContextError) as caught:
        room_for_answer(prompt, 100, 1)
    assert f"{prompt:,}" in caught.value.message
    assert "99" in caught.value.message
    assert "/clear" in caught.value.hint


def talk() -> Conversation:
    conversation = Conversation("Be brief.")
    conversation.ask("你好 👩‍👩‍👧")
    conversation.answer("Hel", "cancelled")
    conversation.ask("Again?")
    conversation.answer("Yes.", "stop")
    return conversation


def test_messages() -> None:
    assert talk().messages()[:3] == [
        Message("system", "Be brief."),
        Message("user", "你好 👩‍👩‍👧"),
        Message("assistant", "Hel"),
    ]
    assert Conversation().messages() == []


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    talk().save(path, "pocket")
    assert Conversation.load(path) == talk()
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["model"] == "pocket"
    assert content["messages"][1] == {"role": "assistant", "content": "Hel", "finish_reason": "cancelled"}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"format": "x"}, '"format"'), ({"system": 3}, '"system"'), ({"messages": {}}, '"messages"'),
        ({"messages": ["x"]}, "message 1 is not an object"), ({"messages": [{"content": "x"}]}, "role null"),
        ({"messages": [{"role": "system", "content": "x"}]}, 'role "system"'),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": None}]}, "message 1 has no text"),
        ({"messages": [{"role": "user", "content": "x", "finish_reason": "y"}]}, "finish_reason"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_explained(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    path = tmp_path / "talk.json"
    talk().save(path, "pocket")
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        Conversation.load(path)
    assert str(path) in caught.value.message
    assert why in caught.value.message


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe\x00", b"[]", b'"x"'])
def test_what_is_no_conversation(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "talk.json"
    path.write_bytes(data)
    with pytest.raises(UsageError, match="is no saved conversation"):
        Conversation.load(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        Conversation.load(tmp_path / "none.json")
    with pytest.raises(UsageError, match="cannot be read"):
        Conversation.load(tmp_path)
