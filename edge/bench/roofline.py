"""How fast this machine can be at all: memory read by all threads, and one large matrix product on the device."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edge.bench.counts import matrices
from edge.manifest import Manifest
from edge.runtime import devices
from edge.runtime.cores import usable_threads
from edge.runtime.machine import Machine
from edge.runtime.probes_memory import last_level_cache, measure_bandwidth

_ROWS = 1024
"""Of the matrix that the weights are multiplied with: enough that arithmetic, not memory, is the limit."""
_WIDE = 4096
"""Rows and columns of the plain matrices: square, so that what is written is little beside what is computed."""
_SECONDS = 1.0
_NOT_FOR_ONE = ("CACHE_DIR", "ATTENTION_BACKEND", "KV_CACHE_PRECISION")  # of no use to one product
_SMALLEST, _LARGEST = 256 << 20, 2 << 30


@dataclass(frozen=True)
class Limits:
    """What was measured; bytes and operations a second."""

    bandwidth: float | None
    """None where the device has memory of its own."""
    bandwidth_samples: tuple[float, ...]
    flop_rate: float
    """The largest of `products`."""
    products: dict[str, float] = field(default_factory=dict)
    """By the format of the matrix: "as the model" is the IR's own largest one but the head, compressed as it is there;
    the others are square, of 4,096 rows."""
    product_shape: tuple[int, int, int] = (0, 0, 0)
    """Of the model's own."""


def measure(folder: Path, device: str, properties: dict[str, Any]) -> Limits:
    """Measure them, for about five seconds. Nothing else should run."""
    machine = Machine()
    reads: list[float] = []
    if not devices.discrete(device):
        size = 4 * (last_level_cache(machine) or 64 << 20)
        size = min(max(size, _SMALLEST), _LARGEST, max(machine.memory().available // 4, 64 << 20))
        for _ in range(3):
            reads.append(measure_bandwidth(usable_threads(machine), size, _SECONDS / 2).best)
    own = _largest(folder)
    rows, columns = (int(each) for each in own.input(1).get_partial_shape().to_shape())
    inner, other = (columns, rows) if _transposed(own) else (rows, columns)
    products = {"as the model": _rate(_own(own, inner), device, properties, inner, other)}
    for kind in ("f32", "bf16"):
        if kind == "bf16" and "BF16" not in (devices.ask(device, "OPTIMIZATION_CAPABILITIES") or []):
            continue
        products[kind] = _rate(_plain(), device, {"INFERENCE_PRECISION_HINT": kind}, _WIDE, _WIDE)
    return Limits(
        bandwidth=max(reads) if reads else None,
        bandwidth_samples=tuple(reads),
        flop_rate=max(products.values()),
        products=products,
        product_shape=(_ROWS, inner, other),
    )


def better(one: Limits, other: Limits) -> Limits:
    """The better of both in everything: what disturbs makes a limit look lower, nothing makes it look higher."""
    products = {name: max(rate, other.products.get(name, 0.0)) for name, rate in one.products.items()}
    bandwidths = [each.bandwidth for each in (one, other) if each.bandwidth is not None]
    return Limits(
        bandwidth=max(bandwidths, default=None),
        bandwidth_samples=one.bandwidth_samples + other.bandwidth_samples,
        flop_rate=max(products.values()),
        products=products,
        product_shape=one.product_shape,
    )


def _largest(folder: Path) -> Any:
    """The largest matrix of a layer. The head's writes too much for what it computes."""
    vocab = Manifest.read(folder).architecture.vocab_size
    shapes = [(node, node.input(1).get_partial_shape().to_shape()) for node in matrices(folder)]
    return max((pair for pair in shapes if vocab not in pair[1]), key=lambda pair: np.prod(pair[1]))[0]


def _transposed(matmul: Any) -> bool:
    return bool(matmul.get_attributes().get("transpose_b"))


def _own(matmul: Any, inner: int) -> Any:
    """The model's own matrix, multiplied with a parameter."""
    import openvino as ov
    from openvino import opset13 as opset

    given = opset.parameter([_ROWS, inner], np.float32)
    product = opset.matmul(given, matmul.input_value(1), False, _transposed(matmul))
    return ov.Model([product], [given], "product")


def _plain() -> Any:
    import openvino as ov
    from openvino import opset13 as opset

    given = opset.parameter([_ROWS, _WIDE], np.float32)
    weights = np.random.default_rng(0).standard_normal((_WIDE, _WIDE), dtype=np.float32)
    return ov.Model([opset.matmul(given, opset.constant(weights), False, True)], [given], "product")


def _rate(model: Any, device: str, properties: dict[str, Any], inner: int, other: int) -> float:
    """Operations a second of the fastest of many runs."""
    from edge.infer import core

    known = {name: value for name, value in properties.items() if value is not None and name not in _NOT_FOR_ONE}
    request = core().compile_model(model, device, known).create_infer_request()
    given = np.random.default_rng(1).standard_normal((_ROWS, inner), dtype=np.float32)
    request.infer([given])
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begin < _SECONDS:
        start = time.perf_counter()
        request.infer([given], share_inputs=True)
        times.append(time.perf_counter() - start)
    assert statistics.median(times) > 0
    return 2.0 * _ROWS * inner * other / min(times)
