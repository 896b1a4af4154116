"""What each recipe keeps of the pocket model: distance, size, speed, needles, and two small tasks of ours.

    python -m benchmarks.quality --text wiki.test.raw --work /somewhere --out benchmarks/results/quality_pocket.json

Exports the pocket model in each recipe, and measures all of them with `glm4-edge quality`, whose record is OUT. Beside
it come a page in Markdown and the charts. What WORK has already is not made again. Speeds are of `glm4-edge bench`, all
recipes in turn, and only worth something on a quiet machine: `--no-speeds` leaves them out.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click

RECIPES: dict[str, list[str]] = {
    "bf16": ["--weights", "bf16"],
    "int8": ["--weights", "int8"],
    "int4-plain": ["--no-calibrate"],
    "int4": [],
}
"""Name → options of the export; "int4" is what an export makes by itself, the others are what else one might choose."""


@click.command(help=__doc__)
@click.option("--text", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--tokens", default=4096, show_default=True)
@click.option("--work", required=True, type=click.Path(file_okay=False, path_type=Path), help="For the exports.")
@click.option("--only", multiple=True, type=click.Choice(list(RECIPES)), help="These recipes; may be given again.")
@click.option("--needles", default=1, show_default=True, help="In each place, of the last.")
@click.option("--speeds/--no-speeds", default=True, show_default=True)
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
def main(
    text: Path, tokens: int, work: Path, only: tuple[str, ...], needles: int, speeds: bool, out: Path
) -> None:  # fmt: skip
    """Export, measure and write."""
    names = list(only) or list(RECIPES)
    work.mkdir(parents=True, exist_ok=True)
    for name in names:
        if not (work / name / "edge.json").is_file():
            _edge("export", "pocket", str(work / name), *RECIPES[name])
    folders = [str(work / name) for name in names]
    told = work / "bench.json"
    if speeds:
        _edge("bench", *folders, "--prompts", "512", "--new", "64", "--no-turns", "--rounds", "5", "--no-limits",
              "--out", str(told), "--force")  # fmt: skip
    parts = [work / "distance.json"]
    if not parts[0].is_file():
        _edge("quality", *folders, "--against", "pocket", "--text", str(text), "--tokens", str(tokens), "--exact",
              "--out", str(parts[0]))  # fmt: skip
    if needles:
        parts.append(work / "needles.json")
        if not parts[1].is_file():
            _edge("quality", folders[-1], "--no-distance", "--needle", "--needles", str(needles),
                  "--needle-lengths", "512,1024,2048", "--out", str(parts[1]))  # fmt: skip
    charts = out.with_suffix("")
    page = _edge(
        "quality", *map(str, parts), *(["--bench", str(told)] if speeds else []), "--markdown", "--out", str(out),
        "--force", "--charts", str(charts),
    )  # fmt: skip
    (charts / "index.html").unlink()  # the page below says the same
    head = (
        "# Quality of the pocket model's recipes\n\n"
        f"The first {tokens:,} tokens of `{text.name}` in windows of 512, in full precision but for the weights. "
        "The needles are asked as chat runs the model. Made by `python -m benchmarks.quality`.\n\n"
    )
    pictures = [f"![{path.stem}]({charts.name}/{path.name})" for path in sorted(charts.glob("*.png"))]
    out.with_suffix(".md").write_text(head + page + "\n" + "\n".join(pictures) + "\n", encoding="utf-8", newline="\n")
    models = json.loads(out.read_text(encoding="utf-8"))["models"]
    click.echo(f"{len(models)} measurements in {out}")


def _edge(*words: str) -> str:
    click.echo("glm4-edge " + " ".join(words), err=True)
    done = subprocess.run([sys.executable, "-m", "edge", *words], stdout=subprocess.PIPE, text=True, encoding="utf-8")
    if done.returncode:
        raise click.ClickException(f"glm4-edge {words[0]} ended with {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    main()
