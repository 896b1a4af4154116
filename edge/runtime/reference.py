"""The checkpoint run by transformers: what every exported model is held against.

It takes a checkpoint as its config and its tensors, not as a folder: how GLM-4 was published in three layouts is the
model room's business, and the two rooms do not know each other.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from edge.errors import DeviceError
from edge.messages import Progress

Dtype = Literal["bf16", "f32"]
TORCH_TYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


@dataclass(frozen=True)
class Weights:
    """A checkpoint, ready for transformers whatever its layout."""

    config: dict[str, Any]
    """In the keys of transformers' `GlmConfig` or `Glm4Config`."""
    tensors: Iterable[tuple[str, NDArray[Any]]]
    """Name in transformers and numbers of each tensor; bf16 as uint16 bit patterns. Read once."""
    count: int
    """How many tensors there are."""


def load(weights: Weights, device: str, dtype: Dtype, progress: Progress = lambda stage, done, total: None) -> Any:
    """A `GlmForCausalLM` or `Glm4ForCausalLM` on `device` ("cpu", "cuda" or "cuda:1"), for inference.

    On the CPU in bf16 the tensors stay where they are, in the checkpoint's memory map; nowhere is there a second
    copy of the whole.

    Raises:
        DeviceError: there is no such device here.
    """
    if device != "cpu" and not torch.cuda.is_available():
        raise DeviceError(
            f"PyTorch {torch.__version__} finds no CUDA device here",
            hint="Use --device cpu, or install a PyTorch built for CUDA and the NVIDIA driver.",
        )
    from transformers import Glm4Config, Glm4ForCausalLM, GlmConfig, GlmForCausalLM

    config: Any
    if weights.config["model_type"] == "glm4":
        config, kind = Glm4Config(**weights.config), Glm4ForCausalLM
    else:
        config, kind = GlmConfig(**weights.config), GlmForCausalLM
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        model: Any = kind(config)
    for done, (name, raw) in enumerate(weights.tensors):
        progress("loading the checkpoint", done, weights.count)
        model.load_state_dict({name: _tensor(raw).to(device, TORCH_TYPES[dtype])}, strict=False, assign=True)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config).to(device)  # no part of a checkpoint
    left = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    assert not left, f"{left} were not in the checkpoint"
    return model.requires_grad_(False).eval()


def _tensor(raw: NDArray[Any]) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nobody writes to weights
        tensor = torch.from_numpy(raw)
    return tensor.view(torch.bfloat16) if raw.dtype == np.uint16 else tensor
