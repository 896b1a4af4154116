"""What a GLM-4 model has answered → text, thoughts and calls of tools; piece by piece, or whole.

A model calls by a line that is the name of a tool alone, and the arguments behind it; the next call is a turn of its
own, behind `<|assistant|>`. What counts as a call here:

- Only a declared name, at the start of a line, and not in a markdown fence that the text has opened. The object of the
  arguments follows, on the next line as GLM-4 writes it, or after blanks, blank lines or the opening of a fence. What
  begins with `{"` or `{}` is taken for that object; anything else makes a sentence of the name. Where the object stands
  on the name's own line, nothing but the line's end may follow it. Text may stand before a call, and between calls.
- Of a function with `strict`: only in the form that the grammar holds it in, the object right at the start of the line
  below the name.
- Of a built-in tool, whose arguments are any text: only at the start of a turn, the name alone on its line. Its
  arguments last to the end of the turn.
- Arguments that end too early, or are no JSON, are given as they came, and the call says that it is not valid; whether
  one was cut off, by the end of the text or of a turn, says `Parsed.truncated`.
- `<|assistant|>` ends a turn only where there are tools; not inside a JSON string, nor in a response format's answer.
- Raw line breaks inside a JSON string, which JSON forbids and models write, become `\\n`.

Text is given out as soon as it cannot belong to a call. It goes without the blank lines around it.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edge.tools import names
from edge.tools.answer import ArgumentsDelta, Call, CallStart, Event, Parsed, ReasoningDelta, TextDelta
from edge.tools.signs import FENCE, Braces, Fences, begins, is_object, object_begin, raw_begin

TURN = "<|assistant|>"
"""Stands between two calls; in the text only under `Sampling.keep_special`."""
_OPEN, _CLOSE = "<think>", "</think>"
_PIECE = 1024
_WORD = re.compile(r"[A-Za-z0-9_.-]*")
_VISIBLE = re.compile(r"<?[^\s<]*")


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def parse(
    text: str,
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    opened: bool = False,
    parallel: bool = True,
    formatted: bool = False,
    new_id: Callable[[], str] = _new_id,
) -> Parsed:
    """Take a whole answer apart; the arguments are `Parser`'s."""
    parser = Parser(tools, opened=opened, parallel=parallel, formatted=formatted, new_id=new_id)
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
        formatted: a response format holds: what does not begin as a call is that, to its end.
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
        formatted: bool = False,
        new_id: Callable[[], str] = _new_id,
    ) -> None:
        self.parsed = Parsed()
        """All that has been given out so far."""
        self.done = False
        """Nothing more can count; the answer may as well be ended."""
        self._raw = {name: names.is_raw(tool) for name, tool in names.checked(tools).items()}
        self._strict = {names.name_of(tool) for tool in tools if (tool.get("function") or {}).get("strict")}
        self._parallel = parallel
        self._formatted = formatted
        self._new_id = new_id
        self._step = self._think if opened else self._text
        self._rest = ""  # not decided yet
        self._spaces = ""  # in front of it, given out with what they are followed by
        self._line_start = self._turn_start = self._fresh = True
        self._fenced = False
        self._final = False
        self._fences = Fences()
        self._braces, self._seen = Braces(), 0  # of the arguments; how far they have gone in `_rest`
        self._name = ""  # of the call that may stand at the front
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
        calling = bool(self._raw) and (self._fresh or not self._formatted)
        found = self._at(TURN) if calling else False
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
        if self._line_start and calling and not self._fences:
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
        self._fences.add(said.rpartition("\n")[2])
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
        text, out, at, braces = self._rest, [], 0, self._braces
        while at < len(text) and braces.depth:
            sign = text[at]
            if sign == TURN[0] and not braces.in_string and begins(text, at, TURN, final=self._final) is not False:
                break
            at += 1
            out.append(names.escaped(sign) if braces.in_string and sign < " " else sign)
            braces.take(sign)
        self._argue("".join(out))
        self._rest = text[at:]
        if braces.depth:
            if not self._rest.startswith(TURN):
                return False
            self.parsed.truncated = True
        self._end_call(self._behind)
        return True

    def _behind(self) -> bool:
        """After the arguments: what closes their fence belongs to them."""
        self._rest = self._rest.lstrip()
        if self._fenced and self._rest:
            found = self._at(FENCE)
            if found is None:
                return False
            self._fenced, self._rest = False, self._rest.lstrip()
        if self._rest:
            self._step, self._spaces = self._text, ""
            self._line_start = self._fresh = True
            self._turn_start, self._fences = False, Fences()
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
        begin = raw_begin(behind) if self._raw[name] else object_begin(behind)
        if begin is None:
            return False if self._final else None
        if not begin or (self._raw[name] and not self._turn_start):
            return False
        if name in self._strict and behind[:begin] != "\n":
            return False
        self._name = name
        if self._raw[name] or "\n" in behind[:begin]:
            self._begin_call(len(name) + begin)
        else:
            self._braces, self._seen = Braces(), len(name) + begin + 1
            self._step = self._inline
        return True

    def _inline(self) -> bool:
        """A name and an object behind it on one line: a call, or else the beginning of a sentence."""
        begin = len(self._name) + self._rest[len(self._name) :].index("{")
        self._seen = self._braces.through(self._rest, self._seen, TURN, final=self._final)
        behind = self._rest[self._seen :]
        line_end = self._braces.depth == 0 and "\n" in behind[: len(behind) - len(behind.lstrip())]
        behind = behind.lstrip() if self._braces.depth == 0 else behind
        turn = begins(behind, 0, TURN, final=self._final)
        if line_end or turn or (not behind and self._final):
            self._begin_call(begin)
        elif turn is None:
            return False
        else:
            self._step, self._line_start = self._text, False
        return True

    def _begin_call(self, begin: int) -> None:
        """The arguments begin at `begin`, behind the name at the front."""
        name = self._name
        self._fenced = not self._raw[name] and FENCE in self._rest[len(name) : begin]
        self._rest, self._spaces = self._rest[begin:], ""
        self._add(CallStart(len(self.parsed.calls), self._new_id(), name))
        if self._raw[name]:
            self._step = self._raw_text
            self._argue(names.opening(name))
        else:
            self._step, self._braces = self._json, Braces()
            self._rest = self._rest[1:]
            self._argue("{")

    def _close_raw(self) -> None:
        self._argue(names.CLOSING)
        self._spaces = ""
        self._end_call(self._text)

    def _end_call(self, then: Callable[[], bool]) -> None:
        call = self.parsed.calls[-1]
        call.valid = is_object(call.arguments)
        self._step = then
        self.done = not self._parallel

    def _begin_turn(self) -> None:
        self._step, self._spaces, self._fences = self._text, "", Fences()
        self._line_start = self._turn_start = self._fresh = True

    def _take_spaces(self) -> None:
        bare = self._rest.lstrip()
        spaces = self._rest[: len(self._rest) - len(bare)]
        if "\n" in spaces:
            self._line_start = True
            self._fences.end_line()
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
