"""What a long job says while it runs and when it is done; all of it for standard error."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from edge.messages import Progress

if TYPE_CHECKING:
    from edge.manifest import Check, Manifest


def say(text: str) -> None:
    """Print a line for the person, never for a program that reads the output."""
    click.echo(text, err=True)


def summary(made: Manifest) -> str:
    """What was made, and what was proved about it, in sentences; the figures are in edge.json."""
    size = sum(count for name, count in made.bytes.items() if name.startswith("openvino_model"))
    lines = [f"{made.source.model}: {made.architecture.parameters / 1e6:,.0f}M parameters in {size / 1e6:,.0f} MB"]
    if made.source.description:
        lines.append(made.source.description)
    for check in made.checks:
        if not (check.name == "fusions" and check.message):  # of a traced graph, which is right and slow
            lines.append(f"  checked {_CHECKS[check.name](check.figures)}")
        if check.message:
            lines.append(f"  Warning: {check.message}. {check.hint or ''}".rstrip())
        if check.name == "compression" and check.figures["top1_agreement"] < _POOR_AGREEMENT:
            better = "--calibrate" if made.target == "npu" else "--weights int8"  # the NPU takes 4 bits only
            tried = made.target == "npu" and made.recipe.get("scale_estimation")
            lines.append(
                "  That is noticeably worse than the checkpoint"
                + ("." if tried else f"; glm4-edge export with {better} keeps more.")
            )
    if made.target == "npu" and all(check.name != "npu rehearsal" for check in made.checks):
        lines.append("  not rehearsed for the NPU: that would take the memory of the whole model")
    return "\n".join(lines)


def check_table(checks: Sequence[Check], left_out: Sequence[str]) -> str:
    """Checks of a finished model for a person: outcome, name and finding of each, and what was not checked."""
    lines = []
    for check in checks:
        outcome = "FAILED" if not check.passed else "warning" if check.message else "passed"
        finding = check.message or _CHECKS[check.name](check.figures)
        lines.append(f"{outcome:<8} {check.name:<12} {finding}")
        if check.message and check.hint:
            lines.append(f"{'':<22}{check.hint}")
        for kind, forms in check.figures.get("kinds", {}).items():
            told = "; ".join(
                f"{form} ({count} {'matrix' if count == 1 else 'matrices'})" for form, count in forms.items()
            )
            lines.append(f"{'':<22}{kind:<20}{told}")
    lines += [f"{'not':<8} checked: {sentence}" for sentence in left_out]
    failed, warned = sum(not check.passed for check in checks), sum(bool(check.message) for check in checks)
    lines.append(f"{len(checks)} checks, {failed} failed, {warned - failed} with a warning")
    return "\n".join(lines)


_LOG_PERCENT, _LOG_SECONDS = 10, 10.0  # how often a log hears of a stage that goes on: both must have passed
_SILENCE_SECONDS, _LONGEST_SILENCE_SECONDS, _BEAT_SECONDS = 3.0, 60.0, 0.25
_POOR_AGREEMENT = 0.8
_CHECKS: dict[str, Callable[[dict[str, Any]], str]] = {
    "tokenizer": lambda f: f"the tokenizer: equal to the checkpoint's on {f['texts']:,} texts",
    "graph parity": lambda f: (
        f"the graph: logits within {f['max_error']:.1g} of the definition at scale {f['logit_scale']:.0f}, "
        f"{f['layers']} of {f['of_layers']} layers"
    ),
    "files": lambda f: f"the files: complete, {f['bytes'] / 1e6:,.0f} MB of weights",
    "template": lambda f: f"the chat template: as the checkpoint's in {len(f['conversations'])} conversations",
    "stop ids": lambda f: "the stop ids: " + ", ".join(f"{name or '?'} {item}" for item, name in f["stop_ids"].items()),
    "weights": lambda f: f"the weights: {f['share_in_4_bits']:.0%} in 4 bits",
    "fusions": lambda f: "the compiled model: every attention and every rotary embedding is fused",
    "lengths": lambda f: (
        f"prompts of up to {f['lengths'][-1]} tokens, {len(f['lengths'])} lengths: finite, in {f['layers']} of "
        f"{f['of_layers']} layers" + (", for longer ones the time was up" if f.get("cut_short") else "")
        if f["lengths"]
        else "prompts of no length"
    ),
    "rows": lambda f: (
        f"rows of {f['matrices']} matrices: at most {f['worst_error']:.0%} away from the checkpoint"
        + (f", {f['norms_and_biases']} norms and biases equal" if f["norms_and_biases"] else "")
    ),
    "compression": lambda f: (
        f"the answers: the checkpoint's next token {f['top1_agreement']:.0%} of the time (KL {f['kl_mean']:.3f}) "
        f"over {f['tokens']} tokens"
    ),
    "golden": lambda f: (
        f"the golden logits: {len(f['lengths'])} prompts of up to {f['lengths'][-1]} tokens kept"
        + (f", as the compiled model says (KL at most {f['kl_max_exact']:.1g})" if f["compiled"] else "")
    ),
    "npu rehearsal": lambda f: (
        f"the NPU's fixed shapes, rehearsed {f['ran']}: {f['same_tokens']} of {f['tokens']} tokens as on the CPU's own "
        f"road, logits within {f['logit_distance']:.1g} at scale {f['logit_scale']:.0f}"
    ),
    "parts": lambda f: (
        "the parts: " + ", ".join(f"{name} {error:.0%}" for name, error in f.items()) + " away from the checkpoint"
    ),
}


class _Log:
    """Progress where there is no terminal: a line for each stage, some on the way, and ever rarer signs of life."""

    def __init__(self, counted: bool) -> None:
        self._lock = threading.Lock()
        self._counted = counted
        self._stage, self._told, self._since, self._spoke = "", 0, 0.0, 0.0
        self._begun = self._done = self._total = 0
        self._silence = _SILENCE_SECONDS

    def tell(self, stage: str, done: int, total: int) -> None:
        percent, now = 100 * done // total if total else 0, time.monotonic()
        with self._lock:
            new = stage != self._stage
            self._stage, self._done, self._total = stage, done, total
            if new:
                self._since, self._silence, self._begun = now, _SILENCE_SECONDS, done
                click.echo(" ".join([f"{stage} …", *self._share()]), err=True)
            elif percent - self._told >= _LOG_PERCENT and now >= self._spoke + _LOG_SECONDS:
                click.echo(self._line(now), err=True)
            else:
                return
            self._told, self._spoke = percent, now

    def beat(self, ended: threading.Event) -> None:
        """Say how long a stage has taken so far when nothing else was said for a while."""
        while not ended.wait(_BEAT_SECONDS):
            with self._lock:
                now = time.monotonic()
                if self._stage and now - self._spoke >= self._silence:
                    click.echo(self._line(now), err=True)
                    self._spoke, self._silence = now, min(2 * self._silence, _LONGEST_SILENCE_SECONDS)

    def _line(self, now: float) -> str:
        """How far it is, how long it took so far and, once that can be told, how long it will take."""
        took, since = now - self._since, self._done - self._begun
        parts = [*self._share(), f"{took:.0f} s"]
        if since and took >= _SILENCE_SECONDS and self._done < self._total:
            parts.append(f"about {took * (self._total - self._done) / since:.0f} s left")
        return f"{self._stage} … {', '.join(parts)}"

    def _share(self) -> list[str]:
        if not self._done or not self._total:
            return []
        return [f"{self._done:,} of {self._total:,}" if self._counted else f"{100 * self._done // self._total} %"]


@contextmanager
def progress_lines(*, counted: bool = False) -> Iterator[Progress]:
    """A live line for each stage on a terminal, a plain line for each in a log; always on stderr.

    Args:
        counted: say how many are done and not which part: what is counted is what the user asked for.
    """
    if not sys.stderr.isatty():
        log = _Log(counted)
        ended = threading.Event()
        beating = threading.Thread(target=log.beat, args=(ended,), name="progress", daemon=True)
        beating.start()
        try:
            yield log.tell
        finally:
            ended.set()
            beating.join()
        return
    from rich import progress as rich
    from rich.console import Console

    share = rich.MofNCompleteColumn() if counted else rich.TaskProgressColumn()
    columns = (rich.SpinnerColumn(), rich.TextColumn("{task.description}"), rich.BarColumn(bar_width=30), share,
               rich.TimeElapsedColumn())  # fmt: skip
    with rich.Progress(*columns, console=Console(stderr=True), transient=False) as bars:
        tasks: dict[str, rich.TaskID] = {}
        current = ""

        def live(stage: str, done: int, total: int) -> None:
            nonlocal current
            if stage != current and current in tasks:  # it is over, or waits for this one: its clock stops
                bars.update(tasks[current], total=1, completed=1)
            current = stage
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=None)
            bars.update(tasks[stage], total=total or None, completed=done)

        yield live
        for task in tasks.values():
            bars.update(task, total=1, completed=1)
