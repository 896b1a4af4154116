"""What an answer may look like, in pieces that a constrained decoder understands. Pure data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Literally:
    """Exactly this text."""

    text: str


@dataclass(frozen=True)
class JsonOf:
    """A JSON document that fits a schema."""

    schema: str
    """JSON Schema, as JSON."""


@dataclass(frozen=True)
class Matching:
    """Text that fits a regular expression, whole."""

    pattern: str


@dataclass(frozen=True)
class Anything:
    """Any text."""


@dataclass(frozen=True)
class InTurn:
    """One after the other."""

    parts: tuple[Grammar, ...]


@dataclass(frozen=True)
class OneOf:
    """Any one of them."""

    choices: tuple[Grammar, ...]


@dataclass(frozen=True)
class Several:
    """One or more of them, with a text between any two."""

    choices: tuple[Grammar, ...]
    between: str


@dataclass(frozen=True)
class Amid:
    """Any text; wherever it has one of these beginnings, it goes on as that says."""

    beginnings: tuple[tuple[str, Grammar], ...]


Grammar = Literally | JsonOf | Matching | Anything | InTurn | OneOf | Several | Amid
