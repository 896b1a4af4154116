"""Compression from the weights alone, without NNCF's help: the nodes it would have made, made as it makes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops

from edge.export.quantize import Quantized, channel_magnitudes, quantize
from edge.export.recipe import Recipe
from edge.model.checkpoint import Weight

_TYPES = {(4, True): ov.Type.i4, (4, False): ov.Type.u4, (8, True): ov.Type.i8, (8, False): ov.Type.u8}


class DataFree:
    """A layer's `Form`: its matrices in 4 or 8 bits.

    The bytes belong to this object, not to the nodes: it has to live until they are written.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._kept: list[Quantized] = []

    @staticmethod
    def makes(recipe: Recipe) -> bool:
        """Whether the recipe asks for nothing else; what it chooses by measuring is left to NNCF."""
        return recipe.weights == "int8" or (
            recipe.weights == "int4" and not recipe.selects and not recipe.needs_calibration
        )

    def balance(self, weight: Weight) -> NDArray[np.float32] | None:
        """Data-free AWQ: even out the channels' mean magnitudes."""
        if self.recipe.weights != "int4" or not self.recipe.awq:
            return None
        return np.float32(1) / channel_magnitudes(weight)

    def matrix(self, name: str, weight: Weight, factors: NDArray[np.float32] | None) -> Any:
        """The rounded matrix and what turns it back into f32."""
        recipe = self.recipe
        made = quantize(
            weight, name, bits=4 if recipe.weights == "int4" else 8, symmetric=recipe.symmetric,
            group_size=recipe.group_size if recipe.weights == "int4" else -1, channel_scale=factors,
        )  # fmt: skip
        self._kept.append(made)
        return decompression(made)


def decompression(made: Quantized) -> Any:
    """The f32 node [rows, columns] that a rounded matrix stands for; `made.data` must outlive it."""
    name, kind = made.name, _TYPES[made.bits, made.zero_point is None]
    constant = ov.op.Constant(ov.Tensor(made.data, ov.Shape(made.shape), kind), shared_memory=True)
    constant.set_friendly_name(name)
    node = ops.convert(constant, "f16")
    if made.zero_point is not None:
        zero = ov.op.Constant(ov.Tensor(made.zero_point, ov.Shape(made.scale.shape), kind), shared_memory=False)
        zero.set_friendly_name(name + "/zero_point")
        node = ops.subtract(node, ops.convert(zero, "f16"), name=name + "/zero_point/subtract")
    node = ops.multiply(node, ops.constant(made.scale, name=name + "/scale"), name=name + "/fq_weights_1")
    if len(made.shape) == 3:
        rows, groups, size = made.shape
        node = ops.reshape(node, ops.constant(np.array([rows, groups * size], np.int64)), False)
    return ops.convert(node, "f32", name=name + "/f32")


def facts(recipe: Recipe) -> dict[str, Any]:
    """What NNCF writes into the IR's `rt_info` about a compression: plugins and peers read it there."""
    told: dict[str, Any] = {"mode": f"{recipe.weights}_{'sym' if recipe.symmetric else 'asym'}"}
    if recipe.weights == "int4":
        told |= {"group_size": recipe.group_size, "ratio": recipe.ratio, "backup_mode": recipe.backup}
    told |= {"awq": recipe.awq, "scale_estimation": False, "gptq": False, "all_layers": False}
    return {"weight_compression": {name: str(value) for name, value in told.items()}}
