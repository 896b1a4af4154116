"""The server as a client sees it: a real one, on a port, in front of an engine without a model."""

from __future__ import annotations

import gzip
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from edge.errors import DeviceError
from edge.messages import Chunk
from edge.runtime.echo import EchoEngine
from tests.server.engines import Counting, Live, Told, events, question, says, serving, steady, until


@pytest.fixture(scope="module")
def echo() -> Iterator[Live]:
    with serving(EchoEngine()) as live:
        yield live


def test_an_answer(echo: Live) -> None:
    answer = echo.chat("你好")
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
    assert answer.json()["choices"][0]["message"]["content"] == "你好"
    answer = echo.http.post("/v1/completions", json={"prompt": "abc", "model": "echo"})
    assert answer.json()["choices"][0]["text"] == "abc"


def test_a_stream_is_server_sent_events(echo: Live) -> None:
    answer = echo.chat("hi\n\nthere", stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    blocks = events(answer.text)
    assert blocks[-1] == "data: [DONE]" and all(re.fullmatch(r"data: \{.*\}", block) for block in blocks[:-1])
    said = [json.loads(block.removeprefix("data: "))["choices"][0]["delta"] for block in blocks[:-1]]
    assert "".join(delta.get("content", "") for delta in said) == "hi\n\nthere"


def test_a_stream_comes_piece_by_piece() -> None:
    with serving(EchoEngine(seconds_per_token=0.1)) as live:
        begun = time.monotonic()
        arrived = []
        with live.http.stream("POST", "/v1/chat/completions", json=question("hello", stream=True)) as answer:
            for line in answer.iter_lines():
                if '"content":"' in line and '"content":""' not in line:
                    arrived.append(time.monotonic() - begun)
        assert len(arrived) == 5 and arrived[-1] - arrived[0] > 0.25


def test_the_model_and_health(echo: Live) -> None:
    assert echo.http.get("/health").json() == {"status": "ready"}
    listed = echo.http.get("/v1/models").json()
    assert [card["id"] for card in listed["data"]] == ["echo"] and listed["object"] == "list"
    assert echo.http.get("/v1/models/echo").json() == listed["data"][0]
    for answer in (echo.http.get("/v1/models/gpt-4o"), echo.chat(model="gpt-4o")):
        assert answer.status_code == 404 and answer.json()["error"]["code"] == "model_not_found"


def test_a_model_may_have_a_slash_or_another_name() -> None:
    engine = EchoEngine()
    engine.name = "zai-org/glm-4-9b-chat-hf"
    with serving(engine) as live:
        assert live.http.get("/v1/models/zai-org/glm-4-9b-chat-hf").status_code == 200
    with serving(engine, name="gpt-4o") as live:
        assert live.http.get("/v1/models").json()["data"][0]["id"] == "gpt-4o"
        answer = live.chat(model="gpt-4o")
        assert answer.status_code == 200 and answer.json()["model"] == "gpt-4o"
        assert live.chat(model=engine.name).status_code == 404


def test_embeddings_are_not_this_models(echo: Live) -> None:
    answer = echo.http.post("/v1/embeddings", json={"input": "x", "model": "echo"})
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "not_an_embedding_model"
    assert answer.json()["error"]["message"].startswith("The model 'echo' writes text")


def test_a_refusal_has_openais_form(echo: Live) -> None:
    answer = echo.chat(temperature=5)
    assert answer.status_code == 400
    assert answer.json() == {
        "error": {
            "message": "temperature cannot be 5. It should be less than or equal to 2.",
            "type": "invalid_request_error", "param": "temperature", "code": "invalid_value",
        }
    }  # fmt: skip
    assert echo.chat("x" * 5000).json()["error"]["code"] == "context_length_exceeded"
    assert echo.chat("x" * 5000, stream=True).status_code == 400


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/chat/completions", 405), ("GET", "/nowhere", 404), ("POST", "/v1/responses", 404),
     ("POST", "/health", 405), ("GET", "/v1/chat/completions/", 404)],
)  # fmt: skip
def test_what_is_not_there(method: str, path: str, status: int, echo: Live) -> None:
    answer = echo.http.request(method, path)
    assert answer.status_code == status and f"{method} {path}" in answer.json()["error"]["message"]
    assert ("allow" in answer.headers) is (status == 405)


