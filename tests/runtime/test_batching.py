"""A pipeline that is not there: what it does when it fails, refuses or is left alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from edge.errors import ContextError, DeviceError
from edge.runtime.batching import Batching
from edge.runtime.prefix import Reading


class Output:
    def __init__(self, token: int) -> None:
        self.generated_ids = [token]
        self.generated_log_probs: list[float] = []


class Handle:
    def __init__(self, pipeline: Pipeline, length: int) -> None:
        self.pipeline, self.left, self.status, self.unread = pipeline, length, "running", list[int]()

    def can_read(self) -> bool:
        return bool(self.unread)

    def read(self) -> dict[int, Output]:
        return {0: Output(self.unread.pop(0))}

    def get_status(self) -> str:
        return self.status

    def cancel(self) -> None:
        self.status = "cancelled"


class Pipeline:
    """Each prompt is the number of tokens in its answer; 0 is refused. One token for each at each step."""

    def __init__(self, *, fails_at: tuple[int, ...] = (), pause: float = 0.0) -> None:
        self.steps, self.fails_at, self.pause = 0, fails_at, pause
        self.held: list[Handle] = []
        self.threads: set[int] = set()

    def add_request(self, number: int, prompt: int, config: Any) -> Handle:
        if prompt < 0:
            raise RuntimeError("no such prompt")
        self.held.append(Handle(self, prompt))
        return self.held[-1]

    def has_non_finished_requests(self) -> bool:
        return bool(self.held)

    def step(self) -> None:
        self.threads.add(threading.get_ident())
        self.steps += 1
        time.sleep(self.pause)
        if self.steps in self.fails_at:
            raise RuntimeError(f"step {self.steps} failed")
        for handle in self.held:
            if handle.left == 0:
                handle.status = "ignored"
            elif handle.status == "running":
                handle.unread.append(self.steps)
                handle.left -= 1
                handle.status = "running" if handle.left else "finished"
        self.held = [handle for handle in self.held if handle.status == "running"]


def outcome(status: str) -> tuple[bool, bool]:
    return status != "running", status == "ignored"


@pytest.fixture
def made() -> Iterator[list[Batching]]:
    batchings: list[Batching] = []
    yield batchings
    for batching in batchings:
        batching.close()


def start(made: list[Batching], pipeline: Pipeline) -> Batching:
    made.append(Batching(pipeline, outcome, "CPU"))
    return made[-1]


def ask(batching: Batching, length: int, limit: int = 10**9) -> list[int]:
    seen: list[int] = []

    def write(ids: Any) -> bool:
        seen.extend(ids)
        return len(seen) < limit

    return batching.generate(length, None, write, Reading(9))[0]


def test_answers_share_steps_and_one_thread(made: list[Batching]) -> None:
    pipeline = Pipeline(pause=0.01)
    batching = start(made, pipeline)
    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda length: ask(batching, length), [20, 20, 20, 20, 20]))
    assert [len(answer) for answer in answers] == [20] * 5
    assert pipeline.steps < 60, "one after the other they would take 100"
    assert len(pipeline.threads) == 1


def test_one_that_had_enough_is_cancelled_within_a_token(made: list[Batching]) -> None:
    pipeline = Pipeline()
    assert len(ask(start(made, pipeline), 1000, limit=3)) == 3
    made[0].close()
    assert pipeline.steps <= 5


def test_a_failed_step_is_told_to_all_and_forgotten(made: list[Batching]) -> None:
    batching = start(made, Pipeline(fails_at=(3,), pause=0.05))
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ask, batching, 50) for _ in range(2)]
        for future in asked:
            with pytest.raises(RuntimeError, match="step 3 failed"):
                future.result(30)
    assert len(ask(batching, 4)) == 4


def test_a_pipeline_that_does_not_recover_says_so_each_time(made: list[Batching]) -> None:
    batching = start(made, Pipeline(fails_at=tuple(range(2, 100))))
    for _ in range(3):
        with pytest.raises(RuntimeError, match="failed"):
            ask(batching, 50)


def test_what_is_refused_is_a_matter_of_room(made: list[Batching]) -> None:
    batching = start(made, Pipeline())
    with pytest.raises(ContextError, match="9 tokens"):
        ask(batching, 0)
    with pytest.raises(RuntimeError, match="no such prompt"):
        ask(batching, -1)
    assert len(ask(batching, 2)) == 2


def test_closing_ends_what_runs(made: list[Batching]) -> None:
    batching = start(made, Pipeline(pause=0.02))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ask, batching, 10**6)
        time.sleep(0.2)
        batching.close()
        with pytest.raises(DeviceError, match="closed"):
            running.result(30)
    with pytest.raises(DeviceError, match="closed"):
        ask(batching, 1)
    batching.close()


def test_an_idle_pipeline_is_left_alone(made: list[Batching]) -> None:
    pipeline = Pipeline()
    ask(start(made, pipeline), 2)
    steps = pipeline.steps
    time.sleep(0.2)
    assert pipeline.steps == steps
