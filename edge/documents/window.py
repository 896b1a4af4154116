"""Files that have more tokens than there is room for → those passages that fit. Pure.

A file is cut into passages of whole paragraphs (slides, rows of a table), at most some 800 characters each. The first
of every file stays: it says what the file is, and of a table how its columns are called. Then come those that have most
to do with the question, by BM25 over its words: a word counts more the fewer passages have it, and less the longer a
passage is. What is left of the room is filled from the beginning. The passages stand in their own order, `[…]` where
something is missing.

The score knows words, not what they mean: a question in other words than the file's finds the wrong passages, and one
about all of a file ("summarise it") has no right ones. So what was left out is always told.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from edge.documents.document import Document, Span, places, without
from edge.documents.wrap import wrap
from edge.errors import ContextError

GAP = "[…]"
_PASSAGE = 800  # characters
_SATURATION, _LENGTH = 1.2, 0.75  # BM25's k1 and b, as usual
_MISSES = 8  # passages in a row that have no room: then nothing much is left of it
_HAN = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORD = re.compile(rf"[{_HAN}]+|[^\W_{_HAN}]+")
_ENDS = (re.compile(r"\n"), re.compile(r"(?<=[.!?])\s|(?<=[。！？；])"), re.compile(r"\s|(?<=[,，、])"))


@dataclass(frozen=True)
class Read:
    """What is read of a file."""

    document: Document
    spans: tuple[Span, ...]

    @property
    def text(self) -> str:
        """As it stands in the prompt."""
        pieces, at = [], 0
        for begin, end in self.spans:
            if self.document.text[at:begin].strip():
                pieces.append(GAP)
            pieces.append(self.document.text[begin:end].strip("\n") if self.left else self.document.text[begin:end])
            at = end
        if self.document.text[at:].strip():
            pieces.append(GAP)
        return "\n".join(pieces)

    @property
    def left(self) -> tuple[Span, ...]:
        """What is not read."""
        return without(self.document, self.spans)

    @property
    def share(self) -> float:
        """Of its characters, those that are read, 0 to 1."""
        return 1 - sum(end - begin for begin, end in self.left) / len(self.document.text)

    def left_places(self) -> str:
        """What is not read, in pages, slides, rows or lines."""
        return places(self.document, self.left)


@dataclass(frozen=True)
class Prompt:
    """What the model is asked, and what it is made of."""

    text: str
    tokens: int
    """As counted, the chat template's and the system prompt's included."""
    files: tuple[Read, ...]


Count = Callable[[str], int]
"""Tokens of a prompt as the model would read it: with the chat template and the system prompt."""


def whole(documents: Sequence[Document], question: str, count: Count) -> Prompt:
    """All of the files, however long that is."""
    return _prompt([Read(document, document.whole()) for document in documents], question, count)


def window(documents: Sequence[Document], question: str, count: Count, room: int) -> Prompt:
    """As much of the files as `room` tokens hold.

    Raises:
        ContextError: the question alone fills them, or not even one passage has room.
    """
    prompt = whole(documents, question, count)
    if prompt.tokens <= room:
        return prompt
    empty = count(wrap([(document.name, GAP) for document in documents], question))
    left = room - empty
    size = min(_PASSAGE, max(40, left // 2 // len(documents)))
    passages = [(number, span) for number, document in enumerate(documents) for span in _passages(document, size)]
    texts = [documents[number].text[begin:end] for number, (begin, end) in passages]
    base, gap = count(""), count(f"\n{GAP}\n") - count("")
    taken: list[int] = []
    misses = 0
    for index in _order(passages, texts, question):
        cost = count(texts[index]) - base + gap
        if cost <= left:
            taken.append(index)
            left, misses = left - cost, 0
        elif (misses := misses + 1) == _MISSES:
            break
    while taken:
        spans = [
            sorted(passages[index][1] for index in taken if passages[index][0] == n) for n in range(len(documents))
        ]
        prompt = _prompt([Read(document, _joined(mine)) for document, mine in zip(documents, spans, strict=True)],
                         question, count)  # fmt: skip
        if prompt.tokens <= room:
            return prompt
        taken.pop()
    raise ContextError(
        f"the question, the files' names and the chat template have {empty:,} tokens, and with them no passage of the "
        f"files fits into the {room:,} that are there",
        hint="Ask a shorter question, about fewer files, or load the model with a longer context.",
    )


def _prompt(files: Sequence[Read], question: str, count: Count) -> Prompt:
    text = wrap([(file.document.name, file.text) for file in files], question)
    return Prompt(text, count(text), tuple(files))


def _order(passages: Sequence[tuple[int, Span]], texts: Sequence[str], question: str) -> Iterator[int]:
    """The passages as they are taken: the first of each file, those the question is about, the others."""
    heads = [i for i, (number, _) in enumerate(passages) if i == 0 or passages[i - 1][0] != number]
    scored = scores(texts, question)
    found = sorted((i for i, score in enumerate(scored) if score > 0), key=lambda i: -scored[i])
    return iter(dict.fromkeys([*heads, *found, *range(len(passages))]))


def scores(texts: Sequence[str], question: str) -> list[float]:
    """BM25 of each text for the question's words. 0: it has none of them, or only such as half of the texts have."""
    wanted = set(_terms(question))
    counts = [Counter(_terms(text)) for text in texts]
    lengths = [sum(count.values()) for count in counts]
    mean = sum(lengths) / len(texts) or 1.0
    weights = {}
    for term in wanted:
        having = sum(term in count for count in counts)
        weights[term] = max(0.0, math.log((len(texts) - having + 0.5) / (having + 0.5)))
    return [
        sum(
            weight * count[term] * (_SATURATION + 1)
            / (count[term] + _SATURATION * (1 - _LENGTH + _LENGTH * length / mean))
            for term, weight in weights.items()
        )
        for count, length in zip(counts, lengths, strict=True)
    ]  # fmt: skip


