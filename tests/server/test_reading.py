"""Requests that take long to be read: they have a deadline, a queue, and somebody who may go away."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from edge.messages import Chunk, Conversation
from tests.server.engines import Told, question, says, serving, until


class Slow(Told):
    """Reads a request that says "slow" until it is told to go on."""

    def __init__(self, *chunks: Chunk | Exception) -> None:
        super().__init__(*chunks)
        self.go_on = threading.Event()
        self.reading = 0

    def count_tokens(self, conversation: Conversation) -> int:
        if "slow" in str(conversation):
            self.reading += 1
            self.go_on.wait(30)
        return super().count_tokens(conversation)


def test_reading_a_request_is_a_part_of_its_time_and_of_the_queue() -> None:
    engine = Slow(*says("a"))
    with serving(engine, timeout_seconds=1.5, queue=1) as live, ThreadPoolExecutor(20) as pool:
        slow = [pool.submit(live.chat, "slow") for _ in range(15)]  # 4 are read, 1 and the engine's 8 places wait
        until(lambda: sum(each.done() for each in slow) == 2)
        refused = [each.result() for each in slow if each.done()]
        assert [each.status_code for each in refused] == [429, 429] and int(refused[0].headers["retry-after"]) > 0
        assert httpx.get(f"{live.address}/health").status_code == 200
        assert sorted(each.result(10).status_code for each in slow) == [429, 429, *[504] * 13]
        assert live.number('glm4_edge_cancellations_total{reason="timeout"}') == 13
        assert live.chat("fast").status_code == 504  # the threads are still taken
        engine.go_on.set()
        until(lambda: live.chat("fast").status_code == 200)
        assert engine.reading == 4  # who had gone was not read


def test_who_goes_while_the_request_is_read_is_noticed() -> None:
    engine = Slow(*says("a"))
    with serving(engine) as live:
        with pytest.raises(httpx.ReadTimeout):
            live.http.post("/v1/chat/completions", json=question("slow"), timeout=0.5)
        until(lambda: 'path="/v1/chat/completions",status="499"} 1.0' in live.http.get("/metrics").text)
        engine.go_on.set()
        assert live.chat("fast").status_code == 200
