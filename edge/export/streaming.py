"""A compressed model written a layer at a time: as much memory for 9B parameters as for one layer.

Data-free recipes need nothing but the weights themselves, so each layer is built, compressed, written to
its place in the final .bin and let go. Embedding and head, the two largest tensors, go through in blocks
of rows: 8-bit weights with a scale for each row do not care.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops

from edge.export.compress import compress
from edge.export.fp16 import guard
from edge.export.graph import OV_TYPE, assemble, build_ends, build_layer
from edge.export.recipe import Recipe
from edge.export.store import Store, constants, raw_bytes
from edge.messages import Progress
from edge.model.checkpoint import Checkpoint

_ROWS = 8192  # of an embedding at a time: 134 MB of f32 at 4096 columns
_UNNAMED = re.compile(r"[A-Za-z]+_\d+")  # what OpenVINO calls a node that nobody named


def write_model(
    checkpoint: Checkpoint,
    recipe: Recipe,
    store: Store,
    model_file: Path,
    progress: Progress,
    *,
    make_layer: Callable[[int], ov.Model] | None = None,
) -> None:
    """Compress the checkpoint's model into `model_file` and the store's .bin.

    A part that the store already holds, from a run that was killed, is not made again.

    Args:
        make_layer: returns layer i, compressed; left out, it is compressed from its weights alone.
    """
    spec = checkpoint.spec

    def from_weights(i: int) -> ov.Model:
        layer = build_layer(spec, checkpoint.weight, i)
        return compress(layer, recipe, calibration=None, progress=_silent, part=True)

    make_layer = make_layer or from_weights
    total = spec.num_layers + 1
    for i in range(spec.num_layers):
        progress("compressing layer by layer", i, total)
        name = f"layer-{i}"
        if not store.holds(name):
            layer = guard(make_layer(i))
            _name_nodes(layer, name)
            store.keep(layer, name)
    progress("compressing embedding and head", spec.num_layers, total)
    if not store.holds("ends"):
        ends = build_ends(spec, checkpoint.weight)
        mapped: list[NDArray[Any]] = []
        if recipe.weights == "int8" or (recipe.weights == "int4" and recipe.backup != "none"):
            symmetric = recipe.symmetric if recipe.weights == "int8" else recipe.backup == "int8_sym"
            mapped = _compress_rows(ends, checkpoint, Recipe("int8", symmetric=symmetric), store)
        elif recipe.weights != "int4":
            ends = compress(ends, recipe, calibration=None, progress=_silent)
        _name_nodes(guard(ends), "ends")
        store.keep(ends, "ends")
        del ends, mapped  # in this order: OpenVINO's constants do not keep Python's arrays alive
    progress("putting the model together", 0, 0)
    parts = [store.load(f"layer-{i}") for i in range(spec.num_layers)]
    facts = parts[0].get_rt_info("nncf") if parts[0].has_rt_info("nncf") else None
    model = assemble(store.load("ends"), parts)
    if facts is not None:
        model.set_rt_info(facts, "nncf")
    _name_nodes(model, "model")
    store.write_xml(model, model_file)


def _compress_rows(ends: ov.Model, checkpoint: Checkpoint, recipe: Recipe, store: Store) -> list[NDArray[Any]]:
    """Put 8-bit embedding and head into `ends`, block by block, their bytes straight into the store.

    Returns the arrays that must outlive `ends`.
    """
    spec = checkpoint.spec
    mapped: list[NDArray[Any]] = []
    for name in ("model.embed_tokens.weight", *(() if spec.tie_word_embeddings else ("lm_head.weight",))):
        weight = checkpoint.weight(name)
        small: dict[str, list[NDArray[Any]]] = defaultdict(list)
        writer = store.open(name)
        block = None
        for begin in range(0, weight.shape[0], _ROWS):
            raw = weight.raw[begin : begin + _ROWS]
            block = compress(_block_model(name, raw, weight.dtype), recipe, calibration=None, progress=_silent)
            for node in constants(block):
                if node.get_friendly_name() == name:
                    writer.append(raw_bytes(node))
                elif node.get_friendly_name().startswith(name):
                    small[node.get_friendly_name()].append(node.data.copy())
        writer.close()
        assert block is not None
        for node in constants(block):
            key = node.get_friendly_name()
            if key == name:
                data = np.memmap(store.weights, np.uint8, "r", writer.offset, (writer.size,))
                mapped.append(data)
                full = ov.Tensor(data, ov.Shape(weight.shape), node.get_element_type())
                replacement = ov.op.Constant(full, shared_memory=True)
            elif key in small:
                replacement = ops.constant(np.concatenate(small[key]))
            else:
                continue
            replacement.set_friendly_name(key)
            node.output(0).replace(replacement.output(0))
        (old,) = (node for node in ends.get_ops() if node.get_friendly_name() == name + "/f32")
        (gather,) = (node for node in block.get_ops() if node.get_type_name() == "Gather")
        old.output(0).replace(gather.input_value(0))
    return mapped


def _block_model(name: str, raw: NDArray[Any], dtype: str) -> ov.Model:
    """Rows of an embedding as a model that NNCF compresses like an embedding."""
    constant = ov.op.Constant(ov.Tensor(raw, ov.Shape(raw.shape), OV_TYPE[dtype]), shared_memory=True)
    constant.set_friendly_name(name)
    rows = constant if dtype == "F32" else ops.convert(constant, "f32")
    ids = ops.parameter([-1], ov.Type.i32, name="ids")
    return ov.Model([ops.result(ops.gather(rows, ids, ops.constant(0, ov.Type.i32)))], [ids], "rows")


def _name_nodes(model: ov.Model, part: str) -> None:
    """Name what nobody named: by its place, so that names are unique and the same in every run."""
    for number, node in enumerate(model.get_ordered_ops()):
        first, _, rest = node.get_friendly_name().partition("/")
        if _UNNAMED.fullmatch(first):
            node.set_friendly_name(f"{part}.{node.get_type_name()}.{number}" + (f"/{rest}" if rest else ""))


def _silent(stage: str, done: int, total: int) -> None:
    """Progress is told by parts."""
