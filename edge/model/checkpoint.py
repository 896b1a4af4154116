"""Tensors of a checkpoint, read by memory map: nothing is copied until somebody asks.

The safetensors package can map a file too, but numpy has no bfloat16, so it cannot hand one out
without a conversion; the format itself is a JSON header and raw bytes
(https://huggingface.co/docs/safetensors, "Format").
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import CheckpointError, UnsupportedModelError
from edge.model import layouts
from edge.model.spec import GlmSpec, read_json

# How a safetensors dtype is seen by numpy. BF16 is carried as its raw 16 bits.
_STORAGE: dict[str, np.dtype[Any]] = {"BF16": np.dtype("<u2"), "F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
# Derived tables some checkpoints carry along; the graph computes them.
_IGNORED_SUFFIXES = (".rotary_emb.inv_freq", ".rotary_pos_emb.inv_freq")
_VISION = "transformer.vision."
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_READ = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
         "chat_template.jinja")  # fmt: skip
_MAX_HEADER_BYTES = 100_000_000
_REPAIR = "Download the file again; an interrupted download or a full disk leaves it short."


@dataclass(frozen=True)
class Weight:
    """One tensor: `raw` is a read-only view of the file; bf16 stays as uint16 bit patterns."""

    raw: NDArray[Any]
    dtype: str  # BF16, F16 or F32
    kept: bool = True
    """Whether the checkpoint keeps `raw` as long as it lives; else whoever uses it has to."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first, as in the file."""
        return self.raw.shape

    def rows(self, index: NDArray[np.int64]) -> Weight:
        """A copy with the first axis reordered by `index`."""
        return Weight(np.ascontiguousarray(self.raw[index]), self.dtype)

    def f32(self) -> NDArray[np.float32]:
        """A float32 copy of the values."""
        if self.dtype == "BF16":
            bits = self.raw.astype(np.uint32)
            bits <<= 16  # in place: of a large matrix a second copy is half a gigabyte
            return bits.view(np.float32)
        return self.raw.astype(np.float32)

    def times(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """x [S, columns] times the transposed matrix: [S, rows]."""
        out: NDArray[np.float32] = x @ self.f32().T
        return out


class Checkpoint:
    """A folder of safetensors whose tensors all exist, with the right shapes, before work starts.

    Raises:
        CheckpointError: a shard or tensor is missing, cut short, or of the wrong shape or type.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spec = GlmSpec.from_folder(folder)
        self.shards = _find_shards(folder)
        tensors: dict[str, Weight] = {}
        for shard in self.shards:
            for name, weight in map_tensors(shard):
                if name in tensors:
                    raise CheckpointError(
                        f"{shard} holds the tensor {name}, which another shard holds, too",
                        hint="Shards of two checkpoints got into one folder: download it again into an empty one.",
                    )
                tensors[name] = weight
        self._weights = self._rename(tensors) if self.spec.model_type == "chatglm" else tensors
        self._check()

    def weight(self, name: str) -> Weight:
        """The tensor `name` of `GlmSpec.tensor_shapes`; a view that lives as long as this object."""
        return self._weights[name]

    def stored_bytes(self, name: str) -> int:
        """Of the tensor, as the file has it."""
        return int(self._weights[name].raw.nbytes)

    def files(self) -> list[Path]:
        """Of its folder those that decide what the model says: config, tokenizer and weights."""
        return [path for path in (self.folder / name for name in _READ) if path.is_file()] + self.shards

    def tensors(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Name and `Weight.raw` of every tensor of `GlmSpec.tensor_shapes`, in its order."""
        for name in self.spec.tensor_shapes():
            yield name, self._weights[name].raw

    def _rename(self, tensors: dict[str, Weight]) -> dict[str, Weight]:
        spec = self.spec
        sources = layouts.chatglm_sources(spec.num_layers, spec.q_size, spec.kv_size, bias=spec.attention_bias)
        used = {name for name, _ in sources.values()}
        out = {name: weight for name, weight in tensors.items() if name not in used}  # to be refused by name
        stacked = spec.q_size + 2 * spec.kv_size
        for name, (source, rows) in sources.items():
            if source in tensors:
                found = tensors[source].shape
                if rows.stop is not None and found[:1] != (stacked,):  # slices of it would look right and be wrong
                    raise CheckpointError(
                        f"{self.folder}: the tensor {source} has shape {list(found)}, but config.json asks for "
                        f"{stacked} rows for {spec.num_heads} heads and {spec.num_kv_heads} groups",
                        hint="config.json and the weights do not belong together; see multi_query_group_num.",
                    )
                out[name] = Weight(tensors[source].raw[rows], tensors[source].dtype)
        return out

    def _check(self) -> None:
        expected = self.spec.tensor_shapes()
        for name, shape in expected.items():
            weight = self._weights.get(name)
            if weight is None:
                raise CheckpointError(
                    f"{self.folder}: the tensor {name} is missing",
                    hint="config.json and the weights do not belong together, or a shard was left out of the download.",
                )
            if weight.shape != shape:
                raise CheckpointError(
                    f"{self.folder}: the tensor {name} has shape {list(weight.shape)}, "
                    f"but config.json asks for {list(shape)}",
                    hint="config.json and the weights do not belong together.",
                )
        tied = {"lm_head.weight"} if self.spec.tie_word_embeddings else set()
        unknown = [
            name
            for name in self._weights
            if name not in expected and name not in tied and not name.endswith(_IGNORED_SUFFIXES)
        ]
        if any(name.startswith(_VISION) for name in unknown):
            raise UnsupportedModelError(
                f"{self.folder} is a vision model (it has tensors {_VISION}*)",
                hint="Vision is not supported; export the text model instead, for example zai-org/glm-4-9b-chat-hf.",
            )
        if unknown:
            raise CheckpointError(
                f"{self.folder}: {len(unknown)} tensors are none of GLM-4's, {unknown[0]} among them",
                hint="This looks like another architecture under a GLM config; leaving tensors out would give "
                "wrong answers.",
            )


def shard_names(folder: Path) -> list[str]:
    """The files of `folder` that hold the weights, there or still to be fetched.

    Raises:
        CheckpointError: the index is damaged, or names a file elsewhere.
    """
    index = folder / _INDEX
    if not index.exists():
        return [_SINGLE]
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(x, str) for x in weight_map.values()):
        raise CheckpointError(f"{index} names no shards", hint="Download the file again.")
    names = sorted(set(weight_map.values()))
    for name in names:
        if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", name):
            raise CheckpointError(
                f"{index} names {name!r}, which is no *.safetensors file of that folder",
                hint="Download the index and the weights again, from a source you trust.",
            )
    return names


