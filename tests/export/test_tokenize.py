"""The OpenVINO tokenizer against the reference, and the proof that stops a wrong one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import openvino as ov
import pytest

from edge.errors import VerificationError
from edge.export import tokenize, whole_pieces
from edge.model import tokenizer as tokenizers
from tests.conftest import write_checkpoint


@pytest.fixture(scope="module")
def merging_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A BPE with `ignore_merges`, two of whose entries merging alone never gives, as in GLM-4's."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    # "hea" is h + ea, but h + e is merged first and never undone; so is " é", two bytes after a space.
    merges = [("h", "e"), ("e", "a"), ("h", "ea"), ("Ġ", "Ã"), ("Ã", "©"), ("Ġ", "Ã©")]
    vocabulary = {piece: i for i, piece in enumerate(["<|end|>", *letters, *map("".join, merges)])}
    backend = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    words = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|end|>", special=True)])
    folder = tmp_path_factory.mktemp("bpe")
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "pad_token": "<|end|>"}))
    return PreTrainedTokenizerFast.from_pretrained(folder)


def encode(model: ov.Model, texts: list[str]) -> list[list[int]]:
    return list(tokenize.encode_all(ov.Core().compile_model(model, "CPU"), texts))


TEXTS = [" é", "hea é hea", "hea\n", " é\n\n hea", "head", " hea", "ahea", "\x01\x02hea", "\x01\x02 é", "<|end|>hea"]


def test_without_the_repair_entries_come_out_in_pieces(merging_tokenizer: Any) -> None:
    """The fault this works round is still there; when this fails, the repair can go."""
    from openvino_tokenizers import convert_tokenizer

    encoder, decoder = convert_tokenizer(merging_tokenizer, with_detokenizer=True)
    assert encode(encoder, TEXTS) != merging_tokenizer(TEXTS)["input_ids"]
    check = tokenize.prove(merging_tokenizer, encoder, decoder)
    assert not check.passed and "differs from the checkpoint's on 2 of" in str(check.message)


def test_the_repair_makes_every_text_equal(merging_tokenizer: Any, tmp_path: Path) -> None:
    assert set(whole_pieces.unreachable_pieces(merging_tokenizer)) == {"hea", " é"}
    check = tokenize.export_tokenizer(merging_tokenizer, tmp_path)
    assert check.figures["repaired_entries"] == 2 and check.figures["mismatches"] == 0
    assert (
        encode(ov.Core().read_model(tmp_path / tokenize.TOKENIZER_FILE), TEXTS)
        == (merging_tokenizer(TEXTS)["input_ids"])
    )


def test_the_chat_template_travels_in_the_ir(tiny: Path, tmp_path: Path) -> None:
    reference = tokenizers.load(tiny)
    tokenize.export_tokenizer(reference, tmp_path)
    model = ov.Core().read_model(tmp_path / tokenize.TOKENIZER_FILE)
    assert model.get_rt_info(["chat_template"]).value == reference.chat_template


LATE = """
import sys
from pathlib import Path
from edge.infer import core
core().available_devices
from edge.export import tokenize
assert "openvino_tokenizers" not in sys.modules
tokenize.read(Path(sys.argv[1]))
tokenize.read(Path(sys.argv[1]))
"""


def test_it_is_read_after_the_devices_were_looked_at(tiny: Path, tmp_path: Path) -> None:
    """As in a chat whose model has to be exported first: the Core is older than what teaches it."""
    tokenize.export_tokenizer(tokenizers.load(tiny), tmp_path)
    done = subprocess.run([sys.executable, "-c", LATE, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_wrong_detokenizer_is_caught(tiny: Path, tmp_path: Path) -> None:
    from openvino_tokenizers import convert_tokenizer

    reference = tokenizers.load(tiny)
    encoder, _ = convert_tokenizer(reference, with_detokenizer=True)
    text = (tiny / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(
        text.replace('"a":', '"?":').replace('"b":', '"a":').replace('"?":', '"b":')
    )
    other = tokenizers.load(tmp_path)
    _, decoder = convert_tokenizer(other, with_detokenizer=True)
    check = tokenize.prove(reference, encoder, decoder)
    assert not check.passed and "detokenizer writes" in str(check.message)


def test_a_tokenizer_that_cannot_be_converted(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise KeyError("no such step")

    monkeypatch.setattr("openvino_tokenizers.convert_tokenizer", broken)
    with pytest.raises(VerificationError, match="cannot be converted to OpenVINO"):
        tokenize.export_tokenizer(tokenizers.load(tiny), tmp_path)


@pytest.mark.slow
def test_glm4s_own_tokenizer_is_exact(shared_data: Path, tmp_path: Path) -> None:
    """Every entry of the vocabulary, the published cases, and whole books in two languages."""
    folder = shared_data / "glm4-tokenizer"
    reference = tokenizers.load(folder)
    check = tokenize.export_tokenizer(reference, tmp_path)
    assert check.figures["repaired_entries"] == 893
    model = ov.Core().read_model(tmp_path / tokenize.TOKENIZER_FILE)
    texts = [
        line
        for name in ("wikitext2/wiki.test.raw", "long-texts/hongloumeng_first_chapters.txt")
        for line in (shared_data / name).read_text(encoding="utf-8").splitlines()
        if line
    ]
    assert encode(model, texts) == reference(texts)["input_ids"]


def test_proof_texts_hold_what_tokenizers_get_wrong() -> None:
    joined = "".join(tokenize.PROOF_TEXTS)
    assert all(part in joined for part in ("\u0301", "\u200b", "👩\u200d👩", "\r\n", "مرحبا", "技术"))


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    from edge.cli import _run

    folder = write_checkpoint(tmp_path / "c", vocab_size=320)
    config = json.loads((folder / "config.json").read_text())
    write_checkpoint(folder, vocab_size=100)
    (folder / "tokenizer.json").unlink()
    from tests.conftest import write_tokenizer

    write_tokenizer(folder, config["vocab_size"])
    assert _run(["export", str(folder), str(tmp_path / "out")]) == 1
    assert not (tmp_path / "out").exists()
