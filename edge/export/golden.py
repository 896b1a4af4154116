"""Golden logits of a finished IR: its own bits, read from the disk and put through the definition in numpy.

Nothing of OpenVINO computes here, and nothing of the checkpoint is asked: what comes out is what the compressed model
has to say in exact arithmetic. The weights are turned into numbers a few rows at a time, so that 9B parameters take
no more memory than the activations and a block.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge import golden
from edge.export import ir
from edge.export.calibration import calibration_samples
from edge.export.fp16 import POST_NORM, UNSCALED, residual_scale
from edge.export.quantize import to_f32
from edge.export.verify_ir import LARGE, size_of
from edge.export.verify_parts import row_order, source_name
from edge.golden import Golden
from edge.infer import EXACT, core, infer, kl_divergence
from edge.manifest import MODEL_FILE, Check
from edge.messages import Progress
from edge.model import forward
from edge.model.spec import GlmSpec

Array = NDArray[np.float32]

_ROOM = 1 << 24  # weights in f32 at a time: 64 MB; a multiplication of fewer would wait for its threads more than work
_BLOCK = 1 << 17  # weights made into numbers at a time: they stay in a core's cache meanwhile
_FLOATS = {"bf16": ("<u2", "BF16"), "f16": ("<f2", "F16"), "f32": ("<f4", "F32")}
# In exact arithmetic on the CPU; the pocket model's largest KL over a prompt is 1e-9.
_SAME = 1e-4


def keep_golden(folder: Path, spec: GlmSpec, tokenizer: Any, progress: Progress) -> Check:
    """Compute the golden logits of the IR in `folder`, put them beside it, and check them."""
    model_file = folder / MODEL_FILE
    kept = compute(model_file, spec, token_ids(tokenizer, spec.context_length), progress)
    digest = golden.write(kept, folder)
    check = check_golden(model_file, kept)
    return check.model_copy(update={"figures": {**check.figures, "sha256": digest}})


def token_ids(tokenizer: Any, context_length: int) -> NDArray[np.int64]:
    """The golden text: what the tokenizer puts before any text, and held-out text, as much as the model reads."""
    length = max(length for length in golden.LENGTHS if length < context_length)
    opening = list(tokenizer.encode(""))
    text = calibration_samples(tokenizer, count=1, length=golden.LENGTHS[-1], held_out=True)[0]
    return np.array((opening + text)[:length], np.int64)


def compute(model_file: Path, spec: GlmSpec, ids: NDArray[np.int64], progress: Progress) -> Golden:
    """The golden logits of an IR of ours; `ids` is the text."""
    restored = _restored(model_file, spec)
    hidden = restored("model.embed_tokens.weight").rows(ids).f32()
    for i in range(spec.num_layers):
        progress("keeping golden logits", i, spec.num_layers + 1)
        hidden = forward.layer(spec, restored, hidden, i)
    hidden = forward.last_norm(spec, restored, hidden)
    progress("keeping golden logits", spec.num_layers, spec.num_layers + 1)
    head = "model.embed_tokens.weight" if spec.tie_word_embeddings else "lm_head.weight"
    lengths = tuple(length for length in golden.LENGTHS if length <= len(ids))
    return Golden.of(ids, restored(head).times(hidden), lengths)


def check_golden(model_file: Path, kept: Golden) -> Check:
    """Hold the golden logits against the compiled IR: in exact arithmetic, and in that which the CPU would choose.

    A large model is not compiled for this: its golden logits have to be finite. Figures are KL divergences from the
    golden logits; those of the CPU's choice say how far a healthy device may lie.
    """
    figures: dict[str, Any] = {"lengths": list(kept.lengths), "compiled": False}
    message = None
    if not (np.isfinite(kept.logits).all() and np.isfinite(kept.log_probs).all()):
        message = "the golden logits are not finite"
    elif size_of(model_file) <= LARGE:
        figures["compiled"] = True
        for name, properties in (("exact", EXACT), ("cpu", {})):
            compiled = core().compile_model(core().read_model(model_file), "CPU", properties)
            request = compiled.create_infer_request()
            found = np.stack([_last(request, kept.prompt(length)) for length in kept.lengths])
            if found.shape != kept.logits.shape:
                message = f"the golden logits are another model's: of {kept.logits.shape[1]:,} entries"
                break
            divergence = kl_divergence(kept.logits, found)
            figures[f"kl_max_{name}"] = float(divergence.max()) if np.isfinite(divergence).all() else None
        exact = figures.get("kl_max_exact")
        if message is None and (exact is None or not exact < _SAME):
            said = "are not finite" if exact is None else f"lie {exact:.3g} nats (KL) from the golden ones"
            message = f"the compiled model's logits {said}"
    hint = "The file was damaged: export the model again; if it is new, report it with your OpenVINO version."
    return Check(
        name="golden", passed=message is None, figures=figures, message=message, hint=hint if message else None
    )


def _last(request: Any, ids: NDArray[np.int64]) -> Array:
    request.reset_state()
    out: Array = infer(request, ids, 0)[-1]
    return out


def _restored(model_file: Path, spec: GlmSpec) -> Callable[[str], forward.Tensor]:
    """The checkpoint's tensors by name, as the IR has them."""
    model = core().read_model(model_file)
    scale = np.float32(residual_scale(model))
    found: dict[str, forward.Tensor] = {}
    for weight in ir.weights_of(model):
        name = source_name(weight)
        if name is not None:
            factors = ir.channel_factors(weight) if weight.kind == "down_proj" else None
            found[name] = _Matrix(weight, row_order(spec, weight.kind), factors)
    nodes = {node.get_friendly_name(): node for node in model.get_ops()}

    @functools.cache
    def restored(name: str) -> forward.Tensor:
        if name in found:
            return found[name]
        place = name.removesuffix(".weight") if name.endswith(".weight") else name + "_add"
        node = nodes.get(place + UNSCALED) or nodes[place]
        values: Array = node.input_value(1).get_node().get_data(dtype=np.float32).reshape(-1)
        if name.endswith(".bias"):
            order = row_order(spec, name.split(".")[-2])
            if order is not None:
                values = values[np.argsort(order)]
        return _Vector(values / scale if POST_NORM.fullmatch(name) else values)

    return restored


