"""auto-round beside our own recipes, on the pocket model: the same weights, the same grid, the same matrices in 4 bits.

    python -m benchmarks.autoround --python ar/bin/python --text wiki.test.raw --work ar-work \\
        --iters 50 --length 128 --batch 4 --out benchmarks/results/autoround_pocket.json

`--python` is the interpreter of an environment of auto-round's own, on Linux:
`pip install torch==2.13.0 transformers==5.5.4 auto-round==0.16.1 datasets==5.0.1`. It reads our checkpoint and the text
that `--calibrate` uses, and no other. What it tuned is kept in WORK, and every row measured: the same command goes on
where it was interrupted.

For every grid `--calibrate` chooses first what stays in 8 bits; the other arms take that over. All become IRs of the
same numbers of bits, or this ends with an error, and are read on the CPU in f32, as in `benchmarks.recipes`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.machine import machine, versions
from benchmarks.recipes import agreement, one_process_each, recipes, windows_of, write_reference
from edge.export.recipe import Recipe
from edge.model.spec import GlmSpec

_CHILD = Path(__file__).with_name("autoround_child.py")
_SLACK = 0.005  # of a .bin: AWQ's factors, which auto-round does without, are 0.2% of the pocket model's
ALONE, CALIBRATED = "from the weights alone", "--calibrate"


def grids(spec: GlmSpec) -> dict[str, Recipe]:
    """The default's, and the one that shows most: every matrix of the layers in 4 bits."""
    rows = recipes(spec)
    return {"default": rows["default"], "asym 32": rows["asym 32, AWQ, scale estimation"]}


