"""What a user of the pocket model waits for: the export, the first answer, and the speed of the next ones.

    python -m benchmarks.pocket --out benchmarks/results/pocket.json

Exports the pocket model anew, asks one question in a process of its own, and then compares decoding and prefill under
the settings that chat chooses with OpenVINO's own defaults, in turn, on prompts that no cache has seen.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import click
import psutil

from benchmarks.machine import machine, versions

_QUESTION = "What is the capital of France?"


@click.command(help=__doc__)
@click.option("--repeats", default=5, show_default=True, help="Of each comparison; the first of each is not counted.")
@click.option("--new-tokens", default=96, show_default=True)
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
def main(repeats: int, new_tokens: int, out: Path) -> None:
    """Measure and write the JSON."""
    from edge.model import pocket

    pocket.fetch(lambda stage, done, total: None)  # the download is the network's time, not ours
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "pocket"
        click.echo("export …", err=True)
        export = _watch([sys.executable, "-m", "edge", "export", "pocket", str(folder)])
        manifest = json.loads((folder / "edge.json").read_text(encoding="utf-8"))
        click.echo("first answer …", err=True)
        answers = [
            _watch([sys.executable, "-m", "edge", "chat", str(folder), "--temperature", "0"], _QUESTION)
            for _ in range(3)
        ]
        click.echo("settings …", err=True)
        speeds = _speeds(folder, repeats, new_tokens)
    export["last_line"] = export["last_line"].replace(str(folder), "pocket")  # no path of this machine
    result = {
        "machine": machine(),
        "versions": versions("glm4-edge", "openvino", "openvino-genai", "nncf"),
        "settings": {"repeats": repeats, "new_tokens": new_tokens},
        "export": export,
        "model_bytes": sum(size for name, size in manifest["bytes"].items() if name.startswith("openvino_model")),
        "checks": manifest["checks"],
        "first_answer": answers,
        "speeds": speeds,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
    click.echo(f"export {export['wall_seconds']:.0f} s, {export['peak_rss_bytes'] / 1e9:.1f} GB at its peak")
    click.echo(f"start to end of the answer {statistics.median(answer['wall_seconds'] for answer in answers):.1f} s")
    for name, row in speeds.items():
        click.echo(f"{name}: prefill {row['prefill_tokens_per_second']:.0f}, decode "
                   f"{row['decode_tokens_per_second']:.0f} tokens/s")  # fmt: skip


def _watch(command: list[str], text: str | None = None) -> dict[str, Any]:
    """Wall and CPU time and peak memory of a process, and what it said."""
    begin = time.perf_counter()
    child = psutil.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    peak, cpu = 0, 0.0
    done = threading.Event()

    def look() -> None:
        nonlocal peak, cpu
        while not done.wait(0.02):
            try:
                peak = max(peak, child.memory_info().rss)
                cpu = sum(child.cpu_times()[:2])
            except psutil.Error:
                return

    watcher = threading.Thread(target=look)
    watcher.start()
    said, beside = child.communicate(text)
    wall = time.perf_counter() - begin
    done.set()
    watcher.join()
    if child.returncode:
        raise click.ClickException(f"{' '.join(command[2:])} failed: {beside}")
    return {"wall_seconds": round(wall, 2), "cpu_seconds": round(cpu, 2), "peak_rss_bytes": peak,
            "stdout": said.strip() if text else None, "last_line": beside.strip().splitlines()[-1]}  # fmt: skip


def _speeds(folder: Path, repeats: int, new_tokens: int) -> dict[str, Any]:
    from edge.messages import Message, Sampling
    from edge.runtime.engine import Engine
    from edge.runtime.settings import Settings

    settings: dict[str, dict[str, Any]] = {"as chat runs it": {}, "OpenVINO's defaults": {}}
    settings["OpenVINO's defaults"] = {"INFERENCE_PRECISION_HINT": None}
    engines = {name: Engine.load(folder, Settings("CPU", properties)) for name, properties in settings.items()}
    words = (folder / "tokenizer.json").read_text(encoding="utf-8").split('"')
    words = [word for word in words if word.isascii() and word.isalpha()]
    rng = random.Random(0)
    rows: dict[str, Any] = {
        name: {"properties": settings[name], "ttft": [], "tpot": [], "prompt": []} for name in engines
    }
    for turn in range(repeats + 1):
        for name, engine in engines.items():
            prompt = " ".join(rng.choices(words, k=120))
            *_, last = engine.stream([Message("user", prompt)], Sampling(temperature=0, max_new_tokens=new_tokens))
            assert last.usage is not None
            if turn:
                rows[name]["ttft"].append(last.usage.ttft_seconds)
                rows[name]["tpot"].append(last.usage.tpot_seconds)
                rows[name]["prompt"].append(last.usage.prompt_tokens)
    for row in rows.values():
        rates = [tokens / seconds for tokens, seconds in zip(row["prompt"], row["ttft"], strict=True)]
        row["prefill_tokens_per_second"] = round(statistics.median(rates), 1)
        tpots = [seconds for seconds in row["tpot"] if seconds]
        row["decode_tokens_per_second"] = round(1 / statistics.median(tpots), 1) if tpots else None
    return rows


if __name__ == "__main__":
    main()