def test_only_json_is_read(echo: Live) -> None:
    body = json.dumps(question())
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        answer = echo.http.post("/v1/chat/completions", content=body, headers={"content-type": kind})
        assert answer.status_code == 415, kind
    kind = "application/json; charset=utf-8"
    assert echo.http.post("/v1/chat/completions", content=body, headers={"content-type": kind}).status_code == 200


def test_a_body_has_a_limit_whatever_it_says_of_itself() -> None:
    with serving(EchoEngine(), body_bytes=1000) as live:
        said = live.chat("x" * 1000)
        assert said.status_code == 413 and "1,000 bytes" in said.json()["error"]["message"]

        def pieces() -> Iterator[bytes]:
            for _ in range(50):
                yield b"x" * 100

        headers = {"content-type": "application/json"}
        unsaid = live.http.post("/v1/chat/completions", content=pieces(), headers=headers)
        assert unsaid.status_code == 413
        assert live.chat("x" * 700).status_code == 200


def test_a_body_that_does_not_come() -> None:
    with serving(EchoEngine(), body_seconds=0.2) as live, socket.create_connection(("127.0.0.1", port(live))) as raw:
        raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                    b"content-length: 100\r\n\r\n{")  # fmt: skip
        raw.settimeout(10)
        assert b" 408 " in raw.recv(4000).split(b"\r\n")[0]


def port(live: Live) -> int:
    return int(live.address.rpartition(":")[2])


def test_the_pages_need_nothing_from_elsewhere(echo: Live) -> None:
    for path in ("/", "/docs"):
        page = echo.http.get(path)
        assert "temperature" in page.text and "/v1/chat/completions" in page.text
        assert not re.search(r"<script|src=|@import|url\(|https?://(?!127\.0\.0\.1)", page.text)
        assert "default-src 'none'" in page.headers["content-security-policy"]
    assert echo.http.get("/openapi.json").json()["paths"].keys() >= {"/v1/chat/completions", "/health"}


def test_while_the_model_loads_it_is_not_ready() -> None:
    with serving(None) as live:
        health = live.http.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "loading"})
        for answer in (live.chat(), live.http.get("/v1/models"), live.http.post("/v1/embeddings", json={})):
            assert answer.status_code == 503 and answer.json()["error"]["code"] == "model_loading"
            assert int(answer.headers["retry-after"]) > 0
        assert live.number("glm4_edge_ready") == 0
        live.desk.open(EchoEngine())
        assert live.http.get("/health").status_code == 200 and live.chat().status_code == 200


def test_while_it_ends_it_takes_nothing_new_and_finishes_what_runs() -> None:
    with serving(EchoEngine(seconds_per_token=0.05)) as live, ThreadPoolExecutor() as pool:
        running = pool.submit(live.chat, "hello there")
        until(lambda: live.desk.gate.running == 1)
        live.desk.draining = True
        assert live.http.get("/health").json() == {"status": "draining"}
        refused = live.chat()
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "shutting_down"
        assert running.result(20).json()["choices"][0]["message"]["content"] == "hello there"


def test_who_is_ended_is_told() -> None:
    engine = Counting()
    with serving(engine) as live, ThreadPoolExecutor() as pool:
        whole = pool.submit(live.chat)
        streamed = pool.submit(live.chat, stream=True)
        until(lambda: engine.under_way == 2)
        time.sleep(0.1)
        live.desk.end_all()
        assert whole.result(20).status_code == 503
        last = events(streamed.result(20).text)[-1]
        assert last.startswith("event: error\ndata: ") and "ended before its end" in last
        until(lambda: not engine.under_way)


# The queue


def test_the_queue_is_bounded_and_says_when_to_come_again() -> None:
    with serving(EchoEngine(seconds_per_token=0.05), queue=2) as live, ThreadPoolExecutor() as pool:
        asked = [pool.submit(live.chat, f"hello {number}") for number in range(3)]
        until(lambda: live.desk.gate.waiting == 2)
        assert live.number("glm4_edge_queue_length") == 2 and live.number("glm4_edge_running_requests") == 1
        refused = live.chat()
        assert refused.status_code == 429 and refused.json()["error"]["code"] == "queue_full"
        assert int(refused.headers["retry-after"]) >= 1
        assert live.chat(stream=True).status_code == 429
        assert [answer.result(30).status_code for answer in asked] == [200] * 3


