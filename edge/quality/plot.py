"""Charts of a record: quantiles side by side, size against quality, and the needles' heat maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge.bench.plot import COLOURS, drawing, png, put, written
from edge.quality import show
from edge.quality.record import Model, Needles, Record

_LEAST = 1e-5  # nats; below is rounding
_INK = "#1f2933"


def charts(record: Record) -> dict[str, bytes]:
    """Name → PNG, of what the record has."""
    made = {}
    measured = [each for each in record.models if each.distance is not None]
    if any(each.distance is not None and each.distance.kl for each in measured):
        made["kl"] = _kl(measured)
    if measured:
        made["loss"] = _loss(measured)
    if len(sized(record)) > 1:
        made["size"] = _sizes(record)
    names = _labels(record.models)
    for number, (each, name) in enumerate(zip(record.models, names, strict=True), 1):
        if each.needles is not None:
            alone = sum(other.needles is not None for other in record.models) == 1
            made["needles" if alone else f"needles-{number}"] = _heat_map(each.needles, name)
    return made


def write(record: Record, folder: Path) -> list[Path]:
    """Put the charts and a page into a folder; the files."""
    pictures = charts(record)
    return put(folder, pictures, written("glm4-edge quality", record.made, pictures, show.text(record)))


def sized(record: Record) -> list[tuple[str, float, float]]:
    """Name, megabytes and mean KL divergence of each model that has all three."""
    found = []
    for name, each in zip(_labels(record.models), record.models, strict=True):
        if each.distance is not None:
            kl = next(iter(each.distance.figures.values())).kl_mean
            if kl is not None:
                found.append((name, each.weight_bytes / 1e6, kl))
    return found


def _labels(models: Sequence[Model]) -> list[str]:
    """Names, and the devices where they differ."""
    several = len({each.device for each in models}) > 1
    return [f"{each.name} on {each.device}" if several else each.name for each in models]


def _kl(models: Sequence[Model]) -> bytes:
    """Above each share of the places: the further right, the rarer and the worse."""
    import numpy as np

    figure, axes = drawing("KL divergence to the checkpoint", "share of the tokens with more", "nats, at least")
    longest = 2
    for place, (each, name) in enumerate(zip(models, _labels(models), strict=True)):
        if each.distance is None or not each.distance.kl:
            continue
        values = np.sort(np.array(each.distance.kl))[::-1]
        if values[0] < _LEAST:
            axes.plot([], [], color=_colour(place), linewidth=1.4, label=f"{name}: below {_plain(_LEAST)}")
            continue
        longest = max(longest, len(values))
        share = (np.arange(len(values)) + 0.5) / len(values)
        axes.plot(share, np.maximum(values, _LEAST / 10), color=_colour(place), linewidth=1.4, label=name)
        axes.axhline(values.mean(), color=_colour(place), linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(bottom=_LEAST)
    axes.set_xlim(1, 0.5 / longest)
    axes.xaxis.set_major_formatter(lambda value, at: f"{100 * value:g} %")
    axes.yaxis.set_major_formatter(lambda value, at: _plain(value))
    axes.plot([], [], color=_INK, linewidth=0.8, linestyle=":", label="mean")
    return png(figure, axes)


def _loss(models: Sequence[Model]) -> bytes:
    """Of each token; with a reference, what that is more than the checkpoint's: recipes differ little otherwise."""
    import numpy as np

    beside = all(each.distance is not None and each.distance.losses_reference for each in models)
    title = "Loss of each token" + (", less the checkpoint's" if beside else "")
    figure, axes = drawing(title, "share of the tokens with less", "nats")
    grid = np.linspace(0, 1, 401)
    for place, (each, name) in enumerate(zip(models, _labels(models), strict=True)):
        assert each.distance is not None
        values = np.array(each.distance.losses)
        if beside:
            values = values - np.array(each.distance.losses_reference)
        axes.plot(grid, np.quantile(values, grid), color=_colour(place), linewidth=1.4, label=name)
    axes.xaxis.set_major_formatter(lambda value, at: f"{100 * value:g} %")
    axes.set_xlim(0, 1)
    if beside:
        axes.set_yscale("symlog", linthresh=0.1)
        axes.yaxis.set_major_formatter(lambda value, at: f"{value:g}")
    else:
        axes.set_ylim(bottom=0)
    return png(figure, axes)


def _sizes(record: Record) -> bytes:
    figure, axes = drawing(
        "Size and distance", "megabytes of weights", "mean KL divergence to the checkpoint: nats, at least"
    )
    found = sized(record)
    for place, (name, size, kl) in enumerate(found):
        axes.plot([size], [kl], "o", color=_colour(place), markersize=8, label=f"{name}: {kl:.4f}", clip_on=False)
    axes.set_xlim(0, 1.15 * max(size for _, size, _ in found))
    axes.set_ylim(0, 1.15 * max([*(kl for _, _, kl in found), _LEAST]))
    return png(figure, axes)


def _heat_map(found: Needles, name: str) -> bytes:
    """One panel for each language: lengths across, depths downwards, the share found in words and colour."""
    import numpy as np
    from matplotlib.figure import Figure

    languages = list(dict.fromkeys(cell.language for cell in found.cells))
    lengths = sorted({cell.length for cell in found.cells})
    depths = sorted({cell.depth for cell in found.cells})
    wide = max(3.6, 0.75 * len(lengths) + 1.2)
    size = (wide * len(languages) + 0.8, 0.5 * len(depths) + 1.9)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    panels = figure.subplots(1, len(languages), squeeze=False)[0]
    figure.suptitle(f"Needles in haystacks, {name}", color=_INK, fontsize=12, x=0.01, ha="left")
    image: Any = None
    for axes, language in zip(panels, languages, strict=True):
        values = [[show.share(found, depth, length, language) for length in lengths] for depth in depths]
        grid = np.array([[np.nan if each is None else each for each in row] for row in values], float)
        image = axes.imshow(grid, cmap=_colours(), vmin=0, vmax=1, aspect="auto")
        axes.set_title({"en": "English", "zh": "Chinese"}.get(language, language), fontsize=10, color=_INK)
        axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], fontsize=8)
        axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths], fontsize=8)
        axes.set_xlabel("tokens of the prompt", fontsize=9)
        for row, column in np.ndindex(*grid.shape):
            if not np.isnan(grid[row, column]):
                axes.text(column, row, f"{grid[row, column]:.0%}", ha="center", va="center", fontsize=8, color=_INK)
    panels[0].set_ylabel("depth of the needle", fontsize=9)
    bar = figure.colorbar(image, ax=list(panels), shrink=0.9)
    bar.set_ticks([0, 0.5, 1], labels=["lost", "half", "found"])
    bar.ax.tick_params(labelsize=8)
    return _saved(figure)


def _colours() -> Any:
    """From lost to found, told apart without red and green, and light enough for what is written on them."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("found", ["#f2a07b", "#f7f3e8", "#8fc1e3"])


def _saved(figure: Any) -> bytes:
    import io

    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def _plain(value: float) -> str:
    """0.00001, not a power."""
    return f"{value:f}".rstrip("0").rstrip(".")
