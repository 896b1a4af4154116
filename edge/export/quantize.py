"""Rounding weights to 4 or 8 bits from the weights alone: NNCF's arithmetic, bit by bit, in blocks that fit a cache.

NNCF sends every matrix through several f32 copies of its full size, and spends most of its time on the page faults
of those. The same operations on a few rows at a time, in buffers that are used again, take about a tenth of it and no
memory to speak of; NumPy lets go of the interpreter meanwhile, so that two matrices can be worked on at once. A test
holds every bit to what NNCF makes of the same matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import CheckpointError, RecipeError
from edge.model.checkpoint import Weight

_BLOCK = 1 << 17  # weights at a time: their f32 values and what is made of them stay in a core's cache
_EPS = np.float32(np.finfo(np.float32).eps)  # the smallest scale, so that a group of zeros divides by something


@dataclass(frozen=True)
class Quantized:
    """A matrix in `bits` bits: weight = (data - zero_point) * scale, or data * scale where that is None.

    `data` and `zero_point` are bytes as OpenVINO packs them: of two 4-bit numbers the first is in the low half.
    """

    name: str
    bits: int
    shape: tuple[int, ...]
    """[rows, columns], or [rows, groups, group size]."""
    data: NDArray[np.uint8]
    scale: NDArray[np.float16]
    """[rows, 1], or [rows, groups, 1]."""
    zero_point: NDArray[np.uint8] | None


def quantize(
    weight: Weight,
    name: str,
    *,
    bits: int,
    symmetric: bool,
    group_size: int = -1,
    channel_scale: NDArray[np.float32] | None = None,
) -> Quantized:
    """Round the matrix [rows, columns] to the grid that its groups' extremes span.

    Args:
        group_size: columns that share a scale; -1: all of them.
        channel_scale: [columns], multiplied into the weights before (and rounded to their type, as NNCF does).

    Raises:
        CheckpointError: a weight is NaN or infinite.
        RecipeError: a scale lies beyond what f16 can hold.
    """
    rows, columns = weight.shape
    size = columns if group_size == -1 else group_size
    groups = columns // size
    data = np.empty(rows * columns * bits // 8, np.uint8)
    scales = np.empty(rows * groups, np.float16)
    zeros = None if symmetric else np.empty(rows * groups, np.uint8)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    step = max(1, min(rows, _BLOCK // columns))
    values = np.empty((step * groups, size), np.float32)
    for begin in range(0, rows, step):
        raw = weight.raw[begin : begin + step]
        if channel_scale is not None:
            raw = _scaled(raw, weight.dtype, channel_scale, values)
        block = values[: len(raw) * groups]
        place = slice(begin * groups, (begin + len(raw)) * groups)
        to_f32(raw, weight.dtype, block)
        if symmetric:
            scale = _signed_extremes(raw.reshape(block.shape), weight.dtype, block) / np.float32(-low)
            zero = None
        else:
            least = np.minimum(block.min(-1, keepdims=True), np.float32(0))
            most = np.maximum(block.max(-1, keepdims=True), np.float32(0))
            scale = (most - least) / np.float32(high)
        if not np.isfinite(scale).all():
            raise CheckpointError(f"{name} holds NaN or infinity", hint="The file is damaged: download it again.")
        scale = np.where(np.abs(scale) < _EPS, _EPS, scale)
        if not symmetric:
            zero = np.clip(-np.rint(least / scale), low, high)
        with np.errstate(over="ignore"):  # looked at below
            scales[place] = scale[:, 0]
        np.divide(block, scale, out=block)
        if zero is not None and zeros is not None:
            np.add(block, zero, out=block)
            zeros[place] = zero[:, 0]
        np.rint(block, out=block)
        first = begin * columns * bits // 8
        data[first : first + block.size * bits // 8] = _pack(block, bits, low)
    if not np.isfinite(scales).all():
        raise RecipeError(f"{name} is too large for int{bits}: its scales exceed fp16", hint="Ask for bf16 weights.")
    shape = (rows, columns) if group_size == -1 else (rows, groups, size)
    if zeros is not None and bits == 4:
        zeros = _nibbles(zeros)
    return Quantized(name, bits, shape, data, scales.reshape(*shape[:-1], 1), zeros)


def channel_magnitudes(weight: Weight) -> NDArray[np.float32]:
    """Mean magnitude of each column of the matrix: what data-free AWQ evens out. Shape [columns]."""
    rows, columns = weight.shape
    step = max(1, min(rows, _BLOCK // columns))
    values = np.empty((step + 1, columns), np.float32)
    total = np.zeros(columns, np.float32)
    for begin in range(0, rows, step):
        raw = weight.raw[begin : begin + step]
        to_f32(raw, weight.dtype, values[1 : len(raw) + 1])
        np.abs(values, out=values)
        values[0] = total  # so that the rows are added one after the other, as in one go
        np.add.reduce(values[: len(raw) + 1], axis=0, out=total)
    magnitudes: NDArray[np.float32] = np.maximum(total / np.float32(rows), _EPS)
    return magnitudes


def blocks_of_rows(weight: Weight, rows: int) -> Iterator[Weight]:
    """The matrix in pieces of at most `rows` rows."""
    for begin in range(0, weight.shape[0], rows):
        yield Weight(weight.raw[begin : begin + rows], weight.dtype)


def to_f32(raw: NDArray[Any], dtype: str, out: NDArray[np.float32]) -> None:
    """The values of `raw`, into `out` of the same size."""
    if dtype == "BF16":
        bits = out.view(np.uint32)
        np.copyto(bits, raw.reshape(out.shape))
        np.left_shift(bits, 16, out=bits)
    else:
        np.copyto(out, raw.reshape(out.shape))


def _scaled(
    raw: NDArray[Any], dtype: str, channel_scale: NDArray[np.float32], room: NDArray[np.float32]
) -> NDArray[Any]:
    """`raw` times its channels' scales, in its own type (bf16 as bit patterns)."""
    values = room.reshape(-1, raw.shape[1])[: len(raw)]
    to_f32(raw, dtype, values)
    np.multiply(values, channel_scale, out=values)
    if dtype != "BF16":
        return values.astype(raw.dtype)
    bits = values.view(np.uint32)
    # OpenVINO's own rounding, where NNCF's product becomes a Constant again: upwards at odd patterns, else towards 0.
    half = np.bitwise_and(bits, 0x10000)
    np.right_shift(half, 1, out=half)
    np.add(bits, half, out=bits)
    np.right_shift(bits, 16, out=bits)
    rounded: NDArray[np.uint16] = bits.astype(np.uint16)
    return rounded