def test_as_many_are_answered_at_once_as_the_engine_makes() -> None:
    engine = Counting(together=4, seconds_per_token=0.01)
    with serving(engine) as live, ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: live.chat(max_tokens=20).status_code, range(12)))
        assert answers == [200] * 12 and engine.most == 4


def test_the_server_answers_other_things_while_it_is_busy() -> None:
    with serving(Counting(together=2, seconds_per_token=0.001), queue=0) as live, ThreadPoolExecutor() as pool:
        for _ in range(2):
            pool.submit(live.chat, max_tokens=2000)
        until(lambda: live.desk.gate.running == 2)
        times = []
        for _ in range(20):
            begun = time.monotonic()
            assert live.http.get("/health").status_code == 200
            times.append(time.monotonic() - begun)
        assert sorted(times)[10] < 0.2


# Clients that go away


def leave_in_the_middle(live: Live, *, wait: Any, **fields: Any) -> None:
    """Ask, wait for something, and close the connection."""
    body = json.dumps(question(**fields)).encode()
    with socket.create_connection(("127.0.0.1", port(live))) as raw:
        raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                    + f"content-length: {len(body)}\r\n\r\n".encode() + body)  # fmt: skip
        until(wait)


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"n": 4}, {"n": 4, "stream": True}], ids=str)
def test_when_the_client_goes_the_engine_stops_within_a_token(fields: dict[str, Any]) -> None:
    engine = Counting(seconds_per_token=0.02)
    with serving(engine) as live:
        leave_in_the_middle(live, wait=lambda: engine.made > 5, **fields)
        until(lambda: not engine.under_way, 2)
        assert steady(lambda: engine.made) and engine.made < 100
        until(lambda: live.desk.gate.running == 0)
        until(lambda: live.number('glm4_edge_cancellations_total{reason="client"}') == 1)
        assert live.chat(max_tokens=2).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_also_while_its_prompt_is_still_being_read(stream: bool) -> None:
    engine = Counting(prefill_seconds=60)
    with serving(engine) as live:
        leave_in_the_middle(live, wait=lambda: engine.read_pieces > 5, stream=stream)
        until(lambda: not engine.under_way, 2)
        assert engine.made == 0


@pytest.mark.parametrize("stream", [False, True])
def test_who_goes_while_waiting_is_never_begun(stream: bool) -> None:
    engine = Counting(together=1)
    with serving(engine, first_seconds=0.05) as live, ThreadPoolExecutor() as pool:
        running = pool.submit(live.chat, max_tokens=200)
        until(lambda: live.desk.gate.running == 1)
        leave_in_the_middle(live, wait=lambda: live.desk.gate.waiting == 1, stream=stream)
        until(lambda: live.desk.gate.waiting == 0)
        assert running.result(20).status_code == 200 and engine.begun == 1


def test_a_request_may_take_only_so_long() -> None:
    engine = Counting()
    with serving(engine, timeout_seconds=0.5, first_seconds=0.1) as live:
        answer = live.chat()
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "timeout"
        blocks = events(live.chat(stream=True).text)
        assert blocks[-1].startswith("event: error") and "after 0.5 s" in blocks[-1]
        until(lambda: not engine.under_way)
        assert live.number('glm4_edge_cancellations_total{reason="timeout"}') == 2


def test_a_stream_shows_that_it_is_alive_while_a_long_prompt_is_read() -> None:
    with serving(EchoEngine(prefill_seconds=0.6), first_seconds=0.1, beat_seconds=0.1) as live:
        blocks = events(live.chat("hi", stream=True).text)
        beats = [number for number, block in enumerate(blocks) if block.startswith(": ")]
        first = next(number for number, block in enumerate(blocks) if '"content":"h"' in block)
        assert 3 <= len(beats) <= 7 and max(beats) < first and blocks[-1] == "data: [DONE]"


# What goes wrong


def test_a_fault_before_the_first_token_has_its_status_and_one_after_it_is_an_event() -> None:
    lost = DeviceError("GPU failed while answering: device lost", hint="Ask again.")
    engine = Told(lost)
    with serving(engine) as live:
        for stream in (False, True):
            answer = live.chat(stream=stream)
            assert answer.status_code == 503 and answer.json()["error"]["code"] == "device_error"
        health = live.http.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "failing"})
        engine.chunks = tuple(says("well again"))
        assert live.chat().status_code == 200 and live.http.get("/health").status_code == 200
    with serving(Told(Chunk("a", token_ids=(1,)), lost)) as live:
        assert live.chat().status_code == 503
        answer = live.chat(stream=True)
        assert answer.status_code == 200
        kind, _, data = events(answer.text)[-1].partition("\ndata: ")
        assert kind == "event: error" and "device lost" in json.loads(data)["error"]["message"]
        assert "[DONE]" not in answer.text


