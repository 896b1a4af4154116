"""What a token costs: bytes and operations, counted in the IR itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.runtime import plan as plans
from edge.runtime.plan import KvPrecision, Shape


@dataclass(frozen=True)
class Counts:
    """Of one model, for each token."""

    weight_bytes: int
    """Of every matrix that a token is multiplied with, scales and zero points included; a looked-up table is not."""
    weight_flop: float
    """Multiplications and additions with all of them but the head's."""
    head_flop: float
    """With the head's, which are made for the last token of a prompt alone."""
    kv_bytes: float
    """Read from the cache for each token that came before."""
    attention_flop: float
    """For each token that came before."""
    step_tokens: int
    """Of a prompt that are read in one step: so often the weights are read."""

    def decode_seconds(self, context: float, together: int, bandwidth: float, flop_rate: float) -> float:
        """At least so long takes one token for each of `together` answers with `context` tokens behind them."""
        read = self.weight_bytes + together * context * self.kv_bytes
        work = together * (self.weight_flop + self.head_flop + context * self.attention_flop)
        return max(read / bandwidth, work / flop_rate)

    def prefill_seconds(self, tokens: int, read: int, together: int, bandwidth: float, flop_rate: float) -> float:
        """At least so long takes the first token of each of `together` prompts of `tokens`, of which `read` are new."""
        seen = read * (tokens - (read - 1) / 2)  # each token looks at itself and all before it
        work = together * (read * self.weight_flop + self.head_flop + seen * self.attention_flop)
        steps = math.ceil(together * read / self.step_tokens)
        return max(steps * self.weight_bytes / bandwidth, work / flop_rate)


def count(folder: Path, *, device: str = "CPU", kv_precision: KvPrecision | None = None) -> Counts:
    """Count in an exported model's IR.

    Raises:
        ModelError: the folder holds none.
    """
    shape = Shape.read(folder)
    weights, flop, head, seen = 0, 0.0, 0.0, set()
    for matmul in matrices(folder):
        rows, columns = matmul.input(1).get_partial_shape().to_shape()
        for constant in constants(matmul):
            if constant.get_friendly_name() not in seen:
                seen.add(constant.get_friendly_name())
                weights += constant.get_byte_size()
        work = 2.0 * rows * columns
        if shape.vocab in (rows, columns):
            head += work
        else:
            flop += work
    return Counts(
        weight_bytes=weights,
        weight_flop=flop,
        head_flop=head,
        kv_bytes=plans.kv_token_bytes(shape, kv_precision or plans.kv_default(device), device),
        attention_flop=4.0 * shape.layers * shape.heads * shape.head_dim,
        step_tokens=plans.STEP_TOKENS.get(device.partition(".")[0], 1024),
    )


def matrices(folder: Path) -> Iterator[Any]:
    """The multiplications with weights in a model's IR. The model is held as long as the iterator is."""
    from edge.infer import core

    model = core().read_model(str(folder / "openvino_model.xml"))
    for node in model.get_ordered_ops():
        if node.get_type_name() == "MatMul" and next(constants(node), None) is not None:
            yield node


def constants(matmul: Any) -> Iterator[Any]:
    """What a multiplication's weights are made of: the matrix, scales, zero points; nothing if they are computed."""
    waiting, found = [matmul.input_value(1).get_node()], []
    while waiting:
        node = waiting.pop()
        if node.get_type_name() == "Constant":
            found.append(node)
        elif node.get_type_name() == "Parameter" or not node.inputs():
            return
        else:
            waiting += [port.get_source_output().get_node() for port in node.inputs()]
    yield from found
