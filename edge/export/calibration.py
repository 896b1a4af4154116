"""Text to calibrate with, shipped with the program: what the pocket model itself says.

`calibration.txt` was sampled from the bf16 pocket model (SmolLM2-135M-Instruct, Apache-2.0), which continued openings
written for it: articles, prose, code, questions; a few lines in GLM-4's other languages were written by hand. It says
how such models talk, and nothing in it is true. `python -m benchmarks.calibration_text` makes it.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

# 2,048 tokens in all. On the pocket model 1,536 give a KL of 0.067 instead of 0.056; more take their time.
_COUNT, _LENGTH = 4, 512


def calibration_samples(
    tokenizer: Any, *, count: int = _COUNT, length: int = _LENGTH, held_out: bool = False
) -> list[list[int]]:
    """`count` samples of `length` token ids each, the same at every call.

    Args:
        tokenizer: anything with `encode(text)` that returns ids, or an object with `ids` (`tokenizers.Tokenizer`).
        held_out: samples that calibration with the default `count` and `length` has not seen, for checking.

    Raises:
        ValueError: the shipped text has fewer tokens in this tokenizer.
    """
    text = resources.files("edge.export").joinpath("calibration.txt").read_text(encoding="utf-8")
    encoded = tokenizer.encode(text, add_special_tokens=False)
    ids: list[int] = list(getattr(encoded, "ids", encoded))
    begin = _COUNT * _LENGTH if held_out else 0
    if begin + count * length > len(ids):
        raise ValueError(f"the calibration text has {len(ids)} tokens, not {begin + count * length}")
    return [ids[begin + i * length : begin + (i + 1) * length] for i in range(count)]
