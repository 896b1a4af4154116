"""Adapters laid onto the nodes of an exported model.

An export holds q and k with their rows in another order, and may divide the input of a matrix by factors that it has
multiplied the columns with (AWQ). What an adapter adds is put into the same form, so that models exported before there
were adapters take them, too. The f16 guards need nothing: they scale what comes out of a projection, and what an
adapter adds is added before.

Several adapters that are on together become one, exactly: their A matrices stacked, their B matrices side by side. And
all choices are brought to one rank with rows of zeros, the choice of none being nothing but zeros: the states of
OpenVINO GenAI (2026.4.1) then never change their shape, which led it to NaNs, and their scales are never changed alone,
which it sometimes does not notice.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import ModelError
from edge.infer import core
from edge.lora.adapter import Adapter, Delta
from edge.lora.asked import Loras
from edge.lora.cost import Sizes, ranks
from edge.manifest import MODEL_FILE
from edge.model.rotary import rotary_row_order
from edge.model.spec import GlmSpec

Array = NDArray[np.float32]

_UNSCALED = "/unscaled"  # what the f16 guard calls a projection whose name its scaled output has taken
_PREFIX = "base_model.model."  # which GenAI takes off


@dataclass(frozen=True, eq=False)
class Place:
    """Where a matrix is in the graph."""

    node: str
    """Name of its MatMul."""
    order: NDArray[np.int64] | None
    """Of the checkpoint's rows in the graph; None: the checkpoint's own."""
    factors: Array | None
    """[columns] that the graph multiplies its input with."""


def places(folder: Path, spec: GlmSpec, targets: Iterable[str]) -> dict[str, Place]:
    """Where the matrices are in the exported model in `folder`.

    Raises:
        ModelError: it has no such matrix by name.
    """
    model = core().read_model(folder / MODEL_FILE)
    nodes = {node.get_friendly_name(): node for node in model.get_ops() if node.get_type_name() == "MatMul"}
    found = {}
    for target in targets:
        name = target + _UNSCALED if target + _UNSCALED in nodes else target
        if name not in nodes:
            hint = "Adapters go onto what glm4-edge's own exporter made: export it again with that."
            raise ModelError(f"{folder} has no matrix {target}", hint=hint)
        kind = target.rpartition(".")[2]
        heads = {"q_proj": spec.num_heads, "k_proj": spec.num_kv_heads}.get(kind)
        order = None if heads is None else rotary_row_order(heads, spec.head_dim, spec.rotary_dim)
        columns = spec.tensor_shapes()[target + ".weight"][1]
        found[target] = Place(name, order, _factors(nodes[name], columns))
    return found


def _factors(matmul: Any, columns: int) -> Array | None:
    """What the input of a matrix was multiplied with for the weights' sake; see `edge.export.ir.channel_factors`."""
    source = matmul.input_value(0).get_node()
    if not source.get_friendly_name().endswith(".mlp.gated"):  # no other input is ever balanced
        return None
    for branch in (value.get_node() for value in source.input_values()):
        if branch.get_type_name() != "Multiply":
            continue
        for side in (value.get_node() for value in branch.input_values()):
            while side.get_type_name() == "Convert":
                side = side.input_value(0).get_node()
            if side.get_type_name() == "Constant" and np.prod(side.get_output_shape(0)) == columns:
                factors: Array = side.get_data(dtype=np.float32).reshape(-1)
                return factors
    return None


class Fitted:
    """The adapters that were asked for, held against the exported model in `folder`.

    Raises:
        CheckpointError: one cannot be used, or not with this model.
        ModelError: the folder's model is another than its config.json says.
    """

    def __init__(self, folder: Path, loras: Loras) -> None:
        spec = GlmSpec.from_folder(folder)
        adapters = [Adapter.read(asked, spec) for asked in loras.asked]
        self._by_name = {adapter.asked.name: adapter for adapter in adapters}
        self._ranks = ranks(self._by_name, loras)
        self._places = places(folder, spec, self._ranks)
        self._shapes = {target: spec.tensor_shapes()[target + ".weight"] for target in self._ranks}
        self.sizes = Sizes.of(adapters, loras, spec)

    def _of(self, target: str, choice: tuple[str, ...]) -> list[Delta]:
        adapters = (self._by_name[name] for name in choice)
        return [adapter.deltas[target] for adapter in adapters if target in adapter.deltas]

    def tensors(self, choice: tuple[str, ...]) -> Mapping[str, Array]:
        """Of one adapter that stands for the choice, named as GenAI looks for them."""
        out: dict[str, Array] = {}
        for target, place in self._places.items():
            rows, columns = self._shapes[target]
            a = np.zeros((self._ranks[target], columns), np.float32)
            b = np.zeros((rows, self._ranks[target]), np.float32)
            done = 0
            for delta in self._of(target, choice):
                part = slice(done, done + len(delta.a))
                a[part] = delta.a if place.factors is None else delta.a / place.factors
                b[:, part] = delta.b if place.order is None else delta.b[place.order]
                done = part.stop
            out[f"{_PREFIX}{place.node}.lora_A.weight"] = a
            out[f"{_PREFIX}{place.node}.lora_B.weight"] = b
        return out

    def file(self, choice: tuple[str, ...]) -> NDArray[np.uint8]:
        """The same as a safetensors file's bytes. Of none, zeros, whose pages take no memory (on Linux)."""
        from safetensors.numpy import save

        if choice:
            data = bytearray(save(dict(self.tensors(choice))))  # OpenVINO asks for what may be written
            return np.frombuffer(data, np.uint8)
        header: dict[str, Any] = {}
        size = 0
        for target, place in self._places.items():
            rows, columns = self._shapes[target]
            for side, shape in (("A", [self._ranks[target], columns]), ("B", [rows, self._ranks[target]])):
                end = size + 4 * shape[0] * shape[1]
                name = f"{_PREFIX}{place.node}.lora_{side}.weight"
                header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [size, end]}
                size = end
        told = json.dumps(header).encode()
        told += b" " * (-len(told) % 8)
        opening = len(told).to_bytes(8, "little") + told
        made = np.zeros(len(opening) + size, np.uint8)
        made[: len(opening)] = np.frombuffer(opening, np.uint8)
        return made