def _terms(text: str) -> Iterator[str]:
    """Words without their case and an English plural's s; of Chinese, Japanese and Korean, each two signs."""
    for word in _WORD.findall(unicodedata.normalize("NFKC", text).casefold()):
        if re.match(f"[{_HAN}]", word):
            yield from (word[i : i + 2] for i in range(max(1, len(word) - 1)))
        else:
            yield word[:-1] if len(word) > 3 and word.endswith("s") else word


def _passages(document: Document, size: int) -> list[Span]:
    """All of the document, in pieces of at most `size` characters; of slides and pages, none has parts of two."""
    packed = document.unit not in ("page", "slide")
    found: list[Span] = []
    for begin, end in _whole_pieces(document):
        for piece in _cut(document.text, begin, end, size):
            if packed and found and piece[1] - found[-1][0] <= size:
                found[-1] = (found[-1][0], piece[1])
            else:
                found.append(piece)
    return [(begin, end) for begin, end in found if document.text[begin:end].strip()]


def _whole_pieces(document: Document) -> list[Span]:
    """Pages, slides, paragraphs or rows; of plain text, what stands between blank lines."""
    starts = list(document.marks)
    if document.unit == "line":
        starts = [0, *(found.end() for found in re.finditer(r"\n[ \t]*\n+", document.text))]
    return list(zip(starts, [*starts[1:], len(document.text)], strict=True))


def _cut(text: str, begin: int, end: int, size: int) -> Iterator[Span]:
    """Pieces of at most `size`, ended at a line, else a sentence, else a word, else anywhere."""
    while end - begin > size:
        at = begin + size
        for ending in _ENDS:
            last = max((found.end() for found in ending.finditer(text, begin + size // 2, at)), default=None)
            if last is not None:
                at = last
                break
        yield begin, at
        begin = at
    if begin < end:
        yield begin, end


def _joined(spans: Sequence[Span]) -> tuple[Span, ...]:
    joined: list[Span] = []
    for begin, end in spans:
        if joined and joined[-1][1] == begin:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((begin, end))
    return tuple(joined)
