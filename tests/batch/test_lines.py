"""What a line of a batch asks for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edge.batch.lines import CHAT, COMPLETIONS, BadLineError, Line, request, split
from edge.errors import UsageError


def one(value: Any, **given: Any) -> Any:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    (line,) = split(text, plain=False)
    return request(line, given.pop("defaults", {}), **given)


def batch_line(**changes: Any) -> dict[str, Any]:
    line = {"custom_id": "a", "method": "POST", "url": CHAT, "body": {"messages": [{"role": "user", "content": "?"}]}}
    return {name: value for name, value in (line | changes).items() if value != "left out"}


def test_every_way_to_ask() -> None:
    asked = [{"role": "user", "content": "Why?"}]
    assert one("Why?").body == {"messages": asked}
    assert one({"prompt": "Why?", "max_tokens": 3, "custom_id": "x"}).body == {"messages": asked, "max_tokens": 3}
    assert one({"messages": asked, "n": 2}).body == {"messages": asked, "n": 2}
    assert one(batch_line(body={"messages": asked})) == one({"messages": asked})
    found = one(batch_line(url=COMPLETIONS, body={"prompt": "Once"}))
    assert (found.url, found.body) == (COMPLETIONS, {"prompt": "Once"})


def test_blank_lines_line_ends_and_marks() -> None:
    lines = split('\ufeff"a"\r\n\r\n  \n{"prompt": "b", "custom_id": "mine", "model": "m"}'.encode(), plain=False)
    assert lines == [
        Line(1, "line-1", b'"a"'),
        Line(4, "mine", b'{"prompt": "b", "custom_id": "mine", "model": "m"}', model="m"),
    ]
    assert split('"你好"\n'.encode("utf-16"), plain=False) == [Line(1, "line-1", '"你好"'.encode())]


def test_plain_text_has_a_prompt_on_each_line() -> None:
    lines = split(b'{"not": json}\n\nWhy?\n', plain=True)
    assert [request(line, {}).body["messages"][0]["content"] for line in lines] == ['{"not": json}', "Why?"]
    assert [line.custom_id for line in lines] == ["line-1", "line-3"]


def test_what_a_line_leaves_out_the_command_says() -> None:
    defaults = {"temperature": 0.5, "max_tokens": 9}
    asked = one({"prompt": "?", "temperature": 0, "max_completion_tokens": 4}, defaults=defaults, system="Be brief.")
    assert asked.body == {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "?"}],
        "temperature": 0,
        "max_completion_tokens": 4,
    }
    assert one({"prompt": "?", "temperature": None}, defaults=defaults).body["temperature"] == 0.5
    own = [{"role": "developer", "content": "Rhyme."}, {"role": "user", "content": "?"}]
    assert one({"messages": own}, system="Be brief.").body["messages"] == own
    assert "messages" not in one(batch_line(url=COMPLETIONS, body={"prompt": "Once"}), system="Be brief.").body


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"{broken", "the line is no JSON (expecting property name"),
        (b"[" * 100_000, "the line is no JSON (it nests too deeply"),
        (b'"a" "b"', "the line is no JSON (extra data)"),
        (b'"\xff"', "the line is no UTF-8 (byte 2)"),
        (b'{"prompt": "a\\ud800"}', "the line holds half of a character"),
        (17, "the line is 17"),
        (None, "the line is null"),
        ([], "the line is []"),
        ({}, "the line has neither a prompt nor messages nor a body"),
        ({"prompt": " "}, 'the prompt is " "'),
        ("", "the prompt is empty"),
        ({"prompt": ["a"]}, 'the prompt is ["a"]'),
        ({"prompt": "a", "messages": []}, "the line has a prompt and messages"),
        (batch_line(custom_id="left out"), "the line has no custom_id"),
        (batch_line(custom_id=5), "the custom_id is 5"),
        (batch_line(body="left out"), "the line has no body"),
        (batch_line(method="GET"), 'the method is "GET"'),
        (batch_line(url="/v1/embeddings"), 'the url is "/v1/embeddings"'),
        (batch_line(body=[1]), "the body is [1]"),
        (batch_line(body={"stream": True}), "the body has stream: true"),
        (batch_line(priority=1), "the line has 'priority' beside its body"),
    ],
)
def test_a_line_at_fault_says_why(value: Any, said: str) -> None:
    with pytest.raises(BadLineError) as raised:
        one(value)
    assert raised.value.message.startswith(said) and raised.value.hint.endswith(".")


def test_a_custom_id_that_stands_twice_is_refused() -> None:
    lines = [{"prompt": "?", "custom_id": name} for name in ("a", "b", "a", "line-5", "c")] + ["?"]
    lines.insert(4, "what line 5 is called")  # type: ignore[arg-type]
    with pytest.raises(UsageError) as raised:
        split("\n".join(map(json.dumps, lines)).encode(), plain=False)
    assert '"a" in lines 1, 3; "line-5" in lines 4, 5' in raised.value.message


@pytest.mark.parametrize("data", [b"", b"\n \r\n", b"\xef\xbb\xbf\n"])
def test_nothing_to_do_is_refused(data: bytes) -> None:
    with pytest.raises(UsageError, match="there is no request"):
        split(data, plain=False)
