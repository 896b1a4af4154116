"""Runs whose prompts were not the same, such as what `glm4-edge reference` kept of the checkpoint: nothing is paired.

A case is held against those of the other run's prompts that are about as long. What is said of the ratio of times is
the middle of all ratios of one with the other, and the interval that follows from their ranks (Mann and Whitney's):
95 of 100 repetitions would meet it if nothing but chance differed within each run.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edge.bench.case import Case, Measured, Sample
from edge.bench.compare import LEVEL, METRICS, Difference
from edge.bench.record import Record
from edge.runtime.refstore import Entry, Reference

_NEAR = {"TTFT": 1.25, "TPOT": 3.0}
"""By how much prompts may be longer or shorter, as a factor: a token's time hardly depends on what was read, and the
time to the first token is taken for as much of a prompt as the case asks."""
_MANY = 60
"""Times of each run that are taken at most: more make the interval hardly better, and its making slow."""


def is_reference(path: Path) -> bool:
    """Whether a file is one of safetensors, which begins with a length; a record is a text."""
    try:
        with path.open("rb") as file:
            return b"\0" in file.read(8)
    except OSError:
        return False  # whoever reads it says what is wrong


def read(path: Path) -> Record:
    """What a reference tells of times, as a run.

    Of an answer it has the time to the first token and from there to the last: what lies between is spread evenly.

    Raises:
        ModelError: it is no reference, or damaged.
    """
    about = Reference.read(path).about
    gpu = (about.machine.get("gpu") or {}).get("name") if about.device != "cpu" else None
    name = f"{Path(about.checkpoint.model).name} in {about.dtype} by PyTorch"
    model = {"name": about.checkpoint.model, "revision": about.checkpoint.revision, "reference": True}
    found = Measured(name, gpu or "CPU", model, dict(about.decoding))
    found.samples = [_sample(place, entry) for place, entry in enumerate(about.entries) if entry.answer_tokens]
    return Record(about.created, about.machine, about.versions, 1, [found])


def _sample(place: int, entry: Entry) -> tuple[Case, Sample]:
    steps = max(entry.answer_tokens - 1, 1)
    times = tuple(entry.ttft_s + entry.decode_s * step / steps for step in range(entry.answer_tokens))
    size = entry.prompt_tokens
    return Case(size, entry.answer_tokens), Sample(place, size, size, times, times[-1])


def compare(before: Measured, after: Measured) -> list[Difference]:
    """First turns of one request at a time: time to the first token, and for each further one."""
    turned = bool(before.model.get("reference"))  # its prompts are many; the other's cases are what a user asked for
    asked, other = (after, before) if turned else (before, after)
    theirs = [sample for case, sample in other.samples if case.together == 1 and not case.later]
    found = []
    for case in asked.cases():
        if case.together > 1 or case.later:
            continue
        for metric, most in _NEAR.items():
            near = [each for each in theirs if 1 / most <= each.prompt_tokens / case.prompt_tokens <= most]
            near = near[:: -(-len(near) // _MANY) or 1]
            own, beside = (_values(each, metric, case.prompt_tokens) for each in (asked.of(case)[:_MANY], near))
            if own and beside:
                lengths = [each.prompt_tokens for each in near]
                sides = (beside, own) if turned else (own, beside)
                found.append(_difference(case, metric, *sides, lengths=(min(lengths), max(lengths))))
    return found


def _values(samples: Sequence[Sample], metric: str, prompt_tokens: int) -> list[float]:
    """Seconds. To the first token of a prompt of that length: nearly all of that time goes with a prompt's length."""
    found = []
    for each in samples:
        seconds = METRICS[metric](each)
        if seconds is not None and seconds > 0:
            found.append(seconds * prompt_tokens / each.prompt_tokens if metric == "TTFT" else seconds)
    return found


def _difference(
    case: Case, metric: str, before: Sequence[float], after: Sequence[float], lengths: tuple[int, int]
) -> Difference:
    ratios = np.sort(np.subtract.outer(np.log(after), np.log(before)).ravel())
    place = _outside(len(before), len(after))
    return Difference(
        case=case,
        metric=metric,
        before=statistics.median(before),
        after=statistics.median(after),
        ratio=math.exp(float(np.median(ratios))),
        low=math.exp(float(ratios[max(place - 1, 0)])),
        high=math.exp(float(ratios[len(ratios) - max(place, 1)])),
        pairs=min(len(before), len(after)),
        lengths=lengths,
        few=place < 1,
    )


def _outside(one: int, other: int) -> int:
    """How many of the ordered ratios may be left out at either end, and one more; 0: the values are too few for any
    interval."""
    ways = np.zeros(one * other + 1, object)  # in how many orders of all values so many ratios are below 1; exactly
    ways[0] = 1
    for size in range(1, one + 1):  # the product of (1 - x^(other + size)) / (1 - x^size), term by term
        if other + size <= one * other:
            ways[other + size :] -= ways[: -(other + size)].copy()
        for start in range(size, one * other + 1):
            ways[start] += ways[start - size]
    chance = (np.cumsum(ways) / math.comb(one + other, one)).astype(np.float64)
    return int(np.searchsorted(chance, (1 - LEVEL) / 2, side="right"))
