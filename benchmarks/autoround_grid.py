"""What auto-round tuned, as matrices of our IR: the same numbers in 4 bits, the same scales and zero points."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edge.export.datafree import decompression
from edge.export.graph import build_layer
from edge.export.quantize import Quantized, channel_magnitudes, quantize
from edge.export.recipe import Recipe
from edge.model.checkpoint import Checkpoint, Weight
from edge.model.rotary import rotary_row_order
from edge.model.spec import GlmSpec

Array = NDArray[np.float32]
_OFF = 1e-3  # of a step: what f32 arithmetic may leave between a dequantised weight and its place on the grid


def on_grid(name: str, values: Array, scale: NDArray[Any], zero_point: Array | None) -> Quantized:
    """The whole numbers behind dequantised weights.

    Args:
        values: [rows, columns].
        scale: [rows, groups].
        zero_point: [rows, groups], or None on a symmetric grid.

    Raises:
        click.ClickException: our IR cannot say this: a scale that is no f16, a zero point that is no whole number
            from 0 to 15, or weights that lie beside the grid or beyond its ends.
    """
    rows, groups = scale.shape
    half = scale.astype(np.float16)
    if not np.isfinite(half).all() or (half == 0).any() or (half.astype(scale.dtype) != scale).any():
        raise click.ClickException(
            f"{name}: scales from {scale.min():g} to {scale.max():g}, and not all are numbers of f16"
        )
    low, high = (-8, 7) if zero_point is None else (0, 15)
    zero = np.zeros((rows, groups), np.float32) if zero_point is None else zero_point.astype(np.float32)
    if (zero != np.rint(zero)).any() or zero.min() < 0 or zero.max() > high:
        raise click.ClickException(
            f"{name}: zero points from {zero.min():g} to {zero.max():g}, not whole numbers from 0 to 15"
        )
    steps = values.reshape(rows, groups, -1) / half.astype(np.float32)[..., None] + zero[..., None]
    numbers = np.rint(steps)
    off = float(np.abs(steps - numbers).max())
    if not off <= _OFF or numbers.min() < low or numbers.max() > high:
        raise click.ClickException(
            f"{name}: weights {off:g} of a step beside the grid, in places from {numbers.min():g} to {numbers.max():g}"
        )
    packed = None if zero_point is None else _nibbles(zero)
    return Quantized(name, 4, numbers.shape, _nibbles(numbers), half[..., None], packed)


def _nibbles(numbers: Array) -> NDArray[np.uint8]:
    """Two whole numbers to a byte, the first in the low half; negative ones in two's complement."""
    flat = numbers.astype(np.int8).view(np.uint8).reshape(-1) & 15
    flat = np.append(flat, np.zeros(flat.size % 2, np.uint8))
    packed: NDArray[np.uint8] = np.bitwise_or(flat[::2], np.left_shift(flat[1::2], 4), dtype=np.uint8)
    return packed


class Laid:
    """A layer's `Form` with a given layout: these matrices in 4 bits, all others in 8.

    The bytes belong to this object: it has to live until the layer is written.
    """

    def __init__(
        self, spec: GlmSpec, recipe: Recipe, in_4_bits: frozenset[str], tuned: Mapping[str, Any] | None = None
    ) -> None:
        """
        Args:
            in_4_bits: names of weights.
            tuned: what auto-round wrote; None: from the weights alone, by the recipe's group size and symmetry.
        """
        self._spec = spec
        self._recipe = recipe
        self._in_4_bits = in_4_bits
        self._tuned = tuned
        self._kept: list[Quantized] = []

    def balance(self, weight: Weight) -> Array | None:
        """Data-free AWQ, where the recipe has it; auto-round tuned the weights as they are."""
        return None if self._tuned is not None or not self._recipe.awq else np.float32(1) / channel_magnitudes(weight)

    def matrix(self, name: str, weight: Weight, factors: Array | None) -> Any:
        """The rounded matrix and what turns it back into f32."""
        if name not in self._in_4_bits:
            made = quantize(weight, name, bits=8, symmetric=self._recipe.backup == "int8_sym", channel_scale=factors)
        elif self._tuned is None:
            made = quantize(weight, name, bits=4, symmetric=self._recipe.symmetric,
                            group_size=self._recipe.group_size, channel_scale=factors)  # fmt: skip
        else:
            made = self._of_tuned(name)
        self._kept.append(made)
        return decompression(made)

    def _of_tuned(self, name: str) -> Quantized:
        assert self._tuned is not None
        spec, stem = self._spec, name.removesuffix("weight")
        heads = {"q_proj": spec.num_heads, "k_proj": spec.num_kv_heads}.get(stem.split(".")[-2])
        parts = [self._tuned[name], self._tuned[stem + "scale"]]
        if not self._recipe.symmetric:
            parts.append(self._tuned[stem + "zero_point"])
        if heads is not None:  # the graph wants these rows in another order
            order = rotary_row_order(heads, spec.head_dim, spec.rotary_dim)
            parts = [part[order] for part in parts]
        return on_grid(name, parts[0], parts[1], None if self._recipe.symmetric else parts[2])


class LaidLayers:
    """Makes the layers of a checkpoint by `Laid`, for `write_model`, which is done with one before it asks again."""

    def __init__(
        self, checkpoint: Checkpoint, recipe: Recipe, in_4_bits: frozenset[str], tuned: Mapping[str, Any] | None
    ) -> None:
        self._checkpoint = checkpoint
        self._how = (checkpoint.spec, recipe, in_4_bits, tuned)
        self._form = Laid(*self._how)

    def make_layer(self, i: int) -> ov.Model:
        """Layer i; the one before is let go."""
        self._form = Laid(*self._how)
        return build_layer(self._checkpoint.spec, self._checkpoint.weight, i, self._form)


def layout(model: ov.Model) -> frozenset[str]:
    """Names of the weights that an IR holds in 4 bits."""
    return frozenset(
        node.get_friendly_name()
        for node in model.get_ops()
        if node.get_type_name() == "Constant"
        and node.get_friendly_name().endswith(".weight")
        and node.get_element_type() in (ov.Type.u4, ov.Type.i4)
    )


def read_tuned(file: Path) -> dict[str, Any]:
    """All arrays of the child's file."""
    from safetensors.numpy import load_file

    arrays: dict[str, Any] = load_file(file)
    return arrays
