"""Charts of a comparison: both runs in each of a run's charts, and how far apart they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edge.bench import plot
from edge.bench.case import Measured
from edge.bench.compare import Difference
from edge.bench.record import Record

_UNTOLD = "no difference, or none that can be told"
_COLOURS = {"faster": "#2e8b57", "slower": "#d1495b", _UNTOLD: "#7b8794"}
_ROW_INCHES = 0.28

Compared = tuple[str, Sequence[Difference]]
"""What was compared, in words, and what came of it."""


def write(
    first: Record, second: Record, names: tuple[str, str] | None, compared: Sequence[Compared], text: str, folder: Path
) -> list[Path]:
    """Put the charts and a page into a folder; the files, the page last.

    Args:
        names: of the two runs; None: they are one, and what was measured in it is told apart by its own names.
    """
    pictures = {}
    for place, (words, found) in enumerate(compared, 1):
        pictures["ratios" if len(compared) == 1 else f"ratios-{place}"] = _ratios(words, found)
    both = first if names is None else replace(first, measured=[*_named(first, names[0]), *_named(second, names[1])])
    pictures |= plot.charts(both)
    made = first.made if names is None else f"{names[0]}: {first.made}; {names[1]}: {second.made}"
    return plot.put(folder, pictures, plot.written("glm4-edge bench compare", made, pictures, text))


def _named(record: Record, name: str) -> list[Measured]:
    return [replace(each, name=f"{name}: {each.name}") for each in record.measured]


def _ratios(words: str, found: Sequence[Difference]) -> bytes:
    """Each ratio of times with its interval, on one side of 1 or across it."""
    figure, axes = plot.drawing(words, "time after, as a multiple of the time before (less is faster)", "")
    figure.set_size_inches(plot.WIDE[0], 1.6 + _ROW_INCHES * len(found))
    said: set[str] = set()
    for row, each in enumerate(found):
        verdict = each.verdict if each.verdict in _COLOURS else _UNTOLD
        label = verdict if verdict not in said else None
        said.add(verdict)
        colour = _COLOURS[verdict]
        if not each.few:  # of few values the ends are the extremes, and no interval
            axes.plot([each.low, each.high], [row, row], color=colour, linewidth=2, alpha=0.6)
        axes.plot([each.ratio], [row], "o", color=colour, label=label)
    axes.axvline(1.0, color=plot.INK, linewidth=1)
    axes.set_yticks(range(len(found)), [f"{each.case.name}: {each.metric}" for each in found], fontsize=8)
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_xscale("log")
    plot.plain_numbers(axes)
    axes.set_title(words, color=plot.INK, loc="left", fontsize=10)
    return plot.png(figure, axes, beside=True)
