"""The reference's store: what a checkpoint says of a prompt set, in one file that a laptop reads without PyTorch.

A safetensors file. Of every prompt it holds the tokens of prompt and answer and, for each of these positions but the
last, the `top_k` largest logits with their tokens, the log-sum-exp of all logits and the log-probability of the token
that follows. The rest (checkpoint, settings, machine, timings) is JSON in its header.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from edge.errors import ModelError, OutputError

FORMAT = 1
_KEY = "glm4_edge_reference"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Checkpoint(_Section):
    """What was run."""

    model: str
    """The name or folder the user gave."""
    revision: str | None
    sha256: dict[str, str]
    """Digest of each of its files that was read."""
    vocab_size: int
    num_layers: int


class Entry(_Section):
    """One prompt and its greedy answer; the numbers are in the arrays of `Positions`."""

    id: str
    language: str
    prompt_tokens: int
    answer_tokens: int
    """The stop token, which ends some answers, is counted."""
    ttft_s: float
    """From the prompt's ids to the first token."""
    decode_s: float
    """From there to the last."""
    unlike_forced: int
    """Answer tokens that are not the likeliest where the whole text is read at once: the reference's own noise."""


class About(_Section):
    """All that is not an array."""

    format: int
    created: str
    """UTC, ISO 8601."""
    checkpoint: Checkpoint
    dtype: str
    device: str
    top_k: int
    decoding: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]
    entries: list[Entry]


class Positions:
    """One prompt's numbers: S tokens of prompt and answer, and what follows each of the first S - 1.

    `tokens` int64 [S]; `top_ids` int64 and `top_logits` float64 [S - 1, top_k], the largest first; `log_sum_exp` and
    `next_log_probs` float64 [S - 1], in nats.
    """

    def __init__(
        self,
        tokens: NDArray[Any],
        top_ids: NDArray[Any],
        top_logits: NDArray[Any],
        log_sum_exp: NDArray[Any],
        next_log_probs: NDArray[Any],
    ) -> None:
        self.tokens = tokens.astype(np.int64)
        self.top_ids = top_ids.astype(np.int64)
        self.top_logits = top_logits.astype(np.float64)
        self.log_sum_exp = log_sum_exp.astype(np.float64)
        self.next_log_probs = next_log_probs.astype(np.float64)


class Reference:
    """A store in memory: what it is about, and the positions of each entry, in the same order."""

    def __init__(self, about: About, positions: list[Positions]) -> None:
        self.about, self.positions = about, positions

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            OutputError: it cannot be written.
        """
        from safetensors.numpy import save

        def joined(name: str, dtype: Any) -> NDArray[Any]:
            return np.concatenate([getattr(one, name) for one in self.positions]).astype(dtype)

        # A log-sum-exp in single precision would leave 1e-6 of probability to where there is none. Logits are no wider
        # than that where they come from.
        tensors = {
            "tokens": joined("tokens", np.int32), "top_ids": joined("top_ids", np.int32),
            "top_logits": joined("top_logits", np.float32), "log_sum_exp": joined("log_sum_exp", np.float64),
            "next_log_probs": joined("next_log_probs", np.float64),
        }  # fmt: skip
        beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                beside.write_bytes(save(tensors, {_KEY: self.about.model_dump_json()}))  # save_file's is ours alone
                beside.replace(path)
            finally:
                beside.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(
                f"{path} cannot be written ({error.strerror or error})",
                hint="Choose a place you may write to, with some megabytes free.",
            ) from error

    @classmethod
    def read(cls, path: Path) -> Reference:
        """Read a file.

        Raises:
            ModelError: there is none, it is no reference or damaged, or another version wrote it.
        """
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            raise ModelError(f"there is no reference {path}", hint="Make one with: glm4-edge reference CHECKPOINT FILE")
        try:
            with safe_open(path, "numpy") as file:
                text = (file.metadata() or {}).get(_KEY)
                arrays = {name: file.get_tensor(name) for name in file.keys()} if text else {}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path} is damaged, or no reference ({error})", hint=_AGAIN) from error
        if text is None:
            raise ModelError(f"{path} is no reference of glm4-edge", hint=_AGAIN)
        try:
            about = About.model_validate_json(text)
            return cls(about, _cut(about, arrays))
        except (ValidationError, KeyError, ValueError) as error:
            raise ModelError(f"{path} is damaged or from another version", hint=_AGAIN) from error


_AGAIN = "Make it again with: glm4-edge reference CHECKPOINT FILE"


def _cut(about: About, arrays: dict[str, NDArray[Any]]) -> list[Positions]:
    """The joined arrays, one piece for each entry.

    Raises:
        ValueError: of another format, or the pieces are not all there.
    """
    if about.format != FORMAT:
        raise ValueError(about.format)
    lengths = [entry.prompt_tokens + entry.answer_tokens for entry in about.entries]
    rows = sum(lengths) - len(lengths)
    expected = {
        "tokens": (sum(lengths),), "top_ids": (rows, about.top_k), "top_logits": (rows, about.top_k),
        "log_sum_exp": (rows,), "next_log_probs": (rows,),
    }  # fmt: skip
    if {name: arrays[name].shape for name in expected} != expected:
        raise ValueError("the arrays do not fit the entries")
    out, token, row = [], 0, 0
    for length in lengths:
        span = slice(row, row + length - 1)
        out.append(
            Positions(
                arrays["tokens"][token : token + length], arrays["top_ids"][span], arrays["top_logits"][span],
                arrays["log_sum_exp"][span], arrays["next_log_probs"][span],
            )
        )  # fmt: skip
        token, row = token + length, row + length - 1
    return out
