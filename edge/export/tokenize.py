"""The OpenVINO tokenizer and detokenizer, and the proof that they do what the reference does."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import openvino as ov

from edge.errors import ModelError, VerificationError
from edge.export.whole_pieces import reach, unreachable_pieces
from edge.infer import core
from edge.manifest import Check

TOKENIZER_FILE = "openvino_tokenizer.xml"
DETOKENIZER_FILE = "openvino_detokenizer.xml"

# One line for each thing a tokenizer is known to get wrong: digits, runs of spaces, line ends,
# contractions, scripts without spaces, combining marks, right-to-left, emoji of several code points,
# control characters, special tokens as text, very long words.
PROOF_TEXTS = (
    "What is the capital of France?",
    "It's 3.14159, isn't it? We'll see: 1234567890 and 0x1F, 12:30, 50%.",
    "  leading and trailing  ",
    "tabs\tand\n\nblank lines\r\nand Windows ones\n   indented",
    "def main(argv: list[str]) -> int:\n    return 0 if argv else 1  # 100 %\n",
    "你好，世界！人工智能助手能做什么？技术改变生活。",
    "今天是2024年6月5日，气温23.5℃。「引号」、《书名》……",
    "日本語のテキストとカタカナ、ひらがな。",
    "한국어 문장을 토큰으로 나눕니다.",
    "Привет, как дела? Ёжик в тумане.",
    "Ελληνικά, Türkçe (İıŞş), Việt Nam, naïve café, cafe\u0301",
    "שלום עולם مرحبا بالعالم ١٢٣",
    "हिन्दी में एक वाक्य। ภาษาไทยไม่มีช่องว่าง",
    "emoji 😀👍🏽👩‍👩‍👧‍👦🇫🇷❤️ and maths ∑∫√ x² ≤ ½",
    "\u200bzero\u00a0width\ufeff and \x07 control",
    "{\"name\": \"get_weather\", \"arguments\": {\"city\": \"北京\"}}",
    "https://example.com/a/b?c=d&e=f#g user@example.com C:\\Users\\x",
    "a" * 200 + " " + "啊" * 100 + " " * 50 + "!" * 40,
    "",
    " ",
)  # fmt: skip


def export_tokenizer(tokenizer: Any, folder: Path) -> Check:
    """Convert, prove and write both IRs for a `PreTrainedTokenizerFast`.

    The chat template travels in the tokenizer IR's `rt_info`, where GenAI looks for it. Nothing is written if the
    check fails: a text is tokenised or written back otherwise than by the reference.

    Raises:
        VerificationError: the tokenizer cannot be converted.
    """
    from openvino_tokenizers import convert_tokenizer

    logging.getLogger("openvino_tokenizers").setLevel(logging.ERROR)
    try:
        encoder, decoder = convert_tokenizer(tokenizer, with_detokenizer=True)
    except Exception as error:  # the converter raises whatever the vocabulary tripped over
        raise VerificationError(
            f"this checkpoint's tokenizer cannot be converted to OpenVINO ({type(error).__name__}: {error})",
            hint="Report it with the checkpoint's name: its tokenizer is of a kind not met before.",
        ) from error
    pieces = unreachable_pieces(tokenizer)
    if pieces:
        encoder = reach(encoder, pieces)
    if tokenizer.chat_template:
        encoder.set_rt_info(tokenizer.chat_template, ["chat_template"])
    check = prove(tokenizer, encoder, decoder)
    check.figures["repaired_entries"] = len(pieces)
    if check.passed:
        ov.save_model(encoder, folder / TOKENIZER_FILE, compress_to_fp16=False)
        ov.save_model(decoder, folder / DETOKENIZER_FILE, compress_to_fp16=False)
    return check


def read(folder: Path) -> tuple[ov.Model, ov.Model]:
    """Tokenizer and detokenizer of an exported model.

    Raises:
        ModelError: one of them is missing or cannot be read.
    """
    import openvino_tokenizers

    # It teaches only Cores that are made after it was imported; ours may be older, after a look at the devices.
    core().add_extension(str(openvino_tokenizers._ext_path))
    for name in (TOKENIZER_FILE, DETOKENIZER_FILE):
        if not (folder / name).is_file():
            raise ModelError(f"{folder} has no {name}", hint="Export the model again: without it no text can be read.")
    try:
        return core().read_model(folder / TOKENIZER_FILE), core().read_model(folder / DETOKENIZER_FILE)
    except RuntimeError as error:
        raise ModelError(
            f"the OpenVINO tokenizer in {folder} cannot be read", hint="Export the model again."
        ) from error


def prove(tokenizer: Any, encoder: ov.Model, decoder: ov.Model) -> Check:
    """Compare with the reference on `PROOF_TEXTS`, on special tokens, and on every entry of the vocabulary.

    Entries are compared because one that is a token when whole may come out in pieces; reading back
    is compared for the texts. Left out are entries that are pieces of characters, which are no text, and
    those with a NUL, where OpenVINO's strings end.
    """
    encode = core().compile_model(encoder, "CPU")
    decode = core().compile_model(decoder, "CPU")
    specials = [token.content for token in tokenizer.added_tokens_decoder.values()]
    entries = tokenizer.batch_decode([[item] for item in range(len(tokenizer))])
    texts = [*PROOF_TEXTS, *(f"{token}user\nhi {token}" for token in specials)]
    texts += sorted({entry for entry in entries if "\ufffd" not in entry and "\0" not in entry})
    reference = tokenizer(texts)["input_ids"]
    mismatches = [
        (text, got, expected)
        for text, got, expected in zip(texts, encode_all(encode, texts), reference, strict=True)
        if got != expected
    ]
    figures = {"texts": len(texts), "tokens": sum(map(len, reference)), "mismatches": len(mismatches)}
    if mismatches:
        text, got, expected = mismatches[0]
        return Check(
            name="tokenizer", passed=False, figures=figures,
            message=f"the OpenVINO tokenizer differs from the checkpoint's on {len(mismatches)} of {len(texts)} texts, "
            f"on {text[:40]!r} among them: {got[:12]} instead of {expected[:12]}",
            hint="The model would read other words than were typed. Export it again with glm4-edge; if it was, report "
            "it with the checkpoint's name.",
        )  # fmt: skip
    for expected in reference[: len(PROOF_TEXTS) + len(specials)]:
        if not expected:
            continue
        written = str(decode([expected])["string_output"][0])
        wanted = tokenizer.decode(expected, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if written != wanted:
            return Check(
                name="tokenizer", passed=False, figures=figures,
                message=f"the OpenVINO detokenizer writes {written[:40]!r} where the checkpoint's writes "
                f"{wanted[:40]!r}",
                hint="Export the model again with glm4-edge; if it was, report it with the checkpoint's name.",
            )  # fmt: skip
    return Check(name="tokenizer", passed=True, figures=figures)


def encode_all(encode: ov.CompiledModel, texts: Sequence[str], batch: int = 512) -> Iterator[list[int]]:
    """The ids of each text by a compiled tokenizer."""
    for start in range(0, len(texts), batch):
        out = encode(texts[start : start + batch])
        for row, mask in zip(out["input_ids"], out["attention_mask"], strict=True):
            yield row[mask == 1].tolist()
