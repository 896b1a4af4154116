"""The checkpoint's tokenizer, as the reference: no remote code, no network.

`transformers` and `tokenizers` are imported inside: they take seconds, and chat does without them.
"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

from edge.errors import CheckpointError
from edge.model.spec import GlmSpec, read_json

# How GLM-4 cuts text into words before merging (tokenization_chatglm.py of THUDM/glm-4-9b-chat).
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PREFIX = ("[gMASK]", "<sop>")


def load(folder: Path) -> Any:
    """The fast tokenizer of a checkpoint, a `transformers.PreTrainedTokenizerFast`.

    It comes from `tokenizer.json` or, in the original layout, from `tokenizer.model`, whose remote code
    is not needed: the file is a list of byte strings in the order in which they merge.

    Raises:
        CheckpointError: there is neither, or it cannot be read.
    """
    json_file, ranks_file = folder / "tokenizer.json", folder / "tokenizer.model"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it would announce that there is no PyTorch
    require(folder)
    from transformers import PreTrainedTokenizerFast

    source = json_file if json_file.is_file() else ranks_file
    try:
        if source == json_file:
            return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        config = read_json(folder / "tokenizer_config.json")
        template = folder / "chat_template.jinja"
        return PreTrainedTokenizerFast(
            tokenizer_object=_from_ranks(ranks_file, config),
            eos_token=config.get("eos_token"),
            pad_token=config.get("pad_token"),
            chat_template=template.read_text(encoding="utf-8") if template.is_file() else config.get("chat_template"),
            model_max_length=config.get("model_max_length", 128000),
            clean_up_tokenization_spaces=False,
            padding_side="left",
        )
    except CheckpointError:
        raise
    except Exception as error:  # the Rust side raises bare Exception for a malformed file
        raise CheckpointError(
            f"{source} cannot be read ({error})", hint="Download the tokenizer's files again."
        ) from error


def save(tokenizer: Any, folder: Path) -> None:
    """Write `tokenizer.json` and its config so that any transformers version loads them, no code needed."""
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": tokenizer.eos_token,
        "pad_token": tokenizer.pad_token,
        "model_max_length": tokenizer.model_max_length,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
        "chat_template": tokenizer.chat_template,
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8", newline="\n")


def _from_ranks(path: Path, config: dict[str, Any]) -> Any:
    """A byte-level BPE from tiktoken ranks: lines of base64 bytes and rank.

    tiktoken merges the pair whose result has the lowest rank, so every way to split an entry into two
    others is a merge, in the order of the results' ranks; whole entries come first (`ignore_merges`).
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    table = bytes_to_unicode()
    lines = path.read_bytes().split(b"\n")
    ranks = {
        base64.b64decode(token, validate=True): int(rank) for token, rank in (line.split() for line in lines if line)
    }
    letters = {token: "".join(table[byte] for byte in token) for token in ranks}
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        splits = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks]
        splits.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [(letters[left], letters[right]) for left, right in splits]
    vocabulary = {letters[token]: rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, fuse_unk=False, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = sorted((int(number), entry) for number, entry in config.get("added_tokens_decoder", {}).items())
    tokenizer.add_special_tokens([AddedToken(entry["content"], special=True, normalized=False) for _, entry in added])
    wrong = [entry["content"] for number, entry in added if tokenizer.token_to_id(entry["content"]) != number]
    missing = [token for token in _PREFIX if tokenizer.token_to_id(token) is None]
    if wrong or missing:
        raise CheckpointError(
            f"{path} and tokenizer_config.json disagree on {', '.join(wrong + missing)}",
            hint="Download both files again, from the same revision.",
        )
    prefix = [(token, tokenizer.token_to_id(token)) for token in _PREFIX]
    template = " ".join(_PREFIX)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{template} $A", pair=f"{template} $A $B:1", special_tokens=prefix
    )
    return tokenizer


def require(folder: Path) -> None:
    """Refuse a folder without a tokenizer, at once: reading one takes seconds.

    Raises:
        CheckpointError: there is none.
    """
    if not (folder / "tokenizer.json").is_file() and not (folder / "tokenizer.model").is_file():
        raise CheckpointError(
            f"{folder} has neither tokenizer.json nor tokenizer.model",
            hint="Download the tokenizer's files into the same folder.",
        )


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
