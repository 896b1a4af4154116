"""What a GLM-4 model has answered → text, thoughts and calls of tools; piece by piece, or whole.

A model calls by a line that is the name of a tool alone, and the arguments behind it; the next call is a turn of its
own, behind `<|assistant|>`. What counts as a call here:

- Only a declared name, at the start of a line. The object of the arguments follows, on the next line as GLM-4 writes
  it, or after blanks, blank lines or the opening of a markdown fence. What begins with `{"` or `{}` is taken for that
  object; anything else makes a sentence of the name. Text may stand before a call, and between calls.
- Of a built-in tool, whose arguments are any text: only at the start of a turn, the name alone on its line. Its
  arguments last to the end of the turn.
- Arguments that end too early, or are no JSON, are given as they came, and the call says that it is not valid; whether
  the text ended inside one says `Parsed.truncated`.
- Raw line breaks inside a JSON string, which JSON forbids and models write, become `\\n`.

Text is given out as soon as it cannot belong to a call. It goes without the blank lines around it.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edge.tools import names
from edge.tools.answer import ArgumentsDelta, Call, CallStart, Event, Parsed, ReasoningDelta, TextDelta

TURN = "<|assistant|>"
"""Stands between two calls; in the text only under `Sampling.keep_special`."""
_OPEN, _CLOSE, _FENCE = "<think>", "</think>", "```"
_PIECE = 1024
_WORD = re.compile(r"[A-Za-z0-9_.-]*")
_VISIBLE = re.compile(r"<?[^\s<]*")
_FENCE_KIND = re.compile(r"[A-Za-z]{0,10}[ \t]*")


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def parse(
    text: str,
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    opened: bool = False,
    parallel: bool = True,
    new_id: Callable[[], str] = _new_id,
) -> Parsed:
    """Take a whole answer apart; the arguments are `Parser`'s."""
    parser = Parser(tools, opened=opened, parallel=parallel, new_id=new_id)
    for at in range(0, len(text), _PIECE):  # its work grows with the square of a piece
        parser.push(text[at : at + _PIECE])
    parser.finish()
    return parser.parsed


