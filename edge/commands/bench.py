"""`glm4-edge bench`: how fast models are on this machine, how near to its limits, and whether two runs differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.commands import itrex
from edge.commands.itrex import RUNTIME_OPTION
from edge.errors import UsageError, VerificationError
from edge.report import progress_lines, say

if TYPE_CHECKING:
    from edge.bench.case import Measured
    from edge.bench.record import Record
    from edge.bench.run import Arm
    from edge.runtime.settings import Runtime

_DEFAULT = "run"


class _Numbers(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """Numbers with commas between them."""

    name = "N,N,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(part.isascii() and part.isdigit() and 0 < int(part[:12]) < 2**31 for part in parts):
            self.fail(f"'{value}' is no list of numbers; write it as 32,1024", param, ctx)
        return tuple(dict.fromkeys(map(int, parts)))


class _Group(click.Group):
    """What is no command of its own is a model to measure."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] in self.commands:
            return super().resolve_command(ctx, args)
        return super().resolve_command(ctx, [_DEFAULT, *args])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [_DEFAULT, *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Group, no_args_is_help=True)
def bench() -> None:
    """Measure how fast exported MODELs are on this machine, and compare runs.

    \b
    Examples:
      glm4-edge bench pocket
      glm4-edge bench ./glm4-int4 --prompts 32,1024,4096 --new 128 --out today.json
      glm4-edge bench ./glm4-int4 --device CPU --device GPU --charts charts
      glm4-edge bench ./int4 ./int8
      glm4-edge bench ./glm4-int4 --lora ./support --out lora.json
      glm4-edge bench compare before.json after.json --fail-if-slower 10%

    `glm4-edge bench run --help` tells the options of measuring.
    """


@bench.command(_DEFAULT)
@click.argument("models", nargs=-1, required=True, metavar="MODEL…")
@click.option("--device", "devices", multiple=True, default=("AUTO",), show_default=True, help="May be given again.")
@click.option("--prompts", type=_Numbers(), default="32,1024", show_default=True, help="Tokens of the prompts.")
@click.option("--new", type=_Numbers(), default="128", show_default=True, help="Tokens of the answers.")
@click.option("--together", type=_Numbers(), default="1", show_default=True, help="Requests at the same time.")
@click.option("--turns/--no-turns", default=True, show_default=True, help="Also a second turn behind each first.")
@click.option("--rounds", type=click.IntRange(1, 1000), default=7, show_default=True, help="Repetitions of everything.")
@click.option("--loads", type=click.IntRange(1, 100), default=1, show_default=True, help="Starts of each model.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=15.0, show_default=True,
              help="After which no further round begins, three made.")  # fmt: skip
@click.option("--context", type=click.IntRange(1, 2**31 - 1), help="Tokens of prompt and answer; left out, as chosen.")
@click.option("--kv-precision", type=click.Choice(["f32", "f16", "u8", "u4"]), help="Of the cache.")
@click.option("--lora", multiple=True, metavar="PATH[:SCALE]", help="Measure each model also with these adapters on.")
@RUNTIME_OPTION
@click.option("--limits/--no-limits", default=True, show_default=True, help="Measure what the machine can do at most.")
@click.option("--rehearse", is_flag=True, help="Run the NPU's shapes on the CPU (with --device NPU).")
@click.option("--json", "form", flag_value="json", help="Print everything, raw samples too.")
@click.option("--csv", "form", flag_value="csv", help="Print a line of plain numbers for each case.")
@click.option("--markdown", "form", flag_value="markdown", help="Print a page.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Keep everything here, for compare.")
@click.option("--force", is_flag=True, help="Replace the file of --out.")
@click.option(
    "--charts", type=click.Path(file_okay=False, path_type=Path), help="Draw PNGs and a page into this folder."
)
def run(
    models: tuple[str, ...], devices: tuple[str, ...], form: str | None, out: Path | None, charts: Path | None,
    context: int | None, kv_precision: str | None, rehearse: bool, runtime: Runtime, force: bool, lora: tuple[str, ...],
    **options: Any,
) -> None:  # fmt: skip
    """Measure exported MODELs: a folder, or `pocket`.

    Several models or devices are measured in turn, so that what the machine does meanwhile meets all alike. Prompts are
    random tokens in the chat template, new ones in every round, so that no cache knows them; answers go on past their
    end. Figures stand beside what this machine's memory and arithmetic allow, measured in the same run.
    """
    from edge.bench import plot, show
    from edge.bench import run as running
    from edge.bench.record import Record

    if charts is not None:
        plot.require()
    for path in (out, charts):
        if path is not None and not path.expanduser().absolute().parent.is_dir():
            raise UsageError(f"there is no folder {path.parent}", hint="Make it first, or name another.")
    if out is not None and out.expanduser().exists() and not force:
        raise UsageError(f"{out} exists, and is not replaced", hint="Name another file, or add --force.")
    itrex.told(runtime)
    if lora and runtime == "itrex":
        raise UsageError("ITREX takes no adapters", hint="Leave --lora or --runtime itrex out.")
    arms = _arms(models, devices, context, kv_precision, rehearse, runtime)
    arms = [each for arm in arms for each in (arm, *_with_adapters(arm, lora))]
    wanted = running.Wanted(
        options["prompts"], options["new"], options["together"], options["turns"], options["rounds"], options["loads"],
        options["limits"] and not rehearse, options["minutes"] * 60,
    )  # fmt: skip
    with progress_lines() as progress:
        made = running.run(arms, wanted, progress=progress)
    record = Record.now(made.measured, made.rounds, made.left_out)
    if out is not None:
        record.write(out.expanduser())
        say(f"Everything is in {out}")
    if charts is not None:
        say(f"The charts are in {plot.write(record, charts.expanduser())[-1]}")
    if rehearse:
        from edge.npu import REHEARSED

        say(f"A rehearsal {REHEARSED}: these are no figures of an NPU.")
    forms = {
        "json": lambda: json.dumps(record.to_json(), indent=1, allow_nan=False),
        "csv": lambda: show.csv_text(record),
        "markdown": lambda: show.markdown(record),
    }
    click.echo(forms[form]() if form else show.text(record), nl=form not in ("csv", "markdown"))


