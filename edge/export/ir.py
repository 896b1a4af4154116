"""An IR as it lies on the disk, whoever made it: its weights by kind, and smaller models cut out of it.

Everything is found by walking the graph; names only tell which matrix of which layer a weight is. Known are
those of this program and those that optimum-intel's tracing gives.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops

from edge.export.recipe import KINDS, Recipe

EMBEDDING, HEAD, TIED = "embedding", "head", "embedding and head"
ENDS = (EMBEDDING, HEAD, TIED)

# Parts of names → kind, the published chatglm layout's after ours.
_MODULES = {
    **{kind: kind for kind in KINDS},
    "lm_head": HEAD, "output_layer": HEAD,
    "query_key_value": "query_key_value", "self_attention.dense": "o_proj", "dense_h_to_4h": "gate_up_proj",
    "dense_4h_to_h": "down_proj",
}  # fmt: skip
_LAYER_ENDS = ("model.layers.{}.mlp_residual", "__module.model.layers.{}/aten::add/Add_1")
_PASSED = ("Convert", "Subtract", "Multiply", "Reshape")
_PRECISIONS = {"u4": 4, "i4": 4, "u8": 8, "i8": 8}
_CHUNK = 1 << 24
# The bits of the exponent, all of which are set in an infinity or a NaN.
_EXPONENT = {"f16": (np.uint16, 0x7C00), "bf16": (np.uint16, 0x7F80), "f32": (np.uint32, 0x7F800000)}

Node = Any  # openvino's Python nodes carry no useful static types


@dataclass(frozen=True)
class IrWeight:
    """A matrix, and how the graph makes numbers of its bytes."""

    name: str
    kind: str
    """One of `recipe.KINDS`, embedding, head, "embedding and head" where they are one, or other."""
    layer: int | None
    precision: str
    """OpenVINO's name of the element type: u4, i8, bf16, …."""
    shape: tuple[int, int]
    """Rows (outputs, or entries of the vocabulary) and columns."""
    group_size: int | None
    """Weights that share a scale; -1: a whole row; None: there are no scales."""
    constant: Node
    scale: Node | None
    zero_point: Node | None
    consumer: Node
    """The MatMul or Gather that reads it."""

    @property
    def symmetric(self) -> bool:
        """No zero point."""
        return self.zero_point is None

    @property
    def bits(self) -> int:
        """Bits of one weight."""
        return int(self.constant.get_element_type().bitwidth)

    def form(self) -> str:
        """Precision, symmetry and group size in words, such as "u4 asym, groups of 32"."""
        if self.scale is None:
            return self.precision
        groups = "per channel" if self.group_size == -1 else f"groups of {self.group_size}"
        return f"{self.precision} {'sym' if self.symmetric else 'asym'}, {groups}"

    def rows(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        """The rows as numbers, [len(index), columns]."""
        values = _numbers(self.constant, index)
        if self.scale is not None:
            groups = values.reshape(
                len(index), -1, self.shape[1] if self.group_size == -1 else int(self.group_size or 1)
            )
            if self.zero_point is not None:
                groups = groups - _numbers(self.zero_point, index).reshape(len(index), -1, 1)
            values = groups * _numbers(self.scale, index).reshape(len(index), -1, 1)
        return values.reshape(len(index), -1)


def weights_of(model: ov.Model) -> list[IrWeight]:
    """Every matrix of the model, a tied one once, in the graph's order."""
    found: dict[str, IrWeight] = {}
    for node in model.get_ordered_ops():
        weight = _weight(node)
        if weight is None:
            continue
        if weight.name in found:
            found[weight.name] = _with_kind(found[weight.name], TIED)
        else:
            found[weight.name] = weight
    return list(found.values())


def num_layers(model: ov.Model) -> int:
    """Layers of a stateful decoder: one variable for keys and one for values each."""
    return len(model.get_sinks()) // 2


def recipe_of(model: ov.Model) -> Recipe | None:
    """What NNCF noted in the IR, as far as a Recipe can say it; None where it noted nothing."""
    if not model.has_rt_info(["nncf", "weight_compression"]):
        return None

    def fact(name: str) -> str:
        key = ["nncf", "weight_compression", name]
        return str(model.get_rt_info(key).value) if model.has_rt_info(key) else ""

    weights, _, symmetry = fact("mode").partition("_")
    if weights not in ("int4", "int8") or symmetry not in ("sym", "asym"):
        return None
    if weights == "int8":
        return Recipe("int8", symmetric=symmetry == "sym")
    return Recipe(
        "int4", group_size=int(fact("group_size") or -1), symmetric=symmetry == "sym",
        ratio=float(fact("ratio") or 1), backup=fact("backup_mode") or "int8_asym", awq=fact("awq") == "True",
    )  # fmt: skip


def not_finite(model: ov.Model) -> list[str]:
    """Names of weights, scales, norms and biases that hold an infinity or a NaN.

    Scalars are left out: a mask's minus infinity is meant.
    """
    found = []
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or np.prod(node.get_output_shape(0)) < 2:
            continue
        known = _EXPONENT.get(node.get_element_type().get_type_name())
        if known is None:
            continue
        bits = raw(node).view(known[0])
        mask = known[0](known[1])
        if any(((bits[i : i + _CHUNK] & mask) == mask).any() for i in range(0, bits.size, _CHUNK)):
            found.append(str(node.get_friendly_name()))
    return found


def layer_end(model: ov.Model, i: int) -> Node | None:
    """The node that puts out layer i's hidden states, where its name is known."""
    names = {pattern.format(i) for pattern in _LAYER_ENDS}
    return next((node for node in model.get_ops() if node.get_friendly_name() in names), None)


def shorten(model: ov.Model, layers: int, vocabulary: NDArray[np.int64]) -> ov.Model | None:
    """The model with its first layers only, and with some entries of its vocabulary in place of all.

    What it knows as token n is the vocabulary's n-th entry. None where the layers' names are not known.
    The given model is used up.
    """
    last, end = layer_end(model, num_layers(model) - 1), layer_end(model, layers - 1)
    if last is None or end is None:
        return None
    slice_ends(model, vocabulary)
    last.output(0).replace(end.output(0))
    return ov.Model(model.get_results(), sinks_for(model, model.get_results()), model.get_parameters(), "shortened")


def sinks_for(model: ov.Model, ends: list[Node]) -> list[Node]:
    """The Assigns of every cache that `ends` depend on; a traced graph takes sizes from its first layer's."""
    sinks = {sink.get_variable_id(): sink for sink in model.get_sinks()}
    found: dict[str, Node] = {}
    seen: set[str] = set()
    stack = list(ends)
    while stack:
        node = stack.pop()
        if node.get_name() in seen:
            continue
        seen.add(node.get_name())
        if node.get_type_name() == "ReadValue":
            name = node.get_variable_id()
            found[name] = sinks[name]
            stack.append(sinks[name])
        stack += [port.get_source_output().get_node() for port in node.inputs()]
    return list(found.values())


def slice_ends(model: ov.Model, vocabulary: NDArray[np.int64]) -> None:
    """Keep some entries of embedding and head, in their own number format."""
    for weight in weights_of(model):
        if weight.kind not in ENDS:
            continue
        node = weight.constant
        for constant in (weight.constant, weight.scale, weight.zero_point):
            if constant is not None:
                constant.output(0).replace(_take(constant, vocabulary).output(0))
        node = weight.consumer.input_value({"MatMul": 1, "Gather": 0}[weight.consumer.get_type_name()]).get_node()
        while node.get_type_name() in _PASSED:
            if node.get_type_name() == "Reshape":
                shape = ops.constant(np.array([len(vocabulary), weight.shape[1]], np.int64))
                node.input(1).replace_source_output(shape.output(0))
            node = node.input_value(0).get_node()
    model.validate_nodes_and_infer_types()


def channel_factors(weight: IrWeight) -> NDArray[np.float32] | None:
    """What the input of a down projection was multiplied with for the weights' sake (NNCF's AWQ), [columns]."""
    gated = weight.consumer.input_value(0).get_node()
    if gated.get_type_name() != "Multiply":
        return None
    factors = None
    for branch in (gated.input_value(0).get_node(), gated.input_value(1).get_node()):
        if branch.get_type_name() != "Multiply":
            continue
        for side in (0, 1):
            constant = _constant(branch.input_value(side).get_node())
            if constant is not None and np.prod(constant.get_output_shape(0)) == weight.shape[1]:
                factors = constant.get_data(dtype=np.float32).reshape(-1)
    return factors


def raw(node: Node) -> NDArray[np.uint8]:
    """A Constant's bytes without a copy; packed types as they lie."""
    data: NDArray[Any] = np.atleast_1d(node.data)
    return data.reshape(-1).view(np.uint8)


def _weight(node: Node) -> IrWeight | None:
    position = {"MatMul": 1, "Gather": 0}.get(node.get_type_name())
    if position is None:
        return None
    scale = zero_point = None
    source = node.input_value(position).get_node()
    while source.get_type_name() in _PASSED:
        if source.get_type_name() == "Multiply":
            scale = _constant(source.input_value(1).get_node())
        elif source.get_type_name() == "Subtract":
            zero_point = _constant(source.input_value(1).get_node())
        source = source.input_value(0).get_node()
    if source.get_type_name() != "Constant":
        return None
    shape = list(source.get_output_shape(0))
    grouped = scale is not None and len(shape) == 3
    if len(shape) != 2 and not grouped:  # frequencies, masks and the like
        return None
    columns = int(np.prod(shape[1:]))
    group_size = None
    if scale is not None:
        count = int(np.prod(scale.get_output_shape(0))) // shape[0]
        group_size = -1 if count <= 1 else columns // count
    names = f"{node.get_friendly_name()} {source.get_friendly_name()}"
    kind = next((kind for part, kind in _MODULES.items() if re.search(rf"\b{re.escape(part)}\b", names)), "other")
    if node.get_type_name() == "Gather":
        kind = EMBEDDING
    return IrWeight(
        name=str(source.get_friendly_name()), kind=kind, layer=_layer_of(names),
        precision=str(source.get_element_type().get_type_name()), shape=(int(shape[0]), columns),
        group_size=group_size, constant=source, scale=scale, zero_point=zero_point, consumer=node,
    )  # fmt: skip


def _with_kind(weight: IrWeight, kind: str) -> IrWeight:
    return IrWeight(**{**vars(weight), "kind": kind})


def _layer_of(name: str) -> int | None:
    found = re.search(r"(?:layers|past_key_values)\.(\d+)", name)
    return int(found.group(1)) if found else None


def _constant(node: Node) -> Node | None:
    while node.get_type_name() in ("Convert", "Reshape"):
        node = node.input_value(0).get_node()
    return node if node.get_type_name() == "Constant" else None


def _take(node: Node, index: NDArray[np.int64]) -> Node:
    """A Constant with some rows of another."""
    data, rows = raw(node), int(node.get_output_shape(0)[0])
    if data.size % rows == 0:
        picked = data.reshape(rows, -1)[index].reshape(-1)
    else:  # 4-bit rows that end in the middle of a byte
        halves = np.stack([data & 15, data >> 4], axis=1).reshape(-1)
        size = int(np.prod(node.get_output_shape(0))) // rows
        halves = halves[: rows * size].reshape(rows, size)[index].reshape(-1)
        halves = np.append(halves, np.zeros(halves.size % 2, np.uint8))
        picked = halves[::2] | halves[1::2] << 4
    shape = ov.Shape([len(index), *list(node.get_output_shape(0))[1:]])
    made = ov.op.Constant(ov.Tensor(picked, shape, node.get_element_type()), shared_memory=False)
    made.set_friendly_name(node.get_friendly_name())
    return made


def _numbers(node: Node, index: NDArray[np.int64]) -> NDArray[np.float32]:
    """Rows of a Constant as numbers, [len(index), …] flat within a row."""
    return np.asarray(_take(node, index).get_data(dtype=np.float32), np.float32).reshape(len(index), -1)