def _find_shards(folder: Path) -> list[Path]:
    names = shard_names(folder)
    missing = [name for name in names if not (folder / name).is_file()]
    if not missing:
        return [folder / name for name in names]
    if names == [_SINGLE]:
        others = sorted(path.name for ending in ("bin", "pt", "pth", "gguf") for path in folder.glob(f"*.{ending}"))
        what = f"its weights as {others[0]}" if others else f"no weights: neither {_SINGLE} nor {_INDEX}"
        raise CheckpointError(
            f"{folder} holds {what}" + (", which is not read" if others else ""),
            hint="Download the checkpoint's *.safetensors files into it.",
        )
    raise CheckpointError(
        f"{folder}: {len(missing)} of {len(names)} shards are missing, {missing[0]} among them",
        hint="Download the missing shards into the same folder.",
    )


def map_tensors(path: Path) -> Iterator[tuple[str, Weight]]:
    """Name and view of each tensor of a safetensors file.

    Raises:
        CheckpointError: it is damaged, or has tensors of another type than BF16, F16 or F32.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if length > min(_MAX_HEADER_BYTES, size - 8):
            raise CheckpointError(f"{path} is cut short or no safetensors file ({size:,} bytes)", hint=_REPAIR)
        try:
            header = json.loads(file.read(length))
            entries = {name: value for name, value in header.items() if name != "__metadata__"}
            end = max((value["data_offsets"][1] for value in entries.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} has a damaged header ({error})", hint=_REPAIR) from error
    if 8 + length + end > size:
        raise CheckpointError(f"{path} is cut short: {size:,} bytes of {8 + length + end:,}", hint=_REPAIR)
    data = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + length) if end else np.zeros(0, np.uint8)
    for name, value in entries.items():
        storage = _STORAGE.get(value["dtype"])
        if storage is None:
            raise CheckpointError(
                f"{path}: the tensor {name} is of type {value['dtype']}, not BF16, F16 or F32",
                hint="Export the original bf16 or fp16 checkpoint, not a quantised one.",
            )
        begin, stop = value["data_offsets"]
        count = int(np.prod(value["shape"], dtype=np.int64))
        if stop - begin != count * storage.itemsize:
            raise CheckpointError(f"{path}: the tensor {name} does not fill its place", hint=_REPAIR)
        yield name, Weight(data[begin:stop].view(storage).reshape(value["shape"]), value["dtype"])
