"""The reference's store: what a checkpoint says of a prompt set, in one file that a laptop reads without PyTorch.

A safetensors file. Of every prompt it holds the tokens of prompt and answer and, for each of these positions but the
last, the `top_k` largest logits with their tokens, the log-sum-exp of all logits and the log-probability of the token
that follows. The rest (checkpoint, settings, machine, timings) is JSON in its header.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge.errors import ModelError, OutputError

FORMAT = 1
_KEY = "glm4_edge_reference"


Count = Annotated[int, Field(gt=0, lt=2**31)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Checkpoint(_Section):
    """What was run."""

    model: str
    """The name or folder the user gave."""
    revision: str | None
    sha256: dict[str, str]
    """Digest of each of its files that was read."""
    vocab_size: Count
    num_layers: Count


class Entry(_Section):
    """One prompt and its greedy answer; the numbers are in the arrays of `Positions`."""

    id: str
    language: str
    prompt_tokens: Annotated[int, Field(ge=2, lt=2**31)]
    """Two at least: of a single one nothing is foretold, and there is no perplexity."""
    answer_tokens: Annotated[int, Field(ge=0, lt=2**31)]
    """The stop token, which ends some answers, is counted. None where a text was read and nothing was asked."""
    ttft_s: Seconds
    """From the prompt's ids to the first token."""
    decode_s: Seconds
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
    top_k: Count
    decoding: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]
    entries: Annotated[list[Entry], Field(min_length=1)]


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
        about = _about(path, text)
        positions = _cut(path, about, arrays)
        for entry, numbers in zip(about.entries, positions, strict=True):
            fault = _fault(numbers, about.checkpoint.vocab_size)
            if fault is not None:
                raise ModelError(f"{path} is damaged: in the prompt '{entry.id}' {fault}", hint=_AGAIN)
        return cls(about, positions)


_AGAIN = "Make it again with: glm4-edge reference CHECKPOINT FILE"


def _about(path: Path, text: str) -> About:
    """What the header says.

    Raises:
        ModelError: another version wrote it, or a figure in it cannot be.
    """
    try:
        content = json.loads(text, parse_constant=_no_number)
        found = content.get("format") if isinstance(content, dict) else None
        if isinstance(found, int) and found != FORMAT:
            raise ModelError(
                f"{path} has format {found}; this version reads format {FORMAT}",
                hint="Update glm4-edge, or make it again with this version." if found > FORMAT else _AGAIN,
            )
        return About.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ModelError(f"{path} is damaged: {where}: {first['msg']}", hint=_AGAIN) from error
    except ValueError as error:
        raise ModelError(f"{path} is damaged: its header is no JSON", hint=_AGAIN) from error


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON's")


def _fault(numbers: Positions, vocab_size: int) -> str | None:
    """What of one prompt's numbers cannot be; None where all can."""
    for what, ids in (("a token", numbers.tokens), ("one of the likeliest tokens", numbers.top_ids)):
        outside = ids[(ids < 0) | (ids >= vocab_size)]
        if len(outside):
            return f"{what} is {outside[0]}, outside the vocabulary of {vocab_size:,}"
    for what, values in (
        ("a logit", numbers.top_logits),
        ("a log-sum-exp", numbers.log_sum_exp),
        ("a log-probability", numbers.next_log_probs),
    ):
        wrong = values[~np.isfinite(values)]
        if len(wrong):
            return f"{what} is {wrong[0]}"
    return None


def _cut(path: Path, about: About, arrays: dict[str, NDArray[Any]]) -> list[Positions]:
    """The joined arrays, one piece for each entry.

    Raises:
        ModelError: the pieces are not all there.
    """
    lengths = [entry.prompt_tokens + entry.answer_tokens for entry in about.entries]
    rows = sum(lengths) - len(lengths)
    expected = {
        "tokens": (sum(lengths),), "top_ids": (rows, about.top_k), "top_logits": (rows, about.top_k),
        "log_sum_exp": (rows,), "next_log_probs": (rows,),
    }  # fmt: skip
    for name, shape in expected.items():
        found = arrays[name].shape if name in arrays else None
        if found != shape:
            there = "is missing" if found is None else f"has the shape {list(found)}"
            raise ModelError(f"{path} is damaged: {name} {there}, and its prompts need {list(shape)}", hint=_AGAIN)
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
