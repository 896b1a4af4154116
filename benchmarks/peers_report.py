"""What `peers` measured, in figures, ratios and tables. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from edge.bench import summary
from edge.bench.case import Measured
from edge.bench.compare import Difference, compare, compare_values

_STARTS = {"loaded_seconds": "start to loaded", "first_token_seconds": "start to first token"}
FEWEST = 6
"""Rounds of which `edge.bench.compare` tells anything."""
_ROWS: tuple[tuple[str, str, float, str], ...] = (
    ("loaded_seconds", "process start to loaded (ours: and warmed up), s", 1.0, ".1f"),
    ("first_token_seconds", "process start to first token, s", 1.0, ".1f"),
    ("prefill_rate", "prefill, tokens/s", 1.0, ",.0f"),
    ("decode_rate", "decode, tokens/s", 1.0, ".1f"),
    ("anonymous_bytes", "peak anonymous memory, GB", 1e9, ".2f"),
    ("resident_bytes", "peak resident memory, GB", 1e9, ".2f"),
)


def figures(measured: Measured, starts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds; of memory the largest."""
    (found,) = summary.figures(measured)
    return {
        **{name: statistics.median(start[name] for start in starts) for name in _STARTS},
        # not `found.prefill_rate`: answers of a round count there as made at once
        "prefill_rate": statistics.median(each.prompt_tokens / each.ttft_seconds for _, each in measured.samples),
        "decode_rate": found.decode_rate,
        "anonymous_bytes": measured.memory["anonymous"],
        "resident_bytes": measured.memory["resident"],
        "busy_elsewhere": found.busy_elsewhere,
    }


def ratios(
    ours: str, measured: Mapping[str, Measured], starts: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, dict[str, Any]]:
    """Our times as multiples of each other's, with the interval of `edge.bench.compare`."""
    found: dict[str, dict[str, Any]] = {}
    for name, peer in measured.items():
        if name == ours:
            continue
        differences = compare(peer, measured[ours])
        for key, words in _STARTS.items():
            theirs, mine = ([start[key] for start in starts[who]] for who in (name, ours))
            differences.append(compare_values(peer.cases()[0], words, theirs, mine))
        found[name] = {each.metric: _told(each) for each in differences}
    return found


def _told(difference: Difference) -> dict[str, Any]:
    told = asdict(difference)
    return {name: told[name] for name in ("before", "after", "ratio", "low", "high", "pairs")} | {
        "verdict": difference.verdict
    }


def table(result: Mapping[str, Any]) -> str:
    """In Markdown, of the parts that are there."""
    shape = result["shape"]
    lines = [f"# Side by side: the {shape['name']} shape, {_parameters(shape['parameters'])} parameters", ""]
    lines.append("Made by `python -m benchmarks.peers`; raw samples are in the JSON.")
    if quality := result.get("quality"):
        rows = _quality(quality) if quality["rows"] else [f"Not measured: {quality['left_out']}."]
        lines += ["", "## Quality", "", *rows]
    if speed := result.get("speed"):
        lines += ["", "## Speed", "", *_speed(speed)]
    return "\n".join(lines) + "\n"


def _parameters(count: int) -> str:
    return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.0f}M"


def _quality(part: Mapping[str, Any]) -> list[str]:
    lines = [
        f"KL divergence to bf16 (nats), top-1 agreement and perplexity over the first {part['tokens']:,} tokens of "
        f"`{part['text']}` in windows of {part['window']}; as each runs, and of the weights alone in f32 where the "
        f"runtime can. {_where(part)}",
        "",
        "| | MB | KL | KL p99 | top-1 | perplexity | KL, weights alone | perplexity, weights alone |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in part["rows"].items():
        run, alone = row["as_run"], row.get("weights_alone")
        size = part["model_bytes"].get(name)
        cells = [
            name, "" if size is None else f"{size / 1e6:.0f}", f"{run['kl_mean']:.4f}", f"{run['kl_p99']:.2f}",
            f"{run['top1_agreement']:.3f}", f"{run['perplexity']:.2f}",
            *(["", ""] if alone is None else [f"{alone['kl_mean']:.4f}", f"{alone['perplexity']:.2f}"]),
        ]  # fmt: skip
        lines.append(_row(cells))
    return lines


def _speed(part: Mapping[str, Any]) -> list[str]:
    settings, found, names = part["settings"], part["figures"], list(part["figures"])
    lines = [
        f"{settings['prompt_tokens']:,} random tokens in, {settings['new_tokens']} out, greedy; medians of "
        f"{settings['rounds']} rounds in turn, each in a new process with {settings['asks']} answers after the first; "
        f"llama.cpp with {settings['threads']} threads. {_where(part)}",
        "",
        _row(["", *names]),
        "| --- " * (1 + len(names)) + "|",
        *(_row([words, *(_cell(found[name][key], unit, form) for name in names)]) for key, words, unit, form in _ROWS),
        _row(["model, MB", *(f"{part['model_bytes'][name] / 1e6:,.0f}" for name in names)]),
        _row(["processors busy with other work", *(_cell(found[name]["busy_elsewhere"], 1, ".0%") for name in names)]),
    ]
    if part["ours_to_peer"]:
        lines += [
            "", "Our time as a multiple of theirs, with the interval that 95 of 100 repetitions would meet"
            + (":" if part["settings"]["rounds"] >= FEWEST else ", roughly: the rounds are few."), "",
            _row(["", *part["ours_to_peer"]]), "| --- " * (1 + len(part["ours_to_peer"])) + "|",
        ]  # fmt: skip
        for metric in next(iter(part["ours_to_peer"].values())):
            each = [found[metric] for found in part["ours_to_peer"].values()]
            lines.append(_row([metric, *(f"{e['ratio']:.2f} ({e['low']:.2f} to {e['high']:.2f})" for e in each)]))
    lines += ["", *(f"{name}: {what}." for name, what in part["what"].items())]
    return [*lines, *(f"{name} was not measured: {why}." for name, why in part.get("missing", {}).items())]


def _where(part: Mapping[str, Any]) -> str:
    where = part["machine"]
    made = "; ".join(
        f"{name}: " + ", ".join(f"{package} {version}" for package, version in found.items())
        for name, found in part["versions"].items()
    )
    return f"{where['cpu']}, {where['cores']} cores, {where['memory_bytes'] / 1e9:.0f} GB. {made}."


def _cell(value: float | None, unit: float, form: str) -> str:
    return "" if value is None else format(value / unit, form)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
