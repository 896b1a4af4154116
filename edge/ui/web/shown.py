"""A conversation as the page shows it. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from edge.ui.web.talk import Step, Talk, Turn
from edge.ui.web.words import told

# Fenced, indented and inline code, the last fence perhaps not closed yet: Markdown shows what is in it as it is.
_CODE = r"(^```.*?(?:^```|\Z)|^~~~.*?(?:^~~~|\Z)|(?:\A|(?<=\n\n))(?:(?: {4}|\t)[^\n]*\n?)+|(`+)(?!`).+?(?<!`)\2(?!`))"
# A formula: $$…$$, \[…\], \(…\), and $…$ where no blank stands inside its ends and no digit behind it ("$5 and $6").
_FORMULA = r"(?P<formula>\$\$.+?\$\$|\\\[.+?\\\]|\\\(.+?\\\)|(?<![\\$\w])\$(?![\s$])[^$\n]*?[^\s$\\]\$(?![\d$]))"
_PIECES = re.compile(f"{_CODE}|{_FORMULA}", re.S | re.M)
LATEX = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]
"""What `text` leaves of the ways to write a formula."""


_FILE = "↳ **"
"""Begins the line of a file below a question."""
_LESS, _AND = "&#x0003c;", "&#x00026;"
"""As nobody else writes them, so that the page's script can take them back where it copies or edits a text."""


def text(written: str) -> str:
    """Markdown that shows HTML as it was written, instead of obeying it."""
    pieces, place = [], 0
    for found in _PIECES.finditer(written):
        pieces += [_escaped(written[place : found.start()]), _formula(found)]
        place = found.end()
    return "".join([*pieces, _escaped(written[place:])])


def _formula(found: re.Match[str]) -> str:
    formula = found["formula"]
    if formula is None:
        return found[0]
    if not formula.startswith("$$") and formula.startswith("$"):
        formula = f"\\({formula[1:-1]}\\)"
    return formula.replace("<", "\\lt ").replace(">", "\\gt ")


def _escaped(written: str) -> str:
    return written.replace("&", _AND).replace("<", _LESS)


def messages(talk: Talk, last: Turn | None, words: Mapping[str, str]) -> tuple[list[dict[str, Any]], list[int]]:
    """What the chatbot takes, and for each message the number of its turn.

    Args:
        last: the answer under way, in the place of the last turn.
    """
    shown: list[dict[str, Any]] = []
    places: list[int] = []
    turns = talk.turns if last is None else [*talk.turns[:-1], last]
    for index, turn in enumerate(turns):
        parts = _question(turn, words) if turn.role == "user" else _answer(turn, turn is last, words)
        shown += parts
        places += [index] * len(parts)
    return shown, places


def _question(turn: Turn, words: Mapping[str, str]) -> list[dict[str, Any]]:
    parts = [text(turn.content)] if turn.content else []
    for document in turn.documents:
        parts.append(f"{_FILE}{text(document.name)}** · {words['tokens'].format(document.tokens)}")
    return [{"role": "user", "content": "\n\n".join(parts) or "…"}]


def edited(given: str) -> str:
    """A question as it was written, from what is shown of it and was edited there."""
    question, _, _ = f"\n\n{given}".partition(f"\n\n{_FILE}")
    return question.strip().replace(_LESS, "<").replace(_AND, "&")


def _answer(turn: Turn, comes: bool, words: Mapping[str, str]) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    if turn.thought:
        thinking = comes and not turn.content
        metadata = {"title": words["thought"], "status": "pending" if thinking else "done"}
        parts.append({"role": "assistant", "content": text(turn.thought), "metadata": metadata})
    for step in turn.steps:
        parts += [{"role": "assistant", "content": text(step.before)}] if step.before else []
        parts.append({"role": "assistant", "content": _step(step), "metadata": _title(step, words)})
    lines = [text(turn.content)] if turn.content else []
    if turn.ending == "cancelled" and not turn.failed:
        lines.append(f"*({words['stopped']})*")
    if turn.ending == "partial" and not comes:
        lines.append(f"*({words['cut off']})*")
    if turn.ending == "length":
        lines.append(f"*({words['length']})*")
    notices = [text(told(notice, words)) for notice in turn.notices]
    if turn.failed and notices:
        notices[-1] = f"***!*** {notices[-1]}"  # the look makes a fault of a quotation so marked
    lines += [f"> {notice}" for notice in notices]
    if lines or not comes:
        parts.append({"role": "assistant", "content": "\n\n".join(lines)})
    elif comes and not parts:
        parts.append({"role": "assistant", "content": f"*{words['reading']}*"})
    return parts


def _title(step: Step, words: Mapping[str, str]) -> dict[str, str]:
    state = "failed" if step.failed else "called"
    return {"title": f"{text(step.name)} · {words[state]}", "status": "done"}


def _step(step: Step) -> str:
    return f"```json\n{_pretty(step.arguments)}\n```\n```json\n{_pretty(step.result or '')}\n```"


def _pretty(written: str) -> str:
    try:
        return json.dumps(json.loads(written), ensure_ascii=False)
    except ValueError:
        return written.replace("```", "ˋˋˋ")
