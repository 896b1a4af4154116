"""An adapter's matrices under GLM-4's own names, whichever of its layouts it was trained on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.errors import CheckpointError
from edge.lora.asked import CONFIG, WEIGHTS, Asked
from edge.lora.config import Config
from edge.model.checkpoint import map_tensors
from edge.model.hub import is_repository
from edge.model.layouts import chatglm_sources
from edge.model.spec import GlmSpec

Array = NDArray[np.float32]

_NAME = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.(?!weight)[\w-]+)?\.weight")
_TARGETS = "q_proj, k_proj, v_proj, o_proj, gate_up_proj and down_proj, or in the chatglm layout query_key_value, " \
    "dense, dense_h_to_4h and dense_4h_to_h"  # fmt: skip


@dataclass(frozen=True, eq=False)
class Delta:
    """What is added to a matrix [rows, columns]: b @ a, every factor already in b."""

    a: Array
    """[rank, columns]"""
    b: Array
    """[rows, rank]"""


@dataclass(frozen=True, eq=False)
class Adapter:
    """One adapter, held against the model it is for."""

    asked: Asked
    config: Config
    deltas: Mapping[str, Delta]
    """By the matrix in `GlmSpec.tensor_shapes`, without `.weight`: model.layers.0.self_attn.q_proj."""
    sha256: Mapping[str, str]
    """Of its files by their names: the config, too, decides what it adds."""

    @classmethod
    def read(cls, asked: Asked, spec: GlmSpec) -> Adapter:
        """Read an adapter's folder.

        Raises:
            CheckpointError: it cannot be used, or not with this model; says why.
        """
        config = Config.read(asked)
        path = asked.folder / WEIGHTS
        if not path.is_file():
            raise _without_weights(asked.folder)
        pairs = _pairs(path)
        places = _places(spec)
        deltas: dict[str, Delta] = {}
        for module, sides in pairs.items():
            with np.errstate(over="ignore"):  # told below
                factor = np.float32(config.scale_of(module) * asked.scale)
            for target, rows in _targets(path, module, places):
                if target in deltas:
                    raise CheckpointError(f"{path} has two pairs for {target}", hint="Save the adapter again.")
                shape = spec.tensor_shapes()[target + ".weight"]
                a, b = _checked(path, module, sides, config, rows, shape, places[module])
                with np.errstate(over="ignore", invalid="ignore"):
                    b = b * factor
                if not np.isfinite(b).all():
                    raise CheckpointError(
                        f"{asked.folder} at the scale {asked.scale:g} is more than float32 holds",
                        hint="Ask for a smaller scale; 1 is as it was trained.",
                    )
                deltas[target] = Delta(a, b)
        files = {name: hashlib.sha256((asked.folder / name).read_bytes()).hexdigest() for name in (WEIGHTS, CONFIG)}
        return cls(asked, config, deltas, files)

    @property
    def label(self) -> str:
        """Its name, and its scale where that is not 1."""
        return self.asked.label


def other_base(config: Config, model: str) -> str | None:
    """A remark where an adapter's maker names another model than that which it is to be used with.

    Only names of repositories are compared: a folder may have any. THUDM/glm-4-9b-chat and zai-org/glm-4-9b-chat-hf
    are one model.
    """
    if not (is_repository(config.base) and is_repository(model)):
        return None
    theirs, ours = (name.rpartition("/")[2].lower().removesuffix("-hf") for name in (config.base, model))
    if theirs == ours:
        return None
    return f"{config.folder.name} was trained on {config.base}, and this is {model}: it may not do what it should."


def _without_weights(folder: Path) -> CheckpointError:
    pickled = next((name for name in ("adapter_model.bin", "adapter_model.pt") if (folder / name).is_file()), None)
    if pickled is not None:
        return CheckpointError(
            f"{folder} holds its weights as {pickled}, a pickle, which can run code when it is read",
            hint="Load it with PEFT where you trust it, and save_pretrained(…, safe_serialization=True) again.",
        )
    return CheckpointError(f"{folder} has no {WEIGHTS}", hint="Copy it there, too; or save the adapter again.")


def _pairs(path: Path) -> dict[str, dict[str, Array]]:
    """A and B by the module they were trained on."""
    pairs: dict[str, dict[str, Array]] = {}
    for name, weight in map_tensors(path):
        match = _NAME.fullmatch(name)
        if match is None:
            raise CheckpointError(
                f"{path} holds the tensor {name}, which is no LoRA matrix of a linear layer",
                hint=f"Only these can be adapted: {_TARGETS}.",
            )
        values = weight.f32()
        if not np.isfinite(values).all():
            raise CheckpointError(
                f"{path}: the tensor {name} holds values that are not finite",
                hint="Its training has diverged: take an earlier checkpoint, or train with a lower learning rate.",
            )
        sides = pairs.setdefault(match["module"], {})
        if match["side"] in sides:
            raise CheckpointError(
                f"{path} has two matrices {match['side']} for {match['module']}, {name} among them",
                hint="Two adapters were saved into one file: save each by itself.",
            )
        sides[match["side"]] = values
    if not pairs:
        raise CheckpointError(f"{path} holds no tensors", hint="Save the adapter again.")
    return pairs


def _places(spec: GlmSpec) -> dict[str, list[tuple[str, slice]]]:
    """Module as either layout names it → the matrices of ours it stands for, with the rows each has of it."""
    matrices = [name.removesuffix(".weight") for name, shape in spec.tensor_shapes().items() if len(shape) == 2]
    matrices = [name for name in matrices if ".layers." in name]
    places: dict[str, list[tuple[str, slice]]] = {name: [(name, slice(None))] for name in matrices}
    sources = chatglm_sources(spec.num_layers, spec.q_size, spec.kv_size, bias=False)
    for name in matrices:
        source, rows = sources[name + ".weight"]
        places.setdefault(source.removesuffix(".weight"), []).append((name, rows))
    return places


def _targets(path: Path, module: str, places: Mapping[str, list[tuple[str, slice]]]) -> list[tuple[str, slice]]:
    found = places.get(module)
    if found is None:
        raise CheckpointError(
            f"{path} adapts {module}, which this model does not have",
            hint=f"It was trained on another model, or on parts that cannot be adapted here. They can: {_TARGETS}.",
        )
    return found


def _checked(
    path: Path, module: str, sides: Mapping[str, Array], config: Config, rows: slice, shape: tuple[int, ...],
    parts: list[tuple[str, slice]],
) -> tuple[Array, Array]:  # fmt: skip
    """A and, of B, the rows; their shapes are right."""
    if set(sides) != {"A", "B"}:
        missing = "B" if "A" in sides else "A"
        raise CheckpointError(f"{path}: lora_{missing} of {module} is missing", hint="Save the adapter again.")
    a, b = sides["A"], sides["B"]
    rank = config.rank_of(module)
    stacked = shape[0] if len(parts) == 1 else max(part.stop for _, part in parts)
    if a.shape != (rank, shape[1]) or b.shape != (stacked, rank):
        raise CheckpointError(
            f"{path}: {module} has matrices of {list(b.shape)} and {list(a.shape)}; rank {rank} on this model asks for "
            f"{[stacked, rank]} and {[rank, shape[1]]}",
            hint="It was trained on a model of another size, or its two files do not belong together.",
        )
    return a, b[rows]
