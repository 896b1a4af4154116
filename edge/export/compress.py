"""NNCF compresses the weights; this says with what, keeps it quiet, and passes its progress on."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from edge.errors import RecipeError
from edge.export.recipe import Recipe
from edge.messages import Progress

# NNCF keeps one vector for each input it shows the model: the mean over the tokens. Many short pieces tell it more
# than few long ones; each continues the one before it, so that the model still sees whole contexts.
_WINDOW = 8
_CONTEXT = 512
# Steps of NNCF's scale search. Its default is 5 and 5; on the pocket model that was slower and no better.
_STEPS = 3
# NNCF's names for what it does, in the user's words.
_STAGES = {
    "Applying Weight Compression": "compressing",
    "Statistics collection": "running over calibration text",
    "Mixed-Precision assignment": "choosing what stays in 8 bits",
    "Applying data-free AWQ": "balancing channels (AWQ)",
    "Applying AWQ": "balancing channels (AWQ)",
    "Applying Scale Estimation": "fitting the scales",
    "Applying GPTQ": "rounding column by column (GPTQ)",
}
_F16_MAX = float(np.finfo(np.float16).max)
_FLOATS = (ov.Type.bf16, ov.Type.f32)


def compress(
    model: ov.Model,
    recipe: Recipe,
    *,
    calibration: Sequence[list[int]] | None,
    progress: Progress,
    part: bool = False,
) -> ov.Model:
    """The model with its weights in the recipe's format; the given model may be changed on the way.

    Args:
        calibration: token ids of texts, for recipes that need them (`Recipe.needs_calibration`).
        progress: called with the stage, how far it is, and how far it goes (0: unknown).
        part: `model` is one layer of a larger one: its last matrix is no head, and gets 4 bits, too.

    Raises:
        RecipeError: the recipe needs calibration and got none, or a weight does not fit into fp16.
    """
    if recipe.weights == "bf16":
        return model
    if recipe.weights == "fp16":
        return _to_fp16(model)
    if recipe.needs_calibration and not calibration:
        raise RecipeError(
            "the recipe chooses by calibration, and there is no calibration text", hint="Use a recipe without it."
        )
    import nncf
    from nncf.quantization.advanced_parameters import (
        AdvancedAWQParameters,
        AdvancedCompressionParameters,
        AdvancedGPTQParameters,
        AdvancedScaleEstimationParameters,
    )

    with _quiet(progress):
        if recipe.weights == "int8":
            mode = nncf.CompressWeightsMode.INT8_SYM if recipe.symmetric else nncf.CompressWeightsMode.INT8_ASYM
            return nncf.compress_weights(model, mode=mode)
        options: dict[str, Any] = {}
        # GPTQ looks at every token anyway, and cannot carry a cache from one input to the next.
        pieces = _pieces(calibration or [], _CONTEXT if recipe.gptq else _WINDOW)
        if recipe.needs_calibration:
            options["dataset"] = nncf.Dataset(pieces)
            options["subset_size"] = len(pieces)
        if recipe.selects and not recipe.by_weights:
            # It finds the matrices that see outliers; of NNCF's five it was the best on the pocket model.
            options["sensitivity_metric"] = nncf.SensitivityMetric.MAX_ACTIVATION_VARIANCE
        return nncf.compress_weights(
            model,
            mode=nncf.CompressWeightsMode.INT4_SYM if recipe.symmetric else nncf.CompressWeightsMode.INT4_ASYM,
            group_size=recipe.group_size,
            ratio=recipe.ratio,
            backup_mode=nncf.BackupMode[recipe.backup.upper()],
            all_layers=part or None,
            awq=recipe.awq or None,
            scale_estimation=recipe.scale_estimation or None,
            gptq=recipe.gptq or None,
            advanced_parameters=AdvancedCompressionParameters(
                awq_params=AdvancedAWQParameters(prefer_data_aware_scaling=False),
                scale_estimation_params=AdvancedScaleEstimationParameters(
                    subset_size=max(len(pieces), 1), initial_steps=_STEPS, scale_steps=_STEPS
                ),
                gptq_params=AdvancedGPTQParameters(subset_size=max(len(pieces), 1)),
            ),
            **options,
        )


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


def _pieces(texts: Sequence[list[int]], window: int) -> list[dict[str, Any]]:
    """What NNCF shows the model: the texts in short windows, each with the cache of those before it."""
    from nncf.definitions import NNCF_DATASET_RESET_STATE_KEY

    pieces = []
    for text in texts:
        for begin in range(0, len(text), window):
            end = min(begin + window, len(text))
            piece: dict[str, Any] = {
                "input_ids": np.array([text[begin:end]], dtype=np.int64),
                "attention_mask": np.ones((1, end), dtype=np.int64),
                "position_ids": np.arange(begin, end, dtype=np.int64)[None],
                "beam_idx": np.zeros(1, dtype=np.int32),
            }
            if window < len(text):  # left out, NNCF starts anew at every piece
                piece[NNCF_DATASET_RESET_STATE_KEY] = begin == 0
            pieces.append(piece)
    return pieces


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
