"""A record or a comparison as a table: for a terminal, as Markdown, as CSV. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from edge.bench.case import Measured
from edge.bench.compare import Difference
from edge.bench.record import Record
from edge.bench.summary import Figures, figures, spread

_HEAD = ("case", "TTFT", "prefill", "TPOT", "p99", "decode", "all", "of the limit")
_FOOT = (
    "TTFT: to the first token, median (90th percentile). TPOT: for each further token, median over answers; p99: of "
    "a hundred times between tokens the slowest, too few where there are not so many. prefill, decode, all: tokens a "
    "second of the prompt, of one answer, of all answers with their prefill. Of the limit: how much of what memory and "
    "arithmetic of this machine allow, at TTFT and at TPOT. The limits are of the same run, and lower where other "
    "programs are at work; the matrix product is the fastest of the model's own largest matrix as it is compressed (as "
    "the model), and square ones in f32 and bf16."
)


def table(record: Record) -> list[tuple[str, list[tuple[str, ...]]]]:
    """For each model on each device a heading and rows, the first of them the head."""
    return [(_heading(each), [_HEAD, *map(_row, figures(each))]) for each in record.measured]


def markdown(record: Record) -> str:
    """A page of it."""
    machine = record.machine
    lines = [
        f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_bytes'] / 1e9:.0f} GB, {record.made}; "
        + ", ".join(f"{name} {version}" for name, version in record.versions.items())
        + f". {record.rounds} rounds.",
        "",
    ]
    for heading, rows in table(record):
        lines += [f"**{heading}**", "", *pipes(rows), ""]
    lines += [_FOOT, *(["", *[f"Left out: {each}." for each in record.left_out]] if record.left_out else [])]
    return "\n".join(lines) + "\n"


def text(record: Record) -> str:
    """The same for a terminal."""
    blocks = []
    for (heading, rows), each in zip(table(record), record.measured, strict=True):
        blocks.append("\n".join([heading, *aligned(rows), *notes(each)]))
    return "\n\n".join([*blocks, _FOOT, *[f"Left out: {each}." for each in record.left_out]])


def csv_text(record: Record) -> str:
    """One line for each case, plain numbers in seconds, bytes and tokens a second; empty where none was measured."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [
        "ttft", "ttft_p90", "tpot", "step_p50", "step_p90", "step_p99", "prefill_rate", "decode_rate", "throughput",
        "ttft_limit", "tpot_limit", "busy_elsewhere", "samples", "prompt_tokens", "read_tokens",
    ]  # fmt: skip
    case = ["prompt", "new_tokens", "together", "later"]
    writer.writerow(["name", "device", *case, *names])
    for each in record.measured:
        for found in figures(each):
            of = found.case
            head = [each.name, each.device, of.prompt_tokens, of.new_tokens, of.together, int(of.later)]
            writer.writerow([*head, *[_plain(getattr(found, name)) for name in names]])
    return out.getvalue()


def comparison(differences: Sequence[Difference], *, one_run: bool) -> str:
    """What differs, for a terminal."""
    head = ("case", "", "before", "after", "ratio", "95 % interval", "")
    rows = [head]
    for each in differences:
        interval = "-" if each.few else f"{each.low:.2f} to {each.high:.2f}"
        rows.append((_beside(each), each.metric, seconds(each.before), seconds(each.after), f"{each.ratio:.2f}",
                     interval, "too few to tell" if each.few else each.verdict))  # fmt: skip
    lines = aligned(rows)
    if any(each.lengths for each in differences):
        lines.append("The prompts were not the same: those of about the same length are held against each other.")
    else:
        pairs = min((each.pairs for each in differences), default=0)
        lines.append(f"{pairs} pairs at least; below six nothing is said to differ.")
    if not one_run:
        lines.append("The two were not measured in one run: what the machine did at either time is in the ratio, too.")
    return "\n".join(lines)


def _beside(each: Difference) -> str:
    if each.lengths is None:
        return each.case.name
    low, high = each.lengths
    return f"{each.case.name} | {low:,}" + (f" to {high:,}" if high != low else "") + " in"


def notes(measured: Measured) -> list[str]:
    """Sentences about the loading, memory, limits, and what disturbed."""
    load = spread([each.load_seconds for each in measured.loads])
    first = spread([each.first_token_seconds for each in measured.loads])
    lines = [f"Loaded in {seconds(load[0])}; the first token after that took {seconds(first[0])} "
             f"({len(measured.loads)} {'start' if len(measured.loads) == 1 else 'starts'})."]  # fmt: skip
    if measured.settings.get("tuned_words"):
        lines.append(f"With settings that glm4-edge tune kept: {measured.settings['tuned_words']}.")
    anonymous, resident = measured.memory.get("anonymous"), measured.memory.get("resident")
    if resident is not None:
        own = "" if anonymous is None else f"{anonymous / 1e9:.2f} GB of its own, "
        lines.append(f"Memory at its peak: {own}{resident / 1e9:.2f} GB with the mapped files.")
    limits = measured.limits
    if limits is not None:
        read = "not known" if limits["bandwidth"] is None else f"{limits['bandwidth'] / 1e9:.1f} GB/s read"
        best = max(limits["products"], key=limits["products"].__getitem__)
        lines.append(f"Limits: {read}, {limits['flop_rate'] / 1e9:,.0f} GFLOP/s in a matrix product ({best}).")
    joules, throttled = measured.sensors.get("energy_joules"), measured.sensors.get("throttled")
    if joules is not None:
        lines.append(f"Energy of the processor in all rounds: {joules:,.0f} J.")
    if throttled:
        lines.append(f"The processor was slowed down for heat {throttled} times.")
    busy = [found.busy_elsewhere for found in figures(measured) if found.busy_elsewhere is not None]
    if busy and max(busy) > 0.1:
        lines.append(f"Other programs had up to {max(busy):.0%} of the processors: close them for better figures.")
    return lines


def seconds(value: float | None) -> str:
    """With a fitting unit."""
    if value is None:
        return "-"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.3g} ms"


def _heading(measured: Measured) -> str:
    model = measured.model
    size = sum(count for name, count in model.get("bytes", {}).items() if name.startswith("openvino_model"))
    return f"{measured.name} on {measured.device}" + (f", {size / 1e6:,.0f} MB" if size else "")


def _row(found: Figures) -> tuple[str, ...]:
    shares = " / ".join("-" if each is None else f"{each:.0%}" for each in (found.ttft_share, found.tpot_share))
    return (
        found.case.name, f"{seconds(found.ttft)} ({seconds(found.ttft_p90)})", _rate(found.prefill_rate),
        seconds(found.tpot), _rare(found), "-" if found.decode_rate is None else f"{found.decode_rate:,.1f}",
        f"{found.throughput:,.1f}", shares,
    )  # fmt: skip


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _rare(found: Figures) -> str:
    return "too few" if found.step_p99 is None and found.steps else seconds(found.step_p99)


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def pipes(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown, line by line; the first row is the head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table for a terminal, line by line."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
