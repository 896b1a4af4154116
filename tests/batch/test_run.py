"""Several requests at once, on engines without a model."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Generator, Sequence
from typing import Any

import pytest

from edge.batch.lines import split
from edge.batch.run import GIVE_UP, Given, fault_of, run
from edge.errors import DeviceError, EdgeError
from edge.messages import Chunk, Conversation, Sampling
from edge.runtime.echo import EchoEngine


class Together(EchoEngine):
    """Answers four at once, and knows how many it had at most. A message "fail" makes the device fail."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.together = 4
        self._lock = threading.Semaphore(4)  # type: ignore[assignment]
        self._counting = threading.Lock()
        self.now = self.most = 0
        self.asked: list[str] = []

    def stream(
        self, conversation: Conversation, sampling: Sampling, cancelled: threading.Event | None = None
    ) -> Generator[Chunk, None, None]:
        said = conversation if isinstance(conversation, str) else conversation[-1].content
        with self._counting:
            self.asked.append(said)
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            if said.startswith("fail"):
                raise DeviceError("the device is on fire", hint="Put it out.")
            if said == "notice":
                yield Chunk("", notice="It goes on on CPU.")
            yield from super().stream(conversation, sampling, cancelled)
        finally:
            with self._counting:
                self.now -= 1


def asked(*prompts: str) -> Any:
    return split("\n".join(prompts).encode(), plain=True)


def content(record: Any) -> str:
    return str(record["response"]["body"]["choices"][0]["message"]["content"])


def test_several_are_answered_at_once_each_with_its_own() -> None:
    engine = Together(seconds_per_token=0.01)
    lines = asked(*(f"prompt {number}" for number in range(20)))
    records = {one.line.number: one.record for one in run(engine, lines, Given())}
    assert engine.most == 4 and sorted(engine.asked) == sorted(f"prompt {number}" for number in range(20))
    for number in range(1, 21):
        assert records[number]["custom_id"] == f"line-{number}" and records[number]["error"] is None
        assert content(records[number]) == f"prompt {number - 1}"
        assert records[number]["response"]["body"]["usage"]["prompt_tokens"] == len(f"prompt {number - 1}")
    assert len({record["id"] for record in records.values()}) == 20


def test_one_at_a_time_where_the_device_has_but_one() -> None:
    engine = Together(seconds_per_token=0.001)
    engine.together = 1
    numbers = [one.line.number for one in run(engine, asked("a", "b", "c"), Given())]
    assert engine.most == 1 and numbers == [1, 2, 3]


def test_lines_at_fault_do_not_stop_the_others() -> None:
    text = '"fine"\n{broken\n{"prompt": "x", "temprature": 1}\n{"prompt": "%s"}\n"also fine"' % ("long " * 900)
    records = {one.line.number: one.record for one in run(Together(), split(text.encode(), plain=False), Given())}
    assert [fault_of(records[number]) is None for number in range(1, 6)] == [True, False, False, False, True]
    assert records[2]["response"] is None and records[2]["error"]["code"] == "invalid_json"
    assert records[3]["response"]["status_code"] == 400
    assert records[3]["response"]["body"]["error"]["param"] == "temprature"
    assert records[4]["response"]["body"]["error"]["code"] == "context_length_exceeded"


def test_completions_and_several_answers() -> None:
    text = (
        '{"custom_id": "a", "method": "POST", "url": "/v1/completions", '
        '"body": {"prompt": ["One", "Two"], "echo": true}}\n'
        '{"prompt": "Hi", "n": 3}'
    )
    records = [one.record for one in run(EchoEngine(), split(text.encode(), plain=False), Given())]
    assert [choice["text"] for choice in records[0]["response"]["body"]["choices"]] == ["OneOne", "TwoTwo"]
    assert [choice["message"]["content"] for choice in records[1]["response"]["body"]["choices"]] == ["Hi"] * 3


def test_a_device_that_fails_now_and_then_costs_those_lines_alone() -> None:
    lines = asked(*(f"fail {number}" if number % 2 else f"ok {number}" for number in range(4 * GIVE_UP)))
    records = [one.record for one in run(Together(), lines, Given())]
    assert len(records) == 4 * GIVE_UP and sum(fault_of(record) is not None for record in records) == 2 * GIVE_UP
    assert any("on fire" in (fault_of(record) or "") for record in records)


def test_a_device_that_fails_at_everything_ends_the_batch_without_answers_made_up() -> None:
    engine = Together()
    engine.together = 1
    lines = asked("ok", *(f"fail {number}" for number in range(100)))
    given: list[int] = []
    with pytest.raises(EdgeError, match=f"{GIVE_UP} answers in a row failed.*on fire"):
        for one in run(engine, lines, Given()):
            given.append(one.line.number)
    assert given == [1]


def test_a_fault_of_ours_is_raised() -> None:
    class Broken(EchoEngine):
        def token_bytes(self, token_ids: Sequence[int]) -> list[bytes]:
            raise KeyError("ours")

        def stream(self, *_: Any, **__: Any) -> Generator[Chunk, None, None]:
            self.token_bytes([1])
            yield Chunk("")

    with pytest.raises(KeyError, match="ours"):
        list(run(Broken(), asked("a", "b"), Given()))


def test_a_line_that_cannot_be_read_has_a_record_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(EchoEngine):
        def count_tokens(self, conversation: Conversation) -> int:
            if "bad" in str(conversation):
                raise KeyError("ours")
            return super().count_tokens(conversation)

    one, bad, three = [each.record for each in run(Broken(), asked("one", "bad", "three"), Given())]
    assert (content(one), content(three)) == ("one", "three")
    assert bad["response"]["status_code"] == 500 and bad["response"]["body"]["error"]["code"] == "internal_error"
    assert fault_of(bad) == "This should not have happened (KeyError). Standard error says where."
    assert "KeyError: 'ours'" in caplog.text and "count_tokens" in caplog.text
    with pytest.raises(EdgeError, match=f"{GIVE_UP} answers in a row failed"):
        list(run(Broken(), asked(*["bad"] * 20), Given()))


def test_what_nests_too_deeply_costs_its_own_line_alone() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "python", "arguments": "[" * 200_000}}
    said = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c", "content": "x"}]
    text = "\n".join(json.dumps(each) for each in ("one", {"messages": said, "tools": [{"type": "python"}]}, "three"))
    one, deep, three = [each.record for each in run(EchoEngine(), split(text.encode(), plain=False), Given())]
    assert (content(one), content(three)) == ("one", "three")
    assert deep["response"]["status_code"] in (200, 400)  # plain code, if strange code, or too deep; not a crash


def test_closing_it_ends_what_is_under_way() -> None:
    engine = Together(seconds_per_token=0.05)
    answers = run(engine, asked("a", *("x" * 2000 for _ in range(10))), Given())
    started = time.monotonic()
    assert next(answers).line.number == 1
    with contextlib.closing(answers):
        pass
    assert time.monotonic() - started < 10 and engine.now == 0  # one answer alone would take 100 s
    assert not [thread for thread in threading.enumerate() if thread.name == "batch"]


def test_what_happens_on_the_way_is_told() -> None:
    said: list[str] = []
    list(run(Together(), asked("notice"), Given(), said.append))
    assert said == ["It goes on on CPU."]
