"""Proves of a finished IR what needs no checkpoint: its weights' form, its fusions, finite numbers at any length."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edge.export import ir
from edge.export.recipe import KINDS, Recipe
from edge.infer import EXACT, compiled_layers, core, infer
from edge.manifest import Check

# Around the sizes in which plugins work: vectors, tiles, blocks of the cache. Some faults show at single lengths.
LENGTHS = (1, 2, 3, 7, 8, 15, 16, 17, 32, 33, 64, 65, 128, 129, 256, 257, 512, 513)
_AT_LEAST = 65  # tokens: beyond two blocks of the cache, whatever the machine is busy with
_SECONDS = 6.0  # after that no longer prompt is begun
LARGE = 500_000_000
"""Weights above which a model is run with a part of its layers: the whole would not fit beside other work."""
_LAYERS, _VOCABULARY = 1, 4096  # of a large model
# Of the largest logit. Exact arithmetic in another order: the pocket model reaches 1e-5.
_SAME = 1e-3


def check_weights(model_file: Path, recipe: Recipe | None, *, strict: bool = True) -> Check:
    """Read bits, symmetry and group size of every matrix out of the graph; hold them against the recipe.

    Args:
        recipe: what was asked for; None where nobody noted it.
        strict: embedding and head must have the recipe's backup precision, as every export of ours gives them.

    Figures: number of weights by precision, share in 4 bits, and number of matrices by kind and form.
    """
    model = core().read_model(model_file)
    weights = ir.weights_of(model)
    precisions: Counter[str] = Counter()
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    for weight in weights:
        precisions[weight.precision] += weight.shape[0] * weight.shape[1]
        kinds[weight.kind][weight.form()] += 1
    total, four = max(sum(precisions.values()), 1), precisions["u4"] + precisions["i4"]
    broken = ir.not_finite(model)
    figures = {
        "by_precision": dict(precisions), "share_in_4_bits": round(four / total, 4),
        "kinds": {kind: dict(forms) for kind, forms in sorted(kinds.items(), key=_order)}, "not_finite": broken,
    }  # fmt: skip
    message = hint = None
    if broken:
        message = f"{len(broken)} constants hold an infinity or a NaN, {broken[0]} among them"
        hint = "The file or the checkpoint is damaged: download the checkpoint anew and export it again."
    elif not weights:
        message, hint = "no weights were found in the IR", "Export the model again."
    elif recipe is not None:
        message, hint = _unlike(weights, recipe, strict)
    return Check(name="weights", passed=message is None, figures=figures, message=message, hint=hint)


def check_fusions(model_file: Path, *, ours: bool = True) -> Check:
    """Compile for the CPU, with and without paged attention, and count what fused.

    An attention or a RoPE that stayed in pieces runs slowly: a failure in an IR of ours, a warning in another's.
    """
    figures: dict[str, Any] = {}
    left: dict[str, str] = {}
    for backend, attention in (("SDPA", "ScaledDotProductAttention"), ("PA", "PagedAttention")):
        model = core().read_model(model_file)
        layers = ir.num_layers(model)
        try:
            if backend == "PA":
                from openvino._offline_transformations import paged_attention_transformation

                paged_attention_transformation(model)
            counts = compiled_layers(core().compile_model(model, "CPU"))
        except RuntimeError as error:
            figures[backend] = None
            left[backend] = f"it cannot be compiled ({str(error).strip().splitlines()[-1]})"
            continue
        figures |= {"layers": layers, backend: {"rope": counts["RoPE"], "attention": counts[attention]}}
        stayed = {name: counts[name] for name in ("Softmax", "StridedSlice") if counts[name]}
        if counts["RoPE"] != 2 * layers or counts[attention] != layers or (ours and stayed):
            left[backend] = (
                f"{counts['RoPE']} of {2 * layers} rotary embeddings and {counts[attention]} of {layers} attentions "
                f"are fused" + (f", and {stayed} stayed" if stayed else "")
            )
    message = "; ".join(f"compiled with {backend}, {what}" for backend, what in left.items()) or None
    hint = None
    if message:
        hint = (
            "The model would run slowly. Report it with your OpenVINO version."
            if ours
            else "It runs slowly; glm4-edge export makes one in which they fuse."
        )
    runs = bool(figures["SDPA"] or figures["PA"]) if not ours else not left
    return Check(name="fusions", passed=runs, figures=figures, message=message, hint=hint)


def check_lengths(
    model_file: Path,
    vocab_size: int,
    context_length: int,
    lengths: Sequence[int] | None = None,
    seconds: float | None = None,
) -> Check:
    """Run prompts of many lengths: finite logits, and the same whether read at once or the last token by itself.

    Ascending, up to `_AT_LEAST` in any case and then until the time is used up; a large model runs with its first
    layer and part of its vocabulary. Figures say which lengths, layers and precisions ran. Finite is asked for in the
    plugin's own precision, too.
    """
    model, layers, total = _runnable(model_file, vocab_size)
    figures: dict[str, Any] = {"lengths": [], "layers": layers, "of_layers": total, "precisions": []}
    if model is None:
        return Check(
            name="lengths", passed=True, figures=figures,
            message="not run: the whole model is too large, and its layers bear unknown names",
            hint="Export it with glm4-edge to have it checked.",
        )  # fmt: skip
    vocabulary = _VOCABULARY if layers < total else vocab_size
    lengths = [length for length in lengths or LENGTHS if length < context_length]
    ids = np.random.default_rng(0).integers(0, min(vocabulary, vocab_size), max(lengths, default=0) + 1)
    exact = core().compile_model(model, "CPU", EXACT).create_infer_request()
    plain = core().compile_model(model, "CPU").create_infer_request()
    own = str(plain.get_compiled_model().get_property("INFERENCE_PRECISION_HINT").get_type_name())
    figures["precisions"] = sorted({"f32", own})
    for request in (exact, plain):
        _fresh(request, ids[:1])  # repacks the weights: not to be counted among the lengths
    end = time.perf_counter() + (_SECONDS if seconds is None else seconds)
    worst, scale, took, broken = 0.0, 1e-9, 0.0, []
    step = None  # logits after the token that follows the length before, read by itself
    for number, length in enumerate(lengths):
        begin = time.perf_counter()
        # What the time before says of this one: longer by their ratio.
        if length > _AT_LEAST and begin + took * length / lengths[number - 1] > end:
            break
        whole = _fresh(exact, ids[:length])[-1]
        if step is not None and length == lengths[number - 1] + 1:
            worst = max(worst, float(np.abs(whole - step).max()))
        scale = max(scale, float(np.abs(whole).max()))
        step = infer(exact, ids[length : length + 1], length)[-1]
        others = [_fresh(plain, ids[:length])[-1]] if own != "f32" else []
        if not all(np.isfinite(logits).all() for logits in (whole, step, *others)):
            broken.append(length)
        figures["lengths"].append(length)
        took = time.perf_counter() - begin
    figures["not_finite"] = broken
    figures["cut_short"] = len(figures["lengths"]) < len(lengths)
    if not broken:  # JSON knows no NaN
        figures |= {"max_difference": worst, "logit_scale": scale}
    message = hint = None
    if broken:
        message = f"logits are not finite after prompts of {broken} tokens"
        hint = "The model answers nonsense. Export it again; if that does not help, report it with your processor."
    elif not worst <= _SAME * scale:
        message = (
            f"reading a prompt at once and its last token by itself give logits {worst:.3g} apart at scale {scale:.3g}"
        )
        hint = "The cache or the mask of the graph is wrong. Export the model again with glm4-edge."
    return Check(name="lengths", passed=message is None, figures=figures, message=message, hint=hint)


def size_of(model_file: Path) -> int:
    """Number of weights in the IR's matrices."""
    return sum(weight.shape[0] * weight.shape[1] for weight in ir.weights_of(core().read_model(model_file)))


