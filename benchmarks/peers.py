"""Side by side on the same weights and this machine: ours, OpenVINO GenAI on optimum-intel's model, llama.cpp, ITREX.

    python -m benchmarks.peers --work FOLDER --text wiki.test.raw --out benchmarks/results/peers_pocket.json
    python -m benchmarks.peers --work FOLDER --shape 9b --out benchmarks/results/peers_9b.json

Makes in FOLDER what is not there yet: a checkpoint of the shape, each one's 4-bit model of it, and the environments
(llama.cpp is built from source; ITREX is left out where `glm4-edge itrex setup` was not run). The 9B shape takes 60 GB
of disk for a while, and 17 once its checkpoint is removed, which nothing asks for again. Quality: every token's logits
over a text, against the bf16 model's, each as it runs. Speed: in every round each in turn begins a process, loads, and
answers the same random token ids, greedily and past the stop tokens; the first answer counts from the process's start,
the further ones for prefill and decode. A table in Markdown is written beside the JSON.
"""

from __future__ import annotations

import datetime
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks import peers_report, synthetic
from benchmarks.peer_arms import Arm, LlamaCpp, Place, arms, command, environment
from benchmarks.peer_process import started
from edge.bench.case import Case, Measured, Prompts, Sample
from edge.bench.record import machine
from edge.files import check_room, write_text
from edge.model.spec import GlmSpec

PARTS = ("quality", "speed")
_RANDOM = "its weights are random: how far they are from bf16 says nothing"


@dataclass(frozen=True)
class _Size:
    """What one round of a shape is."""

    prompt_tokens: int
    new_tokens: int


SHAPES = {"pocket": _Size(1024, 128), "small": _Size(128, 16), "9b": _Size(128, 16)}
"""`small` is for trying this out: the 9B shape's road in a fifteenth of its time."""


@click.command(help=__doc__)
@click.option("--work", required=True, type=click.Path(file_okay=False, path_type=Path), help="Where all is made.")
@click.option("--shape", type=click.Choice(list(SHAPES)), default="pocket", show_default=True)
@click.option("--text", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="For the quality.")
@click.option("--tokens", default=4096, show_default=True, help="Of the text.")
@click.option("--window", default=512, show_default=True)
@click.option("--prompt", type=int, help="Tokens of each prompt; left out, the shape's own.")
@click.option("--new", type=click.IntRange(2), help="Tokens of each answer; left out, the shape's own.")
@click.option("--rounds", default=9, show_default=True)
@click.option("--asks", default=2, show_default=True, help="Answers in a round beside the first.")
@click.option("--only", multiple=True, help="This one only; may be repeated.")
@click.option(
    "--itrex-home",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="GLM4_EDGE_HOME as it was for `glm4-edge itrex setup`; left out, as it is now.",
)
@click.option("--part", multiple=True, type=click.Choice(PARTS), help="This part only; OUT keeps the other.")
@click.option("--threads", type=int, help="For llama.cpp; left out, as many as there are fast cores.")
@click.option("--prepare", is_flag=True, help="Make what is needed, and stop there.")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
def main(
    work: Path, shape: str, text: Path | None, tokens: int, window: int, prompt: int | None, new: int | None,
    rounds: int, asks: int, only: tuple[str, ...], itrex_home: Path | None, part: tuple[str, ...], threads: int | None,
    prepare: bool, out: Path,
) -> None:  # fmt: skip
    """Measure the parts and write both files after each."""
    chosen, missing = _here(_chosen(only, itrex_home), only)
    wanted = part or PARTS
    if "quality" in wanted and shape == "pocket" and text is None and not prepare:
        raise click.UsageError("the quality needs a --text; --part speed leaves it out")
    size = _Size(prompt or SHAPES[shape].prompt_tokens, new or SHAPES[shape].new_tokens)
    work = work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    context = max(size.prompt_tokens + size.new_tokens, window) + 64
    place = Place(work, shape, *_checkpoint(work, shape), threads or _fast_cores(), context)
    _prepare(place, chosen)
    if prepare:
        return
    result = _earlier(out, shape)
    result["shape"] = {"name": shape, "parameters": place.spec.parameter_count()}
    for name in wanted:
        if name == "quality":
            result[name] = _stamped(place, chosen, missing, _quality(place, chosen, text, tokens, window))
        else:
            result[name] = _stamped(place, chosen, missing, _speed(place, chosen, size, rounds, asks))
        write_text(out, json.dumps(result, indent=1, allow_nan=False) + "\n")
        write_text(out.with_suffix(".md"), peers_report.table(result))
    click.echo(peers_report.table(result))


