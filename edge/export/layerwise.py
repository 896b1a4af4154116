"""Calibration a layer at a time: what each layer really sees, gathered with one layer in memory.

The hidden states of a few texts walk through the layers. Each layer is run uncompressed, which shows what its
matrices are multiplied with; NNCF compresses it by that; and the compressed layer makes the hidden states of the
next, which so learns to live with the errors before it.

Memory: one layer in f32, the hidden states (4 bytes for each token and channel: 34 MB for 2,048 tokens at 4,096),
and the inputs of one layer's matrices (213 MB at GLM-4-9B's size).
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops

from edge.export.compress import Inputs, compress, int8_error
from edge.export.fp16 import RESIDUAL_SCALE
from edge.export.graph import MASKED, build_layer, plain
from edge.export.quantize import balanced, channel_magnitudes
from edge.export.recipe import Recipe
from edge.export.store import Store
from edge.files import write_text
from edge.infer import EXACT, core
from edge.messages import Progress
from edge.model.checkpoint import Checkpoint, Weight

Array = NDArray[np.float32]

# What the plugin keeps for shapes it has met outlives the compiled model: the weights of every layer, in the end.
_RUN = {**EXACT, "CPU_RUNTIME_CACHE_CAPACITY": "0"}
_WINDOW = 8  # tokens over which an input's variance is taken; its mean over the windows is what NNCF asks for
_SAMPLES = 256  # at most, where one scale serves a whole output channel


class Layerwise:
    """Makes the layers of a checkpoint by a recipe that calibrates, in order."""

    def __init__(
        self, checkpoint: Checkpoint, recipe: Recipe, texts: Sequence[list[int]], store: Store, progress: Progress
    ) -> None:
        """
        Args:
            texts: token ids of the calibration texts.
            store: where the layers are kept; the hidden states lie in its folder meanwhile.
            progress: told of the first pass, where the recipe needs one.
        """
        self._checkpoint = checkpoint
        self._recipe = recipe
        self._texts = texts
        self._store = store
        self._progress = progress
        self._next = -1
        self._states: list[Array] = []
        self._shares: list[float] = []

    def make_layer(self, i: int) -> ov.Model:
        """Layer i, compressed. The layers before it have been made, by this object or by a run that was killed."""
        states = self._states if self._next == i else self._states_before(i)
        for old in self._store.folder.glob("hidden-*.npy"):
            if old.name != _file_name(i):
                old.unlink()
        self._shares = self._shares or self._choose()
        recipe, form = self._recipe, None
        if recipe.awq and not recipe.selects:  # NNCF's own balancing is for what it puts in 4 bits, and takes 3 GB
            recipe, form = dataclasses.replace(recipe, awq=False), _Balanced()
        layer = build_layer(self._checkpoint.spec, self._checkpoint.weight, i, form)
        seen, _ = observe(layer, states, self._tables)
        inputs = _inputs(seen, recipe.group_size)
        del seen
        layer = compress(layer, recipe, calibration=inputs, share=self._shares[i], progress=_silent, part=True)
        layer.set_rt_info(str(self._recipe.awq), ["nncf", "weight_compression", "awq"])
        self._states, self._next = self._through(layer, states), i + 1
        self._keep_states()
        return layer

    def _states_before(self, i: int) -> list[Array]:
        """What enters layer i: from the disk, or through the layers that are already made."""
        path = self._store.folder / _file_name(i)
        if path.is_file():
            return list(np.load(path))
        embedding = self._checkpoint.weight("model.embed_tokens.weight")
        states = [embedding.rows(np.asarray(text)).f32() for text in self._texts]
        for j in range(i):  # as they were kept: with the residual stream scaled down
            layer = self._store.load(f"layer-{j}")
            scaled = self._through(layer, [state * np.float32(RESIDUAL_SCALE) for state in states])
            states = [state / np.float32(RESIDUAL_SCALE) for state in scaled]
        return states

    def _keep_states(self) -> None:
        """On the disk before the layer is: whoever goes on needs them."""
        path = self._store.folder / _file_name(self._next)
        unfinished = path.with_suffix(".unfinished")
        with unfinished.open("wb") as file:
            np.save(file, np.stack(self._states))
            os.fsync(file.fileno())
        unfinished.replace(path)

    def _through(self, layer: ov.Model, states: list[Array]) -> list[Array]:
        return observe(layer, states, self._tables, inputs=False)[1]

    def _choose(self) -> list[float]:
        """For each layer the share of its weights that gets 4 bits.

        NNCF's rule over all layers: those matrices whose input varies least, and which 8 bits would help least.
        A layer's own share then leads NNCF to the same matrices, as it takes them in the same order.
        """
        spec = self._checkpoint.spec
        if not self._recipe.selects or self._recipe.by_weights:
            return [self._recipe.ratio] * spec.num_layers
        path = self._store.folder / "shares.json"
        if path.is_file():
            return list(json.loads(path.read_text(encoding="utf-8")))
        states = self._states_before(0)
        found: list[tuple[float, int, int]] = []
        for i in range(spec.num_layers):
            self._progress("choosing what stays in 8 bits", i, spec.num_layers)
            layer = build_layer(spec, self._checkpoint.weight, i)
            inputs, states = observe(layer, states, self._tables)
            variances = {name: _variance(arrays) for name, arrays in inputs.items()}
            for matmul, weight in matrices(layer):
                name = matmul.input_value(0).get_node().get_friendly_name()
                size = int(np.prod(weight.get_output_shape(0)))
                found.append((variances[name] / int8_error(weight.get_data(dtype=np.float32)), i, size))
        shares = _shares(found, self._recipe.ratio, spec.num_layers)
        write_text(path, json.dumps(shares))
        return shares

    def _tables(self, length: int) -> dict[str, NDArray[Any]]:
        """The inputs of `build_layer` beside the hidden states, for one text of `length` tokens from its start."""
        frequencies, scale = self._checkpoint.spec.rotary_frequencies()
        angles = np.arange(length, dtype=np.float32)[:, None] * frequencies.astype(np.float32)
        angles = np.concatenate([angles, angles], -1)[None, None]
        mask = np.where(np.tri(length, dtype=bool), np.float32(0), MASKED)[None, None]
        factor = np.float32(scale)
        return {
            "cos": np.cos(angles) * factor, "sin": np.sin(angles) * factor, "mask": mask,
            "batch": np.ones(1, np.int64), "beams": np.zeros(1, np.int32),
        }  # fmt: skip


class _Balanced:
    """A layer's `Form`: as in the checkpoint, but down_proj's channels evened out as data-free AWQ does it."""

    def __init__(self) -> None:
        self._kept: list[Weight] = []

    def balance(self, weight: Weight) -> Array:
        return np.float32(1) / channel_magnitudes(weight)

    def matrix(self, name: str, weight: Weight, factors: Array | None) -> Any:
        weight = weight if factors is None else balanced(weight, factors)
        self._kept.append(weight)
        return plain(name, weight, shared=True)


def matrices(layer: ov.Model) -> list[tuple[Any, Any]]:
    """Each MatMul of an uncompressed layer that has weights, with the Constant of its weights."""
    found = []
    for node in layer.get_ordered_ops():
        if node.get_type_name() == "MatMul":
            weight = node.input_value(1).get_node()
            weight = weight.input_value(0).get_node() if weight.get_type_name() == "Convert" else weight
            if weight.get_type_name() == "Constant":
                found.append((node, weight))
    return found


def observe(
    layer: ov.Model, states: Sequence[Array], tables: Any, *, inputs: bool = True
) -> tuple[dict[str, list[Array]], list[Array]]:
    """Run the layer over hidden states [tokens, hidden], one text after the other.

    Returns:
        The inputs of its matrices, [tokens, channels] for each text, by the name of the node that makes them (empty
        where `inputs` is false); and its outputs, [tokens, hidden] for each text.
    """
    layer = layer.clone()
    sources = {}
    if inputs:
        sources = {
            node.input_value(0).get_node().get_friendly_name(): node.input_value(0) for node, _ in matrices(layer)
        }
        layer.add_results([ops.result(source) for source in sources.values()])
    request = core().compile_model(layer, "CPU", _RUN).create_infer_request()
    seen: dict[str, list[Array]] = {name: [] for name in sources}
    outputs = []
    for state in states:
        request.reset_state()
        found = request.infer({"hidden": state[None], **tables(len(state))})
        outputs.append(found[0][0].copy())
        for number, arrays in enumerate(seen.values(), 1):
            arrays.append(found[number][0].copy())
    return seen, outputs


def _inputs(seen: dict[str, list[Array]], group_size: int) -> Inputs:
    return Inputs(
        {name: condense(np.concatenate(arrays), group_size) for name, arrays in seen.items()},
        {name: _variance(arrays) for name, arrays in seen.items()},
    )


def condense(x: Array, group_size: int) -> Array:
    """Few vectors [samples, channels] that say about a matrix's error what all tokens of x [tokens, channels] say.

    The error that a group of weights w' in place of w leaves is the sum of (x·(w' - w))² over the tokens. It depends
    on x only through xᵀx of the group's channels, and a square root of that, as many rows as the group has channels,
    leaves the same error. For whole output channels the largest singular vectors stand for all.
    """
    tokens, channels = x.shape
    if group_size == -1:
        values, vectors = np.linalg.eigh(x @ x.T / np.float32(tokens))
        keep = min(_SAMPLES, tokens)
        return np.ascontiguousarray(vectors[:, ::-1][:, :keep].T @ x / np.sqrt(np.float32(tokens)))
    grouped = x.reshape(tokens, channels // group_size, group_size).transpose(1, 0, 2)
    values, vectors = np.linalg.eigh(grouped.transpose(0, 2, 1) @ grouped / np.float32(tokens))
    roots = vectors * np.sqrt(np.maximum(values, 0))[:, None, :]
    return np.ascontiguousarray(roots.transpose(2, 0, 1).reshape(group_size, channels)[::-1], np.float32)


def _variance(arrays: Sequence[Array]) -> float:
    """Mean over the windows of the largest variance that a channel has in one."""
    largest = [
        array[begin : begin + _WINDOW].var(0).max() for array in arrays for begin in range(0, len(array), _WINDOW)
    ]
    return float(np.mean(largest))


def _shares(found: Sequence[tuple[float, int, int]], ratio: float, layers: int) -> list[float]:
    """Each layer's share of weights in 4 bits, from (score, layer, size) of every matrix.

    NNCF stops before the matrix that would reach the ratio. So that it stops at the same place in the layer, its
    share ends half a smallest matrix after the last one taken.
    """
    total = sum(size for _, _, size in found)
    taken, sizes = [0] * layers, [0] * layers
    for _, i, size in found:
        sizes[i] += size
    for _, i, size in sorted(found):
        if (sum(taken) + size) / total >= ratio:
            break
        taken[i] += size
    smallest = min(size for _, _, size in found)
    return [1.0 if mine == size else (mine + smallest / 2) / size for mine, size in zip(taken, sizes, strict=True)]


def _file_name(i: int) -> str:
    return f"hidden-{i}.npy"


def _silent(stage: str, done: int, total: int) -> None:
    """Progress that the caller tells in steps of its own."""
