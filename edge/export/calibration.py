"""Text to calibrate with, shipped with the program: what the pocket model itself says.

`calibration.txt` was sampled from the bf16 pocket model (SmolLM2-135M-Instruct, Apache-2.0), which continued openings
written for it: articles, prose, code, questions; a few lines in GLM-4's other languages were written by hand. It says
how such models talk, and nothing in it is true. `python -m benchmarks.calibration_text` makes it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from edge.errors import RecipeError

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


@dataclass(frozen=True)
class UserText:
    """A calibration text that the user gave, as it was when the export began."""

    name: str
    text: str = field(repr=False)
    sha256: str

    @classmethod
    def read(cls, path: Path) -> UserText:
        """Read a file.

        Raises:
            RecipeError: it cannot be read, or is not in UTF-8.
        """
        try:
            data = path.read_bytes()
            return cls(path.name, data.decode("utf-8-sig"), hashlib.sha256(data).hexdigest())
        except OSError as error:
            raise RecipeError(
                f"the calibration text {path} cannot be read ({error.strerror or error})", hint="Name a text file."
            ) from error
        except UnicodeDecodeError as error:
            raise RecipeError(
                f"the calibration text {path} is not in UTF-8 (byte {error.start})",
                hint="Save it as plain text in UTF-8.",
            ) from error

    def samples(self, tokenizer: Any) -> list[list[int]]:
        """As many samples as of the text shipped, and as long, evenly spread over this one.

        Raises:
            RecipeError: the text is too short.
        """
        encoded = tokenizer.encode(self.text, add_special_tokens=False)
        ids: list[int] = list(getattr(encoded, "ids", encoded))
        if len(ids) < _COUNT * _LENGTH:
            raise RecipeError(
                f"the calibration text {self.name} has {len(ids):,} tokens, and {_COUNT * _LENGTH:,} are needed",
                hint="Give a longer text, like what the model will meet, or leave --calibration-text out.",
            )
        step = (len(ids) - _LENGTH) // (_COUNT - 1)
        return [ids[i * step : i * step + _LENGTH] for i in range(_COUNT)]
