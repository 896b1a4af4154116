"""NNCF compresses the weights; this says with what, keeps it quiet, and passes its progress on."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops

from edge.errors import RecipeError
from edge.export.recipe import Recipe
from edge.messages import Progress

# Steps of NNCF's scale search. Its default is 5 and 5; on the pocket model that was slower and no better.
_STEPS = 3
# NNCF's names for what it does, in the user's words.
_STAGES = {
    "Applying Weight Compression": "compressing",
    "Mixed-Precision assignment": "choosing what stays in 8 bits",
    "Applying data-free AWQ": "balancing channels (AWQ)",
    "Applying Scale Estimation": "fitting the scales",
}
_F16_MAX = float(np.finfo(np.float16).max)
_FLOATS = (ov.Type.bf16, ov.Type.f32)
_BLOCK = 1 << 22  # weights whose scales are searched at a time: some ten f32 arrays of this size, at least


@dataclass(frozen=True)
class Inputs:
    """What a model's matrices are multiplied with, by the name of the node that makes it."""

    samples: dict[str, NDArray[np.float32]]
    """[samples, channels], the same number everywhere."""
    variances: dict[str, float]
    """The largest that a channel has in a few tokens, on average."""


def compress(
    model: ov.Model,
    recipe: Recipe,
    *,
    calibration: Inputs | None,
    progress: Progress,
    part: bool = False,
    share: float | None = None,
    feeds: Sequence[dict[str, Any]] | None = None,
) -> ov.Model:
    """The model with its weights in the recipe's format; the given model may be changed on the way.

    Args:
        calibration: what was seen over calibration text, for recipes that need it (`Recipe.needs_calibration`).
        feeds: or inputs of the whole model, which NNCF runs over them for that.
        progress: called with the stage, how far it is, and how far it goes (0: unknown).
        part: `model` is one layer of a larger one: its last matrix is no head, and gets 4 bits, too.
        share: of this part's weights that get 4 bits, where it is not the recipe's ratio.

    Raises:
        RecipeError: the recipe needs calibration and got none, or a weight does not fit into fp16.
    """
    if recipe.weights == "bf16":
        return model
    if recipe.weights == "fp16":
        return _to_fp16(model)
    if recipe.needs_calibration and not calibration and not feeds:
        raise RecipeError(
            "the recipe chooses by calibration, and there is no calibration text", hint="Use a recipe without it."
        )
    import nncf
    from nncf.quantization.advanced_parameters import (
        AdvancedAWQParameters,
        AdvancedCompressionParameters,
        AdvancedScaleEstimationParameters,
    )

    if recipe.weights == "int8":
        mode = nncf.CompressWeightsMode.INT8_SYM if recipe.symmetric else nncf.CompressWeightsMode.INT8_ASYM
        with _quiet(progress):
            return nncf.compress_weights(model, mode=mode)
    ratio = recipe.ratio if share is None else share
    advanced = AdvancedCompressionParameters(
        awq_params=AdvancedAWQParameters(prefer_data_aware_scaling=False),  # on the pocket model no worse than aware
    )
    options: dict[str, Any] = {}
    with _quiet(progress), _few_rows_at_a_time(), tempfile.TemporaryDirectory() as scratch:
        if recipe.needs_calibration:
            seen: list[Any] = (
                [None] if feeds is None else list(feeds)
            )  # None: NNCF asks for a dataset, but looks only at the statistics
            count = len(seen)
            if calibration is not None:
                count = len(next(iter(calibration.samples.values())))
                advanced.statistics_path = _write_statistics(calibration, Path(scratch) / "statistics")
            advanced.scale_estimation_params = AdvancedScaleEstimationParameters(
                subset_size=count, initial_steps=_STEPS, scale_steps=_STEPS
            )
            options |= {"dataset": nncf.Dataset(seen), "subset_size": count}
            if ratio < 1:
                # It finds the matrices that see outliers; of NNCF's five it was the best on the pocket model.
                options["sensitivity_metric"] = nncf.SensitivityMetric.MAX_ACTIVATION_VARIANCE
        model = nncf.compress_weights(
            model,
            mode=nncf.CompressWeightsMode.INT4_SYM if recipe.symmetric else nncf.CompressWeightsMode.INT4_ASYM,
            group_size=recipe.group_size,
            ratio=ratio,
            backup_mode=nncf.BackupMode[recipe.backup.upper()],
            all_layers=part or None,
            awq=recipe.awq or None,
            scale_estimation=recipe.scale_estimation or None,
            advanced_parameters=advanced,
            **options,
        )
        # The IR says how it was made: not where this machine kept its scratch, and of a part what the whole has.
        place = ["nncf", "weight_compression"]
        told = model.get_rt_info([*place, "advanced_parameters"]).value
        model.set_rt_info(told.replace(repr(advanced.statistics_path), "None"), [*place, "advanced_parameters"])
        model.set_rt_info(str(recipe.ratio), [*place, "ratio"])
    return model


def int8_error(weight: NDArray[np.float32]) -> float:
    """Largest mean squared error that 8 bits leave in a row of a matrix: NNCF's measure of how much 4 bits hurt."""
    from nncf.quantization.algorithms.weight_compression.config import WeightCompressionConfig
    from nncf.quantization.algorithms.weight_compression.weight_lowering import get_integer_quantization_error
    from nncf.tensor import Tensor

    error = get_integer_quantization_error(Tensor(weight), (1,), WeightCompressionConfig(), reduction="max_mean")
    return float(error) + float(np.finfo(np.float32).eps)


