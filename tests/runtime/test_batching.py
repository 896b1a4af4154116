"""A pipeline that is not there: what it does when it fails, refuses or is left alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
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
    """A prompt is how long its answer is, and what there is of it; 0 is refused. One token for each at each step."""

    def __init__(self, *, fails_at: tuple[int, ...] = (), pause: float = 0.0) -> None:
        self.steps, self.fails_at, self.pause = 0, fails_at, pause
        self.held: list[Handle] = []
        self.most = 0
        self.threads: set[int] = set()

    def add_request(self, number: int, prompt: list[int], config: Any) -> Handle:
        length, *answered = prompt
        if length < 0:
            raise RuntimeError("no such prompt")
        self.held.append(Handle(self, length - len(answered)))
        return self.held[-1]

    def has_non_finished_requests(self) -> bool:
        return bool(self.held)

    def get_metrics(self) -> Any:
        return SimpleNamespace(cache_usage=50.0)

    def step(self) -> None:
        self.threads.add(threading.get_ident())
        self.most = max(self.most, len(self.held))
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


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def made() -> Iterator[list[Batching]]:
    batchings: list[Batching] = []
    yield batchings
    for batching in batchings:
        batching.close()


def start(made: list[Batching], pipeline: Pipeline, room: int = 10**9, guessed: int = 0) -> Batching:
    made.append(Batching(pipeline, list, outcome, "CPU", room=room, block=1, guessed=guessed))
    return made[-1]


def ask(batching: Batching, length: int, limit: int = 10**9) -> list[int]:
    seen: list[int] = []

    def write(ids: Any, log_probs: Any = (), /) -> bool:
        seen.extend(ids)
        return len(seen) < limit

    config = SimpleNamespace(max_new_tokens=max(length, 1), structured_output_config=None)
    return batching.generate([length], config, write, Reading(9))[0]


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


def test_a_reader_that_breaks_hurts_itself_only(made: list[Batching]) -> None:
    pipeline = Pipeline(pause=0.005)
    batching = start(made, pipeline)

    def broken(ids: Any, log_probs: Any = (), /) -> bool:
        if ids:
            raise OSError("the reader is gone")
        return True

    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(ask, batching, 40)
        config = SimpleNamespace(max_new_tokens=40, structured_output_config=None)
        with pytest.raises(OSError, match="reader is gone"):
            batching.generate([40], config, broken, Reading(1))
        assert len(other.result(30)) == 40
    assert not pipeline.held


def test_nothing_is_taken_of_the_cache_once_nobody_is_answered(made: list[Batching]) -> None:
    batching = start(made, Pipeline(pause=0.005))
    assert batching.cache_share is None
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ask, batching, 40)
        wait_for(lambda: batching.cache_share is not None)
        assert batching.cache_share == 0.5
        running.result(30)
    wait_for(lambda: batching.cache_share != 0.5)
    assert batching.cache_share == 0


def test_where_tokens_are_guessed_there_is_room_for_whole_answers(made: list[Batching]) -> None:
    """An answer of 300 and its guesses take 307; without guesses, room would be kept for 256 of them."""
    for guessed, room, most in ((5, 613, 1), (5, 614, 2), (0, 516, 2)):
        pipeline = Pipeline(pause=0.0005)
        batching = start(made, pipeline, room, guessed)
        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(lambda length, at=batching: ask(at, length), [300] * 3))
        assert [len(answer) for answer in answers] == [300] * 3
        assert pipeline.most == most


def test_who_is_given_up_keeps_its_room_until_the_step_is_over(made: list[Batching]) -> None:
    pipeline = Pipeline(pause=0.01)
    batching = start(made, pipeline, 50, guessed=5)
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda limit: ask(batching, 40, limit), [3, 40]))
    assert sorted(map(len, answers)) == [3, 40]
    assert pipeline.most == 1


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


def test_who_finds_no_room_waits_for_it(made: list[Batching]) -> None:
    pipeline = Pipeline(pause=0.001)
    batching = start(made, pipeline, room=50)  # an answer of 20 takes 22
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda length: ask(batching, length), [20] * 6))
    assert [len(answer) for answer in answers] == [20] * 6
    assert pipeline.most == 2


def test_who_waits_for_room_can_go(made: list[Batching]) -> None:
    batching = start(made, Pipeline(pause=0.01), room=50)
    with ThreadPoolExecutor(2) as pool:
        long = pool.submit(ask, batching, 48)
        time.sleep(0.1)
        assert ask(batching, 48, limit=0) == []
        assert len(long.result(30)) == 48


class Crowded(Pipeline):
    """Drops everybody at the tenth step: the cache is full."""

    def step(self) -> None:
        super().step()
        if self.steps == 10:
            for handle in self.held:
                handle.status = "ignored"
            self.held = []


def test_who_is_dropped_goes_on_where_it_was(made: list[Batching]) -> None:
    batching = start(made, Crowded(pause=0.005))
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda length: ask(batching, length), [30, 30, 30]))
    assert [len(answer) for answer in answers] == [30] * 3


def test_a_pipeline_that_fails_anywhere_leaves_nobody_waiting(made: list[Batching], monkeypatch: Any) -> None:
    batching = start(made, Pipeline())

    def fails(self: Handle) -> Any:
        raise RuntimeError("read failed")

    with monkeypatch.context() as patch:
        patch.setattr(Handle, "read", fails)
        with pytest.raises(RuntimeError, match="read failed"):
            ask(batching, 5)
    assert len(ask(batching, 4)) == 4


class TestAdapters:
    def test_others_wait_for_those_with_other_adapters(self, made: list[Batching]) -> None:
        """Never are two sets on at once; each is turned on once for those who come together; none is passed over."""
        pipeline, on = Pipeline(pause=0.005), list[tuple[str, ...]]()
        beside = set[tuple[str, ...]]()

        def switch(adapters: tuple[str, ...]) -> None:
            assert not pipeline.held
            on.append(adapters)

        made.append(Batching(pipeline, list, outcome, "CPU", room=10**9, block=1, switch=switch))
        order = [("a",), ("a",), (), ("a",), ("b",)]
        ended: list[tuple[str, ...]] = []

        def answer(adapters: tuple[str, ...]) -> None:
            def write(ids: Any, log_probs: Any = (), /) -> bool:
                beside.add((on[-1] if ids else adapters, adapters))  # type: ignore[arg-type]
                return True

            config = SimpleNamespace(max_new_tokens=20, structured_output_config=None)
            made[0].generate([20], config, write, Reading(9), adapters)
            ended.append(adapters)

        threads = []
        for adapters in order:
            threads.append(threading.Thread(target=answer, args=(adapters,)))
            threads[-1].start()
            time.sleep(0.01)
        for thread in threads:
            thread.join(20)
        assert ended == order and all(one == other for one, other in beside)
        assert on == [("a",), (), ("a",), ("b",)] and pipeline.most == 2

    def test_one_who_cancels_is_gone_before_the_switch(self, made: list[Batching]) -> None:
        pipeline, held = Pipeline(pause=0.002), list[int]()
        switch = lambda adapters: held.append(len(pipeline.held))  # noqa: E731
        made.append(Batching(pipeline, list, outcome, "CPU", room=10**9, block=1, switch=switch))
        ask(made[0], 10**6, limit=3)
        config = SimpleNamespace(max_new_tokens=2, structured_output_config=None)
        assert len(made[0].generate([2], config, lambda *_: True, Reading(9), ("a",))[0]) == 2
        assert held == [0, 0]

    def test_a_switch_that_fails_is_told_to_who_wanted_it(self, made: list[Batching]) -> None:
        def switch(adapters: tuple[str, ...]) -> None:
            if adapters == ("bad",):
                raise RuntimeError("cannot be turned on")

        made.append(Batching(Pipeline(), list, outcome, "CPU", room=10**9, block=1, switch=switch))
        config = SimpleNamespace(max_new_tokens=2, structured_output_config=None)
        with pytest.raises(RuntimeError, match="cannot be turned on"):
            made[0].generate([2], config, lambda *_: True, Reading(9), ("bad",))
        assert len(ask(made[0], 2)) == 2
