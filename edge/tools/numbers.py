"""Numbers between two bounds, as a grammar over their digits."""

from __future__ import annotations

from decimal import Decimal

DIGITS = 15
"""Of an integer or a fraction without a bound: as many as every reader of JSON keeps."""


def integers(low: int | None, high: int | None) -> list[str]:
    """Alternatives, in EBNF, that together are the integers from `low` to `high`, both included."""
    found = []
    if low is None or low < 0:
        found += [
            '"-" ' + part for part in _naturals(max(1, -high if high is not None else 1), None if low is None else -low)
        ]
    if high is None or high >= 0:
        found += _naturals(max(0, low or 0), high)
    return found


def decimals(low: Decimal | None, high: Decimal | None, above: bool, below: bool) -> list[str]:
    """The same for numbers, written without an exponent; `above` and `below` leave out the bound itself."""
    found = []
    if low is None or low < 0:
        least = (max(Decimal(0), -high), below) if high is not None else (Decimal(0), False)
        found += ['"-" ' + part for part in _positive(*least, None if low is None else -low, above)]
    if high is None or high >= 0:
        found += _positive(max(Decimal(0), low or Decimal(0)), above and low is not None and low >= 0, high, below)
    return found


def _naturals(low: int, high: int | None) -> list[str]:
    """From `low` up, `low` not negative, without leading zeros."""
    if high is None:
        high = 10 ** max(DIGITS, len(str(low)) + 1) - 1
    found = []
    while low <= high:
        length = len(str(low))
        end = min(high, 10**length - 1)
        found += _same_length(str(low), str(end))
        low = 10**length
    return found


def _same_length(low: str, high: str) -> list[str]:
    if not low:
        return ['""']
    if low[0] == high[0]:
        return [f'"{low[0]}" {rest}' for rest in _same_length(low[1:], high[1:])]
    many = len(low) - 1
    if low[1:] == "0" * many and high[1:] == "9" * many:
        return [f"[{low[0]}-{high[0]}] {_digits(many, many)}"]
    found = [f'"{low[0]}" {rest}' for rest in _same_length(low[1:], "9" * many)]
    if int(high[0]) - int(low[0]) > 1:
        found.append(f"[{int(low[0]) + 1}-{int(high[0]) - 1}] {_digits(many, many)}")
    return found + [f'"{high[0]}" {rest}' for rest in _same_length("0" * many, high[1:])]


def _positive(low: Decimal, above: bool, high: Decimal | None, below: bool) -> list[str]:
    if high is not None and (low > high or (low == high and (above or below))):
        return []
    whole, part = _split(low)
    top, end = _split(high) if high is not None else (None, "")
    if top == whole:
        return _with(str(whole), _fraction(part, above, end, below))
    found = _with(str(whole), _fraction(part, above, None, False))
    between = _naturals(whole + 1, None if top is None else top - 1)
    found += [f'{one} ("." {_digits(1, DIGITS)})?' for one in between]
    return found if top is None else found + _with(str(top), _fraction("", False, end, below))


def _split(number: Decimal) -> tuple[int, str]:
    whole, _, part = format(number, "f").partition(".")
    return int(whole), part.rstrip("0")


def _with(whole: str, fractions: list[str]) -> list[str]:
    """A whole part and a choice of digits behind the point, of which none is one."""
    found = [f'"{whole}"'] if '""' in fractions else []
    behind = [one for one in fractions if one != '""']
    return [*found, f'"{whole}." ({" | ".join(behind)})'] if behind else found


def _fraction(low: str, above: bool, high: str | None, below: bool) -> list[str]:
    """Digits behind the point that lie between two others; `high` None: no bound. The empty ones read `""`."""
    if high is None and not low:
        return [f'"0"{{0,{DIGITS}}} [1-9] {_digits(0, DIGITS)}'] if above else ['""', _digits(1, DIGITS)]
    if high == "":  # nothing but zeros is left
        return [] if low or above or below else ['""', f'"0"{{1,{DIGITS}}}']
    found = [] if low or above else ['""']
    first, last = int(low[:1] or 0), 9 if high is None else int(high[0])
    if first == last:
        ends = _fraction(low[1:], above, None if high is None else high[1:], below)
        return found + _behind(first, ends)
    found += _behind(first, _fraction(low[1:], above, None, False))
    if last - first > 1:
        found.append(f"[{first + 1}-{last - 1}] {_digits(0, DIGITS)}")
    return found + _behind(last, [_digits(0, DIGITS)] if high is None else _fraction("", False, high[1:], below))


def _behind(digit: int, fractions: list[str]) -> list[str]:
    return [f'"{digit}" {one}' for one in fractions]


def _digits(least: int, most: int) -> str:
    return f"[0-9]{{{least},{most}}}" if most else '""'
