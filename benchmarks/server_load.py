"""How a server does under load: throughput, waiting and errors by the number of clients, and memory over many requests.

    python -m benchmarks.server_load MODEL --out benchmarks/results/server_load.json

The server is `glm4-edge serve` in a process of its own, asked over the loopback by threads of this one, which share its
cores. Each client asks the next question when it has the answer to its last; all questions differ from the first word
on, so that no prefix is shared but the template's.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import httpx
import psutil

from benchmarks.machine import machine, versions

_TOPICS = (
    "rivers",
    "the moon",
    "bread",
    "glass",
    "bees",
    "bridges",
    "salt",
    "clocks",
    "rain",
    "paper",
    "wolves",
    "tea",
)
_ANSWER_SECONDS = 600


@dataclass(frozen=True)
class Asked:
    """One request and what came of it."""

    status: int
    """Of HTTP; 0: the stream ended with an error, or there was no connection."""
    seconds: float
    ttft_seconds: float | None
    """To the first piece of the answer's text."""
    tokens: int


@click.command(help=__doc__)
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--device", default="CPU", show_default=True)
@click.option("--context", default=2048, show_default=True, help="A small cache is full early; then it grows no more.")
@click.option("--clients", default="1,4,16", show_default=True, help="Numbers of them, one after the other.")
@click.option("--requests", "count", default=64, show_default=True, help="For each number of clients.")
@click.option("--tokens", default=64, show_default=True, help="At most, in an answer.")
@click.option("--soak", default=1000, show_default=True, help="Requests while the memory is looked at.")
@click.option("--soak-clients", default=4, show_default=True)
@click.option("--soak-tokens", default=8, show_default=True)
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
def main(
    model: Path, device: str, context: int, clients: str, count: int, tokens: int, soak: int, soak_clients: int,
    soak_tokens: int, out: Path,
) -> None:  # fmt: skip
    """Ask, and write both files."""
    levels = [int(each) for each in clients.split(",")]
    with _served(model, device, context=context, queue=max([*levels, soak_clients])) as (address, process):
        _ask_all(address, 4, 4, tokens, "warm-up")  # each answer at once has buffers of its own
        loads = []
        for level in levels:
            begun = time.perf_counter()
            asked = _ask_all(address, level, count, tokens, f"{level} clients")
            loads.append({"clients": level, **figures(asked, time.perf_counter() - begun)})
        memory = [{"requests": 0, "rss_bytes": _resident(process)}]
        wrong: Counter[int] = Counter()
        step = max(1, soak // 20)
        for done in range(0, soak, step):
            size = min(step, soak - done)
            asked = _ask_all(address, soak_clients, size, soak_tokens, f"memory, {done} of {soak}")
            wrong.update(one.status for one in asked if one.status != 200)
            memory.append({"requests": done + size, "rss_bytes": _resident(process)})
        manifest = json.loads((model / "edge.json").read_text(encoding="utf-8"))
    result = {
        "machine": machine(),
        "versions": versions("glm4-edge", "openvino", "openvino-genai", "fastapi", "uvicorn"),
        "model": manifest["source"]["description"], "device": device,
        "settings": {"context": context, "requests": count, "tokens": tokens, "soak_clients": soak_clients,
                     "soak_tokens": soak_tokens},
        "loads": loads,
        "soak": {"requests": soak, "errors": dict(wrong), "memory": memory},
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8", newline="\n")
    out.with_suffix(".md").write_text(report(result), encoding="utf-8", newline="\n")
    click.echo(report(result))


def _resident(process: psutil.Process) -> int:
    """Bytes of a process and of those it started: the model runs in one of its own."""
    return sum(int(each.memory_info().rss) for each in (process, *process.children(recursive=True)))


@contextmanager
def _served(model: Path, device: str, *, context: int, queue: int) -> Iterator[tuple[str, psutil.Process]]:
    """The address of a server that is ready, and its process."""
    command = [
        sys.executable,
        "-m",
        "edge",
        "serve",
        str(model),
        "--device",
        device,
        "--port",
        "0",
        "--queue",
        str(queue),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, encoding="utf-8") as process:
        lines: list[str] = []
        try:
            assert process.stderr is not None
            address = ""
            for line in process.stderr:
                lines.append(line)
                if found := re.match(r"(http://\S+)/v1 is the address", line):
                    address = found[1]
                if line.startswith("Ready: "):
                    break
            else:
                raise SystemExit("the server did not come up:\n" + "".join(lines))
            # Read on, or it stops where the pipe is full.
            threading.Thread(target=lambda: [None for _ in process.stderr or ()], daemon=True).start()
            yield address, psutil.Process(process.pid)
        finally:
            process.terminate()


def _ask_all(address: str, clients: int, count: int, tokens: int, what: str) -> list[Asked]:
    """Ask `count` questions from so many threads."""
    click.echo(f"\r{what:40}", nl=False, err=True)
    limits = httpx.Limits(max_connections=clients)
    with (
        httpx.Client(base_url=address, timeout=_ANSWER_SECONDS, limits=limits) as http,
        ThreadPoolExecutor(clients) as pool,
    ):
        return list(pool.map(lambda number: _ask(http, number, tokens), range(count)))


def _ask(http: httpx.Client, number: int, tokens: int) -> Asked:
    question = f"{number}, {time.monotonic_ns()}: tell me something about {_TOPICS[number % len(_TOPICS)]}."
    body = {"messages": [{"role": "user", "content": question}], "stream": True, "max_tokens": tokens, "temperature": 0,
            "stream_options": {"include_usage": True}}  # fmt: skip
    begun = time.perf_counter()
    ttft, made, status, over = None, 0, 0, False
    try:
        with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            status = answer.status_code
            for line in answer.iter_lines() if status == 200 else ():
                over |= line == "data: [DONE]"
                if over or not line.startswith("data: "):
                    continue
                piece = json.loads(line.removeprefix("data: "))
                if ttft is None and piece.get("choices") and piece["choices"][0]["delta"].get("content"):
                    ttft = time.perf_counter() - begun
                made = (piece.get("usage") or {}).get("completion_tokens", made)
    except httpx.HTTPError:
        status = 0
    return Asked(status if over or status != 200 else 0, time.perf_counter() - begun, ttft, made)


def figures(asked: Sequence[Asked], seconds: float) -> dict[str, Any]:
    """What a number of clients got.

    Args:
        seconds: that all of it took.
    """
    good = [one for one in asked if one.status == 200]
    return {
        "requests": len(asked), "errors": dict(Counter(one.status for one in asked if one.status != 200)),
        "seconds": round(seconds, 3), "requests_per_second": round(len(good) / seconds, 3),
        "tokens_per_second": round(sum(one.tokens for one in good) / seconds, 2),
        "latency_seconds": _spread([one.seconds for one in good]),
        "ttft_seconds": _spread([one.ttft_seconds for one in good if one.ttft_seconds is not None]),
        "rows": [asdict(one) for one in asked],
    }  # fmt: skip


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    """Percentiles; of one value, that value."""
    if not values:
        return None
    cuts = statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else [values[0]] * 99
    return {f"p{percent}": round(cuts[percent - 1], 4) for percent in (50, 95, 99)}


def report(result: Mapping[str, Any]) -> str:
    """The figures, as Markdown."""
    settings, machine_, soak = result["settings"], result["machine"], result["soak"]
    lines = [
        "# A server under load",
        "",
        f"{result['model']}. {result['device']}, {machine_['cpu']}, {machine_['cores']} cores, shared by the server "
        f"and its clients; a context of {settings['context']:,} tokens; "
        f"openvino-genai {result['versions']['openvino-genai']}. Greedy answers of at most "
        f"{settings['tokens']} tokens, streamed; seconds. Made by `python -m benchmarks.server_load`.",
        "",
        "| clients | requests | errors | requests/s | tokens/s | latency p50 | p95 | p99 | TTFT p50 | p95 | p99 |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for load in result["loads"]:
        cells = [load["clients"], load["requests"], sum(load["errors"].values()), f"{load['requests_per_second']:.2f}",
                 f"{load['tokens_per_second']:.1f}"]  # fmt: skip
        for spread in (load["latency_seconds"], load["ttft_seconds"]):
            cells += ["-"] * 3 if spread is None else [f"{spread[each]:.2f}" for each in ("p50", "p95", "p99")]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    memory = soak["memory"]
    later = memory[len(memory) // 4 :]  # the first quarter fills the prefix cache
    growth = (later[-1]["rss_bytes"] - later[0]["rss_bytes"]) / 1e6
    lines += [
        "",
        "Memory of the server and its model's process (resident) "
        f"over {soak['requests']:,} more requests of {settings['soak_tokens']} tokens "
        f"by {settings['soak_clients']} clients, {sum(soak['errors'].values())} errors: "
        f"{memory[0]['rss_bytes'] / 1e6:,.0f} MB before, {later[0]['rss_bytes'] / 1e6:,.0f} MB after "
        f"{later[0]['requests']:,}, {memory[-1]['rss_bytes'] / 1e6:,.0f} MB after {memory[-1]['requests']:,} "
        f"({growth:+.1f} MB since). The first quarter fills the prefix cache.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