def _signed_extremes(raw: NDArray[Any], dtype: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of each group the magnitude of its most extreme value, negative where that value is positive; [groups, 1].

    The extreme shall fall on the end of the grid that reaches one further, which is the negative one; of two
    equally far the negative value decides. In 16-bit floats one integer maximum finds it: a bit pattern turned left by
    one has the magnitude on top and the sign at the bottom.
    """
    extremes: NDArray[np.float32]
    if dtype == "F32":
        least, most = values.min(-1, keepdims=True), values.max(-1, keepdims=True)
        extremes = np.where(np.abs(least) >= most, np.abs(least), -most)
        return extremes
    patterns = raw.view(np.uint16)
    turned = np.left_shift(patterns, 1)
    np.bitwise_or(turned, np.right_shift(patterns, 15), out=turned)
    extreme = np.maximum.reduce(turned, axis=-1, keepdims=True)
    magnitude = np.right_shift(extreme, 1)
    found = np.empty(magnitude.shape, np.float32)
    to_f32(magnitude if dtype == "BF16" else magnitude.view(np.float16), dtype, found)
    extremes = np.where(extreme & 1 == 1, found, -found)
    return extremes


def _pack(block: NDArray[np.float32], bits: int, low: int) -> NDArray[np.uint8]:
    """Whole numbers from `low` up, one too high at most where `low` is negative, as packed bytes."""
    if low == 0:  # a zero point that was rounded may push both ends over
        np.clip(block, 0, 2**bits - 1, out=block)
        numbers = block.astype(np.uint8).reshape(-1)
        return numbers if bits == 8 else _nibbles(numbers)
    if bits == 8:
        np.minimum(block, 127, out=block)
        return block.astype(np.int8).view(np.uint8).reshape(-1)
    numbers = block.astype(np.int8).view(np.uint8).reshape(-1)
    np.add(numbers, 8, out=numbers)  # 0 to 16; integer arithmetic without branches is many times faster than a clip
    np.subtract(numbers, np.right_shift(numbers, 4), out=numbers)
    packed = _nibbles(numbers)
    np.bitwise_xor(packed, 0x88, out=packed)
    return packed


def _nibbles(numbers: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two numbers below 16 to a byte; of an odd one out the upper half is 0."""
    if numbers.size % 2:
        numbers = np.append(numbers, np.uint8(0))
    pairs = numbers.view("<u2")
    upper = np.right_shift(pairs, 4)
    np.bitwise_or(upper, pairs, out=upper)
    packed: NDArray[np.uint8] = upper.astype(np.uint8)
    return packed


def balanced(weight: Weight, channel_scale: NDArray[np.float32]) -> Weight:
    """The matrix [rows, columns] times its channels' scales, in its own type."""
    rows, columns = weight.shape
    step = max(1, min(rows, _BLOCK // columns))
    room = np.empty((step, columns), np.float32)
    made = np.empty_like(weight.raw)
    for begin in range(0, rows, step):
        raw = weight.raw[begin : begin + step]
        made[begin : begin + step] = _scaled(raw, weight.dtype, channel_scale, room)
    return Weight(made, weight.dtype)