def _arms(
    models: Sequence[str], named: Sequence[str], context: int | None, kv_precision: str | None, rehearse: bool,
    runtime: Runtime = "openvino",
) -> list[Arm]:  # fmt: skip
    """Every model on every device."""
    from edge.bench.run import Arm
    from edge.commands.named import exported, is_name
    from edge.manifest import Manifest
    from edge.runtime import devices
    from edge.runtime import plan as plans
    from edge.runtime.settings import Settings

    arms: dict[tuple[str, str], Arm] = {}
    for name in named:
        asked = devices.parse(name)
        if rehearse and asked != "NPU":
            raise UsageError(f"{asked} is not rehearsed, the NPU is", hint="Write --device NPU --rehearse.")
        for model in models:
            folder = exported(model, asked)
            if runtime == "itrex":
                of_itrex = itrex.settings_for(asked, context, kv_precision=kv_precision)
                label = f"{model if is_name(model) else folder.resolve().name} by ITREX"
                arms[model, "CPU"] = Arm(label, folder, of_itrex)
                continue
            manifest = Manifest.read(folder)
            place = asked if rehearse else devices.resolve(asked, manifest=manifest)
            if kv_precision is not None:
                plans.check_kv(place, kv_precision)
            properties = {} if kv_precision is None else {"KV_CACHE_PRECISION": kv_precision}
            settings = Settings(place, properties, context=context, rehearse=rehearse)
            name = model if is_name(model) else folder.resolve().name  # a record tells nothing of whose machine it is
            arms[model, place] = Arm(name, folder, settings)
    return list(arms.values())


def _with_adapters(arm: Arm, lora: Sequence[str]) -> list[Arm]:
    """The same model with all of the adapters on, if there are any."""
    from edge.commands.loading import asked_for, check_adapters

    loras = asked_for(lora, arm.settings.device)
    if loras is None:
        return []
    check_adapters(arm.folder, loras)
    return [replace(arm, name=f"{arm.name} with {' and '.join(each.label for each in loras.asked)}", loras=loras)]


