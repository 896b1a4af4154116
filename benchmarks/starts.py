"""How long it takes until a model can answer, and what a kept compiled model saves of it.

    python -m benchmarks.starts MODEL --device CPU --out benchmarks/results/starts_cpu.json
    python -m benchmarks.starts MODEL --device NPU --rehearse --out benchmarks/results/starts_npu_rehearsed.json

Each start is a process of its own. Rounds of three: without OpenVINO's CACHE_DIR, with an empty one, with the same
again.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.machine import machine, versions
from edge.npu import REHEARSED

_KINDS = ("not kept", "kept, first start", "kept, second start")


@click.command(help=__doc__)
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--device", default="CPU", show_default=True)
@click.option("--rehearse", is_flag=True, help="Run the NPU's shapes on the CPU.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
def main(model: Path, device: str, rehearse: bool, rounds: int, out: Path) -> None:
    """Measure and write the JSON and a table beside it."""
    samples: dict[str, list[dict[str, float]]] = {kind: [] for kind in _KINDS}
    blob = 0
    for number in range(rounds):
        click.echo(f"round {number + 1} of {rounds} …", err=True)
        with tempfile.TemporaryDirectory() as cache:
            for kind in _KINDS:
                samples[kind].append(_start(model, device, rehearse, None if kind == _KINDS[0] else cache))
            blob = sum(path.stat().st_size for path in Path(cache).rglob("*") if path.is_file())
    result = {
        "machine": machine(), "versions": versions("glm4-edge", "openvino", "openvino-genai"), "device": device,
        "ran": REHEARSED if rehearse else None, "samples": samples, "kept_bytes": blob,
        "weight_bytes": (model / "openvino_model.bin").stat().st_size,
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8", newline="\n")
    out.with_suffix(".md").write_text(_table(result), encoding="utf-8", newline="\n")
    click.echo(_table(result))


def _start(model: Path, device: str, rehearse: bool, cache: str | None) -> dict[str, float]:
    """Seconds of one start in a process of its own."""
    spec = {"model": str(model), "device": device, "rehearse": rehearse, "cache": cache}
    done = subprocess.run(
        [sys.executable, "-c", "import sys\nfrom benchmarks.starts import child\nchild(sys.argv[1])", json.dumps(spec)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    seconds: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def child(question: str) -> None:
    """Load and make one token."""
    from edge.runtime.engine import Engine
    from edge.runtime.settings import Settings

    spec: dict[str, Any] = json.loads(question)
    # None would leave the engine to keep it on its own.
    properties = {"CACHE_DIR": spec["cache"] or ""}
    begin = time.perf_counter()
    with Engine.load(Path(spec["model"]), Settings(spec["device"], properties, rehearse=spec["rehearse"])) as engine:
        loaded = time.perf_counter()
        engine.warm_up()
        print(json.dumps({"load_seconds": loaded - begin, "first_token_seconds": time.perf_counter() - loaded}))


def _table(result: dict[str, Any]) -> str:
    rows = [
        f"Starts on {result['device']}" + (f", rehearsed {result['ran']}" if result["ran"] else "") + ", "
        f"{result['machine']['cores']} cores of {result['machine']['cpu']}: median, smallest and largest of "
        f"{len(result['samples'][_KINDS[0]])} in seconds. Kept: {result['kept_bytes'] / 1e6:,.0f} MB, of "
        f"{result['weight_bytes'] / 1e6:,.0f} MB of weights.",
        "", "| compiled model | load | first token |", "| --- | --- | --- |",
    ]  # fmt: skip
    for kind, starts in result["samples"].items():
        told = [_spread([start[name] for start in starts]) for name in ("load_seconds", "first_token_seconds")]
        rows.append(f"| {kind} | {' | '.join(told)} |")
    return "\n".join(rows) + "\n"


def _spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"


if __name__ == "__main__":
    main()
