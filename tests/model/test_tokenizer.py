"""Stop ids and the reference tokenizer."""

from __future__ import annotations

import base64
import json
import shutil
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
    with pytest.raises(CheckpointError, match=r"has neither tokenizer\.json nor tokenizer\.model"):
        tokenizer.load(tmp_path)


def test_a_damaged_tokenizer(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c")
    (folder / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        tokenizer.load(folder)


def write_ranks(folder: Path, pieces: list[bytes], specials: list[str]) -> None:
    lines = [base64.b64encode(piece) + b" " + str(i).encode() for i, piece in enumerate(pieces)]
    (folder / "tokenizer.model").write_bytes(b"\n".join(lines) + b"\n")
    added = {str(len(pieces) + i): {"content": token, "special": True} for i, token in enumerate(specials)}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": added, "eos_token": specials[0], "chat_template": "{{ messages }}"})
    )


PIECES = [*(bytes([i]) for i in range(256)), b"th", b"the", b" the", "技".encode(), "技术".encode()]
SPECIALS = ["<|endoftext|>", "[gMASK]", "<sop>"]


def test_ranks_become_a_tokenizer_that_adds_the_prefix_once(tmp_path: Path) -> None:
    write_ranks(tmp_path, PIECES, SPECIALS)
    loaded = tokenizer.load(tmp_path)
    assert loaded("the the\n技术!")["input_ids"] == [262, 263, 257, 258, ord("\n"), 260, ord("!")]
    assert loaded("<|endoftext|>x", add_special_tokens=False)["input_ids"] == [261, ord("x")]
    assert loaded.decode(loaded("the 技术")["input_ids"], skip_special_tokens=True) == "the 技术"
    assert loaded.chat_template == "{{ messages }}" and loaded.eos_token == "<|endoftext|>"


def test_a_template_in_a_file_of_its_own_wins(tmp_path: Path) -> None:
    write_ranks(tmp_path, PIECES, SPECIALS)
    (tmp_path / "chat_template.jinja").write_text("[gMASK]<sop>{{ messages }}", encoding="utf-8")
    assert tokenizer.load(tmp_path).chat_template == "[gMASK]<sop>{{ messages }}"


def test_what_was_built_from_ranks_is_saved_for_everybody(tmp_path: Path) -> None:
    write_ranks(tmp_path, PIECES, SPECIALS)
    loaded = tokenizer.load(tmp_path)
    (tmp_path / "out").mkdir()
    tokenizer.save(loaded, tmp_path / "out")
    again = tokenizer.load(tmp_path / "out")
    assert again("the 技术")["input_ids"] == loaded("the 技术")["input_ids"]
    assert again.chat_template == loaded.chat_template


def test_ranks_and_config_that_do_not_belong_together(tmp_path: Path) -> None:
    write_ranks(tmp_path, PIECES, SPECIALS)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {"900": {"content": "<sop>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"disagree on <sop>, \[gMASK\]"):
        tokenizer.load(tmp_path)


def test_damaged_ranks(tmp_path: Path) -> None:
    write_ranks(tmp_path, PIECES, SPECIALS)
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x07<unk>\x12")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model cannot be read"):
        tokenizer.load(tmp_path)


@pytest.mark.slow
def test_glm4s_ranks_equal_the_reference(shared_data: Path, tmp_path: Path) -> None:
    """tokenizer.model alone, against the verified tokenizer.json and the published cases."""
    source = shared_data / "glm4-tokenizer"
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(source / name, tmp_path / name)
    built, reference = tokenizer.load(tmp_path), tokenizer.load(source)
    texts = (shared_data / "wikitext2" / "wiki.test.raw").read_text(encoding="utf-8").splitlines()[:1500]
    texts += (shared_data / "long-texts" / "hongloumeng_first_chapters.txt").read_text(encoding="utf-8").splitlines()
    pieces = json.loads((source / "whole_piece_vectors.json").read_text(encoding="utf-8"))
    texts += _strings(pieces)
    assert built(texts)["input_ids"] == reference(texts)["input_ids"]


def _strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for item in items for text in _strings(item)]
