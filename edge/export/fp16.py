"""What keeps a model right on devices that compute in f16: iGPU and NPU. f16 ends at 65504.

Three things are done to every model, whatever its target, for they cost nothing:

* q is scaled before it meets k (`edge.export.graph`): GLM-4's scores are too large otherwise.
* `guard` carries the residual stream, and what is added to it, at 1/64. RMSNorm does not see a common factor, and
  a power of two changes no bit of any mantissa, so the logits stay what they were.
* `edge.precise.mark` tells the plugins which operations stay in f32: the inside of the norms, and RoPE's angles.

OpenVINO's own remedy, ACTIVATIONS_SCALE_FACTOR, is switched off for language models in its GPU plugin, where it
halved the speed (openvino pull requests 27265 and 28632).

`simulated` shows on any machine whether it worked.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from edge.precise import marked

RESIDUAL_SCALE = 2.0**-6
"""Room for values up to 4 million. On the pocket model f16 loses as little with any factor from 1 to 2**-12."""
_EMBEDDING = "model.embed_tokens"
UNSCALED = "/unscaled"
_VALUE = re.compile(r".*\.self_attn\.v_proj(\.bias_add)?")
_GATE_UP = re.compile(r".*\.mlp\.gate_up_proj")
POST_NORM = re.compile(r".*\.post_(self_attn|mlp)_layernorm\.weight")  # of `glm4`: their output is added to the stream
_ROUNDED = {"Add", "Convert", "Cos", "Divide", "MatMul", "Multiply", "Power", "ReduceMean", "Sin", "Softmax", "Sqrt",
            "Subtract", "Swish"}  # fmt: skip


def guard(model: ov.Model) -> ov.Model:
    """Carry the residual stream of a whole model, or of a part of one, at `RESIDUAL_SCALE`; changes and returns it.

    To be done after the compression: what NNCF measures on activations would be scaled, too.

    Scaled are the embedding; v, so that o_proj's output is; and the up half of gate_up_proj, so that the gated
    product is and with it down_proj's output. Each is a factor on a projection's output, which the plugins apply
    inside the projection; behind the gate it would stand between operations that the GPU fuses.
    """
    nodes = {node.get_friendly_name(): node for node in model.get_ops()}
    for name, node in nodes.items():
        if name == _EMBEDDING or (_VALUE.fullmatch(name) and f"{name}.bias_add" not in nodes):
            _scale(node, np.float32(RESIDUAL_SCALE))
        elif _GATE_UP.fullmatch(name):
            size = node.get_output_partial_shape(0)[-1].get_length()
            factor = np.ones((1, 1, size), np.float32)
            factor[..., size // 2 :] = RESIDUAL_SCALE
            _scale(node, factor)
        elif name.endswith(".epsilon"):
            _replace(node, node.data * np.float32(RESIDUAL_SCALE**2))
        elif POST_NORM.fullmatch(name):
            _replace(node, node.data * np.float32(RESIDUAL_SCALE))
    return model


def residual_scale(model: ov.Model) -> float:
    """The factor at which the model carries its residual stream; 1 for a model without guards."""
    names = {node.get_friendly_name() for node in model.get_ops()}
    return RESIDUAL_SCALE if _EMBEDDING + UNSCALED in names else 1.0


def simulated(model: ov.Model) -> ov.Model:
    """A copy of `model` in which every result is rounded to f16, and infinite beyond 65504; for runs in f32.

    Rounded is the output of every arithmetic operation, and what a marked one hands to others; inside an operation
    the sums are in f32, as the devices' matrix units have them. An attention is taken apart, product, scale, mask,
    softmax, with every step rounded: more than any plugin's fused attention does. Weights are taken as they are.
    Not simulated: the order of sums, and kernels that sum up integers of 4 bits in f16 before they scale them.
    """
    model = model.clone()
    spared = {node.get_friendly_name() for node in model.get_ops() if marked(node)}
    for node in model.get_ordered_ops():
        if node.get_type_name() == "ScaledDotProductAttention":
            parts = _take_apart(node)
            if node.get_friendly_name() in spared:
                spared |= {part.get_friendly_name() for part in parts}
    constant: set[str] = set()
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        sources = [value.get_node() for value in node.input_values()]
        if kind == "Constant" or (sources and all(source.get_friendly_name() in constant for source in sources)):
            constant.add(node.get_friendly_name())
            continue
        if kind in ("Result", "Assign") or node.get_output_element_type(0) != ov.Type.f32:
            continue
        if node.get_friendly_name() in spared:
            for reader in node.output(0).get_target_inputs():
                if reader.get_node().get_friendly_name() not in spared:
                    reader.replace_source_output(_Half([node.output(0)]).output(0))
        elif kind in _ROUNDED or (kind == "Gather" and sources[0].get_friendly_name() in constant):
            readers = list(node.output(0).get_target_inputs())
            half = _Half([node.output(0)])
            for reader in readers:
                reader.replace_source_output(half.output(0))
    model.validate_nodes_and_infer_types()
    return model


class _Half(ov.Op):  # type: ignore[misc]  # OpenVINO comes without types
    """Rounds to f16, in numpy: OpenVINO's own conversions saturate, or are left out by the plugin."""

    def __init__(self, inputs: list[Any] | None = None) -> None:
        super().__init__(self, inputs)

    def validate_and_infer_types(self) -> None:
        self.set_output_type(0, self.get_input_element_type(0), self.get_input_partial_shape(0))

    def clone_with_new_inputs(self, new_inputs: list[Any]) -> _Half:
        return _Half(new_inputs)

    def has_evaluate(self) -> bool:
        return True

    def visit_attributes(self, visitor: Any) -> bool:
        return True

    def evaluate(self, outputs: list[Any], inputs: list[Any]) -> bool:
        outputs[0].shape = inputs[0].shape
        with np.errstate(over="ignore"):
            outputs[0].data[...] = inputs[0].data.astype(np.float16)
        return True


def _take_apart(node: Any) -> list[Any]:
    """Put the attention's own operations in its place, and return them."""
    query, key, value, mask, *scale = node.input_values()
    size = query.get_partial_shape()[-1].get_length()
    factor = scale[0] if scale else ops.constant(np.float32(1 / np.sqrt(size)))
    product = ops.matmul(query, key, False, True)
    scores = ops.multiply(product, factor)
    masked = ops.add(scores, mask)
    weights = ops.softmax(masked, -1)
    out = ops.matmul(weights, value, False, False)
    node.output(0).replace(out.output(0))
    return [product, scores, masked, weights, out]


def _scale(node: Any, factor: Any) -> None:
    """Multiply the node's output; the product takes the node's name, by which others find it."""
    name = node.get_friendly_name()
    readers = list(node.output(0).get_target_inputs())
    node.set_friendly_name(name + UNSCALED)
    scaled = ops.multiply(node, ops.constant(factor, name=name + ".factor"), name=name)
    for reader in readers:
        reader.replace_source_output(scaled.output(0))


def _replace(constant: Any, value: Any) -> None:
    new = ops.constant(value, name=constant.get_friendly_name())
    constant.output(0).replace(new.output(0))
