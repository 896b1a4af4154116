"""Strings and numbers of a JSON Schema, as expressions of its grammar."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from edge.errors import UsageError
from edge.tools import numbers
from edge.tools.numbers import Bound, Rule

LONGEST_STRING, LONGEST_ARRAY = 4096, 128
_PART = 64
"""Signs that are counted together: of more than 128, xgrammar was seen to take 13 seconds for one step."""
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_LONGEST_BOUND = 30

_MONTHS = '"0" ([13578] "-" {31} | [469] "-" {30} | "2-" {29}) | "1" ([02] "-" {31} | "1-" {30})'
_DAYS = {"{31}": ' | "3" [01]', "{30}": ' | "30"', "{29}": ""}
for _days, _last in _DAYS.items():
    _MONTHS = _MONTHS.replace(_days, f'("0" [1-9] | [12] [0-9]{_last})')
_DATE = f'[12] [0-9]{{3}} "-" ({_MONTHS})'
_TIME = '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,6})?'
_TIME += ' ("Z" | [+-] ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9])'
_BYTE = '("0" | "1" ([0-9] [0-9]?)? | "2" ("5" [0-5]? | [0-4] [0-9]? | [6-9])? | [3-9] [0-9]?)'
_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f'{_DATE} "T" {_TIME}',
    "uuid": '[0-9a-f]{8} ("-" [0-9a-f]{4}){3} "-" [0-9a-f]{12}',
    "ipv4": f'{_BYTE} ("." {_BYTE}){{3}}',
    # without bounds on its parts: with them, xgrammar was seen to take six times as long
    "email": '[A-Za-z0-9_+-]+ ("." [A-Za-z0-9_+-]+)* "@" [A-Za-z0-9]+ ([.-] [A-Za-z0-9]+)+',
}


def string(schema: Mapping[str, Any], at: str) -> str:
    """A string of a length or a format."""
    least, most = string_lengths(schema, at)
    if (form := _FORMATS.get(schema.get("format", ""))) is not None:
        if "minLength" in schema or "maxLength" in schema:
            raise refusal(f"format and a length stand together at {at}", "Leave the length out.")
        return rf'("\"" {form} "\"")'
    return rf'("\"" {_signs(least, most)} "\"")' if least or most is not None else "string"


def _signs(least: int, most: int | None) -> str:
    """So many of `char`."""
    if max(least, most or 0) <= 2 * _PART:
        return f"char{times(least, most)}"
    parts = [f"char{{{_PART}}}"] * (least // _PART) + [f"char{{{least % _PART}}}"] * (least % _PART > 0)
    return " ".join([*parts, "char*" if most is None else _at_most(most - least)])


def _at_most(most: int) -> str:
    """Up to so many of `char`. At each place one of the ways alone goes on beyond a part's end."""
    found = f"char{{0,{most % _PART}}}" if most % _PART else '""'
    for _ in range(most // _PART):
        found = f"(char{{0,{_PART - 1}}} | char{{{_PART}}} {found})"
    return found


def number(schema: Mapping[str, Any], kind: str, at: str, rule: Rule) -> str:
    """A number or an integer, between bounds where there are some."""
    bounds = {word: schema[word] for word in BOUNDS if word in schema}
    if not bounds:
        return kind
    for word, value in bounds.items():
        if not _is_number(value):
            raise refusal(f"{word} at {at} is {shown(value)}, no number", "Put a number there.")
        if len(format(Decimal(value), "f")) > _LONGEST_BOUND:
            raise refusal(f"{word} at {at} has more than {_LONGEST_BOUND} digits", "Take a rounder one.")
    bounds = {word: value or 0 for word, value in bounds.items()}  # -0.0 is 0
    lows = [(Decimal(bounds[w]), w == "exclusiveMinimum") for w in ("minimum", "exclusiveMinimum") if w in bounds]
    highs = [(Decimal(bounds[w]), w != "exclusiveMaximum") for w in ("maximum", "exclusiveMaximum") if w in bounds]
    low = Bound(*max(lows)) if lows else None
    high = Bound(min(highs)[0], not min(highs)[1]) if highs else None
    if kind == "integer":
        low, high = _whole(low, "ROUND_FLOOR", 1), _whole(high, "ROUND_CEILING", -1)
    found = numbers.between(low, high, whole=kind == "integer", rule=rule)
    if found is None:
        raise refusal(f"no {kind} lies between the bounds at {at}", "Widen them.")
    return found


def _whole(bound: Bound | None, rounding: str, step: int) -> Bound | None:
    """The next integer inside the bound."""
    if bound is None:
        return None
    rounded = bound.value.to_integral_value(rounding)
    return Bound(rounded + step if rounded != bound.value or bound.open else rounded)


def string_lengths(schema: Mapping[str, Any], at: str) -> tuple[int, int | None]:
    """The least and the most signs of a string."""
    return _lengths(schema, "minLength", "maxLength", at, LONGEST_STRING)


def array_lengths(schema: Mapping[str, Any], at: str) -> tuple[int, int | None]:
    """The least and the most items of an array."""
    return _lengths(schema, "minItems", "maxItems", at, LONGEST_ARRAY)


def _lengths(schema: Mapping[str, Any], lower: str, upper: str, at: str, longest: int) -> tuple[int, int | None]:
    least, most = schema.get(lower, 0), schema.get(upper)
    for word, value in ((word, schema[word]) for word in (lower, upper) if word in schema):
        if not (_is_number(value) and value == int(value) and 0 <= value <= longest):
            raise refusal(f"{word} at {at} is {shown(value)}", f"Take a whole number of at most {longest:,}.")
    if most is not None and least > most:
        raise refusal(f"{lower} at {at} is above {upper}", "Lower it.")
    return int(least), None if most is None else int(most)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, Decimal)) and not isinstance(value, bool)


def times(least: int, most: int | None) -> str:
    """The sign behind what is repeated."""
    return "*" if not least and most is None else f"{{{least},{'' if most is None else most}}}"


def shown(value: Any) -> str:
    """A value in a message."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}…"


def refusal(message: str, hint: str) -> UsageError:
    """What is raised of a schema."""
    return UsageError(message, hint=hint)
