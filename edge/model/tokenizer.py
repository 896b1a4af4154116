"""The checkpoint's tokenizer, as the reference: no remote code, no network.

`transformers` and `tokenizers` are imported inside: they take seconds, and chat does without them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from edge.errors import CheckpointError
from edge.model.spec import GlmSpec, read_json


def load(folder: Path) -> Any:
    """The fast tokenizer of a checkpoint, a `transformers.PreTrainedTokenizerFast`.

    Raises:
        CheckpointError: there is no `tokenizer.json`, or it cannot be read.
    """
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{folder} has no tokenizer.json", hint="Download the tokenizer's files into the same folder."
        )
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it would announce that there is no PyTorch
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the Rust side raises bare Exception for a malformed file
        raise CheckpointError(
            f"{folder / 'tokenizer.json'} cannot be read ({error})", hint="Download the tokenizer's files again."
        ) from error


def stop_ids(folder: Path, spec: GlmSpec) -> list[int]:
    """Every id that ends an answer: those of `generation_config.json` and of `config.json`, in that order.

    Raises:
        CheckpointError: neither names any, or one lies outside the vocabulary.
    """
    ids: list[int] = []
    path = folder / "generation_config.json"
    if path.is_file():
        eos = read_json(path).get("eos_token_id")
        ids += eos if isinstance(eos, list) else [] if eos is None else [eos]
    ids = list(dict.fromkeys([*ids, *spec.stop_ids]))
    if not ids:
        raise CheckpointError(
            f"{folder} names no eos_token_id in generation_config.json or config.json",
            hint="An answer would never end. GLM-4's are [151329, 151336, 151338].",
        )
    outside = [item for item in ids if not isinstance(item, int) or not 0 <= item < spec.vocab_size]
    if outside:
        raise CheckpointError(
            f"{folder}: the stop id {outside[0]!r} lies outside the vocabulary of {spec.vocab_size:,}",
            hint="Correct eos_token_id in generation_config.json.",
        )
    return ids
