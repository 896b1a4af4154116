"""The GLM-4 decoder, built from OpenVINO operations straight from the checkpoint's memory map.

Inputs (B sequences, S new tokens, T tokens in all):
    input_ids [B, S] i64, attention_mask [B, T] i64, position_ids [B, S] i64, beam_idx [B] i32
Output:
    logits [B, S, vocab] f32
State, one pair for each layer N:
    past_key_values.N.keypresent.N.key and …value…, [B, KV heads, T, head_dim] f32

The forms below are those that OpenVINO's fusions look for; each was found by looking at the
compiled model. What is not free to change:

* Every Parameter carries its name twice, as tensor name and as friendly name: the paged-attention
  transformation looks at the second.
* Splits and slices run on axis -1, never 2 or 3: that transformation changes ranks.
* RoPE is written half-split, with Slices, which fuses; GLM rotates adjacent pairs. Permuting the rows of q and k
  alike leaves every q·k as it was, so the permutation is done to the weights (`rotary_row_order`).
  Group-wise scales run along the input axis, so it costs no accuracy.
* Shared KV heads are spread by a *bidirectional* Broadcast; with any other the attention does not
  fuse with its cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops
from openvino.op import util

from edge.model.checkpoint import Weight
from edge.model.rotary import rotary_row_order
from edge.model.spec import GlmSpec
from edge.precise import PRECISE

# Half of the lowest f16. Where scores and mask are added in f16 the lowest itself would become -inf with any score
# below -16, and a fully masked row (padding, of which the NPU's static shapes make much) NaN.
MASKED = np.float32(-32768)
_END = np.iinfo(np.int32).max  # what the fusions read as "to the end"
OV_TYPE = {"BF16": ov.Type.bf16, "F16": ov.Type.f16, "F32": ov.Type.f32}

Node = Any  # openvino's Python nodes carry no useful static types


def build_model(spec: GlmSpec, weight: Callable[[str], Weight]) -> ov.Model:
    """The decoder of `spec` with the tensors that `weight` hands out by name.

    Most of the model's constants are views of those tensors: whoever owns the arrays behind `weight`
    must outlive the model and whatever is compiled from it, or the process reads freed memory.
    """
    return assemble(build_ends(spec, weight), (build_layer(spec, weight, i) for i in range(spec.num_layers)))


def build_ends(spec: GlmSpec, weight: Callable[[str], Weight]) -> ov.Model:
    """Everything but the layers: embedding, rotary tables and mask going in, last norm and head coming out.

    Results: `hidden` and the other Parameters of `build_layer` by their names, and `logits`, made from the
    Parameter `last_hidden`. Embedding and head are in one model because they may be one tensor.
    """
    builder = _Builder(spec, weight)
    inputs = {
        "input_ids": _parameter("input_ids", [-1, -1], ov.Type.i64),
        "attention_mask": _parameter("attention_mask", [-1, -1], ov.Type.i64),
        "position_ids": _parameter("position_ids", [-1, -1], ov.Type.i64),
        "beam_idx": _parameter("beam_idx", [-1], ov.Type.i32),
        "last_hidden": _parameter("last_hidden", [-1, -1, spec.hidden_size], ov.Type.f32),
    }
    embedding = builder.constant("model.embed_tokens.weight")
    ids, axis = ops.convert(inputs["input_ids"], "i32"), ops.constant(0, ov.Type.i32)
    batch = ops.gather(ops.shape_of(inputs["input_ids"]), _i64([0]), axis)
    cos, sin = builder.rotary_tables(inputs["position_ids"], batch)
    results = {
        "hidden": ops.gather(embedding, ids, axis, name="model.embed_tokens"),
        "cos": cos,
        "sin": sin,
        "mask": builder.attention_mask(inputs["input_ids"], inputs["attention_mask"]),
        "batch": batch,
        "beams": inputs["beam_idx"],
    }
    head = embedding if spec.tie_word_embeddings else builder.constant("lm_head.weight")
    last = builder.rms_norm(inputs["last_hidden"], "model.norm")
    results["logits"] = ops.matmul(last, head, False, True, name="lm_head")
    results["logits"].output(0).set_names({"logits"})
    return ov.Model([ops.result(node, name=name) for name, node in results.items()], list(inputs.values()), "glm4_edge")


def build_layer(spec: GlmSpec, weight: Callable[[str], Weight], i: int, form: Form | None = None) -> ov.Model:
    """Layer i by itself: Parameters named like the Results of `build_ends`, one Result, its two caches.

    Args:
        form: how its matrices are written; left out, as they are in the checkpoint.
    """
    builder = _Builder(spec, weight, form)
    shapes = {
        "hidden": [-1, -1, spec.hidden_size],
        "cos": [-1, 1, -1, spec.rotary_dim],
        "sin": [-1, 1, -1, spec.rotary_dim],
        "mask": [-1, 1, -1, -1],
    }
    inputs = {name: _parameter(name, shape, ov.Type.f32) for name, shape in shapes.items()}
    inputs["batch"] = _parameter("batch", [1], ov.Type.i64)
    inputs["beams"] = _parameter("beams", [-1], ov.Type.i32)
    builder.cos, builder.sin, builder.mask = inputs["cos"], inputs["sin"], inputs["mask"]
    builder.batch, builder.beam_idx = inputs["batch"], inputs["beams"]
    result = ops.result(builder.layer(inputs["hidden"], i), name=f"layer {i}")
    return ov.Model([result], builder.sinks, list(inputs.values()), f"layer_{i}")


def assemble(ends: ov.Model, layers: Iterable[ov.Model]) -> ov.Model:
    """One model out of `build_ends` and the layers in order; all of them are used up.

    What the parts went through meanwhile (compression) stays, as long as Parameters and Results kept
    their names.
    """
    sources = {result.get_friendly_name(): result.input_value(0) for result in ends.get_results()}
    logits = next(result for result in ends.get_results() if result.get_friendly_name() == "logits")
    sinks = []
    for layer in layers:
        for parameter in layer.get_parameters():
            # Names go over to what takes its place, and of an input with two names optimum-intel finds one, any.
            parameter.output(0).set_names(set())
            parameter.output(0).replace(sources[parameter.get_friendly_name()])
        sources["hidden"] = layer.get_results()[0].input_value(0)
        sinks += layer.get_sinks()
    inputs = [parameter for parameter in ends.get_parameters() if parameter.get_friendly_name() != "last_hidden"]
    last = next(parameter for parameter in ends.get_parameters() if parameter.get_friendly_name() == "last_hidden")
    last.output(0).replace(sources["hidden"])
    return ov.Model([logits], sinks, inputs, "glm4_edge")


class Form(Protocol):
    """How the matrices of a layer become nodes; whoever makes one keeps it until the layer is written."""

    def balance(self, weight: Weight) -> NDArray[np.float32] | None:
        """Factors [columns] that the input of this matrix is divided by, and its columns multiplied with."""

    def matrix(self, name: str, weight: Weight, factors: NDArray[np.float32] | None) -> Node:
        """The matrix [rows, columns] as an f32 node."""


class _Builder:
    def __init__(self, spec: GlmSpec, weight: Callable[[str], Weight], form: Form | None = None) -> None:
        self.spec = spec
        self.weight = weight
        self.form = form
        self.sinks: list[Node] = []
        self.cos: Node = None
        self.sin: Node = None
        self.mask: Node = None
        self.batch: Node = None
        self.beam_idx: Node = None

    def layer(self, hidden: Node, i: int) -> Node:
        prefix = f"model.layers.{i}."
        attended = self.attention(self.rms_norm(hidden, prefix + "input_layernorm"), i)
        if self.spec.four_norms:
            attended = self.rms_norm(attended, prefix + "post_self_attn_layernorm")
        hidden = ops.add(hidden, attended, name=prefix + "attention_residual")
        fed = self.mlp(self.rms_norm(hidden, prefix + "post_attention_layernorm"), prefix + "mlp.")
        if self.spec.four_norms:
            fed = self.rms_norm(fed, prefix + "post_mlp_layernorm")
        return ops.add(hidden, fed, name=prefix + "mlp_residual")

    def attention(self, hidden: Node, i: int) -> Node:
        spec = self.spec
        prefix = f"model.layers.{i}.self_attn."
        query = self.heads(hidden, prefix + "q_proj", spec.num_heads, rotary=True, factor=_query_factor(spec))
        query = self.rope(query)
        key = self.rope(self.heads(hidden, prefix + "k_proj", spec.num_kv_heads, rotary=True))
        value = self.heads(hidden, prefix + "v_proj", spec.num_kv_heads, rotary=False)
        key = self.shared(self.cached(key, i, "key"))
        value = self.shared(self.cached(value, i, "value"))
        scale = ops.constant(np.float32(1 / _query_factor(spec) / np.sqrt(spec.head_dim)))
        out = ops.scaled_dot_product_attention(query, key, value, self.mask, scale, name=prefix + "sdpa")
        out = ops.reshape(ops.transpose(out, _i64([0, 2, 1, 3])), _i64([0, 0, spec.q_size]), True)
        return self.linear(out, prefix + "o_proj")

    def heads(self, hidden: Node, name: str, heads: int, *, rotary: bool, factor: float = 1.0) -> Node:
        """Project, scale and lay out as [B, heads, S, head_dim]; rows of q and k in half-split order."""
        spec = self.spec
        order = rotary_row_order(heads, spec.head_dim, spec.rotary_dim) if rotary else None
        out = self.linear(hidden, name, order)
        if spec.attention_bias:
            bias = self.weight(name + ".bias")
            bias = bias if order is None else bias.rows(order)
            out = ops.add(out, ops.constant(bias.f32()[None, None, :]), name=name + ".bias_add")
        if factor != 1.0:
            out = ops.multiply(out, ops.constant(np.float32(factor)), name=name + ".scaled")
        out = ops.reshape(out, _i64([0, 0, heads, spec.head_dim]), True)
        return ops.transpose(out, _i64([0, 2, 1, 3]))

    def linear(
        self,
        hidden: Node,
        name: str,
        order: NDArray[np.int64] | None = None,
        factors: NDArray[np.float32] | None = None,
    ) -> Node:
        """`hidden` times the matrix `name`, its rows in `order`."""
        if self.form is None:
            weight = self.constant(name + ".weight", order)
        else:
            given = self.weight(name + ".weight")
            weight = self.form.matrix(name + ".weight", given if order is None else given.rows(order), factors)
        return ops.matmul(hidden, weight, False, True, name=name)

    def rope(self, x: Node) -> Node:
        """Rotate the first `rotary_dim` channels of x [B, heads, S, head_dim], half-split."""
        rotary, half = self.spec.rotary_dim, self.spec.rotary_dim // 2
        part = x if rotary == self.spec.head_dim else _channels(x, 0, rotary)
        negated = ops.multiply(_channels(part, half, _END), ops.constant(np.float32(-1)))
        turned = ops.concat([negated, _channels(part, 0, half)], -1)
        out = ops.add(ops.multiply(part, self.cos), ops.multiply(turned, self.sin))
        return out if part is x else ops.concat([out, _channels(x, rotary, _END)], -1)

    def rotary_tables(self, position_ids: Node, batch: Node) -> tuple[Node, Node]:
        """cos and sin [B, 1, S, rotary_dim] of the angles position * frequency, twice over."""
        frequencies, scale = self.spec.rotary_frequencies()
        table = ops.constant(frequencies.astype(np.float32).reshape(1, -1, 1))
        target = ops.concat([batch, _i64([len(frequencies)]), _i64([1])], 0)
        table = ops.broadcast(table, target, broadcast_spec="BIDIRECTIONAL")
        name = "rotary" + PRECISE  # f16 knows no odd number above 2048
        positions = ops.convert(ops.unsqueeze(position_ids, _i64(1)), "f32", name=name + "positions")
        angles = ops.matmul(table, positions, False, False, name=name + "angles")
        angles = ops.transpose(angles, _i64([0, 2, 1]), name=name + "transposed")
        angles = ops.concat([angles, angles], -1, name=name + "twice")
        cos, sin = ops.cos(angles, name=name + "cos"), ops.sin(angles, name=name + "sin")
        if scale != 1.0:
            factor = ops.constant(np.float32(scale))
            cos, sin = ops.multiply(cos, factor), ops.multiply(sin, factor)
        return ops.unsqueeze(cos, _i64(1)), ops.unsqueeze(sin, _i64(1))

    def attention_mask(self, input_ids: Node, padding: Node) -> Node:
        """[B, 1, S, T]: 0 where a query may look, the lowest value where it may not."""
        axis, zero, one = _i64(0), _i64(0), _i64(1)
        new = ops.gather(ops.shape_of(input_ids), one, axis)
        total = ops.gather(ops.shape_of(padding), one, axis)
        keys = ops.range(zero, total, one, "i64")
        queries = ops.add(ops.range(zero, new, one, "i64"), ops.subtract(total, new))
        causal = ops.less_equal(ops.unsqueeze(keys, _i64([0, 1, 2])), ops.unsqueeze(queries, _i64([0, 1, 3])))
        present = ops.convert(ops.unsqueeze(padding, _i64([1, 2])), "boolean")
        allowed = ops.logical_and(causal, present)
        return ops.select(allowed, ops.constant(np.float32(0)), ops.constant(MASKED))

    def cached(self, new: Node, i: int, kind: str) -> Node:
        """Append to the layer's cache: [B, KV heads, T, head_dim]."""
        spec = self.spec
        info = util.VariableInfo()
        info.data_shape = ov.PartialShape([-1, spec.num_kv_heads, -1, spec.head_dim])
        info.data_type = ov.Type.f32
        info.variable_id = f"past_key_values.{i}.{kind}present.{i}.{kind}"
        variable = util.Variable(info)
        shape = ops.concat([self.batch, _i64([spec.num_kv_heads]), _i64([0]), _i64([spec.head_dim])], 0)
        empty = ops.broadcast(ops.constant(np.float32(0)), shape)
        past = ov.op.read_value(empty, variable)
        past = ops.gather(past, self.beam_idx, ops.constant(0, ov.Type.i32))
        both = ops.concat([past, new], -2)
        self.sinks.append(ov.op.assign(both, variable))
        return both

    def shared(self, x: Node) -> Node:
        """Repeat each KV head for the query heads that share it: [B, heads, T, head_dim]."""
        spec = self.spec
        group = spec.num_heads // spec.num_kv_heads
        if group == 1:
            return x
        spread = ops.broadcast(ops.unsqueeze(x, _i64(2)), _i64([1, 1, group, 1, 1]), broadcast_spec="BIDIRECTIONAL")
        return ops.reshape(spread, _i64([0, spec.num_heads, -1, spec.head_dim]), True)

    def mlp(self, hidden: Node, prefix: str) -> Node:
        ffn = self.spec.intermediate_size
        parts = ops.variadic_split(self.linear(hidden, prefix + "gate_up_proj"), _i64(-1), _i64([ffn, ffn]))
        gate = ops.swish(parts.output(0))
        factors = None if self.form is None else self.form.balance(self.weight(prefix + "down_proj.weight"))
        if factors is not None:  # where NNCF's AWQ puts it, too
            gate = ops.multiply(gate, ops.constant(np.float32(1) / factors[None, None, :]), name=prefix + "balanced")
        gated = ops.multiply(gate, parts.output(1), name=prefix + "gated")
        return self.linear(gated, prefix + "down_proj", factors=factors)

    def rms_norm(self, x: Node, name: str) -> Node:
        inner = name + PRECISE  # the square of 256 is beyond f16
        square = ops.power(x, ops.constant(np.float32(2)), name=inner + "square")
        mean = ops.reduce_mean(square, _i64([-1]), True, name=inner + "mean")
        epsilon = ops.constant(np.float32(self.spec.rms_norm_eps), name=name + ".epsilon")
        root = ops.sqrt(ops.add(mean, epsilon, name=inner + "sum"), name=inner + "root")
        inverse = ops.divide(ops.constant(np.float32(1)), root, name=inner + "inverse")
        normed = ops.multiply(x, inverse, name=inner + "normed")
        scale = ops.constant(self.weight(name + ".weight").f32()[None, None, :], name=name + ".weight")
        return ops.multiply(normed, scale, name=name)

    def constant(self, name: str, order: NDArray[np.int64] | None = None) -> Node:
        """The tensor as a Constant of its own type, converted to f32 for the arithmetic."""
        weight = self.weight(name)
        if order is not None:
            weight = weight.rows(order)
        # A shared Constant does not keep Python's array alive; the checkpoint does that for its own,
        # nobody would for a reordered copy, or for what was made of several tensors.
        return plain(name, weight, shared=order is None and weight.kept)


