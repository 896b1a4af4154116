"""The lines of a file of requests: what each asks for. Pure.

A line is a request of OpenAI's batch format, `{"custom_id": …, "method": "POST", "url": …, "body": {…}}`; or a prompt:
a JSON string, `{"prompt": "…"}` or `{"messages": […]}` with the fields of a chat beside it. Prompts are questions to
the chat model. In a file of plain text each line is a prompt as it stands. Blank lines are passed over.
"""

from __future__ import annotations

import codecs
import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge.errors import UsageError

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_MOST_NAMED = 3
_SHOWN = 60


class BadLineError(UsageError):
    """A line that is no request; `code` is for a program."""

    def __init__(self, message: str, *, hint: str, code: str = "invalid_request") -> None:
        super().__init__(message, hint=hint)
        self.code = code


@dataclass(frozen=True)
class Line:
    """One request, not looked at any further than to know who asks."""

    number: int
    """Of the line in its file, from 1."""
    custom_id: str
    """As given; of a line without one `line-` and its number."""
    text: bytes
    plain: bool = False
    """The text is the prompt itself."""
    model: str | None = None
    """Whom it was written for."""


@dataclass(frozen=True)
class Request:
    """What a line asks for."""

    url: str
    body: dict[str, Any]


def split(data: bytes, *, plain: bool) -> list[Line]:
    """The lines of a file, without those that are blank.

    Raises:
        UsageError: there are none, or two have the same custom_id.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # what PowerShell's > writes
        data = data.decode("utf-16", "replace").encode("utf-8", "replace")
    data = data.removeprefix(codecs.BOM_UTF8)
    lines = [
        _line(number, text, plain)
        for number, text in enumerate((line.strip() for line in data.split(b"\n")), 1)
        if text
    ]
    if not lines:
        raise UsageError("there is no request in the input", hint="Write one on each line.")
    _check_unique(lines)
    return lines


def request(line: Line, defaults: Mapping[str, Any], system: str | None = None) -> Request:
    """What a line asks for.

    Args:
        defaults: of the body, for what it leaves out.
        system: what a chat is told first, if it does not begin with a system message itself.

    Raises:
        BadLineError: it is no request.
    """
    asked = Request(CHAT, _question(_decoded(line))) if line.plain else _asked(_parsed(line))
    body = dict(asked.body)
    for name, value in defaults.items():
        if name != "max_tokens" or not {"max_tokens", "max_completion_tokens"} & body.keys():
            body[name] = value if body.get(name) is None else body[name]
    messages = body.get("messages")
    if system and asked.url == CHAT and isinstance(messages, list) and not _opens_with_system(messages):
        body["messages"] = [{"role": "system", "content": system}, *messages]
    return Request(asked.url, body)


def _asked(value: Any) -> Request:
    if isinstance(value, str):
        return Request(CHAT, _question(value))
    if not isinstance(value, dict):
        raise BadLineError(f"the line is {_shown(value)}", hint="Write an object, or a prompt in quotes.")
    if not {"method", "url", "body"} & value.keys():
        return _prompt(value)
    for name in ("custom_id", "method", "url", "body"):
        if value.get(name) in (None, ""):
            raise BadLineError(f"the line has no {name}", hint="custom_id, method, url and body are needed.")
    if not isinstance(value["custom_id"], str):
        raise BadLineError(f"the custom_id is {_shown(value['custom_id'])}", hint="Write a text.")
    unknown = sorted(value.keys() - {"custom_id", "method", "url", "body"})
    if unknown:
        raise BadLineError(f"the line has {unknown[0]!r} beside its body", hint="Put it into the body.")
    if value["method"] != "POST":
        raise BadLineError(f"the method is {_shown(value['method'])}", hint="It can be POST.")
    if value["url"] not in (CHAT, COMPLETIONS):
        raise BadLineError(f"the url is {_shown(value['url'])}", hint=f"It can be {CHAT} or {COMPLETIONS}.")
    if not isinstance(value["body"], dict):
        raise BadLineError(f"the body is {_shown(value['body'])}", hint="Write an object.")
    if value["body"].get("stream"):
        raise BadLineError("the body has stream: true", hint="Leave it out: an answer is written when it is whole.")
    return Request(value["url"], value["body"])


def _prompt(value: dict[str, Any]) -> Request:
    rest = {name: field for name, field in value.items() if name not in ("custom_id", "prompt")}
    if "messages" in value and "prompt" in value:
        raise BadLineError("the line has a prompt and messages", hint="Write one of them.")
    if "messages" in value:
        return Request(CHAT, rest)
    if "prompt" not in value:
        raise BadLineError("the line has neither a prompt nor messages nor a body", hint="Write one of them.")
    if not isinstance(value["prompt"], str) or not value["prompt"].strip():
        raise BadLineError(f"the prompt is {_shown(value['prompt'])}", hint="Write a text.")
    return Request(CHAT, _question(value["prompt"]) | rest)


def _question(text: str) -> dict[str, Any]:
    if not text.strip():
        raise BadLineError("the prompt is empty", hint="Write a text.")
    return {"messages": [{"role": "user", "content": text}]}


def _opens_with_system(messages: Sequence[Any]) -> bool:
    return any(isinstance(message, dict) and message.get("role") in ("system", "developer") for message in messages)


def _decoded(line: Line) -> str:
    try:
        return line.text.decode()
    except UnicodeDecodeError as error:
        raise BadLineError(
            f"the line is no UTF-8 (byte {error.start + 1})", hint="Save the file as UTF-8.", code="invalid_encoding"
        ) from error


def _parsed(line: Line) -> Any:
    text = _decoded(line)
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise BadLineError("the line holds half of a character", hint="Write it as valid Unicode.") from error
    except (ValueError, RecursionError) as error:
        why = error.msg if isinstance(error, json.JSONDecodeError) else "it nests too deeply, or has too long a number"
        raise BadLineError(
            f"the line is no JSON ({why[:1].lower()}{why[1:]})", code="invalid_json",
            hint="Write an object, or a prompt in quotes; a file whose lines are prompts as they stand is named .txt.",
        ) from error  # fmt: skip
    return value


def _line(number: int, text: bytes, plain: bool) -> Line:
    value: Any = None
    if not plain:
        with contextlib.suppress(ValueError, RecursionError):  # it is told when the line is answered
            value = json.loads(text.decode())
    value = value if isinstance(value, dict) else {}
    given = value.get("custom_id")
    body = value["body"] if isinstance(value.get("body"), dict) else value
    model = body.get("model")
    return Line(
        number, given if isinstance(given, str) and given else f"line-{number}", text, plain,
        model if isinstance(model, str) else None,
    )  # fmt: skip


def _check_unique(lines: Sequence[Line]) -> None:
    numbers: dict[str, list[int]] = {}
    for line in lines:
        numbers.setdefault(line.custom_id, []).append(line.number)
    twice = {name: found for name, found in numbers.items() if len(found) > 1}
    if twice:
        told = [f"{_shown(name)} in lines {', '.join(map(str, found))}" for name, found in twice.items()]
        more = f" and {len(told) - _MOST_NAMED:,} more" if len(told) > _MOST_NAMED else ""
        raise UsageError(
            f"the same custom_id stands more than once: {'; '.join(told[:_MOST_NAMED])}{more}",
            hint="Give each line its own: answers are told apart by it.",
        )


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 2]} …"
