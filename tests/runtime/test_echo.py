from __future__ import annotations

import threading
import time

import pytest

from edge.errors import ContextError, UsageError
from edge.messages import Message, Sampling, Usage
from edge.runtime.echo import EchoEngine
from edge.runtime.interface import ChatEngine


def ask(engine: ChatEngine, text: str, **sampling: object) -> tuple[str, Usage]:
    chunks = list(engine.stream([Message("user", text)], Sampling(**sampling)))  # type: ignore[arg-type]
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].usage is not None
    return "".join(chunk.text for chunk in chunks), chunks[-1].usage


def test_it_says_it_again() -> None:
    said, usage = ask(EchoEngine(), "你好 👩‍👩‍👧!")
    assert said == "你好 👩‍👩‍👧!"
    assert usage.finish_reason == "stop"
    assert usage.prompt_tokens == len(said)
    assert usage.completion_tokens == len(said) + 1


def test_limits() -> None:
    assert ask(EchoEngine(), "hello", max_new_tokens=3)[0] == "hel"
    assert ask(EchoEngine(), "hello", max_new_tokens=3)[1].finish_reason == "length"
    said, usage = ask(EchoEngine(context_length=8), "hello")
    assert (said, usage.finish_reason) == ("hel", "length")
    with pytest.raises(ContextError):
        ask(EchoEngine(context_length=5), "hello")
    with pytest.raises(UsageError):
        ask(EchoEngine(), "hello", temperature=-1)


def test_cancel_and_go_on() -> None:
    engine = EchoEngine(seconds_per_token=0.005)
    stream = engine.stream([Message("user", "x" * 1000)], Sampling())
    next(stream)
    engine.cancel()
    *_, last = stream
    assert last.usage is not None and last.usage.finish_reason == "cancelled"
    assert ask(engine, "on")[0] == "on"
    engine.close()


def test_a_cancel_before_the_first_piece_is_not_lost() -> None:
    engine = EchoEngine()
    early = engine.stream([Message("user", "hello")], Sampling())
    engine.cancel()
    late = engine.stream([Message("user", "hello")], Sampling())
    ends = [list(stream)[-1].usage for stream in (early, late)]
    assert [usage and (usage.finish_reason, usage.completion_tokens) for usage in ends] == [
        ("cancelled", 0),
        ("stop", 6),
    ]


def test_cancel_ends_the_running_stream_and_the_waiting_one() -> None:
    engine = EchoEngine(seconds_per_token=0.02)
    reasons: list[str] = []

    def run() -> None:
        *_, last = engine.stream([Message("user", "x" * 2000)], Sampling())
        assert last.usage is not None
        reasons.append(last.usage.finish_reason)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    engine.cancel()
    for thread in threads:
        thread.join(timeout=10)
    assert reasons == ["cancelled", "cancelled"]


def test_one_of_two_is_cancelled_from_outside_also_while_its_prompt_is_read() -> None:
    engine, gone = EchoEngine(seconds_per_token=0.01, prefill_seconds=0.5), threading.Event()
    ends: list[Usage | None] = []

    def ask_until(cancelled: threading.Event | None) -> None:
        ends.append(list(engine.stream([Message("user", "hello")], Sampling(), cancelled))[-1].usage)

    one = threading.Thread(target=ask_until, args=(gone,))
    one.start()
    begun = time.perf_counter()
    threading.Timer(0.05, gone.set).start()
    one.join(10)
    assert time.perf_counter() - begun < 0.4
    ask_until(None)
    assert [usage and usage.finish_reason for usage in ends] == ["cancelled", "stop"]
