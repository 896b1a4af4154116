"""Stop ids and the reference tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge.errors import CheckpointError
from edge.model import tokenizer
from edge.model.spec import GlmSpec
from tests.conftest import TINY_CONFIG, write_checkpoint


def test_stop_ids_of_both_files_are_joined(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 1]}))
    assert tokenizer.stop_ids(tmp_path, GlmSpec.from_config(TINY_CONFIG)) == [7, 1, 2]


def test_no_stop_id_anywhere(tmp_path: Path) -> None:
    spec = GlmSpec.from_config({**TINY_CONFIG, "eos_token_id": None})
    with pytest.raises(CheckpointError, match="names no eos_token_id"):
        tokenizer.stop_ids(tmp_path, spec)


def test_a_stop_id_outside_the_vocabulary(tmp_path: Path) -> None:
    spec = GlmSpec.from_config({**TINY_CONFIG, "eos_token_id": 151329})
    with pytest.raises(CheckpointError, match="151329 lies outside the vocabulary of 160"):
        tokenizer.stop_ids(tmp_path, spec)


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        tokenizer.load(tmp_path)


def test_a_damaged_tokenizer(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c")
    (folder / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        tokenizer.load(folder)
