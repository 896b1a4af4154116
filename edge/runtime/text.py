"""Token ids → text that is safe to show: no half characters, no half emoji, nothing of a stop string. Pure.

A byte-level vocabulary cuts where it likes: 你 may take three tokens, 👩‍👩‍👧 a dozen. What a reader could
see change is held back until it cannot change any more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"
_LONGEST_PARTIAL = 3  # bytes of a UTF-8 character that lacks its last one
_WINDOW = 16  # tokens looked at again at most
_LONGEST_CLUSTER = 64  # characters; no real emoji is longer, a runaway model's may be

_ZWJ = "\u200d"
_EXTENDERS = ((0xFE0E, 0xFE0F), (0x200D, 0x200D), (0x20E3, 0x20E3), (0x1F3FB, 0x1F3FF), (0xE0020, 0xE007F))
_FLAG_LETTERS = ((0x1F1E6, 0x1F1FF),)
# What can open an emoji: the pictograph blocks, and the signs and digits that a selector turns into one.
_OPENERS = (
    (0x1F000, 0x1FAFF), (0x2300, 0x27BF), (0x2190, 0x21FF), (0x2900, 0x297F), (0x2B00, 0x2BFF),
    (0x30, 0x39), (0x23, 0x23), (0x2A, 0x2A), (0xA9, 0xA9), (0xAE, 0xAE), (0x203C, 0x203C), (0x2049, 0x2049),
    (0x2122, 0x2122), (0x2139, 0x2139), (0x3030, 0x3030), (0x303D, 0x303D), (0x3297, 0x3297), (0x3299, 0x3299),
)  # fmt: skip


class TextBuffer:
    """Takes the tokens of one answer in order and gives out its text in pieces.

    The pieces joined are the decoded answer, without one leading newline (GLM-4 opens its turn with it),
    cut before the first stop string, and without a character that the answer's end left incomplete.

    Args:
        decode: ids → text, where a sequence that is no UTF-8 becomes U+FFFD. The text of a joined
            sequence must be the joined bytes, as in every byte-level vocabulary.
        stop: strings at which the answer ends; they are not part of it.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = tuple(stop)
        self._window: list[int] = []  # tokens whose last character may be incomplete
        self._taken = 0  # characters of the window's text already passed on
        self._held = ""
        self._at_start = True
        self.stopped = False
        """A stop string was met; nothing more will come out."""

    def push(self, ids: Sequence[int]) -> str:
        """Add tokens; return the text that has become certain, which may be empty."""
        if self.stopped or not ids:
            return ""
        self._window += ids
        text = self._decode(self._window)
        certain = _without_partial(text)
        fresh, self._taken = certain[self._taken :], max(self._taken, len(certain))
        if len(certain) == len(text):
            self._window, self._taken = [], 0
        elif len(self._window) > _WINDOW:
            # Bytes that never become a character: keep enough to complete the last one.
            self._window = self._window[-_WINDOW // 2 :]
            self._taken = len(_without_partial(self._decode(self._window)))
        return self._release(fresh)

    def finish(self) -> str:
        """The rest of the text, when no more tokens will come."""
        rest, self._held = self._held, ""
        return rest

    def _release(self, fresh: str) -> str:
        if self._at_start and fresh:
            self._at_start = False
            fresh = fresh[1:] if fresh[0] == "\n" else fresh
        text = self._held + fresh
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max(_started(text, self._stop), _open_emoji(text))
        cut = len(text) - keep
        self._held = text[cut:]
        return text[:cut]


def _without_partial(text: str) -> str:
    """Without the replacement characters that may stand for the first bytes of a character to come."""
    end = len(text)
    while end > 0 and text[end - 1] == REPLACEMENT and len(text) - end < _LONGEST_PARTIAL:
        end -= 1
    return text[:end]


def _started(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of `text` with which a stop string begins."""
    lengths = (n for s in stop for n in range(min(len(s) - 1, len(text)), 0, -1) if text.endswith(s[:n]))
    return max(lengths, default=0)


def _open_emoji(text: str) -> int:
    """Length of the emoji at the end of `text` that another character might still extend; else 0."""
    if not text:
        return 0
    start = len(text) - 1
    while start > 0 and (_in(text[start], _EXTENDERS) or text[start - 1] == _ZWJ):
        start -= 1
    length = len(text) - start
    if _in(text[start], _FLAG_LETTERS):
        letters = len(text) - len(text.rstrip("".join(map(chr, range(0x1F1E6, 0x1F200)))))
        return letters % 2  # a flag is two letters; the second completes it
    return length if length <= _LONGEST_CLUSTER and (length > 1 or _in(text[start], _OPENERS)) else 0


def _in(character: str, ranges: tuple[tuple[int, int], ...]) -> bool:
    return any(low <= ord(character) <= high for low, high in ranges)
