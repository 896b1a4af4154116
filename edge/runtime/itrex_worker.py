"""Runs under another interpreter, which has intel-extension-for-transformers and nothing of glm4-edge.

Reads questions from standard input and writes answers to what was standard output: a JSON object a line. A question has
an `id` and says what to `do`; `itrex.py` knows which there are. Weights come in files of safetensors, a layer at a
time, and are packed for ITREX's QBits kernels as they come, so that no more than one layer is ever there twice. Ends
when standard input does.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import traceback
from typing import Any

_questions: queue.Queue[dict[str, Any]] = queue.Queue()
_cancelled: set[int] = set()
_PIECE = 64  # tokens of a prompt that are read between two looks at whether to go on


def main() -> None:
    """Be that process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets Ctrl-C, too, and decides
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer

    def tell(number: int, **what: Any) -> None:
        answers.write(json.dumps({"id": number, **what}) + "\n")
        answers.flush()

    threading.Thread(target=_read, daemon=True).start()
    import torch

    model = _Model()
    tell(0, ok=model.versions())
    while True:
        asked = _questions.get()
        number, what = asked.pop("id"), asked.pop("do")
        try:
            with torch.inference_mode():
                tell(number, ok=getattr(model, what)(number, tell, **asked))
        except BaseException as error:  # ITREX ends the process with 0 where something is wrong
            traceback.print_exc()
            tell(number, error=f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}")
        _cancelled.discard(number)


def _read() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["do"] == "cancel":
            _cancelled.add(asked["id"])
        else:
            _questions.put(asked)
    os._exit(0)


class _Model:
    """What can be asked; each call gets the question's number and `tell`, for what comes before the end."""

    def __init__(self) -> None:
        from intel_extension_for_transformers import qbits

        self._qbits = qbits
        self._model: Any = None
        self._packed = 0
        self._cache: Any = None

    def versions(self) -> dict[str, str]:
        import importlib.metadata

        names = ("intel-extension-for-transformers", "torch", "transformers")
        return {name: importlib.metadata.version(name) for name in names}

    def begin(self, number: int, tell: Any, config: dict[str, Any], threads: int) -> None:
        """An empty model."""
        import torch
        from transformers import GlmConfig, GlmForCausalLM

        torch.set_num_threads(threads)
        self._qbits.set_qbits_threads(threads)
        made = GlmConfig(**config)
        made._attn_implementation = "sdpa"
        with torch.device("meta"):
            model = GlmForCausalLM(made)
        model.model.rotary_emb = type(model.model.rotary_emb)(config=made)
        self._model, self._packed = model.eval(), 0

    def add(self, number: int, tell: Any, path: str, matrices: dict[str, dict[str, Any]]) -> int:
        """Put the tensors of a file in their places: those in `matrices` for QBits, all others in f32.

        `matrices` says of a name its `bits`, 4 or 8, its `group_size`, and the `parts` that come beside its numbers.
        """
        import torch
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dict
                if name.endswith((".scale", ".zero_point", ".factors")):
                    continue
                if name.endswith(".bias") and f"{name[:-4]}weight" in matrices:
                    continue
                tensor = file.get_tensor(name).clone()  # as it comes, it holds the whole file
                parent, _, leaf = name.rpartition(".")
                module = self._model.get_submodule(parent)
                if name not in matrices:
                    setattr(module, leaf, torch.nn.Parameter(tensor.float(), requires_grad=False))
                    continue
                parts = {part: file.get_tensor(f"{name}.{part}").clone() for part in matrices[name]["parts"]}
                if isinstance(module, torch.nn.Embedding):
                    self._put(parent, _rows(tensor, parts))
                    continue
                bias = None if module.bias is None else file.get_tensor(f"{parent}.bias").clone()
                self._put(parent, self._pack(tensor, parts, bias, matrices[name]))
        return self._packed

    def _put(self, name: str, module: Any) -> None:
        above, _, leaf = name.rpartition(".")
        setattr(self._model.get_submodule(above), leaf, module)

    def _pack(self, weight: Any, parts: dict[str, Any], bias: Any, form: dict[str, Any]) -> Any:
        """Signed numbers of 4 or 8 bits, [rows, columns] → a module that multiplies with them."""
        import torch

        kind = "int4_clip" if form["bits"] == 4 else "int8"
        zero = parts.get("zero_point")
        points = torch.empty(0, dtype=torch.int8) if zero is None else zero.t().contiguous()
        packed = self._qbits.repack_quantized_weight(
            weight.t().contiguous(), parts["scale"].t().contiguous(), points, torch.empty(0, dtype=torch.int32),
            kind, "fp32", "fp32", zero is not None, form["group_size"],
        )  # fmt: skip
        self._packed += 1
        return _linear(self._qbits, packed, len(weight), bias, parts.get("factors"), (kind, zero is not None))

    def ready(self, number: int, tell: Any) -> int:
        """The model is whole: how many matrices QBits multiplies."""
        left = [name for name, tensor in self._model.state_dict().items() if tensor.is_meta]
        if left:
            raise ValueError(f"no weights came for {left[0]}")
        return self._packed

    def logits(self, number: int, tell: Any, ids: list[int], past: int, path: str) -> None:
        """Of every one of the ids, after `past` earlier ones, into a file of safetensors."""
        from safetensors.torch import save_file

        save_file({"logits": self._forward(ids, past).contiguous()}, path)

    def generate(
        self, number: int, tell: Any, ids: list[int], max_new_tokens: int, stop: list[int], echo: bool,
        sampling: dict[str, Any],
    ) -> None:  # fmt: skip
        """Answer; tells the tokens as they come, with their log-probabilities."""
        import torch

        draw = torch.Generator().manual_seed(sampling["seed"])
        parts = []
        for begin in range(0, len(ids), _PIECE):
            if number in _cancelled:
                return
            part = self._forward(ids[begin : begin + _PIECE], begin)
            parts.append(part if echo else part[-1:])
        out = torch.cat(parts) if echo else parts[-1]
        if echo:
            known = out[:-1].log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
            tell(number, prompt=known.tolist())
        seen = list(ids)
        for step in range(max_new_tokens):
            if number in _cancelled:
                return
            token = _choose(out[-1].clone(), seen, len(ids), sampling, draw)
            tell(number, token=token, log_prob=float(out[-1].log_softmax(-1)[token]))
            seen.append(token)
            if token in stop or step + 1 == max_new_tokens:
                return
            out = self._forward([token], len(seen) - 1)

    def _forward(self, ids: list[int], past: int) -> Any:
        import torch
        from transformers import DynamicCache

        if not past:
            self._cache = DynamicCache()
        if self._cache.get_seq_length() != past:
            raise ValueError(f"{self._cache.get_seq_length()} tokens were read, not {past}")
        positions = torch.arange(past, past + len(ids))
        found = self._model(
            input_ids=torch.tensor([ids]), position_ids=positions[None], cache_position=positions,
            past_key_values=self._cache, use_cache=True,
        )  # fmt: skip
        return found.logits[0].float()