def weight_bits(model: ov.Model) -> dict[str, int]:
    """Number of weights by their precision in the IR, a tied embedding counted once.

    A weight is a Constant of rank 2 (rank 3 where it is in groups) that a MatMul or Gather reads, however many
    conversions, shifts, scales and reshapes lie between.
    """
    found: dict[str, tuple[str, int]] = {}
    for node in model.get_ops():
        position = _weight_input(node)
        constant = None if position is None else _source(node.input_value(position).get_node())
        if constant is not None and len(constant.get_output_shape(0)) >= 2:
            precision = constant.get_element_type().get_type_name()
            found[constant.get_friendly_name()] = (precision, int(np.prod(constant.get_output_shape(0))))
    counts: Counter[str] = Counter()
    for precision, size in found.values():
        counts[precision] += size
    return dict(counts)


def _weight_input(node: Any) -> int | None:
    """The input of a MatMul or Gather that carries its weights."""
    return {"MatMul": 1, "Gather": 0}.get(node.get_type_name())


def _source(node: Any) -> Any:
    """The Constant a decompression starts from, or None where the input is no weight."""
    while node.get_type_name() in ("Convert", "Subtract", "Multiply", "Reshape"):
        node = node.input_value(0).get_node()
    return node if node.get_type_name() == "Constant" else None


def _write_statistics(calibration: Inputs, folder: Path) -> str:
    """Write what NNCF would have written of its own run over the texts, and return where."""
    from nncf.common.graph.transformations.commands import TargetType
    from nncf.common.tensor_statistics.statistics_serializer import dump_statistics
    from nncf.common.utils.backend import BackendType
    from nncf.tensor import Tensor

    found = {}
    for name, samples in calibration.samples.items():
        point = f"{name}_{TargetType.POST_LAYER_OPERATION}_0"
        shapes = np.tile(np.array([1, 1, samples.shape[1]], np.int32), (len(samples), 1))
        variance = np.array(calibration.variances[name], np.float32)
        found[f"WCTensorStatistic_{point}"] = {"mean_values": Tensor(samples), "shape_values": Tensor(shapes)}
        found[f"MaxVarianceTensorStatistic_{point}"] = {"max_variance": Tensor(variance)}
    dump_statistics(found, folder, BackendType.OPENVINO)
    return str(folder)


@contextlib.contextmanager
def _few_rows_at_a_time() -> Iterator[None]:
    """Bound the memory of NNCF's search for scales: no row of a matrix knows of another."""
    from nncf.quantization.algorithms.weight_compression.scale_estimation import ScaleEstimation
    from nncf.tensor import functions

    whole = ScaleEstimation.calculate_quantization_params

    def in_blocks(statistics: Any, weight: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        rows = max(1, _BLOCK // weight.shape[1])
        found = [
            whole(statistics, weight[begin : begin + rows], *args, **kwargs)
            for begin in range(0, weight.shape[0], rows)
        ]
        zero_points = None if found[0][1] is None else functions.concatenate([points for _, points in found])
        return functions.concatenate([scales for scales, _ in found]), zero_points

    ScaleEstimation.calculate_quantization_params = staticmethod(in_blocks)
    try:
        yield
    finally:
        ScaleEstimation.calculate_quantization_params = staticmethod(whole)


def _to_fp16(model: ov.Model) -> ov.Model:
    """The model with f16 constants in place of its bf16 (or f32) weights.

    Raises:
        RecipeError: a weight lies beyond what f16 can hold.
    """
    made: dict[str, Any] = {}  # a tied embedding has two readers
    for node in model.get_ops():
        position = _weight_input(node)
        constant = None if position is None else _source(node.input_value(position).get_node())
        if position is None or constant is None or constant.get_output_element_type(0) not in _FLOATS:
            continue
        name = constant.get_friendly_name()
        if name not in made:
            values = constant.get_data(dtype=np.float32)
            largest = float(np.abs(values).max())
            if not largest <= _F16_MAX:
                raise RecipeError(
                    f"{name} holds {largest:g}, beyond fp16's {_F16_MAX:g}", hint="Ask for bf16 or int8 weights."
                )
            half = ops.constant(values.astype(np.float16), name=name)
            made[name] = ops.convert(half, "f32", name=name + "/f32")
        node.input(position).replace_source_output(made[name].output(0))
    return model


@contextlib.contextmanager
def _quiet(progress: Progress) -> Iterator[None]:
    """Nothing of NNCF's tables, warnings and bars on the terminal; its loops report to `progress` instead."""
    from nncf.common.logging import nncf_logger
    from nncf.common.logging.track_progress import track

    start, iterate, level = track.__init__, track.__iter__, nncf_logger.level

    def start_hidden(self: Any, *args: Any, **kwargs: Any) -> None:
        start(self, *args, **{**kwargs, "disable": True})

    def iterate_aloud(self: Any) -> Iterator[Any]:
        stage = _STAGES.get(self.description, self.description.lower())
        total = len(self.sequence) if hasattr(self.sequence, "__len__") else int(self.total or 0)
        for done, item in enumerate(self.sequence):
            progress(stage, done, total)
            yield item

    track.__init__, track.__iter__ = start_hidden, iterate_aloud
    nncf_logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        track.__init__, track.__iter__ = start, iterate
        nncf_logger.setLevel(level)