def _runnable(model_file: Path, vocab_size: int) -> tuple[ov.Model | None, int, int]:
    """The model, or so much of a large one as may be run; how many layers it has, and how many the whole."""
    model = core().read_model(model_file)
    total = ir.num_layers(model)
    if size_of(model_file) <= LARGE:
        return model, total, total
    vocabulary = np.arange(min(_VOCABULARY, vocab_size))
    return ir.shorten(model, min(_LAYERS, total), vocabulary), min(_LAYERS, total), total


def _fresh(request: ov.InferRequest, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    request.reset_state()
    return infer(request, ids, 0)


def _unlike(weights: list[ir.IrWeight], recipe: Recipe, strict: bool) -> tuple[str | None, str | None]:
    """Where the weights are not what the recipe says, and what to do."""
    again = "Export the model again; if it is new, report it with your NNCF version."
    for weight in weights:
        if _found(weight) not in _allowed(weight, recipe, strict):
            asked = recipe.weights if recipe.weights != "int4" else f"int4, {_group(recipe.group_size)}"
            return f"{weight.name} is in {weight.form()}, where the recipe ({asked}) has no such form", again
    if recipe.weights != "int4":
        return None, None
    layers = [weight for weight in weights if weight.kind not in ir.ENDS]
    size = sum(weight.shape[0] * weight.shape[1] for weight in layers)
    four = sum(weight.shape[0] * weight.shape[1] for weight in layers if weight.bits == 4)
    share = four / max(size, 1)
    if not four:
        return "int4 was asked for, but no matrix is in 4 bits", (
            f"A ratio of {recipe.ratio} has room for no matrix; give a higher one." if recipe.ratio < 1 else again
        )
    if share > recipe.ratio + 1e-6 or (strict and recipe.ratio == 1 and four < size):
        much = "all" if recipe.ratio == 1 else f"at most {recipe.ratio:.1%}"
        return (
            f"{share:.1%} of the layers' weights are in 4 bits, where {much} were asked for",
            "Choose another ratio, or report it with your NNCF version.",
        )
    return None, None


def _found(weight: ir.IrWeight) -> tuple[Any, ...]:
    """Precision, symmetry and group size in columns; a group as long as a row is a row's."""
    if weight.scale is None:
        return (weight.precision,)
    columns = weight.shape[1]
    return weight.precision, weight.symmetric, columns if weight.group_size == -1 else weight.group_size


def _allowed(weight: ir.IrWeight, recipe: Recipe, strict: bool) -> set[tuple[Any, ...]]:
    """Every form the recipe may give to a matrix."""
    columns = weight.shape[1]
    if recipe.weights == "int4":
        group = columns if recipe.group_size == -1 else recipe.group_size
        four = ("i4" if recipe.symmetric else "u4", recipe.symmetric, group)
        forms: dict[str, set[tuple[Any, ...]]] = {
            "int8_asym": {("u8", False, columns)},
            "int8_sym": {("i8", True, columns)},
            "none": {("bf16",), ("f16",), ("f32",)},
        }
        backups = forms[recipe.backup]
        return backups if strict and weight.kind in ir.ENDS else backups | {four}
    if recipe.weights == "int8":
        return {("i8" if recipe.symmetric else "u8", recipe.symmetric, columns)}
    return {("bf16" if recipe.weights == "bf16" else "f16",)}


def _group(size: int) -> str:
    return "per channel" if size == -1 else f"groups of {size}"


def _order(item: tuple[str, Any]) -> int:
    order = [*KINDS, *ir.ENDS]
    return order.index(item[0]) if item[0] in order else -1
