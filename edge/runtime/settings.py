"""How a model is put on a device: everything that may differ between two ways of loading the same IR. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Precision = Literal["chosen", "guilty nodes", "f32"]
"""Which arithmetic: as `properties` and the plugin have it, the nodes that overflow f16 in f32, or all in f32."""
Runtime = Literal["openvino", "itrex"]
Sparse = Literal["trishape", "xattention"]


@dataclass(frozen=True)
class Settings:
    """One way to load a model.

    Args:
        device: as `devices.resolve` gives it: CPU, GPU, GPU.n, NPU or HETERO:GPU,CPU.
        properties: of the OpenVINO plugin, over the device's own defaults; None leaves one to the plugin.
        precision: the next safer one is taken where a device computes wrongly.
        context: tokens of prompt and answer together that there is room for; None: what the model reads.
        rehearse: run the NPU's fixed shapes on the CPU (device NPU alone).
        sparse: leave out parts of the attention while a long prompt is read; costs quality.
        evict_beyond: tokens of a conversation kept in the cache; the least used above are forgotten, which
            costs quality. None keeps all.
        prefix_cache: what was read of a prompt serves the next that begins alike (CPU and GPU).
        prompt_lookup: guess the next tokens from where the conversation had the same ones before, and check several at
            once (CPU and GPU): faster where an answer repeats what it has read.
        step_tokens: of a prompt that are read at once (CPU and GPU); None: what was found best or, for want of that,
            `plan.STEP_TOKENS`.
        runtime: what runs it: OpenVINO, or intel-extension-for-transformers (device CPU alone).
        tuned: take what `glm4-edge tune` found best here, where something else is not said.
    """

    device: str
    properties: Mapping[str, Any] = field(default_factory=dict)
    precision: Precision = "chosen"
    context: int | None = None
    rehearse: bool = False
    sparse: Sparse | None = None
    evict_beyond: int | None = None
    prefix_cache: bool = True
    prompt_lookup: bool = False
    step_tokens: int | None = None
    tuned: bool = True
    runtime: Runtime = "openvino"