def _chosen(only: Sequence[str], itrex_home: Path | None = None) -> list[Arm]:
    there = arms(itrex_home)
    if unknown := set(only) - {arm.name for arm in there}:
        raise click.UsageError(f"no {', '.join(sorted(unknown))}; there are {', '.join(arm.name for arm in there)}")
    return [arm for arm in there if not only or arm.name in only]


def _here(chosen: Sequence[Arm], only: Sequence[str]) -> tuple[list[Arm], dict[str, str]]:
    """Those that can be measured here, and why others cannot; one that was asked for by name has to be here."""
    missing = {arm.name: why for arm in chosen if (why := arm.missing())}
    for name, why in missing.items():
        if name in only:
            raise click.UsageError(f"{name} cannot be measured: {why}")
        click.echo(f"{name} is left out: {why}", err=True)
    return [arm for arm in chosen if arm.name not in missing], missing


def _fast_cores() -> int:
    from edge.runtime.cores import count_cores
    from edge.runtime.machine import Machine

    cores = count_cores(Machine())
    return cores.performance or cores.physical or cores.logical or os.cpu_count() or 1


def _checkpoint(work: Path, shape: str) -> tuple[Path, GlmSpec]:
    """Where it lies, or will, and what it is of."""
    if shape == "pocket":
        from edge.model import pocket

        folder = pocket.fetch(lambda stage, done, total: None)
        return folder, GlmSpec.from_folder(folder)
    return work / f"{shape}-checkpoint", GlmSpec.from_config(synthetic.config_of(shape))


def _prepare(place: Place, chosen: Sequence[Arm]) -> None:
    """Make what is not there; of a synthetic shape the checkpoint, too, as long as somebody needs it."""
    needed = any(not arm.model(place).exists() for arm in chosen)
    if needed and not (place.checkpoint / "tokenizer.json").is_file():  # what is written last
        size = 2 * place.spec.parameter_count()
        check_room(place.work, size, "the checkpoint")
        click.echo(f"writing a checkpoint of {size / 1e9:.1f} GB …", err=True)
        synthetic.write(place.checkpoint, shape=place.shape)
    for arm in chosen:
        arm.prepare(place)
    LlamaCpp.whole(place).unlink(missing_ok=True)  # as large as the checkpoint, and of use to its quantiser only


def _earlier(out: Path, shape: str) -> dict[str, Any]:
    """What OUT has of this shape already; a part that is not measured now stays."""
    if not out.is_file():
        return {}
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    if found["shape"]["name"] != shape:
        raise click.UsageError(f"{out.name} is of the shape {found['shape']['name']}; name another file")
    return found


def _stamped(place: Place, chosen: Sequence[Arm], missing: dict[str, str], part: dict[str, Any]) -> dict[str, Any]:
    """With when, where and by what it was measured."""
    return {
        "made": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": {arm.name: arm.versions(place) for arm in chosen},
        "what": {arm.name: arm.what for arm in chosen},
        "missing": missing,
        "model_bytes": _bf16_bytes(place) | {arm.name: arm.model_bytes(place) for arm in chosen},
        **part,
    }


def _bf16_bytes(place: Place) -> dict[str, int]:
    """Of the checkpoint's weights, as long as it is there."""
    size = sum(path.stat().st_size for path in place.checkpoint.glob("*.safetensors"))
    return {"bf16": size} if size else {}


