"""Stage `gpu` of `benchmarks.reference_cuda`: ways of decoding with transformers on CUDA, in turn."""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from benchmarks import synthetic
from edge.model.spec import GlmSpec

ROADS: dict[str, dict[str, Any]] = {
    "layer, triton, products": {"attention": "products"},
    "layer, triton, flex": {"attention": "flex"},
    "layer, triton, sdpa": {"attention": "sdpa"},
    "layer, triton, matmul": {},
    "layer, tuned, products": {"gemv": "tuned"},
    "layer, library, products": {"gemv": "library", "attention": "products"},
    "layer, autotune, products": {"gemv": "autotune", "attention": "products"},
    "step, triton, products": {"compiled": "step", "attention": "products"},
    "nothing compiled, sdpa": {"compiled": "nothing", "attention": "sdpa"},
    "layer, triton, products, compiled prefill": {"prefill": True, "attention": "products"},
}
"""Ways of the decoder to be fast: arguments of `edge.runtime.greedy.Fast`."""
EAGER, STATIC = "transformers eager", "transformers static cache, compiled"


def say(text: str) -> None:
    """A line for the person who waits."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def measure(args: argparse.Namespace, result: dict[str, Any], save: Callable[[], None]) -> None:
    """Fill `result` with the figures of each road; `save` is called after every step."""
    import numpy as np
    import torch

    from edge.runtime import greedy, reference

    began = time.perf_counter()
    cuda = args.device.startswith("cuda")
    spec, tensors = _checkpoint(args)
    if cuda:
        properties = torch.cuda.get_device_properties(args.device)
        result["gpu"] = {
            "name": properties.name, "memory_bytes": properties.total_memory, "cuda": torch.version.cuda,
            "read_gb_per_s": round(_read_bandwidth(args.device), 1),
        }  # fmt: skip
        # Of the embedding one row is read, of everything else all.
        read = 2 * (spec.parameter_count() - spec.vocab_size * spec.hidden_size * (not spec.tie_word_embeddings))
        result["gpu"]["floor_tokens_per_s"] = round(result["gpu"]["read_gb_per_s"] * 1e9 / read, 1)
        say(f"{result['gpu']}")
    say(f"{spec.parameter_count() / 1e9:.2f} billion weights …")
    weights = reference.Weights(spec.transformers_config(), tensors, len(spec.tensor_shapes()), spec.parameter_count())
    model = reference.load(weights, args.device, "bf16")
    result["load_s"] = round(time.perf_counter() - began, 1)
    prompt = np.random.default_rng(1).integers(0, spec.vocab_size, args.prompt).tolist()
    roads: dict[str, Callable[[], tuple[list[int], float, float]]] = {}
    result["roads"] = {}
    save()

    def add(name: str, make: Callable[[], Callable[[], tuple[list[int], float, float]]]) -> None:
        if (time.perf_counter() - began) / 60 > args.minutes:
            result["roads"][name] = {"failure": f"not begun: {args.minutes} minutes were over"}
            return
        say(f"{name}: first run …")
        start = time.perf_counter()
        try:
            run = make()
            tokens, _, _ = run()
            tokens, ttft, decode = run()
        except Exception as error:  # a road that does not run here is a finding
            traceback.print_exc()
            result["roads"][name] = {"failure": f"{type(error).__name__}: {error}"[:2000]}
            save()
            return
        roads[name] = run
        expected = result["roads"].get(EAGER, {}).get("tokens", tokens)
        differs = next((i for i, pair in enumerate(zip(tokens, expected, strict=True)) if pair[0] != pair[1]), None)
        result["roads"][name] = {
            "first_run_s": round(time.perf_counter() - start, 1), "tokens": tokens,
            "first_token_unlike_eager": differs, "samples": [],
        }  # fmt: skip
        say(f"{name}: {(args.answer - 1) / decode:.1f} tokens/s, first token {ttft * 1000:.1f} ms, "
            f"unlike eager from token {differs}")  # fmt: skip
        save()

    add(EAGER, lambda: _transformers(model, prompt, args.answer, None))
    for name in [part.strip() for part in args.roads.split(";")] if args.roads else ROADS:
        torch._dynamo.reset()

        def decoder(name: str = name) -> Callable[[], tuple[list[int], float, float]]:
            how = greedy.Fast(**ROADS[name])
            made = greedy.Decoder(model, args.prompt + args.answer, how)

            def run() -> tuple[list[int], float, float]:
                got = made.answer(prompt, args.answer)
                return got.tokens, got.ttft_s, got.decode_s

            if args.profile and cuda:
                run()
                result.setdefault("profiles", {})[name] = _profile(made)
            return run

        add(name, decoder)
        gc.collect()
    if not args.no_static:
        torch._dynamo.reset()
        add(STATIC, lambda: _transformers(model, prompt, args.answer, "static"))
    for i in range(args.repeats):
        say(f"repeat {i + 1} of {args.repeats} …")
        for name, run in roads.items():
            _, ttft, decode = run()
            result["roads"][name]["samples"].append({"ttft_s": round(ttft, 5), "decode_s": round(decode, 5)})
        save()
    for road in result["roads"].values():
        if road.get("samples"):
            rate = statistics.median((args.answer - 1) / sample["decode_s"] for sample in road["samples"])
            road["decode_tokens_per_s"] = round(rate, 2)
            road["ttft_s"] = round(statistics.median(sample["ttft_s"] for sample in road["samples"]), 4)
    eager = result["roads"].get(EAGER, {}).get("decode_tokens_per_s")
    for name, road in result["roads"].items():
        if "decode_tokens_per_s" in road:
            times = f", {road['decode_tokens_per_s'] / eager:.2f} of eager" if eager else ""
            say(f"{name:<44} {road['decode_tokens_per_s']:7.1f} tokens/s{times}, TTFT {road['ttft_s'] * 1000:.1f} ms, "
                f"unlike eager from {road['first_token_unlike_eager']}")  # fmt: skip
        else:
            say(f"{name:<44} {road['failure'][:120]}")


def _checkpoint(args: argparse.Namespace) -> tuple[GlmSpec, Any]:
    """What a model is, and its tensors: drawn anew, or the pocket model's."""
    if args.model != "pocket":
        spec = GlmSpec.from_config(synthetic.config_of(args.model, args.layers))
        return spec, synthetic.tensors(spec)
    from edge.model import pocket
    from edge.model.checkpoint import Checkpoint

    checkpoint = Checkpoint(pocket.fetch(lambda stage, done, total: None))
    return checkpoint.spec, checkpoint.tensors()


