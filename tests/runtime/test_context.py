from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edge.errors import ContextError, UsageError
from edge.messages import Message
from edge.runtime.context import (
    Conversation,
    Fitted,
    answer_reserve,
    context_for,
    dropped_sentence,
    fit,
    room_for_answer,
)


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
    assert "shorter" in caught.value.hint


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


class Counter:
    """A template with an opening, a closing, and three tokens around every message; counts its calls."""

    def __init__(self) -> None:
        self.calls = self.read = 0

    def __call__(self, messages: Sequence[Message]) -> int:
        tokens = 7 + sum(3 + len(message.content) for message in messages)
        self.calls += 1
        self.read += tokens
        return tokens


def conversation(rng: random.Random, turns: int, *, system: bool = True, tools: bool = False) -> list[Message]:
    """Ends with a question, as what is sent to a model does."""
    said = [Message("system", "s" * rng.randint(1, 60))] if system else []
    for turn in range(turns):
        said.append(Message("user", f"{turn}?" + "q" * rng.randint(1, 80)))
        if turn < turns - 1:
            if tools and rng.random() < 0.5:
                said += [Message("assistant", "call"), Message("observation", "o" * rng.randint(1, 90))]
            said.append(Message("assistant", "a" * rng.randint(1, 120)))
    return said


def test_what_fits_is_left_alone_and_counted_once() -> None:
    count, messages = Counter(), conversation(random.Random(0), 5)
    total = Counter()(messages)
    assert fit(messages, count, total + 10, 10) == Fitted(tuple(messages), 0, total)
    assert count.calls == 1
    assert fit(messages, count, total + 9, 10).dropped_turns > 0


@pytest.mark.parametrize("tools", [False, True], ids=["plain", "with tools"])
@pytest.mark.parametrize("system", [False, True], ids=["no system", "system"])
def test_any_conversation_is_cut_between_turns(system: bool, tools: bool) -> None:
    rng, dropped = random.Random(1), 0
    for _ in range(400):
        messages = conversation(rng, rng.randint(1, 40), system=system, tools=tools)
        limit, reserve = rng.randint(300, 3000), rng.randint(1, 100)
        fitted = fit(messages, Counter(), limit, reserve)
        assert fitted.tokens == Counter()(fitted.messages) <= limit - reserve
        kept, head = list(fitted.messages), messages[: int(system)]
        assert kept[: len(head)] == head and kept[-1] == messages[-1]
        rest = kept[len(head) :]
        assert rest == messages[len(messages) - len(rest) :]  # the newest, none left out in between
        assert rest[0].role == "user"
        gone = messages[len(head) : len(messages) - len(rest)]
        assert sum(message.role == "user" for message in gone) == fitted.dropped_turns
        dropped += bool(fitted.dropped_turns)
    assert dropped > 100


def test_few_tokens_are_counted() -> None:
    """About three times what there is, not once for every turn."""
    messages, count = conversation(random.Random(2), 300), Counter()
    total = Counter()(messages)
    assert fit(messages, count, total // 3, 50).dropped_turns > 100
    assert count.calls <= len(messages) + 5
    assert count.read < 3 * total + 10 * len(messages)


def test_the_last_message_alone_is_too_long() -> None:
    messages = [*conversation(random.Random(3), 4), Message("assistant", "a"), Message("user", "x" * 500)]
    with pytest.raises(ContextError) as caught:
        fit(messages, Counter(), 400, 20)
    assert "380" in caught.value.message and "400" in caught.value.message
    with pytest.raises(ContextError):
        fit(messages[-1:], Counter(), 400, 20)


def test_what_is_refused() -> None:
    messages = conversation(random.Random(4), 20)
    total = Counter()(messages)
    with pytest.raises(ContextError, match=f"{total:,} tokens") as caught:
        fit(messages, Counter(), total, 1, policy="refuse")
    assert "new conversation" in caught.value.hint
    assert fit(messages, Counter(), total + 1, 1, policy="refuse").dropped_turns == 0


def read_anew(keep: float, seed: int, turns: int = 150) -> tuple[int, int]:
    """Tokens that a prefix cache does not serve over a conversation, and how often turns were dropped."""
    rng, count = random.Random(seed), Counter()
    messages, cached, anew, drops, before = [Message("system", "s" * 50)], [], 0, 0, 0
    for turn in range(turns):
        messages.append(Message("user", f"{turn}?" + "q" * rng.randint(5, 60)))
        fitted = fit(messages, count, 2200, 200, keep=keep)
        # A turn that was dropped stays dropped, although nobody remembered it.
        assert fitted.dropped_turns >= before
        drops, before = drops + (fitted.dropped_turns > before), fitted.dropped_turns
        tokens = [piece for message in fitted.messages for piece in (message.role, *message.content)]
        same = next((i for i, (a, b) in enumerate(zip(tokens, cached, strict=False)) if a != b), len(cached))
        anew += len(tokens) - min(same, len(tokens))
        messages.append(Message("assistant", f"{turn}!" + "a" * rng.randint(10, 120)))
        cached = [*tokens, "assistant", *messages[-1].content]
    return anew, drops


@pytest.mark.parametrize("seed", range(5))
def test_dropping_enough_keeps_the_prefix_cache_useful(seed: int) -> None:
    """Against dropping just enough: a quarter of the tokens read anew, or less."""
    enough, seldom = read_anew(0.75, seed)
    just, often = read_anew(1.0, seed)
    assert enough < just / 4 and seldom < often / 3
    assert seldom > 5


@pytest.mark.parametrize(
    ("limit", "asked", "reserve"), [(8192, None, 1024), (2048, None, 512), (8192, 64, 64), (100, 500, 25), (2, None, 1)]
)
def test_reserve(limit: int, asked: int | None, reserve: int) -> None:
    assert answer_reserve(limit, asked) == reserve


def test_what_is_said_of_dropped_turns() -> None:
    assert "8,192 tokens" in dropped_sentence(1, 8192) and "oldest turn is" in dropped_sentence(1, 8192)
    assert "3 turns are" in dropped_sentence(3, 8192)


@pytest.mark.parametrize("max_new_tokens", [None, 1, 100, 5000])
def test_the_context_that_a_prompt_needs_is_the_shortest(max_new_tokens: int | None) -> None:
    for tokens in [*range(1, 400), 3071, 3072, 3073, 30_000]:
        context = context_for(tokens, max_new_tokens)
        assert context - answer_reserve(context, max_new_tokens) >= tokens
        assert context - 1 - answer_reserve(context - 1, max_new_tokens) < tokens
