"""`glm4-edge export --dry-run`: what an export would take, and whether this machine has it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.errors import EdgeError
from edge.report import progress_lines

if TYPE_CHECKING:
    from edge.export.forecast import Forecast
    from edge.export.recipe import Recipe
    from edge.lora.asked import Asked
    from edge.messages import Progress
    from edge.model.spec import GlmSpec
    from edge.model.survey import Remote


@dataclass(frozen=True)
class _Plan:
    model: str
    out: Path
    spec: GlmSpec
    recipe: Recipe
    forecast: Forecast
    remote: Remote | None
    source: str
    made: str | None
    """When the same export was made that is there already; None where it is not, or the checkpoint is yet to come."""


def rehearse(
    model: str, out: Path, *, target: str, weights: str, calibration_text: Path | None, revision: str | None,
    overrides: dict[str, Any], as_json: bool, force: bool = False, merge: Sequence[Asked] = (),
) -> None:  # fmt: skip
    """Print the plan. What no export would begin with raises here as it would there.

    Raises:
        OutputError, ResourceError: after the plan was printed, for want of disk or memory.
    """
    with progress_lines() as progress:
        plan = _planned(
            model, out, target=target, weights=weights, calibration_text=calibration_text, revision=revision,
            overrides=overrides, force=force, progress=progress, merge=merge,
        )  # fmt: skip
    fault = None if plan.made is not None else _fault(plan)
    click.echo(json.dumps(_as_json(plan, fault), indent=2) if as_json else _as_table(plan, fault))
    if fault is not None:
        raise fault


def facts(model: str, out: Path, *, target: str, progress: Progress) -> dict[str, Any]:
    """What `--dry-run --json` prints of an int4 export; want of disk or memory is in it, not raised."""
    plan = _planned(
        model, out, target=target, weights="int4", calibration_text=None, revision=None, overrides={}, force=True,
        progress=progress,
    )  # fmt: skip
    return _as_json(plan, _fault(plan))


def _planned(
    model: str, out: Path, *, target: str, weights: str, calibration_text: Path | None, revision: str | None,
    overrides: dict[str, Any], force: bool, progress: Progress, merge: Sequence[Asked] = (),
) -> _Plan:  # fmt: skip
    from edge.export import forecast, pipeline
    from edge.export.recipe import Recipe
    from edge.lora.adapter import Adapter
    from edge.model.survey import Remote, survey

    pipeline.check_output(out)

    def make_recipe(spec: GlmSpec) -> Recipe:
        return Recipe.for_target(target, spec, weights=weights, **overrides)

    found = survey(model, revision=revision, progress=progress)
    if isinstance(found, Remote):
        spec, recipe, checkpoint = found.spec, make_recipe(found.spec), None
        recipe.check(spec, target)
        pipeline.user_text(recipe, calibration_text)
        pipeline.check_dtype(recipe, found.dtype)
        for asked in merge:
            Adapter.read(asked, spec)
        size, source, made = found.weight_bytes, str(found.cache), None
    else:
        job = pipeline.prepare(
            found, out, target=target, make_recipe=make_recipe, calibration_text=calibration_text, merge=merge
        )
        spec, recipe, checkpoint = job.checkpoint.spec, job.recipe, job.checkpoint
        size = sum(path.stat().st_size for path in checkpoint.shards)
        source = str(found.folder)
        made = None if force else pipeline.earlier(job, progress)
    rates = forecast.measure(spec, recipe, checkpoint, progress)
    figures = forecast.forecast(spec, recipe, weight_bytes=size, rates=rates)
    remote = found if isinstance(found, Remote) else None
    return _Plan(model, out, spec, recipe, figures, remote, source, None if made is None else made.created[:10])


def _fault(plan: _Plan) -> EdgeError | None:
    from edge.export import pipeline
    from edge.files import check_room, existing_part

    try:
        if plan.remote is not None:
            needed, cache = plan.remote.room_bytes, plan.remote.cache
            if existing_part(cache).stat().st_dev == existing_part(plan.out).stat().st_dev:
                both = needed + pipeline.room_bytes(plan.spec, plan.recipe)
                check_room(plan.out, both, f"the download and the export to {plan.out}")
            check_room(cache, needed, f"the download of {plan.model}")
        pipeline.check_machine(plan.spec, plan.recipe, plan.out)
    except EdgeError as error:
        return error
    return None


def _steps(plan: _Plan) -> list[str]:
    steps = [] if plan.remote is None else [f"downloading from {plan.remote.source}"]
    return [*steps, *plan.forecast.seconds, "taking the name"]


def _free(folder: Path) -> int:
    from edge.files import existing_part

    return shutil.disk_usage(existing_part(folder)).free


def _as_json(plan: _Plan, fault: EdgeError | None) -> dict[str, Any]:
    import psutil

    memory, figures, remote = psutil.virtual_memory(), plan.forecast, plan.remote
    download = None
    if remote is not None:
        download = {"bytes": remote.download_bytes, "from": remote.source, "to": str(remote.cache),
                    "free_bytes": _free(remote.cache)}  # fmt: skip
    return {
        "model": plan.model,
        "parameters": figures.parameters,
        "possible": fault is None,
        "already_made": plan.made,
        "reason": None if fault is None else fault.message,
        "way_out": None if fault is None else fault.hint,
        "download": download,
        "read": {"bytes": figures.read_bytes, "from": plan.source},
        "write": {"bytes": figures.write_bytes, "to": str(plan.out), "free_bytes": _free(plan.out)},
        "memory": {"bytes": figures.memory_bytes, "available_bytes": memory.available, "total_bytes": memory.total},
        "seconds": {
            "total": round(figures.total_seconds, 1),
            "steps": figures.seconds,
            "measured": dataclasses.asdict(figures.rates),
            "assumed": list(figures.assumed),
        },
        "recipe": {**plan.recipe.to_dict(), "words": _words(plan.recipe)},
        "steps": _steps(plan),
    }


def _as_table(plan: _Plan, fault: EdgeError | None) -> str:
    facts = _as_json(plan, fault)
    download, memory, seconds = facts["download"], facts["memory"], facts["seconds"]
    rows = []
    if download:
        rows.append(("downloads", f"{_gb(download['bytes'])} from {download['from']} to {download['to']} "
                                  f"({_gb(download['free_bytes'])} free)"))  # fmt: skip
    rows += [
        ("reads", f"{_gb(facts['read']['bytes'])} from {facts['read']['from']}"),
        ("writes", f"{_gb(facts['write']['bytes'])} to {plan.out} ({_gb(facts['write']['free_bytes'])} free)"),
        ("holds", f"about {_gb(memory['bytes'])} of memory ({_gb(memory['available_bytes'])} of "
                  f"{_gb(memory['total_bytes'])} available now)"),
        ("takes", f"about {_duration(seconds['total'])}" + (", and the download" if download else "")),
        *(("", f"{_duration(value):>8}  {step}") for step, value in seconds["steps"].items()),
        ("measured", _measured(seconds["measured"])),
        ("assumed", "; ".join(seconds["assumed"])),
        ("recipe", facts["recipe"]["words"]),
        ("verdict", _verdict(facts)),
    ]  # fmt: skip
    return "\n".join(f"{name:<10} {text}" for name, text in rows)


def _verdict(facts: dict[str, Any]) -> str:
    if facts["already_made"]:
        return (
            f"this export is in {facts['write']['to']} already, made on {facts['already_made']}: nothing would be "
            "done; the above is what --force takes"
        )
    if not facts["possible"]:
        return f"no: {facts['reason']}"
    if facts["memory"]["bytes"] > facts["memory"]["available_bytes"]:
        return "yes, but close other programs first: less memory is available now than it needs"
    return "yes"


def _measured(rates: dict[str, float | None]) -> str:
    names = {
        "read_bytes_per_second": ("reading", 1e9, "GB/s"),
        "sha256_bytes_per_second": ("hashing", 1e9, "GB/s"),
        "multiply_per_second": ("multiplying", 1e9, "GFLOP/s"),
        "weight_seconds": ("compressing", 1e-6, "s a million weights"),
    }
    said = [
        f"{what} {value / unit:.2g} {name}"
        for key, (what, unit, name) in names.items()
        if (value := rates[key]) is not None
    ]
    return "just now: " + ", ".join(said)


def _words(recipe: Recipe) -> str:
    if recipe.weights != "int4":
        return recipe.weights + (", symmetric" if recipe.symmetric else "")
    groups = "a scale for each output channel" if recipe.group_size == -1 else f"groups of {recipe.group_size}"
    words = ["int4", "symmetric" if recipe.symmetric else "asymmetric", groups]
    words.append("all layers in 4 bits" if recipe.ratio == 1 else f"at most {recipe.ratio:.0%} of the layers in 4 bits")
    words.append(f"the rest {'as it is' if recipe.backup == 'none' else recipe.backup}")
    words += [name for name, used in (("AWQ", recipe.awq), ("scale estimation", recipe.scale_estimation)) if used]
    words.append("over calibration text" if recipe.needs_calibration else "from the weights alone")
    return ", ".join(words)


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
