"""Models on devices, measured in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from edge.bench.case import Measured
from edge.bench.case import cases as make_cases
from edge.bench.counts import count
from edge.bench.roofline import Limits, better
from edge.bench.sensors import between, look
from edge.bench.worker import Worker
from edge.lora.asked import Loras
from edge.messages import Progress
from edge.runtime.plan import KvPrecision
from edge.runtime.settings import Settings

ENOUGH = 3
"""Rounds that are made however long they take: fewer say nothing about noise."""


@dataclass(frozen=True)
class Arm:
    """One model, loaded in one way."""

    name: str
    folder: Path
    settings: Settings
    loras: Loras | None = None


@dataclass(frozen=True)
class Wanted:
    """What to measure."""

    prompts: Sequence[int]
    new_tokens: Sequence[int]
    together: Sequence[int] = (1,)
    later: bool = True
    rounds: int = 7
    loads: int = 1
    """How often each model is loaded in a new process."""
    limits: bool = True
    seconds: float | None = None
    """After which no further round begins."""


@dataclass
class Made:
    """What came of it."""

    measured: list[Measured]
    left_out: list[str] = field(default_factory=list)
    """Sentences."""
    rounds: int = 0


MakeWorker = Callable[..., Worker]
"""See `Worker`."""


def run(
    arms: Sequence[Arm],
    wanted: Wanted,
    *,
    progress: Progress = lambda stage, done, total: None,
    make: MakeWorker = Worker,
) -> Made:
    """Load each model, then measure every case on each in turn, round by round, so that what the machine does
    meanwhile meets all alike. A round that is not counted comes first.

    Raises:
        EdgeError: a model cannot be loaded, or a device fails.
    """
    begin = time.monotonic()
    with ExitStack() as ending:
        workers: list[Worker] = []
        measured: list[Measured] = []
        for arm in arms:
            worker, loaded = _loaded(arm, wanted, progress, make)
            ending.enter_context(_ended(worker))
            workers.append(worker)
            measured.append(loaded)
        facts = [worker.facts() for worker in workers]
        for each, told in zip(measured, facts, strict=True):
            each.model, each.settings = told["model"], told["settings"]
        context = min(told["context"] for told in facts)
        every, left_out = make_cases(
            wanted.prompts, wanted.new_tokens, wanted.together, later=wanted.later, context=context
        )
        firsts = [case for case in every if not case.later]
        behind = {(case.prompt_tokens, case.new_tokens, case.together) for case in every if case.later}

        def once(number: int, stage: str, done: int, total: int) -> Iterator[None]:
            for case in firsts:
                for place in range(len(workers)):
                    turn = (place + number) % len(workers)  # none is always the first
                    progress(f"{stage}, {case.name}", done, total)
                    later = (case.prompt_tokens, case.new_tokens, case.together) in behind
                    measured[turn].samples += workers[turn].run(case, number, later=later)
                    done += 1
                    yield

        steps = len(firsts) * len(workers)
        for _ in once(-1, "warming up", 0, steps):
            pass
        for each in measured:
            each.samples.clear()
        limits = [_limits(arm, make, progress) for arm in arms] if wanted.limits else []
        before = look()
        number = 0
        for number in range(1, wanted.rounds + 1):
            if wanted.seconds is not None and number > ENOUGH and time.monotonic() - begin > wanted.seconds:
                left_out.append(f"rounds {number} to {wanted.rounds}: the time was up")
                number -= 1
                break
            for _ in once(number, f"round {number} of {wanted.rounds}", (number - 1) * steps, wanted.rounds * steps):
                pass
        sensed = between(before, look())
        for worker, each in zip(workers, measured, strict=True):
            each.memory, each.sensors = worker.memory(), sensed
        for arm, each, at_first in zip(arms, measured, limits, strict=False):
            each.limits = asdict(better(at_first, _limits(arm, make, progress)))  # whoever disturbed one of them
            each.counts = asdict(count(arm.folder, device=arm.settings.device, kv_precision=_kv(arm.settings)))
    return Made(measured, left_out, number)


def _limits(arm: Arm, make: MakeWorker, progress: Progress) -> Limits:
    """Measured in a process of its own, whose memory is not the model's."""
    progress(f"measuring what {arm.settings.device} can do at most", 0, 0)
    with make(arm.folder, arm.settings) as other:
        return other.limits()


def _kv(settings: Settings) -> KvPrecision | None:
    value = settings.properties.get("KV_CACHE_PRECISION")
    return value if value in ("u4", "u8", "f16", "f32") else None


def _loaded(arm: Arm, wanted: Wanted, progress: Progress, make: MakeWorker) -> tuple[Worker, Measured]:
    """A worker whose model is loaded, and what the loads took; the earlier ones end before the next begins."""
    measured = Measured(arm.name, arm.settings.device, {}, {})
    for number in range(wanted.loads):
        progress(f"loading {arm.name}", number, wanted.loads)
        worker = make(arm.folder, arm.settings, *([] if arm.loras is None else [arm.loras]))
        try:
            measured.loads.append(worker.load())
        except BaseException:
            worker.kill()
            raise
        if number + 1 < wanted.loads:
            worker.close()
    return worker, measured


@contextmanager
def _ended(worker: Worker) -> Iterator[None]:
    """Ends the worker with what is done in it: in peace, or at once where that failed or was interrupted."""
    try:
        yield
    except BaseException:
        worker.kill()
        raise
    else:
        worker.close()
