"""The README's table of measured numbers, written from `benchmarks/results`.

    python -m benchmarks.readme

Every figure is one of a result file, said with the machine that it was measured on; a line whose file is not there is
left out. A test holds the README to what this would write.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from benchmarks.peers_report import FEWEST

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- measured: written by python -m benchmarks.readme -->", "<!-- /measured -->"
_OURS = "glm4-edge"
_ROAD = "layer, triton, matmul"
"""Of the reference, what it takes by itself."""
_SHAPES = {"pocket": "the pocket model", "9b": "GLM-4-9B's size, random weights"}

_ELSEWHERE = ("ITREX",)
"""Has a row in the peers' own table: it runs our very model, and these lines are long enough."""

Line = tuple[str, str, str, str]
"""What, of ours, of others, on which machine."""


@click.command(help=__doc__)
def main() -> None:
    """Write it into the README."""
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    path.write_text(put(text, table(RESULTS)), encoding="utf-8", newline="\n")


def put(text: str, made: str) -> str:
    """The text with what stands between the marks replaced.

    Raises:
        ClickException: the marks are not there, or not once.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after:
        raise click.ClickException(f"the README needs one line {BEGIN} and below it one {END}")
    return f"{before}{begin}\n{made}{end}{after}"


def table(results: Path) -> str:
    """In Markdown, of the result files that are there."""
    lines = [*_export(results), *_quality(results), *_answer(results), *_speeds(results), *_reference(results)]
    return "\n".join(
        [
            f"| | {_OURS} | others, on the same weights | on |",
            "| --- | --- | --- | --- |",
            *(f"| {' | '.join(line)} |" for line in lines),
            "",
            "Written by `python -m benchmarks.readme` from `benchmarks/results`, where machines, versions and raw",
            "samples lie. OpenVINO GenAI stands for its own defaults, on a model made with optimum-intel's",
            "4-bit defaults. Memory is the peak of what a program holds itself, without cached files.",
            "A perplexity in short windows is higher than one of a whole text: compare it within its line only.",
            "",
        ]
    )


def _read(results: Path, name: str) -> dict[str, Any] | None:
    path = results / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _on(machine: Mapping[str, Any]) -> str:
    name = re.sub(r"\((R|TM)\)|\b(Processor|CPU)\b|@.*", " ", machine["cpu"])
    return f"{' '.join(name.split())}, {machine['cores']} cores"


def _export(results: Path) -> Iterator[Line]:
    for name in ("export_9b", "export_9b_xeon"):
        found = _read(results, name)
        if found is None:
            continue
        medians, settings = found["medians"], found["settings"]
        cells = {
            who: f"{row['wall_seconds']:.0f} s, {row['peak_anonymous_bytes'] / 1e9:.1f} GB of memory"
            + (
                ", the proof included, no PyTorch"
                if who == "ours"
                else f", {row['temporary_disk_bytes'] / 1e9:.1f} GB of temporary disk, no proof"
            )
            for who, row in medians.items()
        }
        times = "one run" if settings["repeats"] == 1 else f"median of {settings['repeats']}"
        what = f"int4 export at GLM-4-9B's size, {'cold' if settings['cold'] else 'warm'} disk, {times}"
        yield what, cells.pop("ours"), _beside(cells), _on(found["machine"])


def _beside(cells: Mapping[str, str]) -> str:
    return "; ".join(f"{who} {said}" for who, said in cells.items() if who not in _ELSEWHERE)


def _quality(results: Path) -> Iterator[Line]:
    found = (_read(results, "peers_pocket") or {}).get("quality")
    if not found or _OURS not in found["rows"]:
        return
    rows, sizes, where = found["rows"], found["model_bytes"], _on(found["machine"])

    def line(what: str, said: dict[str, str]) -> Line:
        return what, said.pop(_OURS), _beside(said), where

    yield line("the pocket model in int4, on disk", {who: f"{size / 1e6:.0f} MB" for who, size in sizes.items()})
    run = {who: row["as_run"] for who, row in rows.items()}
    text = "WikiText-2" if found["text"] == "wiki.test.raw" else found["text"]
    said = {who: f"{row['perplexity']:.1f}" for who, row in run.items()}
    yield line(f"its perplexity on {text} ({found['tokens']:,} tokens in windows of {found['window']})", said)
    said = {who: f"{row['kl_mean']:.3f}, {row['top1_agreement']:.0%}" for who, row in run.items() if who != "bf16"}
    yield line("its KL divergence to bf16 in nats, and how often both like the same token best", said)


def _answer(results: Path) -> Iterator[Line]:
    found = _read(results, "pocket")
    if found is not None:
        seconds = statistics.median(answer["wall_seconds"] for answer in found["first_answer"])
        what = "from typing the command to its whole first answer, once exported"
        yield what, f"{seconds:.1f} s", "", _on(found["machine"])


def _speeds(results: Path) -> Iterator[Line]:
    """Side by side where that was measured; of the pocket model alone where it was not yet."""
    alone = _read(results, "pocket")
    for shape, words in _SHAPES.items():
        found = (_read(results, f"peers_{shape}") or {}).get("speed")
        if found and _OURS in found["figures"]:
            figures, settings = found["figures"], found["settings"]
            asked = f"{words}, {settings['prompt_tokens']:,} tokens in"
            if settings.get("rounds", FEWEST) < FEWEST:
                asked += f", medians of {settings['rounds']} rounds"
            firsts = {who: f"{row['first_token_seconds']:.1f} s" for who, row in figures.items()}
            yield f"{asked}: process start to first token", firsts.pop(_OURS), _beside(firsts), _on(found["machine"])
            rates = {who: _rates(row["prefill_rate"], row["decode_rate"]) for who, row in figures.items()}
            for who, told in found.get("ours_to_peer", {}).items():
                rates[who] += _alike(told)
            yield f"{asked}: prefill, decode", rates.pop(_OURS), _beside(rates), _on(found["machine"])
        elif shape == "pocket" and alone is not None:
            row = alone["speeds"]["as chat runs it"]
            rates = {_OURS: _rates(row["prefill_tokens_per_second"], row["decode_tokens_per_second"])}
            yield f"{words}: prefill, decode", rates[_OURS], "", _on(alone["machine"])


def _rates(prefill: float, decode: float | None) -> str:
    return f"{prefill:,.0f} and {'—' if decode is None else f'{decode:.{0 if decode >= 20 else 1}f}'} tokens/s"


def _alike(told: Mapping[str, Mapping[str, Any]]) -> str:
    """Which of the two rates is not told from ours by what was measured."""
    names = (("TTFT", "prefill"), ("TPOT", "decode"))
    found = [(told.get(metric, {}), name) for metric, name in names]
    alike = [
        name for each, name in found if each.get("verdict") == "no difference" and each.get("pairs", FEWEST) >= FEWEST
    ]
    return f" ({' and '.join(alike)}: no difference)" if alike else ""


def _reference(results: Path) -> Iterator[Line]:
    found = ((_read(results, "reference_cuda") or {}).get("gpu") or {}).get("9b")
    if found:
        rates = {name: f"{road['decode_tokens_per_s']:.0f}" for name, road in found["roads"].items()}
        others = {name: f"{rate} tokens/s" for name, rate in rates.items() if name.startswith("transformers")}
        yield (
            "bf16 reference, GLM-4-9B's size, random weights: decode",
            f"{rates[_ROAD]} tokens/s",
            _beside(others),
            f"one {found['gpu']['name']}",
        )


if __name__ == "__main__":
    main()
