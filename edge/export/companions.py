"""The files beside the IR that other programs read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from edge.model import tokenizer as tokenizers
from edge.model.layouts import glm_config
from edge.model.spec import read_json

# Kept beside the IR so that the folder also serves transformers, optimum-intel and GenAI.
_COMPANIONS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
               "special_tokens_map.json", "chat_template.jinja")  # fmt: skip


def write(source: Path, work: Path, tokenizer: Any, model_type: str, stop_ids: list[int]) -> None:
    """What transformers, optimum-intel and GenAI read beside the IR, in the `glm` layout."""
    for name in _COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, work / name)
    chatglm = model_type == "chatglm"  # whose files would ask for remote code
    if chatglm or not (work / "tokenizer.json").is_file():
        tokenizers.save(tokenizer, work)
    if chatglm:
        config = {"architectures": ["GlmForCausalLM"], "model_type": "glm"}
        config |= glm_config(read_json(source / "config.json"), str(source))
        _write_json(work / "config.json", config)
    path = work / "generation_config.json"
    generation = read_json(path) if path.is_file() else {}
    _write_json(path, {**generation, "eos_token_id": stop_ids})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
