"""Greedy decoding with transformers' own layers, as fast as they go on CUDA.

A step of a 9B model in eager mode is a thousand small kernels, each launched by Python: the GPU waits for it. Here
shapes are fixed (a cache of one length, the position a tensor on the device), so that a layer is compiled once for
all layers and a whole step, from a token to the next, is one CUDA graph. Attention reads the two KV heads as they
are instead of copying them for each of the 32 query heads, and q, k and v are one matrix.

The same code runs on the CPU, without the graph: that is how it is tested.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge.errors import ContextError

Attention = Literal["products", "matmul", "sdpa", "flex"]
_STRIDE = 16  # steps between two looks at what was produced: each look waits for the GPU


@dataclass(frozen=True)
class Fast:
    """How a step is made fast.

    Args:
        compiled: what is compiled: a layer (once for all of them), the whole step, or nothing.
        gemv: a matrix times one vector by Inductor's own reduction in Triton, tuned on the device (or tuned
            longer), by the faster of Triton's and the library's matrix products, or by the library's (cuBLAS).
        attention: of one query position: products summed, batched matrix products, PyTorch's fused kernel with a
            mask, or flex attention.
        graph: the step as one CUDA graph; on the CPU there is none.
        prefill: compile the prefill, too, anew for each length of prompt.
    """

    compiled: Literal["layer", "step", "nothing"] = "layer"
    gemv: Literal["triton", "tuned", "autotune", "library"] = "triton"
    attention: Attention = "matmul"
    graph: bool = True
    prefill: bool = False


@dataclass(frozen=True)
class Greedy:
    """One greedy answer and how long it took."""

    tokens: list[int]
    """Of the answer; the stop token is the last, where one came."""
    ttft_s: float
    """From the prompt's ids on the host to the first token on the host."""
    decode_s: float
    """From there to the last token."""


class Decoder:
    """Answers greedily, one sequence at a time.

    Args:
        model: a `GlmForCausalLM` or `Glm4ForCausalLM` in inference mode. Its q, k and v weights become views of
            one matrix; the model goes on working as before.
        capacity: longest prompt plus answer, in tokens.
    """

    def __init__(self, model: Any, capacity: int, how: Fast) -> None:
        self.capacity = capacity
        self._how = how
        self._inner, self._head = model.model, model.lm_head
        self._device = model.lm_head.weight.device
        self._layers = [_with_attention(layer, capacity, how.attention) for layer in model.model.layers]
        self._tokens = torch.zeros(capacity + 1, dtype=torch.long, device=self._device)
        self._position = torch.zeros(1, dtype=torch.long, device=self._device)
        self._run_layer: Callable[..., Tensor] = _run_layer
        self._prefill_layer: Callable[..., Tensor] = _run_layer
        self._open, self._finish, self._run_step = self._open_step, self._finish_step, self._step
        self._graph: Any = None
        self._ready = False
        if how.compiled == "layer":
            self._run_layer = _compiled(_run_layer)
            self._open = _compiled(self._open_step)
            self._finish = _compiled(self._finish_step)
        elif how.compiled == "step":
            self._run_step = _compiled(self._step)
        if how.prefill:
            self._prefill_layer = torch.compile(_run_layer, fullgraph=True, dynamic=False)

    @torch.inference_mode()
    def answer(self, prompt: Sequence[int], max_new_tokens: int, stop_ids: Sequence[int] = ()) -> Greedy:
        """Answer until a stop token or the limit.

        The first call also compiles, which takes minutes at 9B; call `prepare` before measuring.

        Raises:
            ContextError: prompt and answer do not fit the capacity.
        """
        total = len(prompt) + max_new_tokens
        if not prompt or max_new_tokens < 1 or total > self.capacity:
            raise ContextError(
                f"a prompt of {len(prompt)} tokens and an answer of {max_new_tokens} do not fit the reference's "
                f"{self.capacity}",
                hint="Make the prompt or the answer shorter.",
            )
        self.prepare()
        started = time.perf_counter()
        ids = torch.tensor(prompt, device=self._device)
        self._tokens[: len(prompt)] = ids
        self._position.fill_(len(prompt) - 1)
        self._prefill(ids)
        answer = self._tokens[len(prompt) :]
        produced = [int(answer[0])]
        first = time.perf_counter()
        stops = set(stop_ids)
        while len(produced) < max_new_tokens and not stops.intersection(produced):
            count = min(_STRIDE if stops else max_new_tokens, max_new_tokens - len(produced))
            for _ in range(count):
                self._advance()
            produced += answer[len(produced) : len(produced) + count].tolist()
        ended = time.perf_counter()
        cut = next((i + 1 for i, token in enumerate(produced) if token in stops), len(produced))
        return Greedy(produced[:cut], first - started, ended - first)

    @torch.inference_mode()
    def prepare(self) -> None:
        """Compile and record what there is to; once."""
        if self._ready:
            return
        with torch._inductor.config.patch(_INDUCTOR[self._how.gemv]):
            if self._device.type != "cuda":
                self._restart()
                self._run_step()
            else:
                stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    for _ in range(3):
                        self._restart()
                        self._run_step()
                torch.cuda.current_stream().wait_stream(stream)
                torch.cuda.synchronize()
                if self._how.graph:
                    self._restart()
                    self._graph = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(self._graph):
                        self._run_step()
                torch.cuda.synchronize()
        self._ready = True

    def _restart(self) -> None:
        self._tokens.zero_()
        self._position.zero_()

    def _advance(self) -> None:
        if self._graph is None:
            self._run_step()
        else:
            self._graph.replay()

    def _prefill(self, ids: Tensor) -> None:
        positions = torch.arange(len(ids), device=self._device)[None]
        hidden = self._inner.embed_tokens(ids[None])
        cos, sin = self._inner.rotary_emb(hidden, position_ids=positions)
        for layer in self._layers:
            hidden = self._prefill_layer(layer, hidden, cos, sin, positions)
        self._finish_step(hidden[:, -1:])

    def _step(self) -> None:
        hidden, cos, sin = self._open()
        for layer in self._layers:
            hidden = self._run_layer(layer, hidden, cos, sin, self._position[None])
        self._finish(hidden)

    def _open_step(self) -> tuple[Tensor, Tensor, Tensor]:
        """The token at the position, embedded, and the rotation there."""
        hidden = self._inner.embed_tokens(self._tokens.index_select(0, self._position)[None])
        cos, sin = self._inner.rotary_emb(hidden, position_ids=self._position[None])
        return hidden, cos, sin

    def _finish_step(self, hidden: Tensor) -> None:
        """Write the likeliest next token behind the position, and move there."""
        token = self._head(self._inner.norm(hidden))[0].argmax(-1)
        self._position.add_(1)
        self._tokens.index_copy_(0, self._position, token)


