"""A record as tables: for a terminal, as Markdown. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from edge.bench.show import aligned, pipes
from edge.quality.record import Model, Needles, Record

_DISTANCE = ("model", "MB", "text", "tokens", "ppl", "ppl ref", "KL", "p99", "worst", "top-1", "top-5", "tokens/s")
_TASKS = ("model", "task", "part", "metric", "score", "±", "questions", "shots", "chat")
_NOTE = (
    "ppl: perplexity, and that of the checkpoint (ref). KL: divergence to the checkpoint in nats, mean, 99th "
    "percentile and worst; what lies outside the reference's likeliest tokens counts as one, so it is a lower bound. "
    "top-1, top-5: how often the likeliest token is the same, and the share of the five likeliest that are."
)
_SHARES = ("acc", "match", "pass", "f1")
"""In the names of metrics that are shares of something."""
_PARTS = 12  # of a task that are listed; the record has all


def tables(record: Record) -> list[tuple[str, list[tuple[str, ...]]]]:
    """Headings and rows, the first of them the head."""
    found: list[tuple[str, list[tuple[str, ...]]]] = []
    measured = [row for each in record.models for row in _distance(each)]
    if measured:
        found.append(("Distance from the checkpoint", _filled([_DISTANCE, *measured])))
    scored = [row for each in record.models for row in _tasks(each)]
    if scored:
        found.append(("Tasks", _filled([_TASKS, *scored])))
    for each in record.models:
        if each.needles is not None:
            heading = f"Needles in {each.needles.haystack}: {_label(each)}, {each.needles.share:.0%} found"
            found.append((heading, needles(each.needles)))
    return found


def text(record: Record) -> str:
    """For a terminal."""
    blocks = ["\n".join([heading, *aligned(rows)]) for heading, rows in tables(record)]
    return "\n\n".join([*blocks, *_notes(record)])


def markdown(record: Record) -> str:
    """A page of it."""
    machine = record.machine
    lines = [
        f"{machine['cores']} cores of {machine['cpu']}, {record.made}; "
        + ", ".join(f"{name} {version}" for name, version in record.versions.items())
        + ".",
        "",
    ]
    for heading, rows in tables(record):
        lines += [f"**{heading}**", "", *pipes(rows), ""]
    return "\n".join([*lines, *_notes(record)]) + "\n"


def needles(found: Needles) -> list[tuple[str, ...]]:
    """Share found by depth, downwards, and length, across; the languages together."""
    depths = sorted({cell.depth for cell in found.cells})
    lengths = sorted({cell.length for cell in found.cells})
    rows = [("depth", *(f"{length:,}" for length in lengths))]
    rows += [(f"{depth:.0%}", *(_share(found, depth, length) for length in lengths)) for depth in depths]
    return rows


def share(found: Needles, depth: float, length: int, language: str | None = None) -> float | None:
    """Of the needles of one place, those that were found; None where none was hidden."""
    hits = [
        hit
        for cell in found.cells
        if (cell.depth, cell.length) == (depth, length) and language in (None, cell.language)
        for hit in cell.found
    ]
    return sum(hits) / len(hits) if hits else None


def _share(found: Needles, depth: float, length: int) -> str:
    value = share(found, depth, length)
    return "-" if value is None else f"{value:.0%}"


def _label(each: Model) -> str:
    exact = each.exact or (each.distance is not None and each.distance.exact)
    return f"{each.name} on {each.device}" + (", tuned" if each.settings else "") + (", exact" if exact else "")


def _distance(each: Model) -> list[tuple[str, ...]]:
    if each.distance is None:
        return []
    name = _label(each)
    return [
        (
            name, f"{each.weight_bytes / 1e6:,.1f}", language, f"{f.tokens:,}", f"{f.perplexity:.2f}",
            _number(f.perplexity_reference, ".2f"), _number(f.kl_mean, ".4f"), _number(f.kl_p99, ".3f"),
            _number(f.kl_worst, ".2f"), _number(f.top1, ".1%"), _number(f.top5, ".1%"),
            _number(each.decode_rate, ",.1f"),
        )
        for language, f in each.distance.figures.items()
    ]  # fmt: skip


def _tasks(each: Model) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name in dict.fromkeys(task.task for task in each.tasks):
        own = [task for task in each.tasks if task.task == name]
        for task in own[:_PARTS]:
            form = ".1%" if any(word in task.metric for word in _SHARES) else ".3f"
            questions = f"{task.samples:,}" + ("" if task.limit is None else f" (limit {task.limit})")
            rows.append(
                (_label(each), name, task.part, task.metric, format(task.value, form), _number(task.stderr, form),
                 questions, "-" if task.few_shot is None else str(task.few_shot), "yes" if task.chat else "no")
            )  # fmt: skip
    return rows


def _filled(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Without the columns in which nothing stands."""
    kept = [place for place in range(len(rows[0])) if any(row[place] != "-" for row in rows[1:])]
    return [tuple(row[place] for place in kept) for row in rows]


def _notes(record: Record) -> list[str]:
    measured = [each.distance for each in record.models if each.distance is not None]
    lines = []
    if measured:
        lines.append(_NOTE)
        lines += [f"Reference: {name}." for name in dict.fromkeys(d.reference for d in measured if d.reference)]
    lines += [f"Measured with what glm4-edge tune kept: {_label(each)} for {each.settings.removeprefix('tuned for ')}."
              for each in record.models if each.settings]  # fmt: skip
    if len({each.digest for each in measured}) > 1:
        lines.append("Not all were measured on the same tokens: compare only those with the same text and count.")
    if any(task.limit is not None for each in record.models for task in each.tasks):
        lines.append("With a limit, scores are no figures to publish: too few questions were asked.")
    more = [name for each in record.models for name in {t.task for t in each.tasks}
            if sum(t.task == name for t in each.tasks) > _PARTS]  # fmt: skip
    if more:
        lines.append(f"Of {', '.join(dict.fromkeys(more))} not all parts are listed; --json has them.")
    return lines


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
