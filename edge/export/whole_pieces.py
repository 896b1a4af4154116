"""Makes OpenVINO's BPE honour `ignore_merges`, on which GLM-4's vocabulary relies.

A tokenizer with `ignore_merges` looks a word up whole before it merges anything. OpenVINO's operation
does not: it only finds what its merges produce, and 893 of GLM-4's entries (' 技术' among them) are
never produced. 2.6 % of ordinary texts would be read otherwise than the model learnt them.

The operation does look up *added tokens* whole. So between the split into words and the merging, a
normalisation step puts two control characters before a word that equals one of those entries, and the
same characters with the entry's bytes are an added token with the entry's id. The two characters can
not be met by accident: the split never leaves two non-letters before a letter in one word.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import openvino as ov

_SENTINEL = "\x01\x02"
# Inputs of BPETokenizer when it has added tokens: 5 of the ragged words, 3 each of vocabulary, left and
# right merges and added tokens, and the added tokens' ids.
_INPUTS = 18


def unreachable_pieces(tokenizer: Any) -> dict[str, int]:
    """Entries of an `ignore_merges` vocabulary that merging alone takes apart, with their ids.

    Empty for a tokenizer without `ignore_merges`. Entries that are no text by themselves (part of a
    character) cannot be a word and are left out.
    """
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    if not state["model"].get("ignore_merges"):
        return {}
    state["model"]["ignore_merges"] = False
    merging = Tokenizer.from_str(json.dumps(state)).model
    added = {token["id"] for token in state["added_tokens"]}  # these are found before any splitting
    found = {}
    for piece, number in state["model"]["vocab"].items():
        if number not in added and len(merging.tokenize(piece)) > 1:
            text = _text(piece)
            if text is not None:
                found[text] = number
    return found


def reach(encoder: ov.Model, pieces: dict[str, int]) -> ov.Model:
    """Rewire the converted tokenizer `encoder` so that each of `pieces`, standing alone, gets its id."""
    # The package offers no public way to make its operations one by one.
    from openvino_tokenizers import _get_factory
    from openvino_tokenizers.utils import create_string_constant_node

    (bpe,) = (node for node in encoder.get_ordered_ops() if node.get_type_name() == "BPETokenizer")
    sources = [port.get_source_output() for port in bpe.inputs()]
    if len(sources) != _INPUTS:
        raise ValueError(f"BPETokenizer has {len(sources)} inputs, not the {_INPUTS} this was written for")
    split = sources[0].get_node()
    # \z, because $ would also match before a final line end
    pattern = "^(" + "|".join(re.escape(piece) for piece in sorted(pieces, key=len, reverse=True)) + r")\z"
    words = [*sources[2:5], split.output(5)]  # begins, ends, characters, and which are special tokens
    marked = _get_factory().create(
        "RegexNormalization",
        [*words, *create_string_constant_node(pattern), *create_string_constant_node(_SENTINEL + "$1")],
        {"global_replace": False},
    )
    names, ids = _strings(sources[14:17]), sources[17].get_node().data.tolist()
    names += [(_SENTINEL + piece).encode() for piece in pieces]
    ids += pieces.values()
    added = create_string_constant_node(names)
    number = ov.opset13.constant(np.array(ids, np.int32))
    inputs = [*sources[:2], *marked.outputs()[:3], *sources[5:14], *added, number.output(0)]
    new = _get_factory().create("BPETokenizer", inputs, bpe.get_attributes())
    for old, replacement in zip(bpe.outputs(), new.outputs(), strict=True):
        old.replace(replacement)
    encoder.validate_nodes_and_infer_types()
    return encoder


def _strings(outputs: list[Any]) -> list[bytes]:
    begins, ends, characters = (output.get_node().data for output in outputs)
    data = characters.tobytes()
    return [data[begin:end] for begin, end in zip(begins, ends, strict=True)]


def _text(piece: str) -> str | None:
    """A byte-level entry as the text it stands for; None if its bytes are no UTF-8."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    table = {character: byte for byte, character in bytes_to_unicode().items()}
    try:
        return bytes(table[character] for character in piece).decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        return None