def open_decoder(model: Any, capacity: int, how: Fast) -> tuple[Decoder, Fast, str | None]:
    """A decoder that is prepared; where `how` does not run here, one without a compiler, and the reason.

    Returns: the decoder, how it works, and why not as asked for (None: as asked for).
    """
    plain = Fast(compiled="nothing", attention="sdpa")
    try:
        decoder = Decoder(model, capacity, how)
        decoder.prepare()
        return decoder, how, None
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # no C compiler, no Triton, a GPU too old: each fails in its own way
        if how == plain:
            raise
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        torch._dynamo.reset()
    decoder = Decoder(model, capacity, plain)
    decoder.prepare()
    return decoder, plain, reason


_INDUCTOR: dict[str, dict[str, Any]] = {
    # with it, Inductor writes a matrix times one vector as a reduction of its own, and tunes it
    "triton": {"coordinate_descent_tuning": True},
    "tuned": {
        "coordinate_descent_tuning": True,
        "coordinate_descent_check_all_directions": True,
        "max_autotune_pointwise": True,
    },
    "autotune": {"max_autotune": True, "coordinate_descent_tuning": False},
    "library": {"coordinate_descent_tuning": False},
}


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(function, fullgraph=True, dynamic=False)
    return compiled


def _run_layer(layer: nn.Module, hidden: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> Tensor:
    out: Tensor = layer(hidden, position_embeddings=(cos, sin), position_ids=positions, attention_mask=None)
    return out


def _with_attention(layer: Any, capacity: int, kind: Attention) -> nn.Module:
    """transformers' layer once more, over the same weights, with an attention of fixed shapes."""
    twin = copy.copy(layer)
    twin._modules = {**layer._modules, "self_attn": _FixedAttention(layer.self_attn, capacity, kind)}
    module: nn.Module = twin
    return module


class _FixedAttention(nn.Module):
    """Attention over a cache of `capacity` positions, for one position or a whole prompt from position 0."""

    keys: Tensor
    values: Tensor

    def __init__(self, theirs: Any, capacity: int, kind: Attention) -> None:
        super().__init__()
        config = theirs.config
        self.heads, self.kv_heads, self.size = config.num_attention_heads, config.num_key_value_heads, theirs.head_dim
        self.scaling, self.kind = float(theirs.scaling), kind
        # as the model's own file has it: interleaved, and over a part of the head
        self.rotate = sys.modules[type(theirs).__module__].apply_rotary_pos_emb
        self.weight, self.bias = _stacked(theirs)
        self.o_proj = theirs.o_proj
        shape = (1, self.kv_heads, capacity, self.size)
        for name in ("keys", "values"):
            self.register_buffer(name, torch.zeros(shape, dtype=self.weight.dtype, device=self.weight.device), False)

    def forward(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], position_ids: Tensor, **_: Any
    ) -> tuple[Tensor, None]:
        """Hidden states [1, S, hidden] → [1, S, hidden]; keys and values go to their positions in the cache."""
        count = hidden_states.shape[1]
        if count == 1 and self.bias is not None:  # apart: Inductor has a reduction for the product alone
            stacked = functional.linear(hidden_states, self.weight) + self.bias
        else:
            stacked = functional.linear(hidden_states, self.weight, self.bias)
        sizes = [heads * self.size for heads in (self.heads, self.kv_heads, self.kv_heads)]
        query, key, value = (
            part.view(1, count, -1, self.size).transpose(1, 2) for part in torch.split(stacked, sizes, dim=-1)
        )
        query, key = self.rotate(query, key, *position_embeddings)
        self.keys.index_copy_(2, position_ids[0], key)
        self.values.index_copy_(2, position_ids[0], value)
        if count == 1:
            out = self._one(query.view(1, self.kv_heads, self.heads // self.kv_heads, self.size), position_ids[0])
            out = out.reshape(1, 1, self.heads * self.size)
        else:
            out = functional.scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=self.scaling, enable_gqa=self.heads != self.kv_heads
            )
            out = out.transpose(1, 2).reshape(1, count, self.heads * self.size)
        return self.o_proj(out), None

    def _one(self, query: Tensor, position: Tensor) -> Tensor:
        """Queries [1, kv heads, heads of each, size] of one position over all up to it → the same shape."""
        keys, values = self.keys, self.values
        seen = torch.arange(keys.shape[2], device=keys.device) <= position
        if self.kind == "sdpa":
            return functional.scaled_dot_product_attention(
                query, keys, values, seen[None, None, None], scale=self.scaling
            )
        if self.kind == "flex":
            from torch.nn.attention.flex_attention import flex_attention

            def masked(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
                return torch.where(k <= position[0], score, -float("inf"))

            out: Tensor = flex_attention(  # type: ignore[assignment]
                query.reshape(1, self.heads, 1, self.size), keys, values, score_mod=masked, scale=self.scaling,
                enable_gqa=self.heads != self.kv_heads,
            )  # fmt: skip
            return out
        if self.kind == "matmul":
            scores = (query @ keys.transpose(2, 3)).float() * self.scaling
        else:
            scores = (query[:, :, :, None].float() * keys[:, :, None].float()).sum(-1) * self.scaling
        shares = torch.where(seen, scores, -float("inf")).softmax(-1)
        if self.kind == "matmul":
            return shares.to(values.dtype) @ values
        return (shares[..., None] * values[:, :, None].float()).sum(-2).to(values.dtype)


def _stacked(theirs: Any) -> tuple[nn.Parameter, nn.Parameter | None]:
    """q, k and v as one matrix, of which the three become views, so that nothing is held twice."""
    parts = (theirs.q_proj, theirs.k_proj, theirs.v_proj)
    made: list[nn.Parameter | None] = []
    for kind in ("weight", "bias"):
        pieces = [getattr(part, kind) for part in parts]
        if pieces[0] is None:
            made.append(None)
            continue
        whole = pieces[0].data
        if not _are_rows_of_one([piece.data for piece in pieces]):
            whole = torch.cat([piece.data for piece in pieces])
            for piece, rows in zip(pieces, torch.split(whole, [len(piece) for piece in pieces]), strict=True):
                piece.data = rows
        else:
            whole = whole.as_strided((sum(len(piece) for piece in pieces), *whole.shape[1:]), whole.stride())
        made.append(nn.Parameter(whole, requires_grad=False))
    weight, bias = made
    assert weight is not None
    return weight, bias


def _are_rows_of_one(pieces: Sequence[Tensor]) -> bool:
    """Whether the pieces already lie behind each other, from an earlier `Decoder` of the same model."""
    places = [piece.data_ptr() for piece in pieces]
    ends = [piece.data_ptr() + piece.numel() * piece.element_size() for piece in pieces]
    return places[1:] == ends[:-1] and len({piece.untyped_storage().data_ptr() for piece in pieces}) == 1
