"""Proves what lies between words and tokens: the OpenVINO tokenizer, the chat template, the stop ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openvino as ov

from edge.export import tokenize
from edge.infer import core
from edge.manifest import Check
from edge.model.spec import read_json

# How GLM-4 ends an answer, and how its prompts begin.
GLM_STOPS = ("<|endoftext|>", "<|user|>", "<|observation|>")
_OPENING = ("[gMASK]", "<sop>")

_USER, _ANSWER = {"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}
_SYSTEM = {"role": "system", "content": "You are brief."}
_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
# Name, messages, tools given beside them.
_CONVERSATIONS: tuple[tuple[str, list[dict[str, Any]], list[dict[str, Any]] | None], ...] = (
    ("question", [_USER], None),
    ("system", [_SYSTEM, _USER], None),
    ("several turns", [_SYSTEM, _USER, _ANSWER, {"role": "user", "content": "Und 3 + 3? 那么 3 + 3 呢？"}], None),
    ("tools", [_USER], [_TOOL]),
    ("tools in a message", [{"role": "system", "content": "", "tools": [_TOOL]}, _USER], None),
)


def check_tokenizer(folder: Path, reference: Any) -> Check:
    """The folder's tokenizer and detokenizer against the reference, a `PreTrainedTokenizerFast`.

    Raises:
        ModelError: the folder has none.
    """
    return tokenize.prove(reference, *tokenize.read(folder))


def check_template(folder: Path, reference: Any) -> Check:
    """The chat template in the tokenizer IR: word for word the reference's, and read as the runtime reads it.

    The runtime lets GenAI render the IR's template, and encodes the text without special tokens of the tokenizer's
    own: the template must write the prompt's opening, once.

    Raises:
        ModelError: the folder has no tokenizer IR.
    """
    encoder, _ = tokenize.read(folder)
    key = ["chat_template"]
    stored = str(encoder.get_rt_info(key).value) if encoder.has_rt_info(key) else None
    own = reference.chat_template
    if isinstance(own, dict):
        own = own.get("default")
    if stored is None and not own:
        return Check(
            name="template", passed=True, figures={"conversations": []}, message="there is no chat template",
            hint="A base model continues text; for conversations export the chat model.",
        )  # fmt: skip
    figures: dict[str, Any] = {"characters": len(stored or ""), "conversations": []}
    if stored != own:
        what = "has no chat template" if stored is None else "has another chat template than tokenizer_config.json"
        what += " or chat_template.jinja" if stored is not None else ""
        return Check(
            name="template", passed=False, figures=figures, message=f"{tokenize.TOKENIZER_FILE} {what}",
            hint="Chats use the one in the IR. Export the model again to bring both together.",
        )  # fmt: skip
    opening = reference("")["input_ids"] or _known(reference, _OPENING)
    encode = core().compile_model(encoder, "CPU")
    silent: list[str] = []
    for name, messages, tools in _CONVERSATIONS:
        try:
            text = reference.apply_chat_template(
                messages, tools=tools, chat_template=stored, add_generation_prompt=True, tokenize=False
            )
        except Exception as error:  # jinja's and the template's own
            if name != "question":  # not every template takes system messages or tools
                continue
            return Check(
                name="template", passed=False, figures=figures,
                message=f"the chat template cannot write a question ({type(error).__name__}: {error})",
                hint="Correct chat_template.jinja in the checkpoint and export again.",
            )  # fmt: skip
        fault = _misread(text, reference, encode, opening)
        if fault is None and name != "tools" and not all(message["content"] in text for message in messages):
            if name != "question":  # a base model's template may know questions only
                silent.append(name)
                continue
            fault = "leaves out what a message says"
        if fault:
            return Check(
                name="template", passed=False, figures=figures, message=f"the conversation '{name}' {fault}",
                hint="Compare the chat template and tokenizer.json with the published ones, and export again.",
            )  # fmt: skip
        figures["conversations"].append(name)
    lost = f"the chat template leaves out what is said in these conversations: {', '.join(silent)}"
    return Check(
        name="template", passed=True, figures={**figures, "opening": opening}, message=lost if silent else None,
        hint="A chat with this model will not remember all that was said to it." if silent else None,
    )  # fmt: skip


def check_stop_ids(folder: Path, reference: Any, expected: Sequence[int] | None, told: Sequence[int] = ()) -> Check:
    """`eos_token_id` of generation_config.json, from which GenAI knows where an answer ends.

    Args:
        reference: a `PreTrainedTokenizerFast`.
        expected: what the checkpoint says; None: GLM-4's three and `told`, so far as the tokenizer has them.
        told: what config.json says.
    """
    path = folder / "generation_config.json"
    eos = read_json(path).get("eos_token_id") if path.is_file() else None
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    wanted = list(expected) if expected is not None else list(dict.fromkeys([*told, *_known(reference, GLM_STOPS)]))
    names = {str(item): reference.convert_ids_to_tokens(item) if _is_token(reference, item) else None for item in ids}
    figures = {"stop_ids": names, "expected": wanted}
    missing = [item for item in wanted if item not in ids]
    unknown = [item for item in ids if names[str(item)] is None]
    message = hint = None
    if missing or not ids:
        message = f"{path.name} ends answers at {ids}, where {missing or 'at least one stop id'} belongs among them"
        hint = f'Set "eos_token_id" to {wanted} there: without it an answer goes on and on.'
    elif extra := [item for item in ids if wanted and item not in wanted]:
        message, hint = (
            f"{path.name} also ends answers at {extra}, which the checkpoint does not",
            "See that it is meant.",
        )
    elif unknown:
        message, hint = (
            f"the stop ids {unknown} are no tokens of the tokenizer",
            "See that tokenizer.json is this model's.",
        )
    return Check(name="stop ids", passed=bool(ids) and not missing, figures=figures, message=message, hint=hint)


def _misread(text: str, reference: Any, encode: ov.CompiledModel, opening: list[int]) -> str | None:
    """What is wrong with a rendered conversation once it is tokens; None: nothing."""
    (got,) = tokenize.encode_all(encode, [text])
    if got != reference([text])["input_ids"][0]:
        return "is tokenised otherwise than by the checkpoint's tokenizer"
    read = reference([text], add_special_tokens=False)["input_ids"][0]
    for token in opening:
        if (count := read.count(token)) != 1:
            return f"reads {reference.convert_ids_to_tokens(token)} {count} times, where it must be once"
    if opening and read[: len(opening)] != opening:
        return f"does not begin with {''.join(reference.convert_ids_to_tokens(opening))}"
    return None


def _known(reference: Any, tokens: Sequence[str]) -> list[int]:
    """Ids of the tokens, or none where the vocabulary lacks one of them."""
    vocabulary = reference.get_vocab()
    return [vocabulary[token] for token in tokens] if all(token in vocabulary for token in tokens) else []


def _is_token(reference: Any, item: Any) -> bool:
    return isinstance(item, int) and 0 <= item < len(reference) and reference.convert_ids_to_tokens(item) is not None
