"""The checkpoint run by transformers: what every exported model is held against.

It takes a checkpoint as its config and its tensors, not as a folder: how GLM-4 was published in three layouts is the
model room's business, and the two rooms do not know each other.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from edge.errors import CheckpointError, ContextError, DeviceError, ResourceError
from edge.messages import Progress
from edge.runtime import refstore
from edge.runtime.greedy import Decoder, Fast, open_decoder
from edge.runtime.prompts import Prompt

_ROWS = 256  # positions whose logits are held at once: 155 MB of them, with GLM-4's vocabulary, in f32
_ON_CPU = Fast(compiled="nothing", attention="sdpa")  # a compiled step gains nothing there

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
    parameters: int


@dataclass(frozen=True)
class Answers:
    """What a model said of a prompt set."""

    entries: list[refstore.Entry]
    positions: list[refstore.Positions]
    decoding: dict[str, Any]
    """How it was decoded and, under `fallback`, why not faster."""


def choose(device: str | None, dtype: Dtype | None) -> tuple[str, Dtype]:
    """Device and number format for what the user left open: CUDA where there is one, bf16 there and f32 on the CPU.

    Raises:
        DeviceError: PyTorch knows no such device.
    """
    chosen = (device or ("cuda" if torch.cuda.is_available() else "cpu")).lower()
    if not re.fullmatch(r"cpu|cuda(:\d+)?", chosen):
        raise DeviceError(f"'{device}' is no device of the reference", hint="Here you can choose cpu, cuda or cuda:n.")
    return chosen, dtype or ("f32" if chosen == "cpu" else "bf16")


def load(weights: Weights, device: str, dtype: Dtype, progress: Progress = lambda stage, done, total: None) -> Any:
    """A `GlmForCausalLM` or `Glm4ForCausalLM` on `device` ("cpu", "cuda" or "cuda:1"), for inference.

    On the CPU in bf16 the tensors stay where they are, in the checkpoint's memory map; nowhere is there a second
    copy of the whole.

    Raises:
        DeviceError: there is no such device here.
        ResourceError: it has too little memory.
    """
    _check_memory(weights.parameters, device, dtype)
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


def answer(
    model: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    top_k: int,
    stop_ids: Sequence[int],
    how: Fast | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Answers:
    """Answer each prompt greedily, then read prompt and answer at once for the logits of every position.

    Args:
        model: of `load`.
        max_new_tokens: longest answer.
        top_k: logits kept of each position.
        how: of decoding; None: what suits the model's device.

    Raises:
        ContextError: a prompt and its answer are longer than the model reads.
        CheckpointError: the model's numbers are not finite.
    """
    longest = max(prompts, key=lambda prompt: len(prompt.token_ids))
    capacity = len(longest.token_ids) + max_new_tokens
    if capacity > model.config.max_position_embeddings:
        raise ContextError(
            f"the prompt '{longest.id}' of {len(longest.token_ids):,} tokens and an answer of {max_new_tokens:,} are "
            f"longer than the {model.config.max_position_embeddings:,} that the model reads",
            hint="Shorten it, or ask for a shorter answer with --max-new-tokens.",
        )
    cuda = model.device.type == "cuda"
    progress("making the decoder ready", 0, 0)
    decoder, how, reason = open_decoder(model, capacity, how or (Fast() if cuda else _ON_CPU))
    decoder.answer(longest.token_ids, 1)  # what the first run of a library costs is nobody's first token
    entries, positions = [], []
    for done, prompt in enumerate(prompts):
        progress("answering", done, len(prompts))
        entry, numbers = _one(model, decoder, prompt, max_new_tokens, min(top_k, model.config.vocab_size), stop_ids)
        entries.append(entry)
        positions.append(numbers)
    return Answers(entries, positions, asdict(how) | {"fallback": reason, "max_new_tokens": max_new_tokens})


def machine(device: str) -> dict[str, Any]:
    """What the numbers were made on."""
    found: dict[str, Any] = {
        "cpu": _cpu_name(), "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total, "gpu": None,
    }  # fmt: skip
    if device != "cpu":
        gpu = torch.cuda.get_device_properties(device)
        found["gpu"] = {"name": gpu.name, "memory_bytes": gpu.total_memory, "cuda": torch.version.cuda}
    return found


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")  # Python's own answer on Linux is the architecture
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def versions() -> dict[str, str]:
    """Of what computed the numbers."""
    names = ("torch", "transformers", "numpy")
    return {name: importlib.metadata.version(name) for name in names} | {"python": platform.python_version()}


def _one(
    model: Any, decoder: Decoder, prompt: Prompt, max_new_tokens: int, top_k: int, stop_ids: Sequence[int]
) -> tuple[refstore.Entry, refstore.Positions]:
    greedy = decoder.answer(prompt.token_ids, max_new_tokens, stop_ids)
    begin = len(prompt.token_ids)
    numbers = forced(model, [*prompt.token_ids, *greedy.tokens], top_k)
    if not np.isfinite(numbers.log_sum_exp).all():
        raise CheckpointError(
            f"the checkpoint's logits after the prompt '{prompt.id}' are not finite",
            hint="Its weights are damaged, or overflow in bf16: try --dtype f32.",
        )
    entry = refstore.Entry(
        id=prompt.id, language=prompt.language, prompt_tokens=begin, answer_tokens=len(greedy.tokens),
        ttft_s=greedy.ttft_s, decode_s=greedy.decode_s,
        unlike_forced=int((numbers.top_ids[begin - 1 :, 0] != np.array(greedy.tokens)).sum()),
    )  # fmt: skip
    return entry, numbers


@torch.inference_mode()
def forced(model: Any, tokens: Sequence[int], top_k: int) -> refstore.Positions:
    """Read `tokens` at once and keep what the model said at each of them but the last."""
    ids = torch.tensor(tokens, device=model.device)
    hidden = model.model(ids[None], use_cache=False).last_hidden_state[0, :-1]
    parts: list[list[Any]] = []
    for start in range(0, len(hidden), _ROWS):
        logits = model.lm_head(hidden[start : start + _ROWS]).float()
        total = logits.double().logsumexp(-1)
        following = ids[1 + start : 1 + start + len(logits), None]
        top = logits.topk(top_k, dim=-1)
        parts.append([top.indices, top.values, total, logits.gather(1, following)[:, 0].double() - total])
    columns = [torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)]
    return refstore.Positions(np.array(tokens), *columns)


def _check_memory(parameters: int, device: str, dtype: Dtype) -> None:
    needed = parameters * TORCH_TYPES[dtype].itemsize
    if device == "cpu":
        free = psutil.virtual_memory().available
    elif torch.cuda.is_available() and int(device.partition(":")[2] or 0) < torch.cuda.device_count():
        free = torch.cuda.mem_get_info(device)[0]
    else:
        raise DeviceError(
            f"PyTorch {torch.__version__} finds no device {device} here",
            hint="Use --device cpu, or install a PyTorch built for CUDA and the NVIDIA driver.",
        )
    if needed > free:
        other = "--dtype bf16 takes half. " if dtype == "f32" else ""
        raise ResourceError(
            f"the checkpoint in {dtype} takes {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free on "
            f"{device}",
            hint=f"{other}A reference can be made on another machine and carried here.",
        )
