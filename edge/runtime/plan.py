"""What fits: the memory of a context, from what the IR and the machine say of themselves. Pure; facts are handed in.

The CPU's figures are measured: `benchmarks.long_context` puts this arithmetic beside what a process then held. Those of
GPU and NPU are assumed, and a plan says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edge.errors import ModelError, UsageError
from edge.manifest import FILE_NAME, MODEL_FILE, Manifest
from edge.npu import MAX_PROMPT_LEN, MIN_RESPONSE_LEN
from edge.runtime.settings import Sparse

KvPrecision = Literal["u4", "u8", "f16", "f32"]
KV_PRECISIONS: tuple[KvPrecision, ...] = ("f32", "f16", "u8", "u4")
_KV: dict[str, tuple[KvPrecision, ...]] = {"CPU": KV_PRECISIONS, "GPU": ("f16", "u8"), "NPU": ("f16",)}
BLOCK = {"CPU": 32, "GPU": 16}
"""Tokens in a block of the plugin's KV cache."""
STEP_TOKENS = {"CPU": 256, "GPU": 1024}
"""Tokens of a prompt that are read at once."""
SHORTEST = 2048
DEFAULT_LONGEST = 32768
"""A longer context is taken where it is asked for: reading as much takes minutes."""

_PROGRAM_BYTES = 110_000_000  # Python, OpenVINO, the tokenizer
_GRAPH_BYTES = 5.0  # for each byte of the graph's XML
_SCALE_BYTES = 8  # scale and zero point, both f32, of a group of quantised values
_F32 = 4  # bytes of what is computed with
_SHARE = 0.75  # of the memory that is there: what is chosen unasked leaves the rest to others
_SINK, _RECENT, _DENSE = 128, 1920, 128  # tokens at the beginning and before the end that a sparse prefill looks at


@dataclass(frozen=True)
class Shape:
    """The numbers a plan is made of.

    `weight_bytes` is the size of the IR's weights; `table_bytes` the part of it that is only looked up, never
    multiplied with: an embedding without a tied head. `graph_bytes` is the size of the XML.
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    vocab: int
    context_length: int
    weight_bytes: int
    table_bytes: int
    graph_bytes: int

    @classmethod
    def read(cls, folder: Path) -> Shape:
        """The shape of an exported model, from `edge.json` and `config.json`.

        Raises:
            ModelError: the folder holds no exported model, or its edge.json or config.json is damaged.
        """
        manifest = Manifest.read(folder)
        for name in (MODEL_FILE, "openvino_model.bin"):
            if name not in manifest.bytes:
                raise ModelError(f"{folder / FILE_NAME} does not give the size of {name}", hint="Export it again.")
        try:
            return cls.of(manifest, json.loads((folder / "config.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError, OverflowError) as error:
            raise ModelError(
                f"{folder / 'config.json'} does not give the model's sizes ({error})", hint="Export the model again."
            ) from error

    @classmethod
    def of(cls, manifest: Manifest, config: Mapping[str, Any]) -> Shape:
        """The same from what has been read.

        Raises:
            KeyError: the config lacks a size.
            ValueError: a size is no number from 1 to 2³¹ - 1.
        """
        known, hidden = manifest.architecture, _size(config, "hidden_size")
        table = 0
        if not config.get("tie_word_embeddings", False):
            # int4 recipes keep the embedding in 8 bits, the others as the rest of the weights.
            table = known.vocab_size * hidden * {"bf16": 2, "fp16": 2}.get(str(manifest.recipe.get("weights")), 1)
        return cls(
            layers=known.num_layers,
            heads=_size(config, "num_attention_heads"),
            kv_heads=known.num_kv_heads,
            head_dim=known.head_dim,
            hidden=hidden,
            intermediate=_size(config, "intermediate_size"),
            vocab=known.vocab_size,
            context_length=known.context_length,
            weight_bytes=manifest.bytes["openvino_model.bin"],
            table_bytes=table,
            graph_bytes=manifest.bytes["openvino_model.xml"],
        )


def _size(config: Mapping[str, Any], name: str) -> int:
    value = config[name]
    if not isinstance(value, int) or not 0 < value < 2**31:
        raise ValueError(f"{name} is {str(value)[:40]}")
    return value


@dataclass(frozen=True)
class Plan:
    """Memory of one conversation of `context` tokens, in bytes."""

    device: str
    context: int
    kv_precision: KvPrecision
    program_bytes: int
    """The process and the graph."""
    weight_bytes: int
    """The IR's weights. On the CPU they are pages of a mapped file, which the system can drop."""
    repacked_bytes: int
    """The copy of the weights in the order in which the device multiplies."""
    kv_bytes: int
    """Keys and values of every token, scales and zero points included."""
    working_bytes: int
    """Activations and attention scores while the prompt is read."""
    adapter_bytes: int
    """What LoRA adapters take more; see `lora.cost.Sizes.bytes`."""
    available_bytes: int
    total_bytes: int
    longest_context: int
    """Longest context that fits into what is available; 0 where not even the weights do."""
    model_context: int
    """What the model itself reads at most."""
    assumed: tuple[str, ...] = ()
    """What was not measured."""

    @property
    def needed_bytes(self) -> int:
        """What has to be there at once; the mapped file is not in it."""
        return self.program_bytes + self.repacked_bytes + self.kv_bytes + self.working_bytes + self.adapter_bytes

    @property
    def fits(self) -> bool:
        """Into the memory that is available, and into what the model reads."""
        return self.needed_bytes <= self.available_bytes and self.context <= self.model_context

    @property
    def verdict(self) -> str:
        """Whether it fits and why not, in one sentence."""
        if self.context > self.model_context:
            return f"no: the model reads at most {self.model_context:,} tokens"
        if self.fits:
            return f"yes: {self.context:,} tokens need {_gb(self.needed_bytes)} of {_gb(self.available_bytes)}"
        short = f"{self.context:,} tokens need {_gb(self.needed_bytes)}, and {_gb(self.available_bytes)} are available"
        if self.needed_bytes <= self.total_bytes:
            return f"no: {short}; with other programs closed it could fit, this machine has {_gb(self.total_bytes)}"
        return f"no: {short}"


