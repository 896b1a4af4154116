from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from edge.errors import DeviceError
from edge.messages import Chunk
from edge.runtime.prefix import Reading
from edge.runtime.stream import Write, stream_tokens


class Setup:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.cancelled = threading.Event()

    def __call__(self, produce: Callable[[Write], None], **changes: Any) -> Iterator[Chunk]:
        options: dict[str, Any] = {
            "decode": lambda ids: "".join(map(chr, ids)),
            "reading": Reading(7),
            "stop_ids": frozenset({0, 1}),
            "stop": (),
            "lock": self.lock,
            "cancelled": self.cancelled,
            "started": time.perf_counter(),
        }
        return stream_tokens(produce, **{**options, **changes})


@pytest.fixture
def stream() -> Setup:
    return Setup()


def writer(*batches: list[int]) -> Callable[[Write], None]:
    def produce(write: Write) -> None:
        for batch in batches:
            if not write(batch):
                return

    return produce


def endless(write: Write) -> None:
    while write([ord("x")]):
        time.sleep(0.001)


def joined(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def test_chunks_and_usage(stream: Setup) -> None:
    chunks = list(stream(writer([72], [105], [33])))
    assert [chunk.text for chunk in chunks] == ["H", "i", "!", ""]
    assert [chunk.usage is None for chunk in chunks] == [True, True, True, False]
    usage = chunks[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.finish_reason) == (7, 3, "length")
    assert usage.ttft_seconds is not None and usage.tpot_seconds is not None
    assert [token for chunk in chunks for token in chunk.token_ids] == [72, 105, 33]


@pytest.mark.parametrize("stop_id", [0, 1])
def test_a_stop_id_ends_the_answer_and_is_not_shown(stream: Setup, stop_id: int) -> None:
    chunks = list(stream(writer([72], [105, stop_id, 99], [98])))
    assert joined(chunks) == "Hi"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens == 3


def test_a_stop_string_ends_the_generation(stream: Setup) -> None:
    chunks = list(stream(endless, stop=("xxxx",)))
    assert joined(chunks) == ""
    assert chunks[-1].usage is not None and chunks[-1].usage.finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens == 4
    assert stream.lock.acquire(timeout=5), "the generation went on"


def test_no_tokens_at_all(stream: Setup) -> None:
    (only,) = stream(writer())
    assert only.text == ""
    assert only.usage is not None
    assert (only.usage.completion_tokens, only.usage.ttft_seconds, only.usage.tpot_seconds) == (0, None, None)


def test_cancel_from_outside_ends_the_stream(stream: Setup) -> None:
    chunks = []
    for chunk in stream(endless):
        chunks.append(chunk)
        if len(chunks) == 3:
            stream.cancelled.set()
    usage = chunks[-1].usage
    assert usage is not None and usage.finish_reason == "cancelled"
    assert joined(chunks) == "xxx"
    assert stream.lock.acquire(timeout=5)


def test_cancel_does_not_wait_for_the_prompt_to_be_read(stream: Setup) -> None:
    read = threading.Event()

    def slow_prefill(write: Write) -> None:
        stream.cancelled.set()
        assert read.wait(30)
        write([72])

    (only,) = stream(slow_prefill)
    assert only.usage is not None and only.usage.finish_reason == "cancelled"
    assert stream.lock.locked(), "the device still works"
    read.set()
    assert stream.lock.acquire(timeout=5)


def test_cancel_while_waiting_for_another_generation(stream: Setup) -> None:
    stream.lock.acquire()
    threading.Timer(0.1, stream.cancelled.set).start()
    (only,) = stream(lambda write: pytest.fail("must not run"))
    assert only.usage is not None and only.usage.finish_reason == "cancelled"
    assert stream.lock.locked()


def test_closing_cancels(stream: Setup) -> None:
    chunks = stream(endless)
    next(chunks)
    chunks.close()  # type: ignore[attr-defined]
    assert stream.cancelled.is_set()
    assert stream.lock.acquire(timeout=5)


def test_an_error_of_the_worker_is_raised_in_the_reader(stream: Setup) -> None:
    def fail(write: Write) -> None:
        write([72])
        raise DeviceError("the device is gone", hint="Look for it.")

    chunks = stream(fail)
    assert next(chunks).text == "H"
    with pytest.raises(DeviceError, match="the device is gone"):
        next(chunks)
    assert stream.lock.acquire(timeout=5)


def test_the_next_generation_may_start_at_the_last_chunk(stream: Setup) -> None:
    for _ in range(50):
        stream.cancelled = threading.Event()
        assert joined(list(stream(writer([72], [0])))) == "H"
    assert stream.lock.acquire(timeout=5)


def test_generations_do_not_overlap(stream: Setup) -> None:
    running, most = 0, 0

    def produce(write: Write) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.01)
        write([72])
        running -= 1

    threads = [threading.Thread(target=lambda: list(stream(produce, cancelled=threading.Event()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == 1