@click.command(help=__doc__)
@click.option("--python", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--text", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--work", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--grid", "only", multiple=True, help="This grid only; may be repeated. Others in OUT are kept.")
@click.option("--iters", default=200, show_default=True, help="auto-round's steps for each layer.")
@click.option("--length", default=512, show_default=True, help="Tokens of a sample of the calibration text.")
@click.option("--batch", default=4, show_default=True, help="Samples of a step.")
@click.option("--device", default="cpu", show_default=True, help="Where auto-round runs: cpu or cuda.")
@click.option("--tokens", default=4096, show_default=True)
@click.option("--window", default=512, show_default=True)
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
def main(
    python: Path, text: Path, work: Path, only: tuple[str, ...], iters: int, length: int, batch: int, device: str,
    tokens: int, window: int, out: Path,
) -> None:  # fmt: skip
    """Measure the grids and write both files after each."""
    from edge.model import pocket
    from edge.model.checkpoint import Checkpoint

    folder = pocket.fetch(_silent)
    wanted = grids(Checkpoint(folder).spec)
    if unknown := set(only) - set(wanted):
        raise click.UsageError(f"no such grid: {', '.join(sorted(unknown))}; there are {', '.join(wanted)}")
    settings = {"text": text.name, "tokens": tokens, "window": window}
    result: dict[str, Any] = {"settings": settings, "grids": taken_up(out, settings) if only else {}}
    made_by = {"machine": machine(), "versions": versions("openvino", "nncf", "numpy")}
    work.mkdir(parents=True, exist_ok=True)
    windows = windows_of(folder, text, tokens, window)
    with tempfile.TemporaryDirectory() as scratch, one_process_each() as pool:
        reference = Path(scratch) / "reference.npy"
        pool.apply(write_reference, (folder, windows, reference))
        for name in only or wanted:
            recipe = wanted[name]

            def measured(
                arm: str, in_4_bits: frozenset[str] | None = None, tuned: Path | None = None,
                *, recipe: Recipe = recipe, name: str = name,
            ) -> dict[str, Any]:  # fmt: skip
                key = key_of(recipe, arm, made_by | settings, tuned)
                file = work / f"{_slug(name, arm)}.json"
                if file.is_file() and (kept := json.loads(file.read_text(encoding="utf-8")))["of"] == key:
                    return dict(kept["row"])
                how = (folder, recipe, windows, reference, Path(scratch), in_4_bits, tuned)
                row: dict[str, Any] = pool.apply(_measure, how)
                click.echo(f"{name}, {arm}: KL {row['kl_mean']:.4f}, {row['compress_seconds']:.0f} s", err=True)
                file.write_text(json.dumps({"of": key, "row": row}), encoding="utf-8")
                return row

            rows = {CALIBRATED: measured(CALIBRATED)}
            in_4_bits = frozenset(rows[CALIBRATED].pop("layout"))
            rows = {ALONE: measured(ALONE, in_4_bits), **rows}
            made = _tuned(python, work / _slug(name, str(iters)), job(
                folder, recipe, in_4_bits, iters=iters, length=length, batch=batch, device=device))  # fmt: skip
            arm = f"auto-round, {iters} steps"
            told = json.loads((made / "told.json").read_text(encoding="utf-8"))
            rows[arm] = measured(arm, in_4_bits, made / "tuned.safetensors") | told
            rows[arm]["auto_round"] = {"iters": iters, "length": length, "batch": batch, "device": device}
            check_bits(rows)
            about = {"recipe": recipe.to_dict(), "matrices_in_4_bits": len(in_4_bits)}
            result["grids"][name] = {**made_by, **about, "rows": rows}
            _write(out, result)


def taken_up(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The grids of an earlier run, each with the machine and the versions that it was measured with.

    Raises:
        UsageError: they were measured with other settings.
    """
    if not out.is_file():
        return {}
    earlier = json.loads(out.read_text(encoding="utf-8"))
    if earlier["settings"] != settings:
        raise click.UsageError(f"{out.name} was measured with {earlier['settings']}: name another --out")
    grids: dict[str, Any] = earlier["grids"]
    return grids


def key_of(recipe: Recipe, arm: str, how: dict[str, Any], tuned: Path | None) -> dict[str, Any]:
    """What a row kept in WORK must have been measured of, to be taken for one that is asked for.

    Args:
        tuned: weights that came from elsewhere; however they were tuned, others are another row.
    """
    key = {"grid": recipe.to_dict(), "arm": arm, **how}
    if tuned is not None:
        digest = hashlib.sha256()
        with tuned.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
        key["tuned"] = digest.hexdigest()
    return key


def job(
    folder: Path, recipe: Recipe, in_4_bits: frozenset[str], *, iters: int, length: int, batch: int, device: str
) -> dict[str, Any]:
    """What the child is asked for: `--calibrate`'s text in samples of `length` tokens, all that is in 8 bits left."""
    from edge.export.calibration import calibration_samples
    from edge.model.checkpoint import Checkpoint
    from edge.model.tokenizer import load

    texts = calibration_samples(load(folder))
    if len(texts[0]) % length:
        raise click.UsageError(f"--length {length} does not divide the {len(texts[0])} tokens of a calibration sample")
    matrices = [name for name, shape in Checkpoint(folder).spec.tensor_shapes().items()
                if name.startswith("model.layers.") and len(shape) == 2]  # fmt: skip
    return {
        "checkpoint": str(folder),
        "texts": [text[begin : begin + length] for text in texts for begin in range(0, len(text), length)],
        "group_size": recipe.group_size,
        "symmetric": recipe.symmetric,
        "left": sorted(name.removesuffix(".weight") for name in set(matrices) - in_4_bits),
        "batch_size": batch,
        "iters": iters,
        "seed": 42,
        "device": device,
    }


def _slug(*parts: str) -> str:
    return re.sub(r"\W+", "-", " ".join(parts)).strip("-")


def check_bits(rows: dict[str, dict[str, Any]]) -> None:
    """Raise unless every row has as many weights of each precision as the others, and nearly the same .bin."""
    first = next(iter(rows.values()))
    for row in rows.values():
        if row["weights"] != first["weights"] or abs(row["bin_bytes"] / first["bin_bytes"] - 1) > _SLACK:
            told = (f"{arm}: {other['weights']} in {other['bin_bytes']} bytes" for arm, other in rows.items())
            raise click.ClickException(f"these are not the same bits: {'; '.join(told)}")


def _tuned(python: Path, folder: Path, wanted: dict[str, Any]) -> Path:
    """The folder in which the child has done the job, now or earlier."""
    file = folder / "job.json"
    if (folder / "told.json").is_file() and json.loads(file.read_text(encoding="utf-8")) == wanted:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "told.json").unlink(missing_ok=True)
    file.write_text(json.dumps(wanted), encoding="utf-8")
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    subprocess.run([str(python), str(_CHILD), str(folder)], check=True, env=environment)
    return folder


def _measure(
    folder: Path, recipe: Recipe, windows: Any, reference: Path, scratch: Path,
    in_4_bits: frozenset[str] | None = None, tuned: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """One row. Without `in_4_bits` the recipe calibrates, and says in `layout` what it put in 4 bits."""
    import openvino as ov

    from benchmarks.autoround_grid import LaidLayers, layout, read_tuned
    from edge.export import streaming
    from edge.export.calibration import calibration_samples
    from edge.export.compress import weight_bits
    from edge.export.layerwise import Layerwise
    from edge.export.store import Store
    from edge.infer import EXACT, infer
    from edge.model.checkpoint import Checkpoint
    from edge.model.tokenizer import load

    checkpoint = Checkpoint(folder)
    with tempfile.TemporaryDirectory(dir=scratch) as made:
        file = Path(made) / "model.xml"
        store = Store(Path(made) / "parts", file.with_suffix(".bin"))
        begin, cpu = time.perf_counter(), time.process_time()
        if in_4_bits is None:
            make_layer = Layerwise(checkpoint, recipe, calibration_samples(load(folder)), store, _silent).make_layer
        else:
            arrays = None if tuned is None else read_tuned(tuned)
            make_layer = LaidLayers(checkpoint, recipe, in_4_bits, arrays).make_layer
        streaming.write_model(checkpoint, recipe, store, file, _silent, make_layer=make_layer)
        seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
        size = file.with_suffix(".bin").stat().st_size
        model = ov.Core().read_model(file)
        counts, found = weight_bits(model), sorted(layout(model))
        compiled = ov.Core().compile_model(model, "CPU", EXACT)
        del model
    logits = (infer(compiled.create_infer_request(), ids, 0) for ids in windows)
    row = {
        **agreement(windows, np.load(reference, mmap_mode="r"), logits),
        "bin_bytes": size,
        "weights": dict(sorted(counts.items())),
        "compress_seconds": round(seconds, 1),
        "compress_cpu_seconds": round(cpu, 1),
    }
    return row | ({"layout": found} if in_4_bits is None else {})


def _silent(stage: str, done: int, total: int) -> None:
    """Progress nobody looks at."""


def _write(out: Path, result: dict[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8", newline="\n")
    settings = result["settings"]
    lines = [
        "# auto-round on the pocket model",
        "",
        "The same weights, grid, and matrices in 4 bits in every row of a grid. Perplexity, KL divergence to bf16 "
        f"(nats) and top-1 agreement over the first {settings['tokens']:,} tokens of `{settings['text']}` in windows "
        f"of {settings['window']}, f32. Seconds are of wall time and of the processors, on a shared machine, "
        "calibration or tuning included. Made by `python -m benchmarks.autoround`; settings are in the JSON.",
        "",
        "| grid | rounded by | weights in 4 bits | perplexity | KL | KL p99 | top-1 | s | processor s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_line(name, arm, row) for name, grid in result["grids"].items() for arm, row in grid["rows"].items()),
        "",
        *(_made_by(name, grid) for name, grid in result["grids"].items()),
    ]
    out.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def _made_by(name: str, grid: dict[str, Any]) -> str:
    where, by = grid["machine"], ", ".join(f"{package} {version}" for package, version in grid["versions"].items())
    return f"- {name}: {where['cpu']}, {where['cores']} cores; {by}."


def _line(grid: str, arm: str, row: dict[str, Any]) -> str:
    weights = row["weights"]
    share = sum(weights.get(kind, 0) for kind in ("u4", "i4")) / sum(weights.values())
    return (
        f"| {grid} | {arm} | {share:.0%} | {row['perplexity']:.2f} | {row['kl_mean']:.4f} | {row['kl_p99']:.2f} | "
        f"{row['top1_agreement']:.3f} | {row['compress_seconds']:.0f} | {row['compress_cpu_seconds']:.0f} |"
    )


if __name__ == "__main__":
    main()