def _rows(weight: Any, parts: dict[str, Any]) -> Any:
    import torch

    class Rows(torch.nn.Module):
        """An embedding in 8 bits."""

        def forward(self, ids: Any) -> Any:
            found = weight[ids].float()
            if "zero_point" in parts:
                found = found - parts["zero_point"][ids].float()
            return found * parts["scale"][ids]

    return Rows()


def _linear(qbits: Any, packed: Any, rows: int, bias: Any, factors: Any, form: tuple[str, bool]) -> Any:
    import torch

    kind, asymmetric = form

    class Packed(torch.nn.Module):
        """A matrix in QBits' own form."""

        def forward(self, x: Any) -> Any:
            flat = x.reshape(-1, x.shape[-1]).float()
            if factors is not None:
                flat = flat * factors
            out = torch.zeros(len(flat), rows)
            added = torch.empty(0) if bias is None else bias
            qbits.woq_linear(flat.contiguous(), packed, added, out, "fp32", kind, "fp32", asymmetric)
            return out.reshape(*x.shape[:-1], rows)

    bias = None if bias is None else bias.float().contiguous()
    return Packed()


def _choose(logits: Any, seen: list[int], prompt: int, sampling: dict[str, Any], draw: Any) -> int:
    """The next token, by the rules and in the order that OpenVINO GenAI has them."""
    import torch

    counts = torch.bincount(torch.tensor(seen[prompt:], dtype=torch.long), minlength=len(logits))
    logits -= sampling["presence_penalty"] * (counts > 0) + sampling["frequency_penalty"] * counts
    penalty = sampling["repetition_penalty"]
    if penalty != 1:
        known = torch.tensor(sorted(set(seen)))
        logits[known] = torch.where(logits[known] < 0, logits[known] * penalty, logits[known] / penalty)
    if not sampling["do_sample"]:
        return int(logits.argmax())
    logits /= sampling["temperature"]
    values, order = logits.sort(descending=True)
    shares = values.softmax(-1)
    keep = shares.cumsum(-1) - shares < sampling["top_p"]
    keep[sampling["top_k"] :] = False
    shares = torch.where(keep, shares, torch.zeros(()))
    return int(order[torch.multinomial(shares, 1, generator=draw)])


if __name__ == "__main__":
    main()
