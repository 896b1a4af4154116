"""Texts of files and a question → one message, as GLM-4's own demo writes it. Pure."""

from __future__ import annotations

from collections.abc import Sequence

_BETWEEN = "\n\n\n"


def wrap(files: Sequence[tuple[str, str]], question: str) -> str:
    """The message of a user who has handed in files and asks about them.

    Args:
        files: name and text of each.
    """
    told = [f"[File Name]\n{name}\n[File Content]\n{text}" for name, text in files]
    return _BETWEEN.join([*told, f"{len(files)} files uploaded.\n{question}"])