def kv_choices(device: str) -> tuple[KvPrecision, ...]:
    """Precisions that a cache can have on the device, from the most exact to the smallest."""
    return tuple(each for each in KV_PRECISIONS if all(each in _KV[place] for place in _places(device)))


def kv_default(device: str) -> KvPrecision:
    """The plugin's own choice."""
    return "f16" if "NPU" in _places(device) else "u8"


def check_kv(device: str, precision: str) -> None:
    """Refuse a precision that the device's cache cannot have: a plugin may take it, and answer in garbage.

    Raises:
        UsageError: names those it can have.
    """
    if precision not in kv_choices(device):
        raise UsageError(
            f"the {device} keeps no cache in {precision}", hint=f"It takes {', '.join(kv_choices(device))}."
        )


def _places(device: str) -> set[str]:
    """Kinds of device: one, or those that HETERO names."""
    return {member.partition(".")[0] for member in device.removeprefix("HETERO:").split(",")}


def kv_token_bytes(shape: Shape, precision: KvPrecision, device: str = "CPU") -> float:
    """Bytes of the cache for each token, in all layers.

    On the CPU quantised keys share a scale and a zero point over a block's tokens, channel by channel; values over the
    channels of a token. (GenAI's own metric counts a u4 value as a byte: twice what it takes.)
    """
    dim, place = shape.head_dim, device.partition(".")[0]
    if precision in ("f16", "f32") or place == "NPU":
        pair = 2.0 * dim * (4 if precision == "f32" else 2)
    else:
        bits = 4 if precision == "u4" else 8
        pair = 2 * dim * bits / 8 + _SCALE_BYTES * (dim / BLOCK.get(place, 32) + 1)
    return shape.layers * shape.kv_heads * pair


