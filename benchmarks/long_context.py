"""What a long conversation costs on the CPU: memory beside the plan, and quality under every option that saves some.

    python -m benchmarks.long_context --text wiki.test.raw --out benchmarks/results/long_context.json

The pocket model, int4, under GenAI's continuous batching; each row in a process of its own (`benchmarks.long_run`).
Stages, of which one alone can be asked for, the others staying in OUT as they were:

memory     peak anonymous memory of reading 512 tokens up to LENGTH, beside what the plan says.
kv         LENGTH tokens with the cache in f32, f16, u8 and u4: time, memory, and the text's perplexity.
sparse     the same with sparse attention while the prompt is read.
evict      PROMPT tokens read and NEW written with parts of the cache forgotten, beside nothing forgotten.
prefill32k 32,768 tokens in the pocket's shape, its context raised to 40,960 tokens. What it says there is
           meaningless, it was trained on 8,192; time and memory are real.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil

from benchmarks.long_report import report
from benchmarks.machine import machine, versions
from benchmarks.synthetic import config_of
from edge.runtime import plan as plans

STAGES = ("memory", "kv", "sparse", "evict", "prefill32k")
_LONG, _RAISED, _TAIL = 32768, 40960, 32
_F32 = {"INFERENCE_PRECISION_HINT": "f32"}  # as chat runs an int4 model


@click.command(help=__doc__)
@click.option("--text", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--stage", "stages", multiple=True, type=click.Choice(STAGES), help="May be repeated; left out, all.")
@click.option("--length", default=8000, show_default=True, help="Tokens read in memory, kv and sparse.")
@click.option("--prompt", default=4000, show_default=True, help="Tokens read before parts of them are forgotten.")
@click.option("--new", default=192, show_default=True, help="Tokens written after that.")
@click.option("--prompts", default=3, show_default=True, help="Different ones, for eviction.")
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), help="Keeps the exported models.")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
def main(
    text: Path, stages: tuple[str, ...], length: int, prompt: int, new: int, prompts: int, work: Path | None, out: Path
) -> None:
    """Measure the stages and write both files after each."""
    settings = {"text": text.name, "length": length, "prompt": prompt, "new": new, "prompts": prompts}
    result: dict[str, Any] = {}
    if out.is_file():
        earlier = json.loads(out.read_text(encoding="utf-8"))
        if stages and earlier["settings"] != settings:
            raise click.UsageError(f"{out} was made with {earlier['settings']}; name another, or run all stages")
        result = earlier["stages"] if stages else {}
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(text, settings, work or Path(scratch), Path(scratch))
        for name in stages or STAGES:
            click.echo(f"{name} …", err=True)
            begin = time.perf_counter()
            rows = getattr(bench, name)()
            result[name] = {
                "machine": machine(),
                "versions": versions("glm4-edge", "openvino", "openvino-genai", "nncf"),
                "stage_seconds": round(time.perf_counter() - begin, 1),
                **rows,
            }
            whole = {"settings": settings, "stages": {name: result[name] for name in STAGES if name in result}}
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8", newline="\n")
            out.with_suffix(".md").write_text(report(whole), encoding="utf-8", newline="\n")


class Bench:
    """The stages; each gives its part of the result."""

    def __init__(self, text: Path, settings: dict[str, Any], work: Path, scratch: Path) -> None:
        self._text, self._settings, self._work, self._scratch = text, settings, work, scratch
        self._threads = psutil.cpu_count(logical=False) or 1

    def memory(self) -> dict[str, Any]:
        """Peak memory of some lengths, and the plan's."""
        most = self._settings["length"]
        lengths = [512, *(n for n in (1024, 2048, 4096) if n < most), most]
        rows = [self._planned(self._pocket(), n, "u8") for n in lengths]
        rows.append(self._planned(self._pocket(), most, "u8", return_freed=False))
        return {"rows": rows}

    def kv(self) -> dict[str, Any]:
        """Every precision of the cache, beside f32."""
        n = self._settings["length"]
        rows = []
        for precision in plans.KV_PRECISIONS:
            row = self._planned(self._pocket(), n, precision)
            row |= self._quality(precision, self._properties(precision), plans.scheduler("CPU", _blocks(n)))
            rows.append(row)
        return {"rows": _compared(rows, self._scratch)}

    def sparse(self) -> dict[str, Any]:
        """Sparse attention, beside all of it; XAttention, which is wrong behind the first chunk, also in one chunk."""
        n = self._settings["length"]
        narrow = {**plans.sparse_attention("trishape"), "num_retained_recent_tokens_in_cache": 512}
        chunk = plans.scheduler("CPU", _blocks(n))
        whole = {"max_num_batched_tokens": _blocks(n) * plans.BLOCK["CPU"]}
        modes: dict[str, dict[str, Any]] = {
            "all of it": chunk,
            "all of it, in one chunk": {**chunk, **whole},
            "trishape, last 1,920": {**chunk, **_sparse(plans.sparse_attention("trishape"))},
            "trishape, last 512": {**chunk, **_sparse(narrow)},
            "xattention, in chunks of 256": {**chunk, **_sparse(plans.sparse_attention("xattention"))},
            "xattention, in one chunk": {**chunk, **whole, **_sparse(plans.sparse_attention("xattention"))},
        }
        rows = []
        for name, values in modes.items():
            click.echo(f"  {name}", err=True)
            job = {"start": 0, "tokens": n, "new": 1, "step_tokens": values["max_num_batched_tokens"]}
            ran = self._child(self._pocket(), values, self._properties("u8"), [job])
            row = {"name": name, "scheduler": values, **_figures(ran)}
            rows.append(row | self._quality(name, self._properties("u8"), values))
        return {"rows": _compared(rows, self._scratch)}

    def evict(self) -> dict[str, Any]:
        """Greedy answers with less and less kept, and what the model that keeps all thinks of them."""
        n, new, folder = self._settings["prompt"], self._settings["new"], self._pocket()
        starts = [i * n for i in range(self._settings["prompts"])]
        keeps: list[int | None] = [None, n // 2, n // 4, n // 8]
        rows = []
        for keep in keeps:
            click.echo(f"  keeping {keep or 'all'}", err=True)
            values = plans.scheduler("CPU", _blocks(n + new), evict_beyond=keep)
            jobs = [{"start": start, "tokens": n, "new": new} for start in starts]
            ran = self._child(folder, values | {"enable_prefix_caching": False}, self._properties("u8"), jobs)
            rows.append({"keep": keep, "scheduler": values, "jobs": ran["jobs"]})
        dense = [job["new_tokens"] for job in rows[0]["jobs"]]
        for number, row in enumerate(rows):
            answers = [job["new_tokens"] for job in row["jobs"]]
            files = [str(self._scratch / f"evict-{number}-{i}.npy") for i in range(len(starts))]
            jobs = [
                {"start": start, "tokens": n, "then": answer, "new": 1, "echo": True, "log_probs": file}
                for start, answer, file in zip(starts, answers, files, strict=True)
            ]
            self._child(folder, plans.scheduler("CPU", _blocks(n + new)), self._properties("u8"), jobs)
            scores = [float(np.load(file)[-new:].mean()) for file in files]
            row["log_prob_to_all"] = [round(score, 4) for score in scores]
            row["same_at_first"] = [_same(answer, other) for answer, other in zip(answers, dense, strict=True)]
            row["repetition"] = [_repetition(answer) for answer in answers]
        return {"rows": rows}

    def prefill32k(self) -> dict[str, Any]:
        """The pocket's shape with a longer context; the plan for it, and for 9B beside it."""
        folder = self._exported("pocket-40k", self._raised)
        values = plans.scheduler("CPU", _blocks(_LONG))
        job = {"start": 0, "tokens": _LONG - _TAIL, "new": _TAIL}
        ran = self._child(folder, values, self._properties("u8"), [job])
        shape = plans.Shape.read(folder)
        return {
            "run": {"folder": "the pocket's weights, context 40,960", "scheduler": values, **_figures(ran)},
            "plan": self._plan(shape, _LONG, "u8"),
            "nine": [self._nine(context, kv) for context in (_LONG, 4 * _LONG) for kv in ("u8", "u4")],
        }

    def _planned(
        self, folder: Path, n: int, precision: plans.KvPrecision, *, return_freed: bool = True
    ) -> dict[str, Any]:
        click.echo(f"  {n:,} tokens, {precision}", err=True)
        job = {"start": 0, "tokens": n, "new": 1}
        values = plans.scheduler("CPU", _blocks(n))
        ran = self._child(folder, values, self._properties(precision), [job], return_freed=return_freed)
        planned = self._plan(plans.Shape.read(folder), n, precision)
        off = planned["needed_bytes"] / ran["peak_anonymous"] - 1
        return {
            "name": precision,
            "return_freed": return_freed,
            "tokens": n,
            **_figures(ran),
            "plan": planned,
            "plan_off": round(off, 4),
        }

    def _quality(self, name: str, properties: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
        """Log-probabilities of the text; in a run of its own, since asking for them costs time and memory."""
        file = self._scratch / f"{name.replace(' ', '-').replace(',', '')}.npy"
        job = {
            "start": 0, "tokens": self._settings["length"], "new": 1, "echo": True, "log_probs": str(file),
            "step_tokens": values["max_num_batched_tokens"],
        }  # fmt: skip
        self._child(self._pocket(), values, properties, [job])
        return {"log_probs": file.name}

    def _plan(self, shape: plans.Shape, context: int, precision: plans.KvPrecision) -> dict[str, Any]:
        memory = psutil.virtual_memory()
        made = plans.plan(
            shape, context, kv_precision=precision, available=memory.available, total=memory.total,
            threads=self._threads,
        )  # fmt: skip
        return {**asdict(made), "needed_bytes": made.needed_bytes, "verdict": made.verdict}

    def _nine(self, context: int, precision: Any) -> dict[str, Any]:
        """The plan for GLM-4-9B on a laptop: 16 GB, 13 of them free, eight threads."""
        config = config_of()
        size = _nine_bytes()
        shape = plans.Shape(
            layers=40, heads=32, kv_heads=2, head_dim=128, hidden=4096, intermediate=13696, vocab=config["vocab_size"],
            context_length=config["max_position_embeddings"], weight_bytes=size,
            table_bytes=config["vocab_size"] * 4096, graph_bytes=4_000_000,
        )  # fmt: skip
        made = plans.plan(
            shape, context, kv_precision=precision, available=13_000_000_000, total=16_000_000_000, threads=8
        )
        flop = plans.prefill_flop(shape, context)
        return {**asdict(made), "needed_bytes": made.needed_bytes, "verdict": made.verdict, "prefill_flop": flop}

    def _properties(self, precision: str) -> dict[str, Any]:
        return {**_F32, "KV_CACHE_PRECISION": precision}

    def _pocket(self) -> Path:
        from edge.model import pocket

        return self._exported("pocket", lambda: pocket.fetch(lambda stage, done, total: None))

    def _raised(self) -> Path:
        """The pocket's checkpoint with another context in its config."""
        from edge.model import pocket

        copy = self._scratch / "raised"
        shutil.copytree(pocket.fetch(lambda stage, done, total: None), copy)
        config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
        config["max_position_embeddings"] = _RAISED
        (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return copy

    def _exported(self, name: str, checkpoint: Callable[[], Path]) -> Path:
        folder = self._work / name
        if not (folder / "edge.json").is_file():
            click.echo(f"  exporting {name} …", err=True)
            command = [sys.executable, "-m", "edge", "export", str(checkpoint()), str(folder)]
            subprocess.run(command, check=True, capture_output=True)
        return folder

    def _child(
        self,
        folder: Path,
        values: dict[str, Any],
        properties: dict[str, Any],
        jobs: list[dict[str, Any]],
        *,
        return_freed: bool = True,
    ) -> dict[str, Any]:
        spec = {"folder": str(folder), "text": str(self._text), "scheduler": values, "properties": properties,
                "jobs": jobs, "return_freed": return_freed}  # fmt: skip
        command = [sys.executable, "-m", "benchmarks.long_run", json.dumps(spec)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise click.ClickException(f"the run with {values} ended with {done.returncode}")
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        if bad := [job["status"] for job in found["jobs"] if job["status"] != "FINISHED"]:
            raise click.ClickException(f"the run with {values} was not finished: {bad[0]}")
        return found


def _blocks(tokens: int) -> int:
    return plans.kv_blocks(tokens) + 1


def _sparse(config: dict[str, Any]) -> dict[str, Any]:
    return {"use_sparse_attention": True, "sparse_attention_config": config}


def _figures(ran: dict[str, Any]) -> dict[str, Any]:
    """Of a child with one job: its own figures and the job's, the tokens it wrote left out."""
    job = {key: value for key, value in ran["jobs"][0].items() if key != "new_tokens"}
    return {key: value for key, value in ran.items() if key != "jobs"} | job


def _compared(rows: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Perplexity of each row in parts of the text, and how far its log-probabilities are from the first row's."""
    base = np.load(folder / rows[0]["log_probs"])[1:].astype(np.float64)
    for row in rows:
        own = np.load(folder / row.pop("log_probs"))[1:].astype(np.float64)
        edges = [0, *(n for n in (2048, 4096) if n < len(own)), len(own)]
        row["perplexity"] = {f"{a}-{b}": round(float(np.exp(-own[a:b].mean())), 4) for a, b in pairwise(edges)}
        row["perplexity_all"] = round(float(np.exp(-own.mean())), 4)
        row["mean_difference"] = round(float(np.abs(own - base).mean()), 5)
    return rows


def _same(answer: list[int], other: list[int]) -> int:
    """How many tokens both begin with."""
    return next((i for i, (a, b) in enumerate(zip(answer, other, strict=True)) if a != b), len(answer))


def _repetition(answer: list[int]) -> float:
    """Share of the answer's four-token pieces that stood there before; high where it goes round in circles."""
    pieces = [tuple(answer[i : i + 4]) for i in range(len(answer) - 3)]
    return round(1 - len(set(pieces)) / max(len(pieces), 1), 4)


def _nine_bytes() -> int:
    """Size of a 9B export, as `benchmarks.export_peak` found it."""
    path = Path(__file__).parent / "results" / "export_9b.json"
    return int(json.loads(path.read_text(encoding="utf-8"))["medians"]["ours"]["model_bytes"])


if __name__ == "__main__":
    main()
