"""Looking for settings that are better on this machine: one change at a time, each measured beside the best so far.

What is said to be better was better in a comparison that noise does not explain (`compare`), twice: against the best so
far, and in the end, with other prompts, against the defaults. So nothing slower than the defaults is ever kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from edge.bench.case import Case, Sample
from edge.bench.compare import Difference, compare_values
from edge.bench.run import MakeWorker
from edge.bench.worker import Worker
from edge.errors import EdgeError
from edge.messages import Progress
from edge.runtime.settings import Settings

Aim = Literal["chat", "ttft", "decode", "memory"]
AIMS: dict[Aim, str] = {
    "chat": "a question, its answer, and a second turn",
    "ttft": "the time to the first token",
    "decode": "the time for each further token",
    "memory": "memory, at no more than a tenth of the speed",
}
_PAIRS = 7
"""Rounds in which two ways are held against each other; the fewest in which `compare` says anything is six."""
_HOPELESS_AFTER, _HOPELESS = 2, 1.05
"""A change that was slower by so much in each of so many first rounds is measured no further."""
_MORE_ERROR = 0.1
"""Nats by which log-probabilities of a known text may be further off than with the defaults; a 4-bit cache: 0.2."""
_SLOWER = 1.1
_TRIED = 0.5
"""The share of the changes for which the time has to be enough: those that are hopeless take less than theirs."""
_SIZES = ((1024, 64), (512, 32), (256, 32), (128, 16), (64, 8), (32, 4))


@dataclass(frozen=True)
class Change:
    """Something to try."""

    words: str
    properties: Mapping[str, Any] = field(default_factory=dict)
    step_tokens: int | None = None

    def on(self, settings: Settings) -> Settings:
        """The settings with it."""
        properties = {**settings.properties, **self.properties}
        return replace(settings, properties=properties, step_tokens=self.step_tokens or settings.step_tokens)


@dataclass(frozen=True)
class Tried:
    """What came of a change."""

    words: str
    verdict: Literal["better", "no difference", "worse", "refused", "not tried"]
    ratio: float | None = None
    """What the aim cost with it, as a multiple of what it was tried against."""
    reason: str | None = None


@dataclass(frozen=True)
class Found:
    """The end of a search."""

    settings: Settings
    words: tuple[str, ...]
    """Of the changes that were kept."""
    final: Difference | None
    """Against the defaults; None where no change was better."""
    tried: tuple[Tried, ...]
    case: Case
    seconds: float
    enough_seconds: float = 0.0
    """What trying all would have taken, had none been hopeless; with more time the question is longer, too."""

    @property
    def left_out(self) -> int:
        """Changes that were not tried."""
        return sum(each.verdict == "not tried" for each in self.tried)


def search(
    folder: Path,
    defaults: Settings,
    changes: Sequence[Sequence[Change]],
    aim: Aim = "chat",
    *,
    seconds: float,
    progress: Progress = lambda stage, done, total: None,
    make: MakeWorker = Worker,
    clock: Callable[[], float] = time.monotonic,
) -> Found:
    """Look for better settings.

    Args:
        defaults: what is to be better than.
        changes: groups, of each of which at most one is kept; the most promising first.
        aim: what is to be less.
        seconds: no change is begun that would end later, as far as that can be foreseen.

    Raises:
        EdgeError: the model does not load with the defaults.
    """
    return _Search(folder, defaults, aim, seconds, progress, make, clock).run(changes)


class _Search:
    def __init__(
        self, folder: Path, defaults: Settings, aim: Aim, seconds: float, progress: Progress, make: MakeWorker,
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._folder, self._defaults, self._aim = folder, defaults, aim
        self._seconds, self._progress, self._make, self._clock = seconds, progress, make, clock
        self._begin = clock()
        self._case = Case(32, 4)
        self._number = 0
        self._cost = 0.0
        """Seconds of a load and of the pairs of rounds that follow it."""

    def run(self, changes: Sequence[Sequence[Change]]) -> Found:
        tried: list[Tried] = []
        kept: list[Change] = []
        with ExitStack() as ending:
            best = _Way(ending, self._make(self._folder, self._defaults), self._defaults)
            start = self._clock()
            best.load()
            loaded = self._clock() - start
            self._case = self._fitting(best, loaded, sum(map(len, changes)))
            start = self._clock()
            self._round(best, -1)  # new shapes are compiled
            self._cost = loaded + 2 * _PAIRS * (self._clock() - start)
            first_seconds = self._clock() - self._begin
            for group in changes:
                winner: tuple[Change, _Way] | None = None
                for change in group:
                    if self._left() < 2 * self._cost:  # one more is needed in the end, against the defaults
                        tried.append(Tried(change.words, "not tried", reason="the time was up"))
                        continue
                    outcome, way = self._try(ending, change, winner[1] if winner else best)
                    tried.append(outcome)
                    if way is not None:
                        winner = (change, way)
                if winner is not None:
                    kept.append(winner[0])
                    best = winner[1]
            final = None
            if kept:
                self._progress("once more, against the defaults", 0, 0)
                with ExitStack() as again:
                    first = _Way(again, self._make(self._folder, self._defaults), self._defaults)
                    first.load()
                    final = self._duel(first, best, hopeless=False)
                if final is None or not self._better(final):
                    kept = []
        settings = self._defaults
        for change in kept:
            settings = change.on(settings)
        words = tuple(change.words for change in kept)
        enough = first_seconds + self._cost * (len(tried) + 2)  # two are left when the last is begun
        took = self._clock() - self._begin
        return Found(settings, words, final if kept else None, tuple(tried), self._case, took, enough)

    def _left(self) -> float:
        return self._begin + self._seconds - self._clock()

    def _fitting(self, way: _Way, loaded: float, changes: int) -> Case:
        """The longest question that leaves time to try so many changes, each of which is loaded, too."""
        self._progress("looking how fast the defaults are", 0, 0)
        facts = way.worker.facts()
        start = self._clock()
        way.worker.run(Case(max(64, facts["shortest"]), 8), -2, later=False)
        start = self._clock()
        samples = way.worker.run(Case(max(64, facts["shortest"]), 8), -1, later=False)
        took = self._clock() - start
        (_, sample) = samples[0]
        per_token = sample.ttft_seconds / sample.prompt_tokens
        tpot = sample.tpot_seconds or took / 8
        each = self._left() / (1 + max(_TRIED * changes, 1))  # and once more, against the defaults
        room = (each - loaded) / (2 * _PAIRS + 1)
        for prompt, new in _SIZES:
            fits = prompt + 2 * new + 64 <= facts["context"] and prompt >= facts["shortest"]
            if fits and prompt * per_token + 2 * new * tpot <= room:
                return Case(prompt, new)
        return Case(max(64, facts["shortest"]), 8)

    def _try(self, ending: ExitStack, change: Change, best: _Way) -> tuple[Tried, _Way | None]:
        """What came of a change on the best way so far, and its way if it is better."""
        self._progress(f"trying {change.words}", int(self._clock() - self._begin), int(self._seconds))
        settings = change.on(best.settings)
        other = ExitStack()
        try:
            way = _Way(other, self._make(self._folder, settings), settings)
            way.load()
            if way.error is not None and best.error is not None and way.error > best.error + _MORE_ERROR:
                other.close()
                reason = f"its answers are {way.error - best.error:.2f} nats further from the model's"
                return Tried(change.words, "refused", reason=reason), None
            difference = self._duel(best, way)
        except EdgeError as error:
            other.close()
            return Tried(change.words, "refused", reason=error.message), None
        except BaseException:
            other.close()
            raise
        if difference is not None and self._better(difference):
            ending.push(other)
            best.worker.close()
            return Tried(change.words, "better", difference.ratio), way
        other.close()
        if difference is None:
            return Tried(change.words, "worse"), None
        worse = difference.verdict == "slower"
        return Tried(change.words, "worse" if worse else "no difference", difference.ratio), None

    def _better(self, difference: Difference) -> bool:
        return difference.verdict == "faster"

    def _duel(self, one: _Way, other: _Way, *, hopeless: bool = True) -> Difference | None:
        """Both in turn, with the same prompts; None where the second was given up as hopeless."""
        self._round(other, -1)
        values: tuple[list[float], list[float]] = ([], [])
        speeds: tuple[list[float], list[float]] = ([], [])
        for place in range(_PAIRS):
            self._number += 1
            order = ((one, 0), (other, 1)) if place % 2 else ((other, 1), (one, 0))
            for way, side in order:
                value, speed = self._round(way, self._number)
                values[side].append(value)
                speeds[side].append(speed)
            pairs = list(zip(*(values if self._aim != "memory" else speeds), strict=True))
            bound = _HOPELESS if self._aim != "memory" else _SLOWER
            if hopeless and place + 1 >= _HOPELESS_AFTER and all(after > bound * before for before, after in pairs):
                return None
        if self._aim == "memory":
            slower = compare_values(self._case, "whole answer", *speeds)
            if slower.ratio > _SLOWER:
                return None
        return compare_values(self._case, self._aim, *values)

    def _round(self, way: _Way, number: int) -> tuple[float, float]:
        """What the aim costs in one round, and the seconds of the whole."""
        samples = way.worker.run(self._case, number, later=self._aim in ("chat", "memory"))
        whole = sum(sample.token_seconds[-1] for _, sample in samples)
        return self._value(way, samples, whole), whole

    def _value(self, way: _Way, samples: Sequence[tuple[Case, Sample]], whole: float) -> float:
        first = samples[0][1]
        if self._aim == "ttft":
            return first.ttft_seconds
        if self._aim == "decode":
            return first.tpot_seconds or whole
        if self._aim == "memory":
            memory = way.worker.memory()
            return float(memory["anonymous"] or memory["resident"] or 0) or whole
        return whole


class _Way:
    """A worker with its settings; ended with `ending`."""

    def __init__(self, ending: ExitStack, worker: Worker, settings: Settings) -> None:
        self.worker, self.settings = worker, settings
        self.error: float | None = None
        ending.callback(worker.close)

    def load(self) -> None:
        """Load it, and look how far its log-probabilities of a known text are off."""
        self.worker.load()
        self.error = self.worker.error()


def changes(device: str, ask: Callable[[str, str], Any], threads: int, logical: int, kinds: int) -> list[list[Change]]:
    """What is worth trying on a device.

    Args:
        ask: a property of the device's plugin.
        threads: that are used by default.
        logical: processors that this process may use.
        kinds: of cores.

    The attention backend is not among it: without the paged one there is no prefix cache, and one answer at a time.
    """
    groups: list[list[Change]] = []
    if device == "CPU":
        if "BF16" in (ask(device, "OPTIMIZATION_CAPABILITIES") or []):
            groups.append([Change("precision bf16", {"INFERENCE_PRECISION_HINT": "bf16"})])
        groups.append([Change(f"dynamic-quantization group {size}", {"DYNAMIC_QUANTIZATION_GROUP_SIZE": size})
                       for size in (128, 64)])  # fmt: skip
        counts = [count for count in (logical, max(threads // 2, 1)) if count != threads]
        some = []
        for count in counts:
            given = {"INFERENCE_NUM_THREADS": count, "ENABLE_HYPER_THREADING": count > threads}
            some.append(Change(f"{count} thread{'s' * (count != 1)}", given))
        if kinds > 1:
            some.insert(0, Change("performance cores only", {"SCHEDULING_CORE_TYPE": "PCORE_ONLY"}))
        groups.append(some)
    if device != "NPU":
        groups.append([Change(f"prompts read {step} tokens at once", step_tokens=step) for step in (512, 1024)])
        groups.append([Change("cache in f16", {"KV_CACHE_PRECISION": "f16"})] if device == "CPU" else
                      [Change("cache in u8", {"KV_CACHE_PRECISION": "u8"})])  # fmt: skip
    return [group for group in groups if group]
