"""What an export will read, write and hold, and how long it should take: before anything is spent.

Sizes are computed. Time rests on a short measurement on this machine, of the export's own steps on a sample of the
checkpoint's own bytes. The constants are what an export does for each of the things measured; they come from the
comparisons in `benchmarks/results` (`benchmarks.export_peak` puts the forecast beside what it then took).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from edge.errors import ResourceError
from edge.export.compress import compress
from edge.export.graph import build_layer
from edge.export.recipe import SMALL, Recipe, layer_weights
from edge.messages import Progress
from edge.model.checkpoint import Checkpoint, Weight
from edge.model.spec import GlmSpec

# Memory, in bytes that belong to the process alone.
_PROGRAM_BYTES = 300_000_000  # Python, OpenVINO, NNCF, transformers
_LAYER_COPIES = 4.0  # of a layer's weights in f32, while it is compressed
_WHOLE_BYTES = 11.0  # for each parameter of a model that is calibrated as a whole
_GRAPH_BYTES = 8.0  # for each parameter, while graph and definition are compared
_READ_BYTES = 0.3  # of the finished IR, for each of its bytes, while it is compiled
# Time, as multiples of what was measured.
_START_SECONDS = 6.0  # imports, and converting the tokenizer
_GRAPH_PASSES = 15.0  # conversions to f32 of the weights on which graph and definition are compared
_PROOF_PASSES = 7.0  # the same, of the finished IR
_CALIBRATION_PASSES = 8.0  # multiplications with all weights, for each token of the calibration text
_CALIBRATION_TOKENS = 2048
_ENDS_SHARE = 1.0  # of what a layer's weight costs, for one of embedding or head

GRAPH_PARAMETERS = 500_000_000
"""At most so many weights are held in f32 while graph and definition are compared."""
_SAMPLE_BYTES = 256_000_000
_PIECE = 8_000_000
_READ_SECONDS = 0.7
_SAMPLE_HEADS, _SAMPLE_WIDTH = 8, 1024  # of the slice of a layer that is compressed


@dataclass(frozen=True)
class Rates:
    """How fast this machine was a moment ago; None where it was not measured."""

    read_bytes_per_second: float | None = None
    """Of the checkpoint itself, from all over it, as much of it cached as is."""
    sha256_bytes_per_second: float | None = None
    convert_bytes_per_second: float | None = None
    """From bf16 to f32, bytes of bf16."""
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
    compressing = _WHOLE_BYTES * spec.parameter_count() if recipe.needs_calibration else 4 * _LAYER_COPIES * per_layer
    graph = _GRAPH_BYTES * min(spec.parameter_count(), GRAPH_PARAMETERS)
    proving = _READ_BYTES * recipe.estimated_bytes(spec)
    return _PROGRAM_BYTES + int(max(compressing, graph, proving))


def check_memory(spec: GlmSpec, recipe: Recipe) -> None:
    """Refuse what would not fit even a machine that runs nothing else.

    Raises:
        ResourceError: the forecast is above all the memory there is.
    """
    needed, there = memory_bytes(spec, recipe), psutil.virtual_memory().total
    if needed > there:
        hint = "Make it on a machine with more; the folder it makes runs on this one, too, if the model fits."
        if recipe.needs_calibration and spec.parameter_count() >= SMALL:
            hint = "Leave out the options that need calibration: the preset for large models compresses layer by layer."
        raise ResourceError(
            f"the export needs about {needed / 1e9:.1f} GB of memory, and this machine has {there / 1e9:.1f} GB",
            hint=hint,
        )


def forecast(spec: GlmSpec, recipe: Recipe, *, weight_bytes: int, rates: Rates) -> Forecast:
    """Put sizes and rates together. Pure."""
    writes = recipe.estimated_bytes(spec)
    seconds = {"starting, and converting the tokenizer": _START_SECONDS}
    assumed = [f"{_START_SECONDS:.0f} s to start"]
    graph_bytes = 2 * min(spec.parameter_count(), GRAPH_PARAMETERS)
    if rates.convert_bytes_per_second:
        seconds["checking the graph"] = _GRAPH_PASSES * graph_bytes / rates.convert_bytes_per_second
    reading = weight_bytes / rates.read_bytes_per_second if rates.read_bytes_per_second else 0.0
    writing = writes / rates.read_bytes_per_second if rates.read_bytes_per_second else 0.0
    if rates.read_bytes_per_second:
        assumed.append("the disk writes as fast as it reads")
    else:
        assumed.append("the disk takes no time: nothing is there to read it from")
    seconds["compressing"] = reading + writing + _compressing(spec, recipe, rates)
    if rates.convert_bytes_per_second:
        seconds["proving the result"] = _PROOF_PASSES * writes / rates.convert_bytes_per_second
    if rates.sha256_bytes_per_second:
        seconds["hashing the checkpoint"] = weight_bytes / rates.sha256_bytes_per_second
    return Forecast(
        parameters=spec.parameter_count(),
        read_bytes=weight_bytes,
        write_bytes=writes,
        memory_bytes=memory_bytes(spec, recipe),
        rates=rates,
        seconds={step: round(value, 1) for step, value in seconds.items()},
        assumed=tuple(assumed),
    )


def _compressing(spec: GlmSpec, recipe: Recipe, rates: Rates) -> float:
    if recipe.needs_calibration:
        work = 2 * spec.parameter_count() * _CALIBRATION_TOKENS * _CALIBRATION_PASSES
        return work / (rates.multiply_per_second or np.inf)
    layers = layer_weights(spec)
    ends = (1 if spec.tie_word_embeddings else 2) * spec.vocab_size * spec.hidden_size
    per_weight = rates.weight_seconds or 0.0
    return spec.num_layers * (rates.layer_seconds or 0.0) + per_weight * (layers + _ENDS_SHARE * ends)


def measure(spec: GlmSpec, recipe: Recipe, checkpoint: Checkpoint | None, progress: Progress) -> Rates:
    """Run a little of each step; one to three seconds. Without a checkpoint random numbers stand in for it."""
    progress("measuring this machine", 0, 0)
    if checkpoint is not None:
        sample, read = _read_sample(checkpoint.shards)
    else:
        sample, read = np.random.default_rng(0).integers(0, 1 << 16, 16_000_000, np.uint16).view(np.uint8), None
    hashed, converted = sample[:32_000_000], sample[: min(len(sample), 16_000_000) & ~1].view("<u2")
    rates = Rates(
        read_bytes_per_second=read,
        sha256_bytes_per_second=hashed.nbytes / _best(lambda: hashlib.sha256(hashed.data).digest()),
        convert_bytes_per_second=converted.nbytes / _best(lambda: Weight(converted, "BF16").f32()),
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
    _compress_slice(narrow, recipe)  # imports, and whatever else happens once
    fixed = min(_compress_slice(narrow, recipe) for _ in range(2))
    whole = min(_compress_slice(wide, recipe) for _ in range(2))
    return fixed, max(whole - fixed, 0.0) / max(layer_weights(wide) - layer_weights(narrow), 1)


def _slice(spec: GlmSpec, recipe: Recipe, *, heads: int, width: int, hidden: int) -> GlmSpec:
    """A layer with about so many heads and channels, in which the recipe's groups still fit every input."""
    group = max(recipe.group_size, 1)

    def up(size: int, step: int, most: int) -> int:
        return min(-(-size // step) * step, most)

    return dataclasses.replace(
        spec,
        num_layers=1,
        num_heads=up(heads, math.lcm(group, spec.head_dim) // spec.head_dim, spec.num_heads),
        num_kv_heads=1,
        intermediate_size=up(width, group, spec.intermediate_size),
        hidden_size=up(hidden, group, spec.hidden_size),
    )


def _compress_slice(spec: GlmSpec, recipe: Recipe) -> float:
    tile = (np.random.default_rng(0).standard_normal(1 << 20, np.float32) * 0.02).view(np.uint32) >> 16
    kept = {  # OpenVINO's constants do not keep Python's arrays alive
        name: Weight(np.resize(tile.astype("<u2"), shape), "BF16")
        for name, shape in spec.tensor_shapes().items()
        if name.startswith("model.layers.")
    }
    layer = build_layer(spec, kept.__getitem__, 0)
    return _seconds(lambda: compress(layer, recipe, calibration=None, progress=_silent, part=True))


def _seconds(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _best(work: Callable[[], Any]) -> float:
    """Of three, the time when least else was going on; the first also starts threads."""
    return min(_seconds(work) for _ in range(3))


def _silent(stage: str, done: int, total: int) -> None:
    """Told as one measurement."""
