"""Charts of a run: PNGs, and one page that holds them."""

from __future__ import annotations

import base64
import html
import importlib.util
import io
from pathlib import Path
from typing import Any

from edge.bench import show
from edge.bench.case import Measured
from edge.bench.record import Record
from edge.bench.summary import figures, spread
from edge.errors import MissingExtraError
from edge.files import write_text

WIDE = (7.2, 4.2)
"""Inches."""
INK, _FAINT = "#1f2933", "#c6ccd2"
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1f2933}"
    "img{max-width:100%;display:block;margin:1.5rem 0}pre{overflow-x:auto;font-size:13px}"
)
_SHORT, _SHORTER = 300, 8  # of a logarithmic axis, from end to end: numbers at 1, 2 and 5, and at all of 1 to 9
_NAMES = 4  # of a legend that stands in the drawing
COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#8d6a9f", "#b8860b")


def require() -> None:
    """Find out early whether matplotlib is there.

    Raises:
        MissingExtraError: it is not.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "bench")


def charts(record: Record) -> dict[str, bytes]:
    """Name → PNG: time to first token by prompt length, time between tokens along the answer, the roofline."""
    require()
    made = {"ttft": _ttft(record), "tpot": _steps(record)}
    if any(each.limits is not None and each.limits["bandwidth"] for each in record.measured):
        made["roofline"] = _roofline(record)
    return made


def page(record: Record, pictures: dict[str, bytes]) -> str:
    """One HTML file with everything in it; nothing is fetched from anywhere."""
    return written("glm4-edge bench", record.made, pictures, show.text(record))


def written(title: str, made: str, pictures: dict[str, bytes], text: str) -> str:
    """A page of pictures and a text."""
    blocks = [
        f'<img alt="{name}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'
        for name, data in pictures.items()
    ]
    head = f'<meta name="viewport" content="width=device-width"><title>{title}</title><style>{_STYLE}</style>'
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8">{head}<h1>{title}</h1>'
        f"<p>{html.escape(made)}</p>{''.join(blocks)}<pre>{html.escape(text)}</pre></html>\n"
    )


def write(record: Record, folder: Path) -> list[Path]:
    """Put the charts and the page into a folder; the files."""
    pictures = charts(record)
    return put(folder, pictures, page(record, pictures))


def put(folder: Path, pictures: dict[str, bytes], page: str) -> list[Path]:
    """Write PNGs, and a page beside them as index.html; the files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, data in pictures.items():
        paths.append(folder / f"{name}.png")
        paths[-1].write_bytes(data)
    paths.append(folder / "index.html")
    write_text(paths[-1], page)
    return paths


def _names(record: Record) -> list[str]:
    return [f"{each.name} on {each.device}" for each in record.measured]


def _ttft(record: Record) -> bytes:
    figure, axes = drawing("Time to first token", "tokens in the prompt, those of earlier turns included", "seconds")
    for colour, name, each in zip(_cycle(record), _names(record), record.measured, strict=True):
        for later, line, mark in ((False, "-", "o"), (True, "--", "s")):
            found = [f for f in figures(each) if f.case.together == 1 and f.case.later == later]
            found = sorted({f.case.prompt_tokens: f for f in found}.values(), key=lambda f: f.prompt_tokens)
            if not found:
                continue
            label = name + (", later turn" if later else "")
            places = [f.prompt_tokens for f in found]
            axes.plot(places, [f.ttft for f in found], line, marker=mark, color=colour, label=label)
            limits = [f.ttft_limit for f in found]
            if not later and all(limit is not None for limit in limits):
                axes.plot(places, limits, ":", marker="_", color=colour, alpha=0.7, label=f"{name}, limit")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    plain_numbers(axes)
    return png(figure, axes)


