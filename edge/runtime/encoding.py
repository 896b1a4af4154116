"""Texts → tokens, many at a time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

_SHORT = 256
"""Characters. What is encoded at once is padded to the longest of it."""
_AT_ONCE = 4096


def ids_of_all(tokenizer: Any, parts: Sequence[str]) -> list[int]:
    """Tokens of all parts, one behind the other, each as if it stood alone.

    A call was seen to take half a millisecond however short the part is, and a message of 8 MB that spells special
    tokens has a million parts: so short ones are encoded together.

    Args:
        tokenizer: of OpenVINO GenAI.
    """
    found: list[int] = []
    for short, group in groupby(filter(None, parts), lambda part: len(part) <= _SHORT):
        several = list(group)
        size = _AT_ONCE if short else 1
        for at in range(0, len(several), size):
            together = several[at : at + size]
            if len(together) == 1:
                found += map(int, tokenizer.encode(together[0], add_special_tokens=False).input_ids.data[0])
                continue
            encoded = tokenizer.encode(together, add_special_tokens=False)
            found += encoded.input_ids.data[encoded.attention_mask.data.astype(bool)].tolist()
    return found
