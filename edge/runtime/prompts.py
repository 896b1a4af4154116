"""Prompts to compare models on: those shipped, or a file of the user's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from edge.errors import UsageError

_PIECE = 1024  # tokens of each prompt that a plain text is cut into
_KEYS = {"id", "language", "text", "chat", "tokens"}


@dataclass(frozen=True)
class PromptText:
    """A prompt in words.

    Args:
        chat: a user's message, for the chat template; else a text to be continued.
        tokens: it is cut after as many; None: it is left whole.
        pieces: it goes on after the cut as further prompts.
    """

    id: str
    language: str
    text: str
    chat: bool = False
    tokens: int | None = None
    pieces: bool = False


@dataclass(frozen=True)
class Prompt:
    """A prompt in tokens, with all that stands before an answer."""

    id: str
    language: str
    token_ids: list[int]


def shipped() -> list[PromptText]:
    """Short questions, and texts of 128, 512 and 1,024 tokens, in English and Chinese."""
    text = resources.files("edge.runtime").joinpath("prompts.jsonl").read_text(encoding="utf-8")
    return _from_lines(text.splitlines(), "prompts.jsonl")


def read(path: Path) -> list[PromptText]:
    """Prompts of a file: JSON Lines as `prompts.jsonl` has them, or else one plain text, cut into pieces.

    Raises:
        UsageError: it cannot be read, or holds none.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the prompts {path} cannot be read ({error})", hint="Name a text file in UTF-8.") from error
    if path.suffix == ".jsonl":
        found = _from_lines(text.splitlines(), str(path))
    else:
        found = [PromptText(path.stem, "text", text, tokens=_PIECE, pieces=True)] if text.strip() else []
    if not found:
        raise UsageError(f"{path} holds no prompts", hint='Each line is like {"id": "q1", "text": "Why?"}.')
    return found


def encode(texts: Iterable[PromptText], tokenizer: Any) -> list[Prompt]:
    """Prompts in the tokens of a checkpoint.

    Args:
        tokenizer: a `PreTrainedTokenizerFast`; without a chat template every prompt is a text to be continued.

    Raises:
        UsageError: a prompt has fewer than two tokens, of which nothing could be measured.
    """
    out = []
    for text in texts:
        if text.chat and tokenizer.chat_template:
            message = [{"role": "user", "content": text.text}]
            written = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
            ids = list(tokenizer.encode(written, add_special_tokens=False))  # the template writes them itself
        else:
            ids = list(tokenizer.encode(text.text))
        size = text.tokens or len(ids)
        pieces = [ids[start : start + size] for start in range(0, len(ids), size or 1)]
        if len(pieces) > 1 and len(pieces[-1]) < 2:
            pieces.pop()
        if not pieces or len(pieces[0]) < 2:
            raise UsageError(f"the prompt '{text.id}' has {len(ids)} tokens", hint="Give it some words.")
        if not text.pieces:
            out.append(Prompt(text.id, text.language, pieces[0]))
        else:
            out += [Prompt(f"{text.id} {i}", text.language, piece) for i, piece in enumerate(pieces, 1)]
    return out


def _from_lines(lines: Sequence[str], origin: str) -> list[PromptText]:
    out: list[PromptText] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            if not isinstance(value, dict) or not set(value) <= _KEYS:
                raise ValueError(f"it is no object of {', '.join(sorted(_KEYS))}")
            text = PromptText(
                id=str(value.get("id", number)), language=str(value.get("language", "text")), text=value["text"],
                chat=bool(value.get("chat", True)), tokens=value.get("tokens"),
            )  # fmt: skip
            whole = isinstance(text.tokens, int) and not isinstance(text.tokens, bool)
            if not isinstance(text.text, str) or not (text.tokens is None or (whole and text.tokens > 1)):
                raise ValueError("text is words, and tokens a whole number above 1")
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"line {number} of {origin} is no prompt ({error})",
                hint='Each line is like {"id": "q1", "language": "en", "text": "Why?", "chat": true}.',
            ) from error
        out.append(text)
    names = [text.id for text in out]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{origin} names two prompts '{twice}'", hint="Give each an id of its own.")
    return out
