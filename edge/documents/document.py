"""The text of a file, and where its pages, slides, paragraphs, rows or lines begin in it. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from edge.messages import SPECIAL

Unit = Literal["page", "slide", "paragraph", "row", "line"]
Span = tuple[int, int]
"""From a character on, up to and without another."""
_BETWEEN = {"page": "\n\n", "slide": "\n\n", "paragraph": "\n\n", "row": "", "line": ""}
_CONTROL = {code: None for code in (*range(32), 0x7F) if chr(code) not in "\t\n"}
_SHOWN = 6


@dataclass(frozen=True)
class Document:
    """A file as a model reads it."""

    name: str
    text: str
    unit: Unit
    """What a user finds a place in the file by."""
    marks: tuple[int, ...]
    """The character that each page, slide, paragraph, row or line begins at."""
    remarks: tuple[str, ...] = ()
    """What of the file is not in the text, or not as it stands there: sentences for the person."""

    def whole(self) -> tuple[Span, ...]:
        """All of it."""
        return ((0, len(self.text)),)


def assemble(name: str, unit: Unit, parts: Iterable[str], remarks: Sequence[str] = ()) -> Document:
    """A document of parts in their order.

    Line ends become `\\n`; control characters and halves of characters go. Special tokens such as `<|user|>` get a
    space behind their first sign: the model is to read about them, not to obey them.
    """
    between, told = _BETWEEN[unit], list(remarks)
    cleaned, broken = [], 0
    for part in parts:
        text = part.replace("\r\n", "\n").replace("\r", "\n").translate(_CONTROL)
        text = text.encode("utf-8", "replace").decode() if _has_halves(text) else text
        # what a chat template begins turns with: a document was written by somebody else
        text, count = SPECIAL.subn(lambda found: found[0] + " ", text)
        cleaned.append(text if between == "" else text.strip("\n"))
        broken += count
    if broken:
        many = "a special token" if broken == 1 else f"{broken:,} special tokens"
        told.append(f"{name} holds {many} of chat templates, such as <|user|>: written as < |user|>")
    marks = list(accumulate((len(part) + len(between) for part in cleaned[:-1]), initial=0))
    return Document(name, between.join(cleaned), unit, tuple(marks), tuple(told))


def _has_halves(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def without(document: Document, kept: Sequence[Span]) -> tuple[Span, ...]:
    """What of the document is in none of the kept spans, blanks at its edges and nothing but blanks left aside."""
    left, at = [], 0
    for begin, end in (*sorted(kept), (len(document.text), len(document.text))):
        piece = document.text[at:begin]
        if piece.strip():
            left.append((at + len(piece) - len(piece.lstrip()), at + len(piece.rstrip())))
        at = max(at, end)
    return tuple(left)


def places(document: Document, spans: Sequence[Span]) -> str:
    """Where spans are, in the units of the document: "pages 3–7 and 9, parts of pages 2 and 8"."""
    whole: set[int] = set()
    parts: set[int] = set()
    for begin, end in spans:
        first, last = _unit(document, begin), _unit(document, end - 1)
        for number in range(first, last + 1):
            from_, to = document.marks[number], _end(document, number)
            covered = not document.text[from_ : max(begin, from_)].strip()
            covered &= not document.text[min(end, to) : to].strip()
            (whole if covered else parts).add(number + 1)
    said = []
    if whole:
        said.append(f"{document.unit}{'s' * (len(whole) > 1)} {_ranges(whole)}")
    if parts:
        many = len(parts) > 1
        said.append(f"part{'s' * many} of {document.unit}{'s' * many} {_ranges(parts)}")
    return ", ".join(said)


def _unit(document: Document, at: int) -> int:
    return bisect_right(document.marks, at) - 1


def _end(document: Document, number: int) -> int:
    return document.marks[number + 1] if number + 1 < len(document.marks) else len(document.text)


def _ranges(numbers: set[int]) -> str:
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    said = [f"{a:,}" if a == b else f"{a:,}–{b:,}" for a, b in runs]
    if len(said) > _SHOWN:
        return ", ".join(said[:_SHOWN]) + f" and {len(said) - _SHOWN:,} places more"
    return said[0] if len(said) == 1 else ", ".join(said[:-1]) + " and " + said[-1]
