"""What may be called: the names of tools, and the arguments of those that GLM-4 brings itself."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from edge.errors import UsageError

RAW = {"python": "code", "simple_browser": "call", "cogview": "prompt"}
"""GLM-4's built-in tools. Their arguments are plain text: code, a call such as `search("…")`, a description. OpenAI's
arguments are JSON, so the text stands there as the one value of an object, under this key."""

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def name_of(tool: Mapping[str, Any]) -> str:
    """The name by which a model calls a tool.

    Raises:
        UsageError: it is no tool, or its name cannot stand alone on a line.
    """
    kind = tool.get("type")
    if kind in RAW:
        return str(kind)
    if kind != "function":
        raise UsageError(f"a tool of the type {kind!r} is not known", hint=f"Known are function, {', '.join(RAW)}.")
    name = (tool.get("function") or {}).get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name for a function", hint="Take up to 64 letters, digits, underscores, dots and hyphens."
        )
    return name


def checked(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Tools by name, in their order.

    Raises:
        UsageError: see `name_of`; or two have one name.
    """
    named: dict[str, Mapping[str, Any]] = {}
    for tool in tools:
        name = name_of(tool)
        if name in named:
            raise UsageError(f"two tools are called {name!r}", hint="Give each a name of its own.")
        named[name] = tool
    return named


def is_raw(tool: Mapping[str, Any]) -> bool:
    """Whether its arguments are plain text."""
    return tool.get("type") in RAW


def wrapped(name: str, raw: str) -> str:
    """Plain arguments of a built-in tool as JSON."""
    return f"{opening(name)}{escaped(raw)}{CLOSING}"


def unwrapped(name: str, arguments: str) -> str:
    """What `wrapped` has wrapped; arguments of any other form stay as they are."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):  # the latter: of brackets without an end
        return arguments
    alone = isinstance(value, dict) and set(value) == {RAW[name]} and isinstance(value[RAW[name]], str)
    return str(value[RAW[name]]) if alone else arguments


def opening(name: str) -> str:
    """What `wrapped` puts before the text."""
    return f'{{"{RAW[name]}": "'


CLOSING = '"}'
"""What it puts behind."""


def escaped(text: str) -> str:
    """Text as the inside of a JSON string; that of two pieces is the pieces' joined."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