class Parser:
    """Takes an answer in pieces, of any size, and tells what has become certain.

    Args:
        tools: those that may be called; with none, a name is a word like others.
        opened: the prompt has written `<think>`, the answer begins with a thought.
        parallel: several calls may come. If not, `done` is true after the first, and what follows is let go.
        new_id: makes the ids of calls.

    Raises:
        UsageError: see `edge.tools.names.checked`.
    """

    def __init__(
        self,
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        opened: bool = False,
        parallel: bool = True,
        new_id: Callable[[], str] = _new_id,
    ) -> None:
        self.parsed = Parsed()
        """All that has been given out so far."""
        self.done = False
        """Nothing more can count; the answer may as well be ended."""
        self._raw = {name: names.is_raw(tool) for name, tool in names.checked(tools).items()}
        self._parallel = parallel
        self._new_id = new_id
        self._step = self._think if opened else self._text
        self._rest = ""  # not decided yet
        self._spaces = ""  # in front of it, given out with what they are followed by
        self._line_start = self._turn_start = self._fresh = True
        self._fenced = False
        self._final = False
        self._depth, self._in_string, self._escape = 0, False, False
        self._events: list[Event] = []

    def push(self, piece: str) -> list[Event]:
        """Add a piece of the answer; what it has made certain comes back, which may be nothing."""
        self._rest += piece
        return self._go()

    def finish(self) -> list[Event]:
        """The answer has ended: what was held back."""
        self._final = True
        events = self._go()
        if self._step == self._json:
            self.parsed.truncated = True
        elif self._step == self._raw_text:
            self._close_raw()
        elif self._step == self._text and not self._fresh and self._spaces:
            self._say(self._spaces)
        events += self._events
        self._events = []
        return events

    def _go(self) -> list[Event]:
        while self._rest and not self.done and self._step():
            pass
        events, self._events = self._events, []
        return events

    # Each state takes what it can from the front of `_rest`, and says whether there is more to do.

    def _text(self) -> bool:
        self._take_spaces()
        if not self._rest:
            return False
        found = self._at(TURN)
        if found is None:
            return False
        if found:
            self._begin_turn()
            return True
        if self._turn_start:
            opened = self._at(_OPEN)
            if opened is None:
                return False
            if opened:
                self._spaces, self._step = "", self._think
                return True
        if self._line_start:
            call = self._call()
            if call is None:
                return False
            if call:
                return True
        match = _VISIBLE.match(self._rest)
        assert match is not None
        said, self._rest = match.group(), self._rest[match.end() :]
        if self._fresh:
            before = "\n" if self.parsed.content else ""
            said = before + self._spaces.rpartition("\n")[2] + said
        else:
            said = self._spaces + said
        self._spaces = ""
        self._line_start = self._turn_start = self._fresh = False
        self._say(said)
        return True

    def _think(self) -> bool:
        thought, found, self._rest = self._until(_CLOSE)
        bare = thought.rstrip()
        if bare:
            lead = bare.lstrip() if not self.parsed.reasoning else bare
            self._add(ReasoningDelta(self._spaces + lead if self.parsed.reasoning else lead))
            self._spaces = ""
        self._spaces += thought[len(bare) :]
        if found:
            self._begin_turn()
        return found

    def _json(self) -> bool:
        text, out, at = self._rest, [], 0
        while at < len(text) and self._depth:
            sign = text[at]
            if sign == "<" and (text.startswith(TURN, at) or (not self._final and TURN.startswith(text[at:]))):
                break
            at += 1
            if self._in_string and sign < " ":
                sign = names.escaped(sign)
            elif self._escape:
                self._escape = False
            elif self._in_string:
                self._in_string = sign != '"'
                self._escape = sign == "\\"
            elif sign == '"':
                self._in_string = True
            elif sign in "{[":
                self._depth += 1
            elif sign in "}]":
                self._depth -= 1
            out.append(sign)
        self._argue("".join(out))
        self._rest = text[at:]
        if self._depth and not self._rest.startswith(TURN):
            return False
        self._end_call(self._behind)
        return True

    def _behind(self) -> bool:
        """After the arguments: what closes their fence belongs to them."""
        self._rest = self._rest.lstrip()
        if self._fenced and self._rest:
            found = self._at(_FENCE)
            if found is None:
                return False
            self._fenced = False
        if self._rest:
            self._step, self._spaces = self._text, ""
            self._line_start = self._fresh = True
            self._turn_start = False
        return bool(self._rest)

    def _raw_text(self) -> bool:
        text, found, self._rest = self._until(TURN)
        bare = text.rstrip()
        if bare:
            self._argue(names.escaped(self._spaces + bare))
            self._spaces = ""
        self._spaces += text[len(bare) :]
        if found:
            self._close_raw()
            self._begin_turn()
        return found

    def _call(self) -> bool | None:
        """Begin a call if one stands at the front; None: that is not to be seen yet."""
        match = _WORD.match(self._rest)
        assert match is not None
        name, behind = match.group(), self._rest[match.end() :]
        if not behind:
            return None if not self._final and any(known.startswith(name) for known in self._raw) else False
        if name not in self._raw:
            return False
        begin = _raw_begin(behind) if self._raw[name] else _object_begin(behind)
        if begin is None:
            return False if self._final else None
        if not begin or (self._raw[name] and not self._turn_start):
            return False
        self._fenced = not self._raw[name] and _FENCE in behind[:begin]
        self._rest, self._spaces = behind[begin:], ""
        self._depth, self._in_string, self._escape = 0, False, False
        self._add(CallStart(len(self.parsed.calls), self._new_id(), name))
        if self._raw[name]:
            self._step = self._raw_text
            self._argue(names.opening(name))
        else:
            self._step = self._json
            self._depth, self._rest = 1, self._rest[1:]
            self._argue("{")
        return True

    def _close_raw(self) -> None:
        self._argue(names.CLOSING)
        self._spaces = ""
        self._end_call(self._text)

    def _end_call(self, then: Callable[[], bool]) -> None:
        call = self.parsed.calls[-1]
        call.valid = _is_object(call.arguments)
        self._step = then
        self.done = not self._parallel

    def _begin_turn(self) -> None:
        self._step, self._spaces = self._text, ""
        self._line_start = self._turn_start = self._fresh = True

    def _take_spaces(self) -> None:
        bare = self._rest.lstrip()
        spaces = self._rest[: len(self._rest) - len(bare)]
        self._line_start |= "\n" in spaces
        self._spaces, self._rest = self._spaces + spaces, bare

    def _at(self, mark: str) -> bool | None:
        """Take a mark from the front; None: it may still come."""
        if self._rest.startswith(mark):
            self._rest = self._rest[len(mark) :]
            return True
        return None if mark.startswith(self._rest) and not self._final else False

    def _until(self, mark: str) -> tuple[str, bool, str]:
        """What stands before a mark, whether the mark is there, and what is behind it or may be its beginning."""
        before, found, behind = self._rest.partition(mark)
        if found or self._final:
            return before, bool(found), behind
        lengths = range(min(len(mark) - 1, len(before)), 0, -1)
        keep = next((n for n in lengths if before.endswith(mark[:n])), 0)
        return before[: len(before) - keep], False, before[len(before) - keep :]

    def _say(self, text: str) -> None:
        self._add(TextDelta(text))

    def _argue(self, text: str) -> None:
        if text:
            self._add(ArgumentsDelta(len(self.parsed.calls) - 1, text))

    def _add(self, event: Event) -> None:
        last = self._events[-1] if self._events else None
        match event:
            case TextDelta(text):
                self.parsed.content += text
                if isinstance(last, TextDelta):
                    self._events[-1] = TextDelta(last.text + text)
                    return
            case ReasoningDelta(text):
                self.parsed.reasoning += text
            case CallStart(_, one, name):
                self.parsed.calls.append(Call(one, name))
            case ArgumentsDelta(index, text):
                self.parsed.calls[index].arguments += text
                if isinstance(last, ArgumentsDelta) and last.index == index:
                    self._events[-1] = ArgumentsDelta(index, last.text + text)
                    return
        self._events.append(event)


def _object_begin(behind: str) -> int | None:
    """Where the object begins in what follows a name; 0: none does; None: not to be seen yet."""
    bare = behind.lstrip()
    if not bare or _FENCE.startswith(bare):
        return None
    if bare.startswith(_FENCE):
        kind, line_end, inside = bare[len(_FENCE) :].partition("\n")
        if not _FENCE_KIND.fullmatch(kind):
            return 0
        bare = inside.lstrip()
        if not line_end or not bare:
            return None
    if bare[0] != "{":
        return 0
    first = bare[1:].lstrip()[:1]
    return None if not first else len(behind) - len(bare) if first in '"}' else 0


def _raw_begin(behind: str) -> int | None:
    """The same for the text behind the name of a built-in tool: on a line of its own, indented as it is."""
    rest, line_end, text = behind.partition("\n")
    if rest.strip():
        return 0
    if not line_end or not text.strip():
        return None
    blank = text[: len(text) - len(text.lstrip())]
    return len(behind) - len(text) + blank.rfind("\n") + 1


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