def test_an_answer_that_begins_again_says_so_where_it_was_streamed() -> None:
    chunks = [Chunk("wrong", token_ids=(1,)), Chunk("", notice="GPU failed.\nOn CPU.", restart=True), *says("right")]
    with serving(Told(*chunks)) as live:
        assert live.chat().json()["choices"][0]["message"]["content"] == "right"
        blocks = events(live.chat(stream=True).text)
        assert ": GPU failed. On CPU." in blocks and "another one" in blocks[-1]


@pytest.mark.parametrize("stream", [False, True])
def test_a_fault_nobody_foresaw_is_logged_without_what_was_asked(
    stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("edge.server").propagate = True
    with caplog.at_level(logging.INFO), serving(Told(ValueError("my secret question"))) as live:
        answer = live.chat("my secret question", stream=stream)
        assert answer.status_code == 500 and "ValueError" in answer.json()["error"]["message"]
        assert "secret" not in answer.text
        until(lambda: "chat/completions 500" in caplog.text)
    assert "ValueError" in caplog.text and "in stream" in caplog.text and "secret" not in caplog.text


def test_prompts_are_logged_only_where_that_was_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("edge.server").propagate = True
    with caplog.at_level(logging.DEBUG, logger="edge.server"):
        with serving(EchoEngine()) as live:
            live.chat("my secret question")
            live.chat("my secret question", temperature=9)
            live.http.get("/v1/models/secret")
            until(lambda: caplog.text.count("chat/completions") == 2)
        assert "secret" not in caplog.text and "18 tokens read, 19 written" in caplog.text
        with serving(EchoEngine(), log_prompts=True) as live:
            live.chat("my secret\nquestion")
            until(lambda: "my secret" in caplog.text)


def test_it_answers_a_look_at_the_head(echo: Live) -> None:
    for path in ("/health", "/"):
        head = echo.http.head(path)
        assert head.status_code == 200 and head.content == b"" and int(head.headers["content-length"]) > 0


def test_a_packed_body_is_refused_by_its_encoding(echo: Live) -> None:
    packed = gzip.compress(json.dumps(question()).encode())
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    refused = echo.http.post("/v1/chat/completions", content=packed, headers=headers)
    assert refused.status_code == 415 and "'gzip'" in refused.json()["error"]["message"]


def test_threads_do_not_stay() -> None:
    with serving(Counting(seconds_per_token=0.001)) as live:
        for _ in range(3):
            live.chat(max_tokens=3, n=3)
            live.chat(max_tokens=3, stream=True)
        until(lambda: not [each for each in threading.enumerate() if each.name in ("answer", "answers", "generation")])
        assert httpx.get(f"{live.address}/health").status_code == 200


def test_adapters_are_models_of_their_own() -> None:
    engine = Told(*says("hi"))
    engine.adapters = ("support", "poetry")
    with serving(engine) as live:
        cards = live.http.get("/v1/models").json()["data"]
        assert [card["id"] for card in cards] == ["echo", "support", "poetry"]
        assert live.http.get("/v1/models/poetry").json()["id"] == "poetry"
        prints = set()
        for model, adapters in (("poetry", ("poetry",)), ("echo", None), (None, None), ("support", ("support",))):
            answer = live.chat(**({} if model is None else {"model": model})).json()
            assert answer["model"] == model or (model is None and answer["model"] == "echo")
            assert engine.asked[-1][1].adapters == adapters
            prints.add(answer["system_fingerprint"])
            live.http.post("/v1/completions", json={"prompt": "a", "model": model}).raise_for_status()
            assert engine.asked[-1][1].adapters == adapters
        assert len(prints) == 3, "what answers is another model each time"
        piece = events(live.chat(model="poetry", stream=True).text)[0]
        assert json.loads(piece.removeprefix("data: "))["model"] == "poetry"
        refused = live.chat(model="prose")
        assert refused.status_code == 404 and "'echo', 'support', 'poetry'" in refused.json()["error"]["message"]
        assert live.http.get("/v1/models/prose").status_code == 404
