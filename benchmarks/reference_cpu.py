"""Stages `cpu` and `parity` of `benchmarks.reference_cuda`: exported models on the CPU beside the reference."""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import synthetic
from benchmarks.reference_gpu import say


def measure(args: argparse.Namespace, result: dict[str, Any], save: Callable[[], None]) -> None:
    """TTFT and decoding of each exported model, as `glm4-edge chat` runs it."""
    for weights in args.weights.split(","):
        row: dict[str, Any] = {}
        result[weights] = row
        folder, row["export_s"] = exported(args, weights)
        save()
        _speed(folder, args, row, save)
        say(f"{args.model} {weights}: {row['decode_tokens_per_s']} tokens/s, prefill {row['prefill_tokens_per_s']}, "
            f"TTFT {row['ttft_s']} s")  # fmt: skip


def parity(args: argparse.Namespace, result: dict[str, Any], save: Callable[[], None]) -> None:
    """Make the reference on the device, and compare each exported model on the CPU with it."""
    path = args.work / f"{args.model}.ref"
    say(f"reference of {args.model} on {args.device} …")
    start = time.perf_counter()
    words = ["reference", str(_checkpoint(args)), str(path), "--device", args.device, "--json"]
    result["reference"] = json.loads(_edge(words))
    result["reference"]["file"] = path.name
    result["reference"]["checkpoint"]["model"] = args.model  # not where it lay
    result["reference"]["wall_s"] = round(time.perf_counter() - start, 1)
    result["reference"]["bytes"] = path.stat().st_size
    save()
    for weights in args.weights.split(","):
        folder, _ = exported(args, weights)
        say(f"parity of {args.model} in {weights} …")
        found = json.loads(_edge(["parity", str(folder), str(path), "--json"]))
        result[weights] = {name: found[name] for name in ("device", "properties", "groups", "prompts")}
        everything = found["groups"]["all"]
        say(f"{args.model} {weights}: KL {everything['kl_mean']:.4f}, top-1 {everything['top1']:.1%}, perplexity "
            f"{everything['perplexity']:.2f} against {everything['perplexity_reference']:.2f}")  # fmt: skip
        save()


def exported(args: argparse.Namespace, weights: str) -> tuple[Path, float | None]:
    """The exported model's folder, and how long the export took (None: it was there)."""
    folder = args.work / f"{args.model}-{weights}"
    if (folder / "edge.json").is_file():
        return folder, None
    source = str(_checkpoint(args))
    say(f"export of {args.model} in {weights} …")
    start = time.perf_counter()
    _edge(["export", source, str(folder), "--weights", weights])
    return folder, round(time.perf_counter() - start, 1)


def _checkpoint(args: argparse.Namespace) -> str | Path:
    if args.model == "pocket":
        return "pocket"
    folder: Path = args.work / args.model
    if not (folder / "generation_config.json").is_file():
        say(f"writing the checkpoint {folder} …")
        synthetic.write(folder, args.layers, shape=args.model)
    return folder


def _edge(words: list[str]) -> str:
    """Standard output of `glm4-edge`, in a process of its own; what it says beside goes to ours."""
    done = subprocess.run([sys.executable, "-m", "edge", *words], stdout=subprocess.PIPE, text=True, encoding="utf-8")
    if done.returncode:
        raise RuntimeError(f"glm4-edge {' '.join(words)} ended with {done.returncode}")
    return done.stdout


def _speed(folder: Path, args: argparse.Namespace, row: dict[str, Any], save: Callable[[], None]) -> None:
    from edge.messages import Message, Sampling
    from edge.runtime.engine import Engine
    from edge.runtime.settings import Settings

    say(f"loading {folder.name} …")
    start = time.perf_counter()
    with Engine.load(folder, Settings("CPU")) as engine:
        row["load_s"] = round(time.perf_counter() - start, 1)
        start = time.perf_counter()
        engine.warm_up()
        row["warm_up_s"] = round(time.perf_counter() - start, 1)
        words = [word for word in (folder / "tokenizer.json").read_text(encoding="utf-8").split('"') if word.isalpha()]
        rng = random.Random(0)

        def text(count: int) -> str:
            return " ".join(rng.choices(words, k=count))

        each = engine.count_tokens([Message("user", text(200))]) / 200
        row["samples"] = []
        for turn in range(args.repeats + 1):  # no text twice: the prefix cache would know it
            message = Message("user", text(round(args.prompt / each)))
            *_, last = engine.stream([message], Sampling(temperature=0, max_new_tokens=args.answer))
            usage = last.usage
            if usage is None or usage.ttft_seconds is None or usage.tpot_seconds is None:
                raise RuntimeError(f"{folder.name} answered with fewer than two tokens")
            say(f"{usage.prompt_tokens} tokens in: {usage.ttft_seconds:.2f} s; {1 / usage.tpot_seconds:.1f} tokens/s")
            if turn:
                row["samples"].append(
                    {"prompt_tokens": usage.prompt_tokens, "answer_tokens": usage.completion_tokens,
                     "ttft_s": round(usage.ttft_seconds, 4), "tpot_s": round(usage.tpot_seconds, 5)}
                )  # fmt: skip
                save()
    rows = row["samples"]
    row["decode_tokens_per_s"] = round(statistics.median(1 / sample["tpot_s"] for sample in rows), 2)
    row["prefill_tokens_per_s"] = round(statistics.median(one["prompt_tokens"] / one["ttft_s"] for one in rows), 1)
    row["ttft_s"] = round(statistics.median(sample["ttft_s"] for sample in rows), 3)
