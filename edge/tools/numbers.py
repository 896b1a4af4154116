"""Numbers between two bounds, as rules over their digits.

One rule for each state that the digits so far can be in, and one way to read each number: of alternatives that begin
alike, xgrammar was seen to take texts that none of them holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby

DIGITS = 15
"""Of an integer or a fraction without a bound: as many as every reader of JSON keeps."""
Rule = Callable[[str], str]
"""Keeps the body of a rule and gives its name."""


@dataclass(frozen=True)
class Bound:
    """One end of a range."""

    value: Decimal
    open: bool = False
    """The value itself is not in the range."""


def between(low: Bound | None, high: Bound | None, *, whole: bool, rule: Rule) -> str | None:
    """An expression for the numbers from `low` to `high`, written without an exponent; None: there is none.

    Args:
        low: None: no bound.
        whole: integers only; the bounds are whole then, and not open.
    """
    zero = Bound(Decimal(0))
    parts = []
    if low is None or low.value < 0:
        least = zero if high is None or high.value > 0 else Bound(-high.value, high.open)
        below = _Magnitude(least, None if low is None else Bound(-low.value, low.open), whole, rule).start()
        parts += [f'"-" {below}'] if below else []
    if high is None or high.value >= 0:
        above = _Magnitude(zero if low is None or low.value < 0 else low, high, whole, rule).start()
        parts += [above] if above else []
    return f"({' | '.join(parts)})" if parts else None


class _Magnitude:
    """Numbers without a sign. `low` is not negative."""

    def __init__(self, low: Bound, high: Bound | None, whole: bool, rule: Rule) -> None:
        self._low, self._low_part = _split(low.value)
        self._high, self._high_part = (
            ("9" * max(DIGITS, len(self._low) + 1), "") if high is None else _split(high.value)
        )
        self._above, self._below, self._bounded = low.open, high is not None and high.open, high is not None
        self._whole, self._rule = whole, rule
        self._longest = max(DIGITS, len(self._low_part), len(self._high_part))
        self._known: dict[tuple[object, ...], str | None] = {}

    def start(self) -> str | None:
        return self._digits(0, 0, 0)

    def _state(self, key: tuple[object, ...], parts: Callable[[], Iterable[str]]) -> str | None:
        if key not in self._known:
            body = list(parts())
            self._known[key] = self._rule(" | ".join(body)) if body else None
        return self._known[key]

    def _digits(self, count: int, to_low: int, to_high: int) -> str | None:
        """After `count` digits before the point, which compare so (-1, 0, 1) with as many of each bound's."""

        def parts() -> Iterable[str]:
            longer, shorter = count - len(self._low), count - len(self._high)
            inside = (longer > 0 or (longer == 0 and to_low >= 0)) and (shorter < 0 or (shorter == 0 and to_high <= 0))
            if count and inside:
                yield from self._ends(longer == 0 and to_low == 0, self._bounded and shorter == 0 and to_high == 0)
            if shorter < 0:
                yield from _grouped("0123456789" if count else "123456789", after)

        def after(digit: str) -> str | None:
            return self._digits(
                count + 1,
                to_low or _compare(digit, self._low[count : count + 1]),
                to_high or _compare(digit, self._high[count]),
            )

        if count:
            return self._state((count, to_low, to_high), parts)
        zero = list(self._ends(True, self._bounded and self._high == "0")) if self._low == "0" else []
        zeros = [f'"0" {self._rule(" | ".join(zero))}'] if zero else []
        return self._state((), lambda: [*zeros, *parts()])

    def _ends(self, at_low: bool, at_high: bool) -> Iterable[str]:
        """What may follow the digits before the point: nothing, or a fraction."""
        if self._accepts(0, at_low, at_high):
            yield '""'
        if not self._whole and (rest := self._fraction(0, at_low, at_high)):
            yield f'"." {rest}'

    def _fraction(self, count: int, at_low: bool, at_high: bool) -> str | None:
        """After `count` digits behind the point, while they are those of a bound."""

        def parts() -> Iterable[str]:
            if count and self._accepts(count, at_low, at_high):
                yield '""'
            if count < self._longest:
                yield from _grouped("0123456789", after)

        def after(digit: str) -> str | None:
            low, high = (part[count : count + 1] or "0" for part in (self._low_part, self._high_part))
            if (at_low and digit < low) or (at_high and digit > high):
                return None
            return self._fraction(count + 1, at_low and digit == low, at_high and digit == high)

        return self._state(("fraction", count, at_low, at_high), parts)

    def _accepts(self, count: int, at_low: bool, at_high: bool) -> bool:
        """Whether the number may end here."""
        if at_low and (count < len(self._low_part) or self._above):
            return False
        return not (at_high and self._below and count >= len(self._high_part))


def _grouped(digits: str, after: Callable[[str], str | None]) -> Iterable[str]:
    """Digits, those together that lead to one state."""
    for rest, same in groupby(digits, after):
        if rest:
            group = list(same)
            yield f"[{group[0]}-{group[-1]}] {rest}"


def _split(number: Decimal) -> tuple[str, str]:
    whole, _, part = format(number, "f").partition(".")
    return whole, part.rstrip("0")


def _compare(one: str, other: str) -> int:
    return (one > other) - (one < other)
