"""What each compression recipe costs the pocket model, and what it takes: the table behind `Recipe.for_target`.

    python -m benchmarks.recipes --text wiki.test.raw --out benchmarks/results/pocket_recipes.json

The first TOKENS tokens of the text, in windows that share nothing, through the IR on the CPU in f32. Perplexity of the
text, and against the bf16 model: KL divergence (nats) and how often both would choose the same next token. A table in
Markdown is written beside the JSON. Each recipe runs in a process of its own.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil

from benchmarks.machine import machine, versions
from edge.export.recipe import Recipe
from edge.model.spec import GlmSpec

# On the same tokens, from earlier measurements: MB, perplexity, KL, top-1. NNCF over the whole model took its
# statistics from windows of 8 tokens.
_EARLIER = {"default, NNCF over the whole model": (105.4, 32.07, 0.0564, 0.869),
            "asym 32, AWQ, scale estimation, NNCF over the whole model": (92.7, 33.88, 0.138, 0.786),
            "asym 32, GPTQ, NNCF over the whole model": (92.5, 39.43, 0.249, 0.724)}  # fmt: skip


def recipes(spec: GlmSpec) -> dict[str, Recipe]:
    """Every row, the failures too; `default` is what an export for the CPU uses."""
    default = Recipe.for_target("cpu", spec)
    plain = Recipe("int4", group_size=32, backup="int8_asym")
    change = dataclasses.replace
    return {
        "default": default,
        "bf16": Recipe("bf16"),
        "int8": Recipe("int8"),
        "sym 64": change(plain, group_size=64, symmetric=True),
        "asym 32": plain,
        "asym 32, AWQ": change(plain, awq=True),
        "asym 16, AWQ": change(plain, awq=True, group_size=16),
        "asym 32, AWQ, scale estimation": change(plain, awq=True, scale_estimation=True),
        "asym 32, AWQ, ratio 0.73": change(plain, awq=True, ratio=0.73),
        "default, symmetric": change(default, symmetric=True),
        "default, group 64": change(default, group_size=64),
        "default, ratio 0.64": change(default, ratio=0.64),
        "sym 64, AWQ": change(plain, group_size=64, symmetric=True, awq=True),
        "sym 64, AWQ, scale estimation": change(plain, group_size=64, symmetric=True, awq=True, scale_estimation=True),
    }


@click.command(help=__doc__)
@click.option("--text", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--tokens", default=4096, show_default=True)
@click.option("--window", default=512, show_default=True)
@click.option("--only", multiple=True, help="Run this row only; may be repeated. Rows already in OUT are kept.")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
def main(text: Path, tokens: int, window: int, only: tuple[str, ...], out: Path) -> None:
    """Measure the rows and write both files after each."""
    from edge.model import pocket
    from edge.model.checkpoint import Checkpoint

    folder = pocket.fetch(lambda stage, done, total: None)
    wanted = recipes(Checkpoint(folder).spec)
    if unknown := set(only) - set(wanted):
        raise click.UsageError(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(wanted)}")
    settings = {"text": text.name, "tokens": tokens, "window": window}
    rows: dict[str, Any] = {}
    if only and out.is_file():
        earlier = json.loads(out.read_text(encoding="utf-8"))
        if earlier["settings"] != settings:
            raise click.UsageError(f"{out.name} was measured with {earlier['settings']}")
        rows = earlier["rows"]
    windows = windows_of(folder, text, tokens, window)
    with tempfile.TemporaryDirectory() as scratch, one_process_each() as pool:
        reference = Path(scratch) / "reference.npy"
        pool.apply(write_reference, (folder, windows, reference))
        for name in only or wanted:
            click.echo(f"{name} …", err=True)
            rows[name] = pool.apply(_measure, (folder, wanted[name], windows, reference, Path(scratch)))
            click.echo(f"  {_figures(rows[name])}", err=True)
            _write(
                out,
                {
                    "machine": machine(),
                    "versions": versions("openvino", "nncf", "numpy"),
                    "settings": settings,
                    "rows": rows,
                },
            )


def one_process_each() -> Any:
    """A pool whose every task has a process of its own: memory is the task's."""
    return multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1)


def windows_of(folder: Path, text: Path, tokens: int, window: int) -> Any:
    """The text's first tokens [windows, window], by the tokenizer of the checkpoint in `folder`."""
    from edge.model.tokenizer import load

    ids = load(folder).encode(text.read_text(encoding="utf-8")[: 20 * tokens], add_special_tokens=False)[:tokens]
    return np.array(ids, dtype=np.int64).reshape(-1, window)


def write_reference(folder: Path, windows: Any, out: Path) -> None:
    """Logits [windows, tokens, vocab] of the bf16 model, in f32."""
    import openvino as ov

    from edge.export.graph import build_model
    from edge.infer import EXACT, infer
    from edge.model.checkpoint import Checkpoint

    checkpoint = Checkpoint(folder)
    model = build_model(checkpoint.spec, checkpoint.weight)
    compiled = ov.Core().compile_model(model, "CPU", EXACT)
    shape = (*windows.shape, checkpoint.spec.vocab_size)
    file = np.lib.format.open_memmap(out, mode="w+", dtype=np.float32, shape=shape)
    for i, ids in enumerate(windows):
        file[i] = infer(compiled.create_infer_request(), ids, 0)