def plain(name: str, weight: Weight, *, shared: bool) -> Node:
    """The tensor as a Constant of its own type, converted to f32; if `shared`, its array must outlive the node."""
    tensor = ov.Tensor(weight.raw, ov.Shape(weight.shape), OV_TYPE[weight.dtype])
    node = ov.op.Constant(tensor, shared_memory=shared)
    node.set_friendly_name(name)
    if weight.dtype == "F32":
        return node
    return ops.convert(node, "f32", name=name + "/f32")


def _parameter(name: str, shape: list[int], dtype: ov.Type) -> Node:
    node = ops.parameter(shape, dtype, name=name)
    node.output(0).set_names({name})
    return node


def _query_factor(spec: GlmSpec) -> float:
    """What q is scaled by before it meets k: a power of two, so that no bit changes, near 1/√head_dim.

    GLM-4's q·k goes beyond f16's 65504 before it is scaled. The rest of the scale is between 1 and 2, so that the
    product is never larger than what the softmax sees. Scaling q *before* its rotation keeps plugins from moving
    the factor back behind the product.
    """
    return float(2.0 ** -np.ceil(np.log2(spec.head_dim) / 2))


def _channels(x: Node, begin: int, end: int) -> Node:
    """Channels [begin, end) of the last axis; a Slice, because the RoPE fusion knows no Split."""
    return ops.slice(x, _i64([begin]), _i64([end]), _i64([1]), _i64([-1]))


def _i64(value: int | list[int]) -> Node:
    return ops.constant(np.array(value, dtype=np.int64))