@bench.command()
@click.argument("before", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("after", type=click.Path(dir_okay=False, path_type=Path), required=False)
@click.option("--fail-if-slower", metavar="X%", help="End with 1 if anything is slower by more, beyond the noise.")
@click.option("--json", "as_json", is_flag=True, help="For a program.")
@click.option(
    "--charts", type=click.Path(file_okay=False, path_type=Path), help="Draw both runs side by side into this folder."
)
def compare(
    before: Path, after: Path | None, fail_if_slower: str | None, as_json: bool, charts: Path | None
) -> None:  # fmt: skip
    """Say whether what was measured in AFTER is faster or slower than in BEFORE, or whether only noise differs.

    Both are files that `glm4-edge bench --out` wrote, on this machine or on another; one of them may be a file of
    `glm4-edge reference`, which holds the times of the checkpoint itself. With one file, everything in it is compared
    with the first model in it. The ratio is that of times: above 1 is slower. A figure counts as different where the
    whole interval is on one side of 1 and the difference is at least one in a hundred.

    \b
    Examples:
      glm4-edge bench compare before.json after.json --charts charts
      glm4-edge bench compare before.json after.json --fail-if-slower 10%
      glm4-edge bench compare glm4.ref today.json
    """
    from edge.bench import apart, plot, plot_both, show, summary
    from edge.bench import compare as comparing
    from edge.bench.record import same_machine

    bound = _percent(fail_if_slower)
    if charts is not None:
        plot.require()
        if not charts.expanduser().absolute().parent.is_dir():
            raise UsageError(f"there is no folder {charts.parent}", hint="Make it first, or name another.")
    first = _read(before)
    second = first if after is None else _read(after)
    of_reference = [any(each.model.get("reference") for each in run.measured) for run in (first, second)]
    if all(of_reference):
        raise UsageError("a reference is compared with a benchmark",
                         hint="Name a file that glm4-edge bench --out wrote, too.")  # fmt: skip
    unpaired = any(of_reference)
    blocks, told, slower, shown = [], [], [], []
    for one, other in _pairs(first, second, one_run=after is None, all_of=unpaired):
        found = apart.compare(one, other) if unpaired else comparing.compare(one, other)
        disturbed = 0.0 if after is None else max(summary.disturbance(one), summary.disturbance(other))
        if disturbed > comparing.DISTURBED:
            found = [replace(each, doubtful=True) for each in found]
            here = not unpaired and same_machine(first.machine, second.machine)
            say(f"Other programs had up to {disturbed:.0%} of the processors in one of the runs: no difference can be "
                "told. Measure both on a quiet machine"
                + (", or in one run: glm4-edge bench ONE OTHER." if here else "."))  # fmt: skip
        if not found:
            raise UsageError(f"{before} and {after or before} have no case in common", hint="Measure the same prompts.")
        names = f"{one.name} on {one.device} → {other.name} on {other.device}"
        blocks.append(f"{names}\n{show.comparison(found, one_run=after is None)}")
        told.append({"before": [one.name, one.device], "after": [other.name, other.device],
                     "one_run": after is None, "same_machine": same_machine(first.machine, second.machine),
                     "differences": [{**asdict(each), "verdict": each.verdict} for each in found]})  # fmt: skip
        shown.append((names, found))
        slower += [each for each in found if bound is not None and each.verdict == "slower" and each.low > 1 + bound]
    click.echo(json.dumps(told, indent=1) if as_json else "\n\n".join(blocks))
    if charts is not None:
        runs = None if after is None else (before.stem, after.stem)
        if after is not None and before.stem == after.stem:
            runs = (f"{before.resolve().parent.name}/{before.stem}", f"{after.resolve().parent.name}/{after.stem}")
        made = plot_both.write(first, second, runs, shown, "\n\n".join(blocks), charts.expanduser())
        say(f"The charts are in {made[-1]}")
    if not same_machine(first.machine, second.machine):
        say(f"The machines differ: {_machine(first)}; {_machine(second)}.")
    if changed := _changed(first.versions, second.versions):
        say(f"The versions differ: {changed}.")
    if slower:
        worst = max(slower, key=lambda each: each.low)
        raise VerificationError(
            f"{len(slower)} figures are slower by more than {fail_if_slower}, most of all {worst.metric} of "
            f"{worst.case.name}: {worst.ratio - 1:.0%}",
            hint="Measure again on a quiet machine before you believe it.",
        )


def _read(path: Path) -> Record:
    """A run, or what a reference tells of times."""
    from edge.bench import apart
    from edge.bench.record import Record

    return (apart.read if apart.is_reference(path.expanduser()) else Record.read)(path.expanduser())


def _pairs(first: Record, second: Record, *, one_run: bool, all_of: bool) -> list[tuple[Measured, Measured]]:
    """What is compared with what: within one run the first with all others, else those of the same name and device,
    or all with all."""
    if all_of:
        return [(one, other) for one in first.measured for other in second.measured]
    if one_run:
        if len(first.measured) < 2:
            raise UsageError("there is only one model in this file", hint="Name a second file to compare it with.")
        return [(first.measured[0], other) for other in first.measured[1:]]
    theirs = {(each.name, each.device): each for each in second.measured}
    same = [(each, theirs[each.name, each.device]) for each in first.measured if (each.name, each.device) in theirs]
    if same:
        return same
    if len(first.measured) == len(second.measured):
        return list(zip(first.measured, second.measured, strict=True))
    raise UsageError("the two files have no model in common", hint="Measure the same models.")


def _machine(run: Record) -> str:
    """What tells machines apart; two with one processor's name may have other numbers of cores."""
    told = run.machine
    return f"{told['cpu']}, {told['cores']} cores, {told['memory_bytes'] / 1e9:.0f} GB"


def _changed(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """Versions of what both had."""
    both = (name for name in before if name in after and before[name] != after[name])
    return ", ".join(f"{name} {before[name]} and {after[name]}" for name in both)


def _percent(text: str | None) -> float | None:
    """10% → 0.1."""
    if text is None:
        return None
    try:
        value = float(text.strip().removesuffix("%")) / 100
    except ValueError:
        value = -1.0
    if not 0 <= value < 100:
        raise UsageError(f"'{text}' is no percentage", hint="Write it as 10%.")
    return value
