"""What an export will read, write and hold, and how long it should take: before anything is spent.

Sizes are computed. Time rests on a short measurement on this machine, of the export's own steps on a sample of the
checkpoint's own bytes. The constants are what an export does for each of the things measured; they come from the
comparisons in `benchmarks/results` (`benchmarks.export_peak` puts the forecast beside what it then took).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from edge.errors import ResourceError
from edge.export.datafree import DataFree
from edge.export.recipe import SMALL, Recipe, layer_weights
from edge.export.streaming import compressed_layers
from edge.export.verify import PARITY_ROWS, WHOLE_BYTES
from edge.messages import Progress
from edge.model.checkpoint import Checkpoint, Weight
from edge.model.spec import GlmSpec

# Memory, in bytes that belong to the process alone.
_PROGRAM_BYTES = 300_000_000  # Python, OpenVINO, NNCF, transformers
_LAYER_BYTES = 1.5  # for each weight of a layer that is compressed from its weights alone
_LAYER_NNCF_BYTES = 16.0  # the same, where NNCF does it
_LAYER_RUN_BYTES = 12.0  # the same, where it is calibrated: the layer runs in f32, of which the plugin has two copies
_GRAPH_BYTES = 8.0  # for each parameter of what is compared with the definition
_PROOF_BYTES = 0.22  # for each byte of the finished IR, while it is proved
# Time, as multiples of what was measured.
_START_SECONDS = 6.0  # imports, and converting the tokenizer
_GRAPH_PASSES = 15.0  # times hashing the weights that are compared with the definition
_PROOF_PASSES = 2.5  # times hashing the finished IR
_PROOF_SECONDS = 0.2  # for each layer besides
_GOLDEN_PASSES = 10.0  # times hashing a byte, for each parameter, on two cores
_CALIBRATION_SECONDS = 1.2  # for each layer, and besides:
_CALIBRATION_PASSES = 5.0  # multiplications with all weights, for each token of the calibration text
_CALIBRATION_TOKENS = 2048
_ENDS_SHARE = 1.0  # of what a layer's weight costs, for one of embedding or head

_SAMPLE_BYTES = 256_000_000
_PIECE = 8_000_000
_READ_SECONDS = 0.7
_SAMPLE_HEADS, _SAMPLE_WIDTH, _SAMPLE_LAYERS = 8, 1024, 4  # of what is compressed


@dataclass(frozen=True)
class Rates:
    """How fast this machine was a moment ago; None where it was not measured."""

    read_bytes_per_second: float | None = None
    """Of the checkpoint itself, from all over it, as much of it cached as is."""
    sha256_bytes_per_second: float | None = None
    multiply_per_second: float | None = None
    """Multiplications and additions in f32, both counted."""
    layer_seconds: float | None = None
    """To compress a layer of next to nothing."""
    weight_seconds: float | None = None
    """To compress one more weight."""


@dataclass(frozen=True)
class Forecast:
    """Figures of an export that has not been made."""

    parameters: int
    read_bytes: int
    """Of the checkpoint; an export goes through it more than once, but the disk need give it only once."""
    write_bytes: int
    memory_bytes: int
    rates: Rates
    seconds: dict[str, float] = field(default_factory=dict)
    """For each step; what the download takes is not in it."""
    assumed: tuple[str, ...] = ()
    """What the times rest on besides the rates."""

    @property
    def total_seconds(self) -> float:
        """All steps."""
        return sum(self.seconds.values())


def memory_bytes(spec: GlmSpec, recipe: Recipe) -> int:
    """Most anonymous memory an export holds at once; pages of mapped files, which the system can drop, left out."""
    per_layer = layer_weights(spec) / spec.num_layers
    if recipe.needs_calibration and not recipe.selects:
        compressing = _LAYER_RUN_BYTES * per_layer
    else:
        compressing = (_LAYER_BYTES if DataFree.makes(recipe) else _LAYER_NNCF_BYTES) * per_layer
    graph = _GRAPH_BYTES * _compared_parameters(spec)
    proving = _PROOF_BYTES * recipe.estimated_bytes(spec)
    return _PROGRAM_BYTES + int(max(compressing, graph, proving))


def _compared_parameters(spec: GlmSpec) -> int:
    """Of the model or, where it is too large for that, of the part of it that is compared with the definition."""
    if 4 * spec.parameter_count() > WHOLE_BYTES:
        vocab, width = min(spec.vocab_size, PARITY_ROWS), min(spec.intermediate_size, PARITY_ROWS)
        spec = dataclasses.replace(spec, vocab_size=vocab, intermediate_size=width, num_layers=1)
    return spec.parameter_count()


def check_memory(spec: GlmSpec, recipe: Recipe) -> None:
    """Refuse what would not fit even a machine that runs nothing else.

    Raises:
        ResourceError: the forecast is above all the memory there is.
    """
    needed, there = memory_bytes(spec, recipe), psutil.virtual_memory().total
    if needed > there:
        hint = "Make it on a machine with more; the folder it makes runs on this one, too, if the model fits."
        if recipe.needs_calibration and spec.parameter_count() >= SMALL:
            hint = "Leave --calibrate out: compressing from the weights alone holds less of a layer at once."
        raise ResourceError(
            f"the export needs about {needed / 1e9:.1f} GB of memory, and this machine has {there / 1e9:.1f} GB",
            hint=hint,
        )


def forecast(spec: GlmSpec, recipe: Recipe, *, weight_bytes: int, rates: Rates) -> Forecast:
    """Put sizes and rates together. Pure."""
    writes = recipe.estimated_bytes(spec)
    seconds = {"starting, and converting the tokenizer": _START_SECONDS}
    assumed = [
        f"{_START_SECONDS:.0f} s to start",
        f"{_PROOF_SECONDS} s to prove a layer; the other proofs, and the golden logits, go as hashing does",
    ]
    hashed = rates.sha256_bytes_per_second or np.inf
    seconds["checking the graph"] = _GRAPH_PASSES * 2 * _compared_parameters(spec) / hashed
    if rates.read_bytes_per_second:
        assumed.append("the disk writes as fast as it reads")
    else:
        assumed.append("the disk takes no time: nothing is there to read it from")
    seconds["compressing, and hashing the checkpoint meanwhile"] = _compressing(spec, recipe, weight_bytes, rates)
    seconds["proving the result"] = _PROOF_SECONDS * spec.num_layers + _PROOF_PASSES * writes / hashed
    seconds["keeping golden logits"] = _GOLDEN_PASSES * spec.parameter_count() / hashed
    return Forecast(
        parameters=spec.parameter_count(),
        read_bytes=weight_bytes,
        write_bytes=writes,
        memory_bytes=memory_bytes(spec, recipe),
        rates=rates,
        seconds={step: round(value, 1) for step, value in seconds.items()},
        assumed=tuple(assumed),
    )


def _compressing(spec: GlmSpec, recipe: Recipe, weight_bytes: int, rates: Rates) -> float:
    """The disk, the hashing and the compression go on at once; the slowest counts, and on few cores the last two."""
    if recipe.needs_calibration:
        work = 2 * spec.parameter_count() * _CALIBRATION_TOKENS * _CALIBRATION_PASSES
        busy = work / (rates.multiply_per_second or np.inf) + _CALIBRATION_SECONDS * spec.num_layers
    else:
        ends = (1 if spec.tie_word_embeddings else 2) * spec.vocab_size * spec.hidden_size
        busy = spec.num_layers * (rates.layer_seconds or 0.0)
        busy += (rates.weight_seconds or 0.0) * (layer_weights(spec) + _ENDS_SHARE * ends)
    hashing = weight_bytes / (rates.sha256_bytes_per_second or np.inf)
    cores = os.cpu_count() or 1
    busy += hashing / cores if cores <= 2 else 0.0  # compressing uses two
    reading = weight_bytes / (rates.read_bytes_per_second or np.inf)
    writing = recipe.estimated_bytes(spec) / (rates.read_bytes_per_second or np.inf)
    return max(busy, hashing, reading) + writing


def measure(spec: GlmSpec, recipe: Recipe, checkpoint: Checkpoint | None, progress: Progress) -> Rates:
    """Run a little of each step; one to three seconds. Without a checkpoint nothing is read."""
    progress("measuring this machine", 0, 0)
    sample, read = (np.zeros(_PIECE, np.uint8), None) if checkpoint is None else _read_sample(checkpoint.shards)
    hashed = sample[:32_000_000]
    rates = Rates(
        read_bytes_per_second=read,
        sha256_bytes_per_second=hashed.nbytes / _best(lambda: hashlib.sha256(hashed.data).digest()),
    )
    if recipe.needs_calibration:
        square = np.ones((2048, 2048), np.float32)
        return dataclasses.replace(rates, multiply_per_second=2 * 2048**3 / _best(lambda: square @ square))
    layer, weight = _compression(spec, recipe)
    return dataclasses.replace(rates, layer_seconds=layer, weight_seconds=weight)


def _read_sample(shards: list[Path]) -> tuple[NDArray[np.uint8], float]:
    """Pieces from all over the files, for a second at most, and the bytes a second at which they came.

    In random order, so that what was read when the time is up is as much in the page cache as all the rest.
    """
    places = [(path, begin) for path in shards for begin in range(0, path.stat().st_size, _PIECE)]
    order = np.random.default_rng(0).permutation(len(places))[: max(1, _SAMPLE_BYTES // _PIECE)]
    pieces: list[bytes] = []
    start = time.perf_counter()
    taken = 0.0
    for i in order:
        path, begin = places[i]
        with path.open("rb", buffering=0) as file:
            file.seek(begin)
            pieces.append(file.read(_PIECE))
        taken = time.perf_counter() - start
        if taken > _READ_SECONDS:
            break
    sample = np.frombuffer(b"".join(pieces), np.uint8)
    return sample, len(sample) / taken


def _compression(spec: GlmSpec, recipe: Recipe) -> tuple[float, float]:
    """Seconds for a layer whatever its size, and for each weight in it, by compressing two slices of one.

    Random numbers stand in for the weights: a slice of the checkpoint's columns would be read from all over the disk.
    """
    wide = _slice(spec, recipe, heads=_SAMPLE_HEADS, width=_SAMPLE_WIDTH, hidden=spec.hidden_size)
    narrow = _slice(spec, recipe, heads=1, width=128, hidden=256)
    _compress(narrow, recipe)  # imports, and whatever else happens once
    fixed = min(_compress(narrow, recipe) for _ in range(2))
    whole = min(_compress(wide, recipe) for _ in range(2))
    return fixed, max(whole - fixed, 0.0) / max(layer_weights(wide) - layer_weights(narrow), 1) * wide.num_layers


def _slice(spec: GlmSpec, recipe: Recipe, *, heads: int, width: int, hidden: int) -> GlmSpec:
    """A layer with about so many heads and channels, in which the recipe's groups still fit every input."""
    group = max(recipe.group_size, 1)

    def up(size: int, step: int, most: int) -> int:
        return min(-(-size // step) * step, most)

    return dataclasses.replace(
        spec,
        num_layers=_SAMPLE_LAYERS if DataFree.makes(recipe) else 1,  # the first goes two at a time
        num_heads=up(heads, math.lcm(group, spec.head_dim) // spec.head_dim, spec.num_heads),
        num_kv_heads=1,
        intermediate_size=up(width, group, spec.intermediate_size),
        hidden_size=up(hidden, group, spec.hidden_size),
    )


def _compress(spec: GlmSpec, recipe: Recipe) -> float:
    """Seconds for each layer, where each has the same random weights."""
    tile = ((np.random.default_rng(0).standard_normal(1 << 20, np.float32) * 0.02).view(np.uint32) >> 16).astype("<u2")
    shapes = spec.tensor_shapes()
    kept = {  # OpenVINO's constants do not keep Python's arrays alive
        name: Weight(np.resize(tile, shapes[name]), "BF16") for name in shapes if name.startswith("model.layers.0.")
    }

    def weight(name: str) -> Weight:
        return kept[re.sub(r"layers\.\d+", "layers.0", name)]

    def work() -> None:
        for layer in compressed_layers(spec, weight, recipe, range(spec.num_layers)):
            del layer

    return _seconds(work) / spec.num_layers


def _seconds(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _best(work: Callable[[], Any]) -> float:
    """Of three, the time when least else was going on; the first also starts threads."""
    return min(_seconds(work) for _ in range(3))