def kv_blocks(context: int, device: str = "CPU") -> int:
    """Blocks of the cache that hold `context` tokens."""
    return -(-context // BLOCK.get(device.partition(".")[0], 32))


def cache_bytes(shape: Shape, context: int, precision: KvPrecision = "u8", device: str = "CPU") -> int:
    """Bytes of the cache for `context` tokens, in whole blocks."""
    block = BLOCK.get(device.partition(".")[0], 32)
    return int(kv_blocks(context, device) * block * kv_token_bytes(shape, precision, device))


def prefill_flop(shape: Shape, context: int) -> tuple[float, float]:
    """Multiplications and additions of reading `context` tokens: with the weights, and of the attention."""
    attention = shape.heads * shape.head_dim
    layer = shape.hidden * (2 * attention + 2 * shape.kv_heads * shape.head_dim + 3 * shape.intermediate)
    return 2.0 * context * shape.layers * layer, 2.0 * context**2 * shape.layers * attention


def plan(
    shape: Shape,
    context: int,
    *,
    device: str = "CPU",
    kv_precision: KvPrecision = "u8",
    available: int,
    total: int,
    threads: int = 8,
    adapter_bytes: int = 0,
) -> Plan:
    """Weigh a conversation of `context` tokens, prompt and answer together.

    Args:
        available: bytes a new process can have without others being pushed out.
        total: bytes of the machine or, of a discrete GPU, of its memory.
        threads: that attention runs on; each has scores of its own.
        adapter_bytes: that LoRA adapters take.
    """
    place = device.partition(".")[0]
    program = int(_PROGRAM_BYTES + _GRAPH_BYTES * shape.graph_bytes)
    assumed: list[str] = []
    repacked = shape.weight_bytes - shape.table_bytes
    if place != "CPU":
        repacked = shape.weight_bytes
        assumed = [f"the {place} holds the weights once", "its activations are as the CPU's"]
    fixed = program + repacked + adapter_bytes + _working(shape, 0, threads, place)
    per_token = kv_token_bytes(shape, kv_precision, device) + _working_token(shape, threads)
    longest = int((available - fixed) / per_token)
    block = BLOCK.get(place, 32)
    return Plan(
        device=device,
        context=context,
        kv_precision=kv_precision,
        program_bytes=program,
        weight_bytes=shape.weight_bytes,
        repacked_bytes=repacked,
        kv_bytes=cache_bytes(shape, context, kv_precision, device),
        working_bytes=_working(shape, context, threads, place),
        adapter_bytes=adapter_bytes,
        available_bytes=available,
        total_bytes=total,
        longest_context=max(0, min(longest // block * block, shape.context_length)),
        model_context=shape.context_length,
        assumed=tuple(assumed),
    )


def _working(shape: Shape, context: int, threads: int, place: str) -> int:
    """Of one step of the prefill: activations of its tokens, attention over all that came before, logits of one."""
    tokens = STEP_TOKENS.get(place, 1024)
    wide = 4 * shape.hidden + (shape.heads + 2 * shape.kv_heads) * shape.head_dim + 5 * shape.intermediate
    return int(_F32 * (tokens * wide + shape.vocab) + context * _working_token(shape, threads))


def _working_token(shape: Shape, threads: int) -> float:
    """For each token read before, scores in each thread (a block of queries, the heads of one KV head), and its key and
    value in one layer as they are multiplied."""
    scores = threads * (shape.heads // shape.kv_heads) * BLOCK["CPU"]
    return _F32 * (scores + 2 * shape.kv_heads * shape.head_dim)


def choose_context(
    shape: Shape, device: str, available: int, *, kv_precision: KvPrecision = "u8", threads: int = 8,
    adapter_bytes: int = 0,
) -> int:  # fmt: skip
    """Tokens of a conversation where none were asked for.

    The largest power of two (or the model's own limit) up to 32,768 that three quarters of the available memory hold,
    a second conversation as long beside it; 2,048 at least, however little there is. On the NPU, whose shapes are
    compiled for it, 1,024 tokens of prompt and 128 of answer.
    """
    if device == "NPU":
        return min(MAX_PROMPT_LEN + MIN_RESPONSE_LEN, shape.context_length)
    room = int(available * _SHARE)
    found = min(SHORTEST, shape.context_length)
    while found < min(DEFAULT_LONGEST, shape.context_length):
        longer = min(2 * found, shape.context_length)
        weighed = plan(
            shape, longer, device=device, kv_precision=kv_precision, available=room, total=room, threads=threads,
            adapter_bytes=adapter_bytes,
        )  # fmt: skip
        if weighed.needed_bytes + weighed.kv_bytes > room:
            break
        found = longer
    return found


def cache_for(made: Plan, shape: Shape) -> int:
    """Blocks of the cache to run with: `SchedulerConfig.num_kv_blocks`.

    One conversation of full length, and as much again for others at the same time and for what was read before (the
    prefix cache), as far as memory allows. The system gives a page only when it is first written; but what the
    prefix cache keeps is given back to nobody, so that all of it is taken in the end.
    """
    one = kv_blocks(made.context, made.device)
    block = BLOCK.get(made.device.partition(".")[0], 32)
    left = int(made.available_bytes * _SHARE) - made.needed_bytes
    others = int(left / (kv_token_bytes(shape, made.kv_precision, made.device) * block))
    # One block more than the tokens fill: the next token's is taken before the last one's is given back.
    return one + 1 + max(0, min(others, one))


def scheduler(
    device: str, blocks: int, *, sparse: Sparse | None = None, evict_beyond: int | None = None,
    prefix_cache: bool = True, step_tokens: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """`SchedulerConfig` as plain values; a dict within stands for the config object of that name.

    Eviction and the prefix cache exclude each other: each layer then has blocks of its own, of which GenAI loses count
    (2026.4.1), and a further turn is read anew all the same. XAttention is wrong where a prompt comes in chunks or
    behind a cached prefix: it gets the prompt whole, which takes the working memory of the whole prompt and cannot
    be cancelled meanwhile.
    """
    place = device.partition(".")[0]
    whole = sparse == "xattention"
    values: dict[str, Any] = {
        "num_kv_blocks": blocks,
        "max_num_batched_tokens": blocks * BLOCK.get(place, 32)
        if whole
        else step_tokens or STEP_TOKENS.get(place, 1024),
        "enable_prefix_caching": prefix_cache and evict_beyond is None and not whole,
    }
    if sparse is not None:
        values["use_sparse_attention"] = True
        values["sparse_attention_config"] = sparse_attention(sparse)
    if evict_beyond is not None:
        values["use_cache_eviction"] = True
        values["cache_eviction_config"] = eviction(evict_beyond, device)
    return values


def sparse_attention(mode: Sparse) -> dict[str, Any]:
    """`SparseAttentionConfig`; `mode` in it names a member of `SparseAttentionMode`.

    Trishape looks at the first and the latest tokens, XAttention at the blocks that an estimate finds important.
    """
    if mode == "trishape":
        return {
            "mode": "TRISHAPE",
            "num_last_dense_tokens_in_prefill": _DENSE,
            "num_retained_start_tokens_in_cache": _SINK,
            "num_retained_recent_tokens_in_cache": _RECENT,
        }
    return {
        "mode": "XATTENTION",
        "num_last_dense_tokens_in_prefill": _DENSE,
        "xattention_threshold": 0.9,
        "xattention_block_size": 128,
        "xattention_stride": 16,
    }


def eviction(keep: int, device: str = "CPU") -> dict[str, Any]:
    """`CacheEvictionConfig` that keeps about `keep` tokens; `aggregation_mode` names a member of `AggregationMode`.

    The first block always stays (attention rests on the first tokens), the last quarter too. Without rotation:
    positions stay what they were, and GLM's partial rotary embedding is not what GenAI's rotation expects.
    """
    block = BLOCK.get(device.partition(".")[0], 32)
    size = max(keep // block, 4) * block
    return {
        "start_size": block,
        "recent_size": max(size // 4 // block, 1) * block,
        "max_cache_size": size,
        "aggregation_mode": "NORM_SUM",
        "apply_rotation": False,
        # GenAI fails on a prompt shorter than this window, and GLM-4's shortest has six tokens.
        "snapkv_window_size": 1,
    }


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
