"""Texts → tokens, many at a time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

_AT_ONCE = 1_000_000
"""Characters, padded: what is encoded at once is as long as the longest of it."""
_ROWS = 4096


def ids_of_all(tokenizer: Any, parts: Sequence[str]) -> list[int]:
    """Tokens of all parts, one behind the other, each as if it stood alone.

    A call was seen to take half a millisecond however short the part is, and a message of 8 MB that spells special
    tokens has a million parts: so they are encoded together, those of about one length.

    Args:
        tokenizer: of OpenVINO GenAI.
    """
    found: list[list[int]] = [[] for _ in parts]
    waiting: list[int] = []
    for place in sorted((place for place, part in enumerate(parts) if part), key=lambda place: len(parts[place])):
        if len(waiting) == _ROWS or (waiting and len(parts[place]) * (len(waiting) + 1) > _AT_ONCE):
            _encode(tokenizer, parts, waiting, found)
            waiting = []
        waiting.append(place)
    if waiting:
        _encode(tokenizer, parts, waiting, found)
    return list(chain.from_iterable(found))


def _encode(tokenizer: Any, parts: Sequence[str], places: Sequence[int], found: list[list[int]]) -> None:
    if len(places) == 1:
        encoded = tokenizer.encode(parts[places[0]], add_special_tokens=False)
        found[places[0]] = [int(token) for token in encoded.input_ids.data[0]]
        return
    encoded = tokenizer.encode([parts[place] for place in places], add_special_tokens=False)
    for place, ids, real in zip(places, encoded.input_ids.data, encoded.attention_mask.data, strict=True):
        found[place] = ids[real.astype(bool)].tolist()
