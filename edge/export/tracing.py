"""The process behind `optimum`: optimum-intel traces a checkpoint with PyTorch and writes an uncompressed IR.

Asked by the arguments: the checkpoint's folder, and where to write. Standard output is a line of JSON for each stage
and, at the end, for what went wrong. Ends when standard input does, which is when the parent is gone.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch

from edge.model.checkpoint import Checkpoint


def main() -> None:
    """Be that process."""
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer

    def tell(**what: Any) -> None:
        lines.write(json.dumps(what) + "\n")
        lines.flush()

    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        folder, out = map(Path, sys.argv[-2:])
        tell(stage="importing optimum-intel")
        from optimum.exporters.openvino.convert import export_from_model

        checkpoint = Checkpoint(folder)
        tell(stage="loading the checkpoint")
        model = _load(checkpoint)
        tell(stage="tracing with optimum-intel")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's tracer doubts every `if`
            export_from_model(
                model, out, task="text-generation-with-past", custom_export_configs=_config(model.config),
                patch_16bit_model=model.dtype in (torch.bfloat16, torch.float16),
            )  # fmt: skip
    except BaseException as error:
        traceback.print_exc()
        tell(error=f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}")
        lines.close()
        os._exit(1)
    tell(done=True)
    lines.close()
    os._exit(0)  # the system takes the memory back sooner than Python does


def _end_with_parent() -> None:
    while sys.stdin.buffer.read(1):
        pass
    os._exit(1)


def _load(checkpoint: Checkpoint) -> Any:
    """By transformers' own reading of config and weights; what it has no class for, the chatglm layout, by ours."""
    from transformers import AutoModelForCausalLM, GlmConfig, GlmForCausalLM

    if checkpoint.spec.model_type != "chatglm":
        model = AutoModelForCausalLM.from_pretrained(
            checkpoint.folder, dtype="auto", local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
        return model.eval()
    config = GlmConfig(**checkpoint.spec.transformers_config())
    with torch.device("meta"):
        model = GlmForCausalLM(config)
    for name, raw in checkpoint.tensors():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nobody writes to weights
            tensor = torch.from_numpy(raw)
        tensor = tensor.view(torch.bfloat16) if raw.dtype == "uint16" else tensor
        model.load_state_dict({name: tensor}, strict=False, assign=True)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config)  # no part of a checkpoint
    return model.eval()


def _config(config: Any) -> dict[str, Any] | None:
    """For `glm` optimum-intel's export configuration without its limit of transformers 5.0, which nothing needs."""
    if config.model_type != "glm":
        return None
    from optimum.exporters.openvino.model_configs import GLMOpenVINOConfig

    class Uncapped(GLMOpenVINOConfig):  # type: ignore[misc]  # comes without types
        """Its graph is right with transformers 5.5: the tests compare it."""

        MAX_TRANSFORMERS_VERSION = None

    return {"model": Uncapped(config, task="text-generation", use_past=True, use_past_in_inputs=True)}


if __name__ == "__main__":
    main()