@dataclass(frozen=True)
class _Vector:
    """A norm's scale, a bias, or rows that were picked."""

    values: Array

    def f32(self) -> Array:
        return self.values

    def rows(self, index: NDArray[np.int64]) -> _Vector:
        return _Vector(self.values[index])

    def times(self, x: Array) -> Array:
        out: Array = x @ self.values.T
        return out


@dataclass(frozen=True)
class _Matrix:
    """A matrix of the IR, its rows and columns as the checkpoint has them."""

    weight: ir.IrWeight
    order: NDArray[np.int64] | None
    """Of the checkpoint's rows in the IR; None: the checkpoint's own."""
    factors: Array | None
    """That the graph multiplies the matrix' input with, for the weights' sake."""

    def f32(self) -> Array:
        return self.times(np.eye(self.weight.shape[1], dtype=np.float32)).T

    def rows(self, index: NDArray[np.int64]) -> _Vector:
        index = index if self.order is None else np.argsort(self.order)[index]
        values = self.weight.rows(index)
        return _Vector(values if self.factors is None else values * self.factors)

    def times(self, x: Array) -> Array:
        rows, columns = self.weight.shape
        x = np.ascontiguousarray((x if self.factors is None else x * self.factors).T)
        out = np.empty((rows, x.shape[1]), np.float32)
        room = np.empty((max(1, min(rows, _ROOM // columns)), columns), np.float32)
        numbers = _Numbers(self.weight)
        for begin in range(0, rows, len(room)):
            values = room[: rows - begin]
            numbers.fill(begin, values)
            place: Any = slice(begin, begin + len(values))
            out[place if self.order is None else self.order[place]] = values @ x
        return out.T


class _Numbers:
    """A matrix of the IR in f32, some rows at a time."""

    def __init__(self, weight: ir.IrWeight) -> None:
        rows = weight.shape[0]
        self._weight = weight
        self._data = ir.raw(weight.constant)
        self._scale, self._zero = (
            None if constant is None else constant.get_data(dtype=np.float32).reshape(rows, -1, 1)
            for constant in (weight.scale, weight.zero_point)
        )

    def fill(self, begin: int, out: Array) -> None:
        """Put the rows from `begin` on into `out` [N, columns]."""
        step = max(1, _BLOCK // out.shape[1])
        for first in range(0, len(out), step):
            self._fill(begin + first, out[first : first + step])

    def _fill(self, begin: int, out: Array) -> None:
        end, columns = begin + len(out), out.shape[1]
        bits, precision = self._weight.bits, self._weight.precision
        if bits == 4 and columns % 4:  # rows end in the middle of what is looked up at once
            out[:] = self._weight.rows(np.arange(begin, end))
            return
        data = self._data[begin * columns * bits // 8 : end * columns * bits // 8]
        if bits == 4:
            np.take(_four(precision), data.view("<u2"), out=out.view(np.complex128).reshape(-1), mode="clip")
        elif bits == 8:
            np.copyto(out, data.view(np.int8 if precision == "i8" else np.uint8).reshape(out.shape))
        else:
            storage, name = _FLOATS[precision]
            to_f32(data.view(storage), name, out)
        if self._scale is not None:
            groups = out.reshape(len(out), self._scale.shape[1], -1)
            if self._zero is not None:
                np.subtract(groups, self._zero[begin:end], out=groups)
            np.multiply(groups, self._scale[begin:end], out=groups)


@functools.cache
def _four(precision: str) -> NDArray[np.complex128]:
    """The four f32 numbers in each two bytes of 4-bit weights; as one element, which numpy picks in one go."""
    low = np.arange(16, dtype=np.float32)
    if precision == "i4":
        low[8:] -= 16
    patterns = np.arange(1 << 16)
    numbers = np.stack([low[patterns >> shift & 15] for shift in (0, 4, 8, 12)], axis=1)
    return np.ascontiguousarray(numbers).view(np.complex128).reshape(-1)
