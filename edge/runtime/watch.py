"""Garbage seen while it is generated: one token for ever ("GGGG", "!!!!"), or a few in a circle. Pure.

A device that computes wrongly says one thing again and again, and never stops. Honest texts repeat, too: rules of
dashes, tables, lists of a hundred zeros, somebody's "write it two hundred times". So only long runs count, longer ones
where the prompt holds the token, and only short circles: a model that loops over a sentence is a poor model on a sound
device. What is said here is a suspicion, no verdict: the device is looked at while the answer goes on. Measured over
honest texts (`tests/runtime/test_watch.py`), nothing comes near a quarter of these lengths.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

RUN = 512
"""Tokens in a row, of one kind or of a few in a circle, that are garbage."""
_ASKED = 4  # times that, where the prompt ends with the token: it may have been asked for
_RECENT = 1024  # tokens of the prompt's end that are looked at
_CYCLE = 4
"""Longest circle, in tokens."""


class Watch:
    """Looks at the tokens of one answer as they come.

    Args:
        prompt_ids: what is answered.
    """

    def __init__(self, prompt_ids: Sequence[int] = ()) -> None:
        self._known = frozenset(prompt_ids[-_RECENT:])
        self._recent: list[int] = []
        self._same = [0] * (_CYCLE + 1)  # for each period, how many of the last tokens equal the one a period before
        self._told = False

    def push(self, token_ids: Iterable[int]) -> str | None:
        """Take the next tokens; says once what is wrong with the answer, in words, else None."""
        for token in token_ids:
            for period in range(1, _CYCLE + 1):
                again = len(self._recent) >= period and self._recent[-period] == token
                self._same[period] = self._same[period] + 1 if again else 0
            self._recent = [*self._recent[-_CYCLE:], token]
            reason = None if self._told else self._reason()
            if reason is not None:
                self._told = True
                return reason
        return None

    def _reason(self) -> str | None:
        for period in range(1, _CYCLE + 1):
            circle = self._recent[-period:]
            limit = RUN * (_ASKED if self._known.issuperset(circle) else 1)
            length = self._same[period] + period
            if self._same[period] and length >= limit:
                ids = ", ".join(map(str, circle))
                if period == 1:
                    return f"the answer repeats one token ({ids}) {length} times in a row"
                return f"the answer goes round in a circle of {period} tokens ({ids}) for {length} tokens"
        return None
