"""`glm4-edge batch`: a file of requests, answered."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.commands.chat import _loaded, _sampling_options, _taken
from edge.errors import OutputError, UsageError
from edge.report import progress_lines, say

if TYPE_CHECKING:
    from edge.batch.counts import Counts
    from edge.batch.journal import Journal
    from edge.batch.lines import Line
    from edge.batch.run import Answered, Given
    from edge.messages import Progress, Sampling
    from edge.runtime.interface import ChatEngine


@click.command()
@click.argument("source", metavar="IN")
@click.argument("out", metavar="OUT")
@click.option(
    "--model",
    default="pocket",
    show_default=True,
    help="A folder that `glm4-edge export` made, or a name; as for chat.",
)
@click.option("--json", "as_json", is_flag=True, help="Print counts and throughput as JSON.")
@partial(_sampling_options, turns=False)
def batch(
    source: str, out: str, model: str, as_json: bool, system: str | None, stop: tuple[str, ...], **options: Any
) -> None:  # fmt: skip
    """Answer the requests in IN, a line each, and write the answers to OUT in the same order.

    A line is a request of OpenAI's batch format for /v1/chat/completions or /v1/completions, or a question to the
    model: "a JSON string", {"prompt": "…"} or {"messages": […]}, with fields such as "max_tokens" and "custom_id"
    beside it. If IN is named .txt, each line is a question as it stands. What a line leaves out, the sampling options
    and --system say.

    OUT has OpenAI's format. A line that is at fault has an error there, and the exit code is 1. Several lines are
    answered at once, where the device can. After Ctrl-C or a kill the same command goes on, and asks no line again
    that has its answer: those are kept in .OUT.partial until all are there.

    "-" stands for standard input or output; what goes to standard output cannot be gone on with.

    \b
    Examples:
      glm4-edge batch requests.jsonl answers.jsonl --model ./glm4-int4
      glm4-edge batch questions.txt answers.jsonl --temperature 0 --max-new-tokens 200
    """
    from edge.batch import lines as requests
    from edge.batch.run import Given
    from edge.files import alone
    from edge.messages import Sampling
    from edge.runtime import sampling as samplings

    asked = Sampling(stop=stop, **_taken(options, Sampling))
    samplings.check(asked)
    given = Given(_defaults(asked), system)
    target = _target(source, out, as_json)
    data = _input(source)
    plain = source.lower().endswith(".txt")
    lines = requests.split(data, plain=plain)
    settings = _settings(asked, system, options) | {"lines": "plain text" if plain else "JSON"}
    begun: dict[str, Any] = {"input": hashlib.sha256(data).hexdigest(), "setting": settings}
    with alone(target) if target else contextlib.nullcontext():
        if target is not None:
            _check_begun(target, begun)
        with _loaded(model, read=lambda: None, overflow="refuse", **options) as (engine, _):
            engine.warm_up()
            manifest = engine.manifest
            begun["model"] = {"name": manifest.source.model, "created": manifest.created}
            _say_models(lines, engine.name)
            counts = to_stdout(engine, lines, given) if target is None else to_file(engine, lines, given, target, begun)
    for fault in counts.faults:
        say(fault)
    say(counts.sentence())
    if target is not None:
        say(f"The answers are in {target}")
    if as_json:
        click.echo(json.dumps({"output": out, **counts.facts()}, indent=2))
    if counts.failed:
        click.get_current_context().exit(1)


def to_file(
    engine: ChatEngine, lines: Sequence[Line], given: Given, target: Path, begun: dict[str, Any]
) -> Counts:  # fmt: skip
    """Answer what has no answer yet, and write all to `target` when the last is there.

    Raises:
        EdgeError: see `run` and `Journal`; what was answered is kept.
    """
    from edge.batch.counts import Counts
    from edge.batch.journal import Journal

    with Journal.take_up(target, begun) as journal:
        counts = Counts(len(lines))
        for line in lines:
            if line.number in journal.done:
                counts.add(journal.record(line.number), before=True)
        left = [line for line in lines if line.number not in journal.done]
        if left and target.exists():
            raise _exists(target)
        if counts.before:
            say(f"{counts.before:,} of {len(lines):,} requests were answered before; going on with the others.")
        _answer(engine, left, given, counts, journal)
        journal.finish(target, [line.number for line in lines])
    return counts


def _answer(engine: ChatEngine, left: Sequence[Line], given: Given, counts: Counts, journal: Journal) -> None:
    try:
        for one in _answers(engine, left, given, counts):
            journal.add(one.line.number, one.record)
            counts.add(one.record)
    except BaseException:
        if journal.done:
            kept = f"{len(journal.done):,} of {counts.lines:,} answers are kept in {journal.path}"
            say(f"{kept}; the same command goes on.")
        raise


def to_stdout(engine: ChatEngine, lines: Sequence[Line], given: Given) -> Counts:
    """Answer all, and write each answer as soon as those before it are there.

    Raises:
        EdgeError: see `run`.
        OutputError: nobody reads them any more.
    """
    from edge.batch.counts import Counts
    from edge.batch.journal import encoded

    counts, early, order = Counts(len(lines)), {}, iter(lines)
    due = next(order, None)
    for one in _answers(engine, lines, given, counts):
        counts.add(one.record)
        early[one.line.number] = one.record
        while due is not None and due.number in early:
            try:
                click.echo(encoded(early.pop(due.number)), nl=False)
            except OSError as error:
                raise OutputError(
                    f"the answers cannot be written ({error.strerror or error})", hint="Name a file to write them to."
                ) from error
            due = next(order, None)
    return counts


def _answers(engine: ChatEngine, lines: Sequence[Line], given: Given, counts: Counts) -> Iterator[Answered]:
    """Answers as they come, with progress and the time they take."""
    from edge.batch.run import run

    if not lines:
        return
    stage, started = f"Answering {len(lines):,} request{'s' * (len(lines) != 1)}", time.perf_counter()
    progress: Progress
    with progress_lines(counted=True) as progress, contextlib.closing(run(engine, lines, given, say)) as answers:
        progress(stage, 0, len(lines))
        for number, one in enumerate(answers, 1):
            yield one
            progress(stage, number, len(lines))
            counts.seconds = time.perf_counter() - started


def _target(source: str, out: str, as_json: bool) -> Path | None:
    """Where the answers go; None: to standard output."""
    if out == "-":
        if as_json:
            raise UsageError("--json and the answers would both go to standard output", hint="Name a file for OUT.")
        return None
    target = Path(out).expanduser().resolve()
    if target.is_dir():
        raise OutputError(f"{target} is a folder", hint="Name a file in it.")
    if not target.parent.is_dir():
        raise OutputError(f"there is no folder {target.parent}", hint="Make it first, or name another.")
    if source != "-" and target == Path(source).expanduser().resolve():
        raise UsageError(f"IN and OUT are both {target}", hint="Name another file for the answers.")
    return target


def _check_begun(target: Path, begun: dict[str, Any]) -> None:
    """Refuse, before a model is loaded, what could not be written or gone on with."""
    from edge.batch import journal

    if target.exists() and not journal.partial(target).exists():
        raise _exists(target)
    journal.check(target, begun)


def _exists(target: Path) -> OutputError:
    return OutputError(f"{target} exists and is not overwritten", hint="Name another file, or delete it first.")


def _input(source: str) -> bytes:
    if source == "-":
        if sys.stdin.isatty():
            raise UsageError("there is nothing on standard input", hint="Pipe the requests in, or name a file.")
        return sys.stdin.buffer.read()
    path = Path(source).expanduser()
    try:
        return path.read_bytes()
    except OSError as error:
        why = "it is a folder" if path.is_dir() else error.strerror or error
        raise UsageError(f"{path} cannot be read ({why})", hint="Name a file of requests, one a line.") from error


def _defaults(asked: Sampling) -> dict[str, Any]:
    """The sampling options as fields of a request.

    Raises:
        UsageError: a request may not have such a value.
    """
    from edge.server.faults import read
    from edge.server.protocol import ChatRequest

    fields = {
        "temperature": asked.temperature, "top_p": asked.top_p, "top_k": asked.top_k, "seed": asked.seed,
        "repetition_penalty": asked.repetition_penalty, "max_tokens": asked.max_new_tokens,
        "stop": list(asked.stop) or None,
    }  # fmt: skip
    given = {name: value for name, value in fields.items() if value is not None}
    read(ChatRequest, json.dumps({"messages": [{"role": "user", "content": "?"}], **given}))
    return given


def _settings(asked: Sampling, system: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """What may change an answer."""
    passed = {name: value for name, value in options.items() if name not in ("yes", "no_fallback")}
    sampling = {name: value for name, value in asdict(asked).items() if value is not None}
    settings: dict[str, Any] = json.loads(json.dumps({"system": system, **passed, **sampling}))
    if options.get("lora"):  # trained further, or by a path from elsewhere, it is another under the same words
        settings["lora"] = _adapters(options["lora"])
    return settings


def _adapters(texts: Sequence[str]) -> list[list[Any]]:
    """Scale and digests of each; what is not there is told when the model is loaded."""
    from edge.lora.asked import CONFIG, WEIGHTS, parse_all

    return [
        [asked.scale]
        + [
            hashlib.sha256((asked.folder / name).read_bytes()).hexdigest()
            for name in (CONFIG, WEIGHTS)
            if (asked.folder / name).is_file()
        ]
        for asked in parse_all(texts)
    ]


def _say_models(lines: Sequence[Line], name: str) -> None:
    """Say so where lines were written for another model: they are answered all the same."""
    others = Counter(line.model for line in lines if line.model not in (None, name))
    for other, count in others.most_common(3):
        say(f"{count:,} request{'s ask' if count != 1 else ' asks'} for the model {other}: {name} answers.")
