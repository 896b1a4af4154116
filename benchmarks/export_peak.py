"""What an export of GLM-4-9B costs: time, memory, disk; beside optimum-intel's, and beside our own forecast.

    python -m benchmarks.export_peak --work FOLDER --peer --cold --out benchmarks/results/export_9b.json

Writes a checkpoint of the shape with random weights into FOLDER (19 GB for 9B), asks `glm4-edge export --dry-run` for a
forecast, then exports in processes of their own: ours, and with --peer optimum-intel's (in a virtual environment that
is made for it), in turn. What was written is removed at the end unless --keep is given. A table in Markdown is written
beside the JSON.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from benchmarks import peer as optimum
from benchmarks import synthetic
from benchmarks.machine import machine, versions
from benchmarks.watch import drop_from_cache, watch
from edge.export.recipe import Recipe
from edge.files import check_room
from edge.model.spec import GlmSpec

_MARK = "export_peak.json"  # lies in a folder that is ours to empty
_PACKAGES = ("glm4-edge", "openvino", "openvino-tokenizers", "nncf", "transformers", "numpy")
_FIGURES = {
    "wall_seconds": ("wall time, s", 1.0),
    "user_seconds": ("user CPU, s", 1.0), "system_seconds": ("system CPU, s", 1.0),
    "peak_anonymous_bytes": ("peak anonymous memory, GB", 1e9), "peak_rss_bytes": ("peak resident memory, GB", 1e9),
    "read_bytes": ("read from disk, GB", 1e9), "write_bytes": ("written to disk, GB", 1e9),
    "temporary_disk_bytes": ("temporary disk, GB", 1e9), "model_bytes": ("model, GB", 1e9),
}  # fmt: skip


@click.command(help=__doc__)
@click.option("--work", required=True, type=click.Path(file_okay=False, path_type=Path), help="Where all is written.")
@click.option("--layout", type=click.Choice(synthetic.LAYOUTS), default="glm", show_default=True)
@click.option("--shape", type=click.Choice(list(synthetic.SHAPES)), default="9b", show_default=True)
@click.option("--layers", type=int, help="Instead of the shape's own number.")
@click.option("--repeats", default=1, show_default=True)
@click.option("--peer", is_flag=True, help="Run optimum-intel's exporter, too.")
@click.option(
    "--peer-venv", type=click.Path(file_okay=False, path_type=Path), help="Its environment; left out: in WORK."
)
@click.option("--cold", is_flag=True, help="Drop the checkpoint from the page cache before each run (Linux).")
@click.option("--keep", is_flag=True, help="Leave checkpoint and results in WORK, for the next time.")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
def main(
    work: Path, layout: str, shape: str, layers: int | None, repeats: int, peer: bool, peer_venv: Path | None,
    cold: bool, keep: bool, out: Path,
) -> None:  # fmt: skip
    """Measure and write both files."""
    if peer and layout != "glm":
        raise click.UsageError("optimum-intel exports the original layout only with older transformers and remote code")
    spec = GlmSpec.from_config(synthetic.config_of(shape, layers))
    written = {"shape": shape, "layers": spec.num_layers, "layout": layout}
    venv = (peer_venv or work / "peer-venv").absolute()
    with _workplace(work.absolute(), keep) as place:
        checkpoint = _checkpoint(place, spec, written, peer)
        if peer:
            optimum.make(venv)
        result: dict[str, Any] = {
            "machine": machine(),
            "versions": {"ours": versions(*_PACKAGES) | {"python": sys.version.split()[0]}},
            "settings": {**written, "repeats": repeats, "cold": cold, "parameters": spec.parameter_count()},
            "runs": {"ours": []},
        }
        if peer:
            result["versions"]["optimum-intel"] = optimum.versions(venv)
            result["differences"] = list(optimum.DIFFERENCES)
            result["runs"]["optimum-intel"] = []
        for turn in range(repeats):
            for name, runs in result["runs"].items():
                click.echo(f"{name}, {turn + 1} of {repeats} …", err=True)
                runs.append(_run(place, checkpoint, cold, venv if name == "optimum-intel" else None))
    result["medians"] = {name: _medians(runs) for name, runs in result["runs"].items()}
    if peer:
        ours, theirs = result["medians"]["ours"], result["medians"]["optimum-intel"]
        result["ours_to_peer"] = {
            key: round(ours[key] / theirs[key], 3) for key in ours if ours[key] is not None and theirs[key]
        }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8", newline="\n")
    table = _table(result)
    out.with_suffix(".md").write_text(table, encoding="utf-8", newline="\n")
    click.echo(table)


@contextmanager
def _workplace(work: Path, keep: bool) -> Iterator[Path]:
    """The folder, if it is new, empty or ours; what lies in it is removed at the end."""
    mark = work / _MARK
    if work.exists() and not mark.is_file() and any(work.iterdir()):
        raise click.UsageError(f"{work} holds something that this benchmark did not write; name another folder")
    work.mkdir(parents=True, exist_ok=True)
    if not mark.is_file():
        mark.write_text("{}", encoding="utf-8")
    try:
        yield work
    finally:
        if not keep:
            shutil.rmtree(work, ignore_errors=True)


def _checkpoint(work: Path, spec: GlmSpec, written: dict[str, Any], peer: bool) -> Path:
    """Written anew, or the one that --keep left here."""
    folder, mark = work / "checkpoint", work / _MARK
    there = json.loads(mark.read_text(encoding="utf-8")) == written
    size = 2 * spec.parameter_count()
    results = Recipe.for_target("cpu", spec).estimated_bytes(spec) + (size if peer else 0)  # a whole bf16 copy
    check_room(work, (0 if there else size) + int(1.1 * results) + 3_000_000_000, "this measurement")
    if there:
        return folder
    click.echo(f"writing the checkpoint ({size / 1e9:.1f} GB) …", err=True)
    shutil.rmtree(folder, ignore_errors=True)
    mark.write_text("{}", encoding="utf-8")
    synthetic.write(folder, written["layers"], layout=written["layout"], shape=written["shape"])
    mark.write_text(json.dumps(written), encoding="utf-8")
    return folder


def _run(work: Path, checkpoint: Path, cold: bool, venv: Path | None) -> dict[str, Any]:
    """One export, and of ours the forecast made just before."""
    place = work / "run"
    shutil.rmtree(place, ignore_errors=True)
    (place / "tmp").mkdir(parents=True)
    out = place / "out"
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(place / "hf"), "GLM4_EDGE_HOME": str(place / "home")}
    env |= dict.fromkeys(("TMPDIR", "TMP", "TEMP"), str(place / "tmp"))
    ours = [sys.executable, "-m", "edge", "export", str(checkpoint), str(out)]
    shards = sorted(checkpoint.glob("*.safetensors"))
    run: dict[str, Any] = {}
    if cold:
        drop_from_cache(shards)  # so that the forecast sees what the export will
    if venv is None:
        done = subprocess.run([*ours, "--dry-run", "--json"], env=env, capture_output=True, text=True)
        if done.returncode:
            raise click.ClickException(done.stderr)
        run["forecast"] = _without_paths(json.loads(done.stdout))
    else:
        env.pop("PYTHONPATH", None)  # its packages are its own
    if cold:
        run["cached_share_before"] = drop_from_cache(shards)
    seen = watch(ours if venv is None else optimum.command(venv, checkpoint, out), env=env, folders=[place])
    if seen.pop("returncode"):
        raise click.ClickException("\n".join(line for _, line in seen["stderr"][-20:]))
    seen.pop("stdout")
    stderr = seen.pop("stderr")
    run |= seen
    run["temporary_disk_bytes"] = max(0, run["peak_disk_bytes"] - run["left_on_disk_bytes"])
    run["model_bytes"] = sum((out / f"openvino_model.{ending}").stat().st_size for ending in ("xml", "bin"))
    if venv is None:
        run["stage_seconds"] = stages(stderr, run["wall_seconds"])
        run["stage_peak_anonymous_bytes"] = stage_peaks(run["stage_seconds"], run["memory_samples"])
        run["checks"] = json.loads((out / "edge.json").read_text(encoding="utf-8"))["checks"]
    shutil.rmtree(place)
    return run


def stages(stderr: list[Any], wall: float) -> dict[str, float]:
    """Seconds of each stage, from the lines `STAGE …` and when they came; what went before is the start."""
    marks = [(at, line.removesuffix(" …")) for at, line in stderr if line.endswith(" …")]
    if not marks:
        return {}
    seconds: dict[str, float] = {"start": marks[0][0]}
    for (at, name), (end, _) in zip(marks, [*marks[1:], (wall, "")], strict=True):
        seconds[name] = seconds.get(name, 0.0) + end - at
    return {name: round(value, 2) for name, value in seconds.items()}


def stage_peaks(seconds: dict[str, float], samples: list[list[float]]) -> dict[str, float | None]:
    """Peak anonymous memory of each stage, None of one too short to be sampled."""
    peaks: dict[str, float | None] = {}
    begin = 0.0
    for name, taken in seconds.items():
        peaks[name] = max((held for at, held, _ in samples if begin <= at < begin + taken), default=None)
        begin += taken
    return peaks


def _without_paths(facts: dict[str, Any]) -> dict[str, Any]:
    """The dry run's JSON without the names of this machine's folders."""
    facts.pop("model")
    facts["read"].pop("from")
    facts["write"].pop("to")
    return facts


def _medians(runs: list[dict[str, Any]]) -> dict[str, float | None]:
    return {
        key: None if any(run[key] is None for run in runs) else statistics.median(run[key] for run in runs)
        for key in _FIGURES
    }


def _table(result: dict[str, Any]) -> str:
    names, settings, where = list(result["runs"]), result["settings"], result["machine"]
    forecasts = [run["forecast"] for run in result["runs"]["ours"]]
    expected = {
        "wall_seconds": statistics.median(facts["seconds"]["total"] for facts in forecasts),
        "peak_anonymous_bytes": forecasts[0]["memory"]["bytes"],
        "read_bytes": forecasts[0]["read"]["bytes"],
        "model_bytes": forecasts[0]["write"]["bytes"],
    }
    lines = [
        f"# An export at {settings['parameters'] / 1e9:.1f}B parameters",
        "",
        f"Random weights in the `{settings['layout']}` layout, {settings['layers']} layers of the {settings['shape']} "
        f"shape, int4; {'cold' if settings['cold'] else 'whatever is cached'}; medians of {settings['repeats']}. "
        f"{where['cpu']}, {where['cores']} cores, {where['memory_bytes'] / 1e9:.0f} GB. "
        + "; ".join(
            f"{name}: " + ", ".join(f"{package} {version}" for package, version in found.items())
            for name, found in result["versions"].items()
        )
        + ". Made by `python -m benchmarks.export_peak`; raw samples are in the JSON.",
        *(f"\n{text[0].upper()}{text[1:]}." for text in result.get("differences", [])),
        "",
        "| | forecast | " + " | ".join(names) + (" | ours / peer |" if "ours_to_peer" in result else " |"),
        "| --- " * (2 + len(names) + ("ours_to_peer" in result)) + "|",
    ]
    for key, (title, unit) in _FIGURES.items():
        cells = [expected.get(key), *(result["medians"][name][key] for name in names)]
        row = [title, *("" if cell is None else f"{cell / unit:.1f}" for cell in cells)]
        if "ours_to_peer" in result:
            ratio = result["ours_to_peer"].get(key)
            row.append("" if ratio is None else f"{ratio:.2f}")
        lines.append("| " + " | ".join(row) + " |")
    lines += ["", "| stage of ours | s | peak anonymous memory, GB |", "| --- | --- | --- |"]
    run = sorted(result["runs"]["ours"], key=lambda run: run["wall_seconds"])[len(result["runs"]["ours"]) // 2]
    for name, seconds in run["stage_seconds"].items():
        peak = run["stage_peak_anonymous_bytes"][name]
        lines.append(f"| {name} | {seconds:.1f} | {'' if peak is None else f'{peak / 1e9:.1f}'} |")
    return re.sub(r" +\n", "\n", "\n".join(lines)) + "\n"


if __name__ == "__main__":
    main()
