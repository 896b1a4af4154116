"""The texts a model is measured on, cut into windows of tokens that share nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from edge.errors import UsageError
from edge.runtime.prompts import Prompt

LANGUAGES = ("en", "zh")
"""Those of the shipped texts."""


def shipped(language: str) -> str:
    """A text written for this, which no model was trained on: two pages in "en" or "zh"."""
    return resources.files("edge.quality").joinpath(f"text.{language}.txt").read_text(encoding="utf-8")


def read(path: Path | None) -> dict[str, str]:
    """Texts by name: the shipped ones by language or, by its file's name, the user's.

    Raises:
        UsageError: the file cannot be read, or holds nothing.
    """
    if path is None:
        return {language: shipped(language) for language in LANGUAGES}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the text {path} cannot be read ({error})", hint="Name a text file in UTF-8.") from error
    if not text.strip():
        raise UsageError(f"the text {path} is empty", hint="Name a file with some pages of text.")
    return {path.name: text}


def windows(texts: dict[str, str], tokenizer: Any, *, window: int, tokens: int) -> list[Prompt]:
    """The first `tokens` tokens of each text in windows, whose language is the text's name.

    No special tokens are put before them: a window begins in the middle of a text.

    Args:
        tokenizer: a `PreTrainedTokenizerFast`.

    Raises:
        UsageError: a text is too short to be measured.
    """
    found = []
    for name, text in texts.items():
        # of a long text only the beginning is encoded: no token stands for so many characters
        ids = list(tokenizer.encode(text[: 20 * tokens], add_special_tokens=False))[:tokens]
        pieces = [ids[start : start + window] for start in range(0, len(ids), window)]
        kept = [piece for piece in pieces if len(piece) > 2]
        if not kept:
            raise UsageError(f"the text {name} has {len(ids)} tokens", hint="Name one of some pages.")
        found += [Prompt(f"{name} {number}", name, piece) for number, piece in enumerate(kept, 1)]
    return found


def digest(windows: Sequence[Sequence[int]]) -> str:
    """Tells whether two measurements were made on the same tokens, cut in the same way."""
    return hashlib.sha256(repr([list(map(int, each)) for each in windows]).encode()).hexdigest()[:16]