def _quality(place: Place, chosen: Sequence[Arm], text: Path | None, tokens: int, window: int) -> dict[str, Any]:
    """Of each as it runs and, where that can be, of its weights in full precision."""
    if place.shape != "pocket" or text is None:
        return {"left_out": _RANDOM, "rows": {}}
    from benchmarks import recipes

    windows = recipes.windows_of(place.checkpoint, text, tokens, window)
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=place.work) as scratch:
        reference, asked, logits = (Path(scratch) / name for name in ("reference.npy", "windows.npy", "logits.npy"))
        np.save(asked, windows)
        with recipes.one_process_each() as pool:
            pool.apply(recipes.write_reference, (place.checkpoint, windows, reference))
        expected = np.load(reference, mmap_mode="r")
        rows["bf16"] = {"as_run": recipes.agreement(windows, expected, expected)}
        for arm in chosen:
            rows[arm.name] = {}
            for name, exact in (("as_run", False), ("weights_alone", True)):
                if exact and not arm.exact:
                    continue
                click.echo(f"quality of {arm.name}, {name.replace('_', ' ')} …", err=True)
                with started(command(arm, place), environment(arm)) as (child, _):
                    child.logits(asked, logits, exact=exact)
                rows[arm.name][name] = recipes.agreement(windows, expected, np.load(logits, mmap_mode="r"))
    return {"text": text.name, "tokens": tokens, "window": window, "rows": rows}


def _speed(place: Place, chosen: Sequence[Arm], size: _Size, rounds: int, asks: int) -> dict[str, Any]:
    """Rounds in which each begins, loads and answers, none of them always first; the first round is not counted."""
    case = Case(size.prompt_tokens, size.new_tokens)
    prompts = Prompts(lambda turns: [ord(turns[0].content)], place.spec.vocab_size)
    found = {arm.name: Measured(arm.name, "CPU", {}, {}) for arm in chosen}
    starts: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in chosen}
    for number in range(rounds + 1):
        for turn in range(len(chosen)):
            arm = chosen[(turn + number) % len(chosen)]
            click.echo(f"{arm.name}, {f'round {number} of {rounds}' if number else 'warming up'} …", err=True)
            start, samples = _turn(arm, place, case, number, asks if number else 1, prompts)
            if number:
                starts[arm.name].append(start)
                found[arm.name].samples += [(case, sample) for sample in samples]
    for name, measured in found.items():
        measured.memory = {
            kind: max((start["memory"][kind] for start in starts[name]), default=None)
            for kind in ("anonymous", "resident")
        }
    settings = {
        "prompt_tokens": size.prompt_tokens, "new_tokens": size.new_tokens, "rounds": rounds, "asks": asks,
        "threads": place.threads,
    }  # fmt: skip
    return {
        "settings": settings,
        "starts": starts,
        "measured": {name: measured.to_json() for name, measured in found.items()},
        "figures": {name: peers_report.figures(measured, starts[name]) for name, measured in found.items()},
        "ours_to_peer": peers_report.ratios(chosen[0].name, found, starts),
    }


def _turn(
    arm: Arm, place: Place, case: Case, number: int, asks: int, prompts: Prompts
) -> tuple[dict[str, Any], list[Sample]]:
    """One process: what its start took, and a sample of each further answer."""
    samples = []
    with started(command(arm, place), environment(arm)) as (child, loaded):
        first, answer = child.ask(prompts.first(case.prompt_tokens, f"{number} at first"), 1)
        start = {
            "round": number, "loaded_seconds": loaded, "first_token_seconds": first,
            "first_answer_seconds": answer["token_seconds"][0], "busy_elsewhere": answer["busy_elsewhere"],
        }  # fmt: skip
        for which in range(asks):
            prompt = prompts.first(case.prompt_tokens, f"{number} {which}")
            _, answer = child.ask(prompt, case.new_tokens)
            times = tuple(answer["token_seconds"])
            samples.append(
                Sample(number, len(prompt), len(prompt), times, times[-1], busy_elsewhere=answer["busy_elsewhere"])
            )
        start["memory"] = child.memory
    return start, samples


if __name__ == "__main__":
    main()