def _transformers(
    model: Any, prompt: list[int], answer: int, cache: str | None
) -> Callable[[], tuple[list[int], float, float]]:
    """`generate` as transformers has it: greedy, no stop, with its own cache or a static one that it compiles."""
    import torch

    ids = torch.tensor([prompt], device=model.device)
    how: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    if cache is not None:
        how |= {"cache_implementation": cache}

    class Clock:
        """A streamer that only looks at the time; `generate` waits for each token anyway."""

        times: list[float]

        def put(self, tokens: Any) -> None:
            self.times.append(time.perf_counter())

        def end(self) -> None:
            pass

    clock = Clock()

    def run() -> tuple[list[int], float, float]:
        clock.times = []
        start = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=answer, streamer=clock, **how)
        tokens = out[0, len(prompt) :].tolist()
        first = clock.times[1]  # the prompt itself comes first
        return tokens, first - start, clock.times[-1] - first

    return run


def _read_bandwidth(device: str) -> float:
    """GB/s at which the device reads its memory, the best of ten sums over 8 GB."""
    import torch

    values = torch.zeros(2**31, dtype=torch.float32, device=device)
    best = float("inf")
    for _ in range(10):
        torch.cuda.synchronize()
        start = time.perf_counter()
        values.sum()
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return values.numel() * 4 / best / 1e9


def _profile(decoder: Any) -> list[dict[str, Any]] | str:
    """Kernels of a step, the longest first: microseconds and number in one step."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    steps = 8
    try:
        decoder._position.fill_(0)
        with profile(activities=[ProfilerActivity.CUDA]) as watched, torch.inference_mode():
            for _ in range(steps):
                decoder._advance()
            torch.cuda.synchronize()
        rows = sorted(watched.key_averages(), key=lambda row: -row.self_device_time_total)
    except Exception as error:  # the figures stand without it
        return f"{type(error).__name__}: {error}"
    return [
        {"kernel": row.key[:160], "us": round(row.self_device_time_total / steps, 1), "count": row.count / steps}
        for row in rows[:25]
    ]
