"""The signs by which `edge.tools.parse` tells calls from text; each says the same however a text is cut."""

from __future__ import annotations

import json
import re

FENCE = "```"
_FENCE_KIND = re.compile(r"[A-Za-z]{0,10}[ \t]*")
_FENCE_LINE = re.compile(r"(`{3,})([^`]*)|(~{3,})(.*)")
_LINE = 200
"""Signs of a line that are looked at for a fence."""


class Fences:
    """Whether the text that has been given out stands in a markdown fence."""

    def __init__(self) -> None:
        self._line = self._opened = ""

    def __bool__(self) -> bool:
        return bool(self._opened)

    def add(self, text: str) -> None:
        """More of a line, without a line break."""
        if len(self._line) < _LINE:
            self._line = (self._line + (text if self._line else text.lstrip()))[:_LINE]

    def end_line(self) -> None:
        """The line has ended: a fence opens with one, and closes with one that is as long and says nothing."""
        match = _FENCE_LINE.fullmatch(self._line)
        self._line = ""
        if match is None:
            return
        mark, said = match[1] or match[3], match[2] or match[4]
        if not self._opened:
            self._opened = mark
        elif mark.startswith(self._opened) and not said:
            self._opened = ""


class Braces:
    """Follows a JSON object, sign by sign, from behind its first brace."""

    def __init__(self) -> None:
        self.depth, self.in_string = 1, False
        self._escape = False

    def take(self, sign: str) -> None:
        """The next sign."""
        if self.in_string and sign < " ":
            return
        if self._escape:
            self._escape = False
        elif self.in_string:
            self.in_string = sign != '"'
            self._escape = sign == "\\"
        elif sign == '"':
            self.in_string = True
        elif sign in "{[":
            self.depth += 1
        elif sign in "}]":
            self.depth -= 1

    def through(self, text: str, at: int, mark: str, *, final: bool) -> int:
        """Go on from `at` to behind the object, to a mark outside its strings or what may become one, or to the end."""
        while at < len(text) and self.depth:
            if text[at] == mark[0] and not self.in_string and begins(text, at, mark, final=final) is not False:
                break
            self.take(text[at])
            at += 1
        return at


def begins(text: str, at: int, mark: str, *, final: bool) -> bool | None:
    """Whether a mark stands at `at`; None: it may still come."""
    if text.startswith(mark, at):
        return True
    return None if not final and len(text) - at < len(mark) and mark.startswith(text[at:]) else False


def object_begin(behind: str) -> int | None:
    """Where the object begins in what follows a name; 0: none does; None: not to be seen yet."""
    bare = behind.lstrip()
    if not bare or FENCE.startswith(bare):
        return None
    if bare.startswith(FENCE):
        kind, line_end, inside = bare[len(FENCE) :].partition("\n")
        if not _FENCE_KIND.fullmatch(kind):
            return 0
        bare = inside.lstrip()
        if not line_end or not bare:
            return None
    if bare[0] != "{":
        return 0
    first = bare[1:].lstrip()[:1]
    return None if not first else len(behind) - len(bare) if first in '"}' else 0


def raw_begin(behind: str) -> int | None:
    """The same for the text behind the name of a built-in tool: on a line of its own, indented as it is."""
    rest, line_end, text = behind.partition("\n")
    if rest.strip():
        return 0
    if not line_end or not text.strip():
        return None
    blank = text[: len(text) - len(text.lstrip())]
    return len(behind) - len(text) + blank.rfind("\n") + 1


def is_object(text: str) -> bool:
    """Whether a text is a JSON object; NaN and Infinity, which Python reads, are no JSON."""
    try:
        return isinstance(json.loads(text, parse_constant=_refuse), dict)
    except (ValueError, RecursionError):
        return False


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON")