def _steps(record: Record) -> bytes:
    figure, axes = drawing("Time from token to token, along the answer", "token of the answer", "milliseconds")
    for colour, name, each in zip(_cycle(record), _names(record), record.measured, strict=True):
        if each.model.get("reference"):  # whose times from token to token nobody knows
            continue
        alone = [case for case in each.cases() if case.together == 1 and not case.later]
        for alpha, case in zip((1.0, 0.65, 0.4, 0.3), alone, strict=False):
            rows = [sample.steps for sample in each.of(case)]
            length = min(map(len, rows))
            if not length:
                continue
            medians = [1000 * spread([row[place] for row in rows])[0] for place in range(length)]
            label = f"{name}, {case.name}"
            axes.plot(range(2, length + 2), medians, color=colour, alpha=alpha, linewidth=1.2, label=label)
    axes.set_ylim(bottom=0)
    return png(figure, axes)


def _roofline(record: Record) -> bytes:
    """Operations a second over operations for each byte read, as the machine allows and as was reached."""
    import numpy as np

    figure, axes = drawing("Roofline", "operations for each byte read", "GFLOP/s")
    for colour, name, each in zip(_cycle(record), _names(record), record.measured, strict=True):
        points = _points(each)
        if not points or each.limits is None:
            continue
        reach = np.logspace(-1, 4, 100)
        roof = np.minimum(reach * each.limits["bandwidth"], each.limits["flop_rate"]) / 1e9
        axes.plot(reach, roof, color=colour, alpha=0.6, label=f"{name}, limit")
        for marker, (label, intensity, rate) in zip("osD^vP", points, strict=False):
            axes.plot([intensity], [rate / 1e9], marker, color=colour, label=f"{name}, {label}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    plain_numbers(axes)
    return png(figure, axes)


def _points(measured: Measured) -> list[tuple[str, float, float]]:
    """What was reached: a name, operations for each byte, operations a second."""
    if measured.limits is None or measured.counts is None or not measured.limits["bandwidth"]:
        return []
    from edge.bench.counts import Counts

    counts, found = Counts(**measured.counts), []
    for each in figures(measured):
        case = each.case
        if case.together > 1 or case.later:
            continue
        work = case.prompt_tokens * counts.weight_flop
        steps = -(-case.prompt_tokens // counts.step_tokens)
        label = f"prefill of {case.prompt_tokens:,}"
        found.append((label, work / (steps * counts.weight_bytes), work / each.ttft))
        if each.tpot is not None and not any(name == "decode" for name, _, _ in found):
            work = counts.weight_flop + counts.head_flop
            found.append(("decode", work / counts.weight_bytes, work / each.tpot))
    return found


def drawing(title: str, across: str, up: str) -> tuple[Any, Any]:
    """A figure and its axes, as all charts have them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=WIDE, dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, color=INK, loc="left", fontsize=12)
    axes.set_xlabel(across, color=INK)
    axes.set_ylabel(up, color=INK)
    axes.grid(True, which="major", color=_FAINT, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def plain_numbers(axes: Any) -> None:
    """0.2 and 1,024 on logarithmic axes, not powers; where there are few such, also numbers between them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    shown = FuncFormatter(lambda value, place: f"{value:,.0f}" if value >= 1000 else f"{value:g}")
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() != "log":
            continue
        axis.set_major_formatter(shown)
        axis.set_minor_formatter(NullFormatter())
        low, high = axis.get_view_interval()
        if high / low < _SHORT and axis.get_transform().base == 10:
            steps = range(1, 10) if high / low < _SHORTER else (1, 2, 5)
            axis.set_major_locator(LogLocator(base=10, subs=steps))


def _cycle(record: Record) -> list[str]:
    return [COLOURS[place % len(COLOURS)] for place in range(len(record.measured))]


def png(figure: Any, axes: Any, *, beside: bool = False) -> bytes:
    """The picture, with a legend if it has names in it: where there is room, or below the drawing."""
    handles, _ = axes.get_legend_handles_labels()
    if handles and (beside or len(handles) > _NAMES):
        figure.legend(fontsize=8, frameon=False, loc="outside lower center", ncols=2 if len(handles) != 3 else 3)
    elif handles:
        axes.legend(fontsize=8, frameon=False)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()
