"""Adapters as PEFT writes them, with random matrices, and what they come to in PyTorch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge.model.spec import GlmSpec

HF = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_up_proj",
      "mlp.down_proj")  # fmt: skip
CHATGLM = {
    "self_attention.query_key_value": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention.dense": ("self_attn.o_proj",),
    "mlp.dense_h_to_4h": ("mlp.gate_up_proj",),
    "mlp.dense_4h_to_h": ("mlp.down_proj",),
}
"""Modules of the original layout → what of ours they are, one below the other."""


def write_adapter(
    folder: Path, spec: GlmSpec, *, modules: Sequence[str] = HF, rank: int = 4, alpha: float = 8, seed: int = 0,
    size: float = 0.5, dtype: Any = np.float32, changes: Mapping[str, np.ndarray | None] | None = None, **config: Any,
) -> Path:  # fmt: skip
    """An adapter's folder. `size` is about that of what it adds, against weights of size 1.

    Args:
        changes: tensors to put in, or (None) to leave out.
    """
    from safetensors.numpy import save_file

    rng = np.random.default_rng(seed)
    shapes = spec.tensor_shapes()
    tensors: dict[str, np.ndarray] = {}
    for i in range(spec.num_layers):
        for module in modules:
            parts = CHATGLM.get(module)
            rows = sum(shapes[f"model.layers.{i}.{part}.weight"][0] for part in parts or (module,))
            columns = shapes[f"model.layers.{i}.{(parts or (module,))[0]}.weight"][1]
            place = f"model.layers.{i}." if parts is None else f"transformer.encoder.layers.{i}."
            name = f"base_model.model.{place}{module}"
            strength = size * rank / alpha * 0.2 / np.sqrt(rank)
            tensors[f"{name}.lora_A.weight"] = rng.standard_normal((rank, columns)).astype(dtype)
            tensors[f"{name}.lora_B.weight"] = (rng.standard_normal((rows, rank)) * strength).astype(dtype)
    for name, value in (changes or {}).items():
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value
    folder.mkdir(parents=True)
    told = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": list(modules), "bias": "none",
            "base_model_name_or_path": "", "task_type": "CAUSAL_LM"}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps({**told, **config}))
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


def torch_logits(checkpoint: Path, ids: Sequence[int], *adapters: tuple[Path, float]) -> np.ndarray:
    """Logits [S, vocabulary] of transformers' own GLM with the adapters merged by hand, in f32.

    Written from PEFT's definition, W + alpha / r · B·A, and from the original code's splitting of query_key_value.
    """
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for folder, scale in adapters:
            config = json.loads((folder / "adapter_config.json").read_text())
            factor = scale * config["lora_alpha"] / (config["r"] ** (0.5 if config.get("use_rslora") else 1))
            tensors = {name: each.float() for name, each in load_file(folder / "adapter_model.safetensors").items()}
            for name in (each for each in tensors if each.endswith("lora_A.weight")):
                module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                delta = factor * tensors[name.replace("lora_A", "lora_B")] @ tensors[name]
                module = module.replace("transformer.encoder.", "model.")
                place, kind = module.split(".", 3)[:3], module.split(".", 3)[3]
                begin = 0
                for part in CHATGLM.get(kind, (kind,)):
                    weight = weights[f"{'.'.join(place)}.{part}.weight"]
                    weight += delta[begin : begin + len(weight)]
                    begin += len(weight)
        return model(torch.tensor([list(ids)])).logits[0].numpy()
