"""`glm4-edge quality`: what compression has cost a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edge.report import progress_lines, say


class _Names(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """Names, or numbers, with commas between them."""

    def __init__(self, name: str, number: type[int] | type[float] | None = None, low: float = 0, high: float = 0):
        self.name, self._number, self._low, self._high = name, number, low, high

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """See `click.ParamType.convert`."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",") if part.strip()]
        if not parts:
            self.fail(f"'{value}' names nothing", param, ctx)
        if self._number is None:
            return tuple(dict.fromkeys(parts))
        try:
            numbers = [self._number(part) for part in parts]
        except ValueError:
            numbers = []
        if not numbers or not all(self._low <= each <= self._high for each in numbers):
            self.fail(f"'{value}' is no list of numbers from {self._low:g} to {self._high:g}", param, ctx)
        return tuple(sorted(set(numbers)))


@click.command(short_help="Measure what compression has cost.")
@click.argument("models", nargs=-1, required=True, metavar="MODEL…")
@click.option("--device", default="CPU", show_default=True, help="CPU, GPU, GPU.n, HETERO:A,B, NPU (needles) or AUTO.")
@click.option("--text", type=click.Path(dir_okay=False, path_type=Path), help="A text of yours, instead of ours.")
@click.option("--tokens", type=click.IntRange(16), default=4096, show_default=True, help="Of each text, at most.")
@click.option("--window", type=click.IntRange(8), default=512, show_default=True, help="Tokens read in one go.")
@click.option("--against", metavar="CHECKPOINT", help="Compare with this one; left out, the model's own if it is small "
              "and at hand.")  # fmt: skip
@click.option("--reference", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Compare with what `glm4-edge reference` kept, on its texts.")  # fmt: skip
@click.option("--exact", is_flag=True, help="Full precision everywhere but in the weights, instead of as chat runs it.")
@click.option(
    "--tuned", is_flag=True, help="With the settings that `glm4-edge tune` kept here, instead of the defaults."
)
@click.option("--distance/--no-distance", default=True, show_default=True, help="Perplexity, and the comparison.")
@click.option("--tasks", type=_Names("NAME,NAME,…"), help="gsm8k, mmlu, ceval, cmmlu, humaneval, ifeval, or any that "
              "lm-eval has.")  # fmt: skip
@click.option("--limit", type=click.IntRange(1), help="Questions of each part of a task at most: to try it out.")
@click.option("--few-shot", type=click.IntRange(0), help="Examples before each question, instead of the protocol's.")
@click.option("--chat/--no-chat", default=None, help="Ask tasks in the chat template or not, instead of as the "
              "protocol has it.")  # fmt: skip
@click.option("--tasks-from", type=click.Path(file_okay=False, exists=True, path_type=Path), help="Folder of further "
              "tasks' YAML files.")  # fmt: skip
@click.option("--run-code", is_flag=True, help="Let tasks run programs that the model has written (humaneval).")
@click.option("--samples", type=click.Path(file_okay=False, path_type=Path), help="Put questions and answers of tasks "
              "into this folder.")  # fmt: skip
@click.option("--resume/--no-resume", default=True, show_default=True, help="Keep answers to tasks as they come, and "
              "take those of an earlier run.")  # fmt: skip
@click.option("--needle", is_flag=True, help="Hide needles in haystacks, and ask for them.")
@click.option("--needle-lengths", type=_Names("N,N,…", int, 128, 2**31), help="Tokens of the prompts; left out, "
              "doubled from 512 up to 8,192 or the context.")  # fmt: skip
@click.option("--needle-depths", type=_Names("X,X,…", float, 0, 1), default="0,0.25,0.5,0.75,1", show_default=True,
              help="Shares of the haystack before the needle.")  # fmt: skip
@click.option("--needles", type=click.IntRange(1, 1000), default=1, show_default=True, help="In each place.")
@click.option("--haystack", type=click.Path(dir_okay=False, path_type=Path), help="A text of yours, instead of ours.")
@click.option("--context", type=click.IntRange(32, 2**31 - 1), help="Tokens of prompt and answer, for tasks and "
              "needles.")  # fmt: skip
@click.option(
    "--bench", type=click.Path(dir_okay=False, path_type=Path), help="Take speeds from a file of bench --out."
)
@click.option("--json", "form", flag_value="json", help="Print everything, raw samples too.")
@click.option("--markdown", "form", flag_value="markdown", help="Print a page.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Keep everything here.")
@click.option("--force", is_flag=True, help="Replace the file of --out.")
@click.option(
    "--charts", type=click.Path(file_okay=False, path_type=Path), help="Draw PNGs and a page into this folder."
)
def quality(
    models: tuple[str, ...], form: str | None, out: Path | None, charts: Path | None, force: bool, bench: Path | None,
    **options: Any,
) -> None:  # fmt: skip
    """Measure how much of a checkpoint is left in exported MODELs: folders, or `pocket`, side by side in one table.

    Measured is the perplexity of a text and, with the checkpoint or its reference, the KL divergence to it and how
    often the likeliest token is the same; tasks of lm-eval (extra 'eval'); and needles found in long texts. A MODEL
    may also be a file that --out wrote before: what stands in it comes into the same table and charts.

    \b
    Examples:
      glm4-edge quality pocket
      glm4-edge quality ./int4 ./int8 --against ./checkpoint --text wiki.txt --charts charts
      glm4-edge quality ./glm4-int4 --reference glm4.ref --out int4.json
      glm4-edge quality int4.json int8.json --bench bench.json --markdown
      glm4-edge quality ./glm4-int4 --no-distance --tasks gsm8k,mmlu --limit 20
      glm4-edge quality ./glm4-int4 --no-distance --needle --needle-lengths 1024,8192,32768 --charts charts

    docs/quality.md has the protocol for GLM-4's own table.
    """
    from edge.commands import quality_run
    from edge.errors import UsageError
    from edge.quality import plot, show

    wanted = quality_run.Wanted(**options)
    if charts is not None:
        from edge.bench.plot import require

        require()
    for path in (out, charts, wanted.samples):
        if path is not None and not path.expanduser().absolute().parent.is_dir():
            raise UsageError(f"there is no folder {path.parent}", hint="Make it first, or name another.")
    if out is not None and out.expanduser().exists() and not force:
        raise UsageError(f"{out} exists, and is not replaced", hint="Name another file, or add --force.")
    with progress_lines() as progress:
        record = quality_run.run(models, wanted, bench, progress)
    if out is not None:
        record.write(out.expanduser())
        say(f"Everything is in {out}")
    if charts is not None:
        say(f"The charts are in {plot.write(record, charts.expanduser())[-1]}")
    if form == "json":
        click.echo(record.text())
    elif form == "markdown":
        click.echo(show.markdown(record), nl=False)
    else:
        click.echo(show.text(record))
