"""A compressed model written a layer at a time: as much memory for 9B parameters as for one layer.

Data-free recipes need nothing but the weights themselves, so each layer is built, compressed, written to
its place in the final .bin and let go. Embedding and head, the two largest tensors, go through in blocks
of rows: 8-bit weights with a scale for each row do not care.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edge.export.compress import compress
from edge.export.datafree import DataFree, decompression, facts
from edge.export.fp16 import guard
from edge.export.graph import assemble, build_ends, build_layer
from edge.export.quantize import Quantized, blocks_of_rows, quantize
from edge.export.recipe import Recipe
from edge.export.store import Store
from edge.messages import Progress
from edge.model.checkpoint import Checkpoint, Weight
from edge.model.spec import GlmSpec

_ROWS = 4096  # of an embedding at a time: 17 MB of 8-bit weights at 4096 columns
_WORKERS = min(4, os.cpu_count() or 1)  # more would wait for the disk, and each holds a layer
_NOTHING: NDArray[np.uint8] = np.empty(0, np.uint8)
_T = TypeVar("_T")
_U = TypeVar("_U")
_UNNAMED = re.compile(r"[A-Za-z]+_\d+")  # what OpenVINO calls a node that nobody named


def write_model(
    checkpoint: Checkpoint,
    recipe: Recipe,
    store: Store,
    model_file: Path,
    progress: Progress,
    *,
    make_layer: Callable[[int], ov.Model] | None = None,
    done_with: Callable[[int], None] = lambda count: None,
) -> None:
    """Compress the checkpoint's model into `model_file` and the store's .bin.

    A part that the store already holds, from a run that was killed, is not made again.

    Args:
        make_layer: returns layer i, compressed; left out, it is compressed from its weights alone.
        done_with: called with the bytes of the checkpoint that will not be asked for again.
    """
    spec = checkpoint.spec
    total = spec.num_layers + 1
    missing = [i for i in range(spec.num_layers) if not store.holds(f"layer-{i}")]
    made = (
        compressed_layers(spec, checkpoint.weight, recipe, missing) if make_layer is None else map(make_layer, missing)
    )
    done_with(sum(_bytes_of_layer(checkpoint, i) for i in range(spec.num_layers) if i not in missing))
    progress("compressing layer by layer", total - 1 - len(missing), total)
    numbers = iter(missing)
    for layer in made:  # a zip with the numbers would hold each layer while the next is made
        i = next(numbers)
        _name_nodes(guard(layer), f"layer-{i}")
        store.keep(layer, f"layer-{i}")
        del layer
        done_with(_bytes_of_layer(checkpoint, i))
        progress("compressing layer by layer", i + 1, total)
    progress("compressing embedding and head", spec.num_layers, total)
    if not store.holds("ends"):
        ends = build_ends(spec, checkpoint.weight)
        mapped: list[NDArray[Any]] = []
        if recipe.weights == "int8" or (recipe.weights == "int4" and recipe.backup != "none"):
            symmetric = recipe.symmetric if recipe.weights == "int8" else recipe.backup == "int8_sym"
            mapped = _round_rows(ends, checkpoint, symmetric, store)
        elif recipe.weights != "int4":
            ends = compress(ends, recipe, calibration=None, progress=_silent)
        _name_nodes(guard(ends), "ends")
        store.keep(ends, "ends")
        del ends, mapped  # in this order: OpenVINO's constants do not keep Python's arrays alive
    done_with(sum(checkpoint.stored_bytes(name) for name in _ends(checkpoint)))
    progress("putting the model together", 0, 0)
    parts = [store.load(f"layer-{i}") for i in range(spec.num_layers)]
    told = parts[0].get_rt_info("nncf") if parts[0].has_rt_info("nncf") else None
    model = assemble(store.load("ends"), parts)
    if DataFree.makes(recipe):
        model.set_rt_info(facts(recipe), "nncf")
    elif told is not None:
        model.set_rt_info(told, "nncf")
    _name_nodes(model, "model")
    store.write_xml(model, model_file)


def compressed_layers(
    spec: GlmSpec, weight: Callable[[str], Weight], recipe: Recipe, numbers: Sequence[int]
) -> Iterator[ov.Model]:
    """The layers of these numbers, compressed from their weights alone; each is to be let go before the next."""
    if not DataFree.makes(recipe):
        for i in numbers:
            yield compress(build_layer(spec, weight, i), recipe, calibration=None, progress=_silent, part=True)
        return

    def make(i: int) -> tuple[ov.Model, DataFree]:
        form = DataFree(recipe)
        return build_layer(spec, weight, i, form), form

    for layer, form in _in_order(make, numbers):
        yield layer
        del layer, form  # in this order: the bytes are the form's


def _round_rows(ends: ov.Model, checkpoint: Checkpoint, symmetric: bool, store: Store) -> list[NDArray[Any]]:
    """Put 8-bit embedding and head into `ends`, block by block, their bytes straight into the store.

    Returns the arrays that must outlive `ends`.
    """
    nodes = {node.get_friendly_name(): node for node in ends.get_ops()}
    mapped: list[NDArray[Any]] = []
    for name in _ends(checkpoint):
        weight = checkpoint.weight(name)
        rounded = functools.partial(quantize, name=name, bits=8, symmetric=symmetric)
        small: list[Quantized] = []
        with store.open(name) as writer:
            for block in _in_order(rounded, blocks_of_rows(weight, _ROWS)):
                writer.append(block.data)
                small.append(dataclasses.replace(block, data=_NOTHING))
        data = np.memmap(store.weights, np.uint8, "r", writer.offset, (writer.size,))
        mapped.append(data)
        scale = np.concatenate([block.scale for block in small])
        zeros = [block.zero_point for block in small if block.zero_point is not None]
        whole = Quantized(name, 8, weight.shape, data, scale, np.concatenate(zeros) if zeros else None)
        old = nodes[name + "/f32"] if name + "/f32" in nodes else nodes[name]
        old.output(0).replace(decompression(whole).output(0))
    return mapped


def _ends(checkpoint: Checkpoint) -> list[str]:
    tied = checkpoint.spec.tie_word_embeddings
    return ["model.embed_tokens.weight", *([] if tied else ["lm_head.weight"])]


def _bytes_of_layer(checkpoint: Checkpoint, i: int) -> int:
    names = (name for name in checkpoint.spec.tensor_shapes() if name.startswith(f"model.layers.{i}."))
    return sum(checkpoint.stored_bytes(name) for name in names)


def _in_order(make: Callable[[_T], _U], items: Iterable[_T]) -> Iterator[_U]:
    """`map`, on several cores: while one result is looked at, the next ones are made."""
    with ThreadPoolExecutor(_WORKERS) as pool:
        running: deque[Future[_U]] = deque()
        try:
            for item in items:
                running.append(pool.submit(make, item))
                if len(running) > _WORKERS:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:  # whoever looked has stopped
            for future in running:
                future.cancel()


def _name_nodes(model: ov.Model, part: str) -> None:
    """Name what nobody named: by its place, so that names are unique and the same in every run."""
    for number, node in enumerate(model.get_ordered_ops()):
        first, _, rest = node.get_friendly_name().partition("/")
        if _UNNAMED.fullmatch(first):
            node.set_friendly_name(f"{part}.{node.get_type_name()}.{number}" + (f"/{rest}" if rest else ""))


def _silent(stage: str, done: int, total: int) -> None:
    """Progress is told by parts."""