def agreement(windows: Any, reference: Any, logits: Iterable[Any]) -> dict[str, float]:
    """Perplexity of the windows [windows, tokens], and against the reference's logits [windows, tokens, vocab]: KL
    divergence in nats, mean and 99th percentile, and the share of places where both like the same token best."""
    from edge.infer import kl_divergence

    losses, divergences, agreements = [], [], []
    for ids, expected, found in zip(windows, reference, logits, strict=True):
        best = found.max(-1)
        normaliser = best + np.log(np.exp(found - best[:, None]).sum(-1))
        losses.append(normaliser[:-1] - found[np.arange(len(ids) - 1), ids[1:]])
        divergences.append(kl_divergence(np.array(expected), found))
        agreements.append(found.argmax(-1) == expected.argmax(-1))
    divergence = np.concatenate(divergences)
    return {
        "perplexity": round(float(np.exp(np.concatenate(losses).mean())), 3),
        "kl_mean": round(float(divergence.mean()), 5),
        "kl_p99": round(float(np.quantile(divergence, 0.99)), 4),
        "top1_agreement": round(float(np.concatenate(agreements).mean()), 4),
    }


def _measure(folder: Path, recipe: Recipe, windows: Any, reference: Path, scratch: Path) -> dict[str, Any]:
    import openvino as ov

    from edge.export import streaming
    from edge.export.calibration import calibration_samples
    from edge.export.compress import weight_bits
    from edge.export.layerwise import Layerwise
    from edge.export.store import Store
    from edge.infer import EXACT, infer
    from edge.model.checkpoint import Checkpoint
    from edge.model.tokenizer import load

    checkpoint = Checkpoint(folder)
    samples = calibration_samples(load(folder)) if recipe.needs_calibration else None
    with tempfile.TemporaryDirectory(dir=scratch) as made:
        file = Path(made) / "model.xml"
        store = Store(Path(made) / "parts", file.with_suffix(".bin"))
        make_layer = None if samples is None else Layerwise(checkpoint, recipe, samples, store, _silent).make_layer
        begin, cpu = time.perf_counter(), time.process_time()
        streaming.write_model(checkpoint, recipe, store, file, _silent, make_layer=make_layer)
        seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
        peak = _peak_rss()  # before the evaluation, which is not its cost
        size = file.stat().st_size + file.with_suffix(".bin").stat().st_size
        model = ov.Core().read_model(file)
        counts = weight_bits(model)
        compiled = ov.Core().compile_model(model, "CPU", EXACT)
        del model
    logits = (infer(compiled.create_infer_request(), ids, 0) for ids in windows)
    return {
        "recipe": recipe.to_dict(),
        **agreement(windows, np.load(reference, mmap_mode="r"), logits),
        "bytes": size,
        "share_in_4_bits": round(sum(counts.get(name, 0) for name in ("u4", "i4")) / sum(counts.values()), 4),
        "compress_seconds": round(seconds, 1),
        "compress_cpu_seconds": round(cpu, 1),
        "peak_rss_bytes": peak,
    }


def _silent(stage: str, done: int, total: int) -> None:
    """Progress nobody looks at."""


def _peak_rss() -> int:
    memory = psutil.Process().memory_info()
    if peak := getattr(memory, "peak_wset", 0):  # Windows
        return int(peak)
    import resource  # POSIX

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _figures(row: dict[str, Any]) -> str:
    return (
        f"{row['bytes'] / 1e6:.1f} | {row['perplexity']:.2f} | {row['kl_mean']:.4f} | {row['kl_p99']:.2f} | "
        f"{row['top1_agreement']:.3f} | {row['share_in_4_bits']:.0%} | {row['compress_seconds']:.0f} | "
        f"{row['peak_rss_bytes'] / 1e9:.1f}"
    )


def _write(out: Path, result: dict[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8", newline="\n")
    settings, where = result["settings"], result["machine"]
    lines = [
        "# Recipes on the pocket model",
        "",
        f"Perplexity, KL divergence to bf16 (nats) and top-1 agreement over the first {settings['tokens']:,} tokens of "
        f"`{settings['text']}` in windows of {settings['window']}, f32. {where['cpu']}, {where['cores']} cores; "
        + ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        + ". Seconds are wall time on a shared machine, for compressing and writing, calibration included; memory "
        "is the process's peak until then. Made by `python -m benchmarks.recipes`; settings are in the JSON.",
        "",
        "| recipe | MB | perplexity | KL | KL p99 | top-1 | in 4 bits | s | GB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(f"| {name} | {_figures(row)} |" for name, row in result["rows"].items()),
        *(
            f"| {name}, from an earlier measurement | {mb} | {ppl} | {kl} | | {top1} | | | |"
            for name, (mb, ppl, kl, top1) in _EARLIER.items()
        ),
    ]
    out.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
