"""What PEFT's adapter_config.json says, and what of it cannot be had here."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge.errors import CheckpointError
from edge.lora.asked import CONFIG, WEIGHTS, Asked

_PREFIXES = ("PREFIX_TUNING", "P_TUNING", "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING")
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of `init_lora_weights` after which the base model's own weights are others, too."""
_LORA = "Train it with LoRA on the linear layers alone."
_WHOLE = "Merge it with the base model in PEFT (merge_and_unload), and export what that gives."
# key → the values that ask for nothing, why another cannot be had, and what to do then.
_UNSUPPORTED: tuple[tuple[str, tuple[Any, ...], str, str], ...] = (
    ("use_dora", (None, False), "DoRA also changes the length of each row of the base's weights", _WHOLE),
    ("modules_to_save", (None, []), "whole modules were trained beside the LoRA matrices", _WHOLE),
    ("bias", (None, "none"), "biases were trained beside the LoRA matrices", _WHOLE),
    ("lora_bias", (None, False), "its B matrices have biases", _WHOLE),
    ("layer_replication", (None, []), "it was trained on a model with repeated layers", _WHOLE),
    ("trainable_token_indices", (None, [], {}), "tokens of the embedding were trained, too", _WHOLE),
    ("target_parameters", (None, []), "it targets bare parameters, not linear layers", _LORA),
    ("alora_invocation_tokens", (None, []), "it is switched on in the middle of a text (aLoRA)", _LORA),
    ("fan_in_fan_out", (None, False), "its matrices are transposed, which no GLM-4's are", _LORA),
)


@dataclass(frozen=True)
class Config:
    """Of an adapter that can be used."""

    folder: Path
    base: str
    """The model it was trained on, as its maker named it; "" where it does not say."""
    rank: int
    alpha: float
    rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, asked: Asked) -> Config:
        """Read and judge `adapter_config.json`.

        Raises:
            CheckpointError: there is no such adapter, or it is one that cannot be used; says why.
        """
        folder = asked.folder
        if not folder.is_dir():
            what = "a file" if folder.is_file() else "not there"
            raise CheckpointError(
                f"the adapter {folder} is {what}", hint=f"Name the folder that holds {CONFIG} and {WEIGHTS}."
            )
        path = folder / CONFIG
        if not path.is_file():
            inside = sorted(each.parent.name for each in folder.glob(f"*/{CONFIG}"))
            hint = f"Name the folder of one of its checkpoints, such as {folder / inside[-1]}." if inside else (
                "LLaMA-Factory, SWIFT and GLM-4's own scripts write one with each checkpoint: name that folder."
            )  # fmt: skip
            raise CheckpointError(f"{folder} is no adapter: it has no {CONFIG}", hint=hint)
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read ({error})", hint="Save the adapter again.") from error
        if not isinstance(told, dict):
            raise CheckpointError(f"{path} holds no JSON object", hint="Save the adapter again.")
        _refuse(folder, told)
        return cls(
            folder,
            str(told.get("base_model_name_or_path") or ""),
            _rank(path, "r", told.get("r")),
            _number(path, "lora_alpha", told.get("lora_alpha", 8)),
            bool(told.get("use_rslora")),
            {name: _rank(path, f"rank_pattern of {name}", each) for name, each in _mapping(path, told, "rank_pattern")},
            {
                name: _number(path, f"alpha_pattern of {name}", each)
                for name, each in _mapping(path, told, "alpha_pattern")
            },
        )

    def rank_of(self, module: str) -> int:
        """What the rank of a module should be; `module` is named as in the model it was trained on."""
        return int(_matched(self.rank_pattern, module, self.rank))

    def scale_of(self, module: str) -> float:
        """What B·A is multiplied with: alpha / r, or alpha / √r (rsLoRA)."""
        alpha, rank = _matched(self.alpha_pattern, module, self.alpha), self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def _refuse(folder: Path, told: Mapping[str, Any]) -> None:
    kind = str(told.get("peft_type", "")).upper()
    if kind in _PREFIXES:
        raise CheckpointError(
            f"{folder} is a trained prefix ({kind}, as P-tuning v2 makes them), and the runtime's paged cache takes no "
            "keys and values from outside",
            hint="Train a LoRA instead: it is smaller, and GLM-4's finetune scripts make one with lora.yaml.",
        )
    if kind != "LORA":
        raise CheckpointError(f"{folder} is an adapter of the kind {kind or 'None'}, not LORA", hint=_LORA)
    for key, harmless, why, way in _UNSUPPORTED:
        value = told.get(key)
        if value not in harmless:
            raise CheckpointError(f"{folder} has {key} = {json.dumps(value)}: {why}", hint=way)
    begun = str(told.get("init_lora_weights", "")).lower()
    if begun.startswith(_CHANGES_THE_BASE):
        raise CheckpointError(
            f"{folder} has init_lora_weights = {json.dumps(told['init_lora_weights'])}: it belongs to a base model "
            "whose own weights were changed",
            hint="Save it with path_initial_model_for_weight_conversion, which makes a plain LoRA of it.",
        )


def _mapping(path: Path, told: Mapping[str, Any], key: str) -> list[tuple[str, Any]]:
    value = told.get(key) or {}
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: {key} is {value!r}", hint="Save the adapter again.")
    return list(value.items())


def _rank(path: Path, key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 4096:
        raise CheckpointError(f"{path}: {key} is {value!r}", hint="It is the adapter's rank, a whole number from 1.")
    return value


def _number(path: Path, key: str, value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise CheckpointError(f"{path}: {key} is {value!r}", hint="It must be a number.")
    return float(value)


def _matched(pattern: Mapping[str, Any], module: str, otherwise: float) -> float:
    """As PEFT picks it: the first whose words end the module's name."""
    for key, value in pattern.items():
        try:
            fits = re.fullmatch(rf"(.*\.)?({key})", module) is not None
        except re.error:
            fits = False
        if fits:
            return float(value)
    return otherwise
