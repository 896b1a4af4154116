"""A server's life, in a process of its own: it comes up, loads, answers, and ends as it should."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from edge.errors import UsageError
from edge.server import run
from tests.server.engines import events, question, until

SCRIPT = """
import sys, threading, time
from edge.errors import DeviceError
from edge.report import say
from edge.runtime.echo import EchoEngine
from edge.server import run
from edge.server.options import Options

class Engine(EchoEngine):
    def count_tokens(self, conversation):
        while "forever" in str(conversation):
            pass
        return super().count_tokens(conversation)

    def stream(self, conversation, sampling, cancelled=None):
        if "stuck" in str(conversation):
            threading.Event().wait()
        yield from super().stream(conversation, sampling, cancelled)

def load():
    time.sleep({load_seconds})
    if {fails}:
        raise DeviceError("the GPU is not there", hint="Take the CPU.")
    return Engine(seconds_per_token={seconds_per_token})

how = Options(drain_seconds={drain})
try:
    run.serve(run.bind(how.host, 0), how, load, say)
except DeviceError as error:
    say(f"Error: {{error}}")
    sys.exit(1)
run.leave()
"""


class Served:
    """A server in a process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()
        until(lambda: bool(self.lines), 30)
        found = re.match(r"(http://127\.0\.0\.1:\d+)/v1 is the address", self.lines[0])
        assert found, self.lines
        self.http = httpx.Client(base_url=found[1], timeout=30)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    @property
    def said(self) -> str:
        return "\n".join(self.lines)

    def ready(self) -> None:
        until(lambda: self.http.get("/health").status_code == 200, 30)

    def chat(self, text: str, **fields: Any) -> httpx.Response:
        return self.http.post("/v1/chat/completions", json=question(text, **fields))


@contextlib.contextmanager
def served(**values: Any) -> Iterator[Served]:
    given = {"load_seconds": 0, "fails": False, "seconds_per_token": 0, "drain": 20, **values}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(**given)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield Served(process)
    finally:
        process.kill()
        process.wait(20)


def test_it_is_there_while_the_model_loads() -> None:
    with served(load_seconds=1.5) as server:
        assert server.http.get("/health").json() == {"status": "loading"}
        assert server.chat("hi").status_code == 503
        server.ready()
        assert server.chat("hi").json()["choices"][0]["message"]["content"] == "hi"
        until(lambda: "Ready: echo on CPU, a context of 4,096 tokens, 1 answers at once. Try: curl" in server.said)


def test_a_model_that_cannot_be_loaded_ends_it() -> None:
    with served(fails=True, load_seconds=0.5) as server:
        assert server.process.wait(20) == 1
        until(lambda: "Error: the GPU is not there. Take the CPU." in server.said)


posix = pytest.mark.skipif(os.name == "nt", reason="Windows cannot send these signals to another process")


@posix
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_it_finishes_what_runs_and_takes_nothing_new(sent: signal.Signals) -> None:
    with served(seconds_per_token=0.1) as server, ThreadPoolExecutor() as pool:
        server.ready()
        whole = pool.submit(server.chat, "hello there whole")
        time.sleep(0.5)
        streamed = pool.submit(server.chat, "hello there stream", stream=True)
        time.sleep(0.5)
        server.process.send_signal(sent)
        until(lambda: server.http.get("/health").json() == {"status": "draining"})
        refused = server.chat("new")
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "shutting_down"
        assert whole.result(20).json()["choices"][0]["message"]["content"] == "hello there whole"
        assert events(streamed.result(20).text)[-1] == "data: [DONE]"
        assert server.process.wait(10) == 0
        until(lambda: server.lines[-1] == "Ended.")
        assert "Ending: 2 answers may take 20 s more" in server.said


@posix
@pytest.mark.parametrize("again", [False, True], ids=["the limit", "a second signal"])
def test_what_does_not_finish_is_ended_and_told(again: bool) -> None:
    with served(seconds_per_token=1, drain=60 if again else 1) as server, ThreadPoolExecutor() as pool:
        server.ready()
        whole = pool.submit(server.chat, "hello " * 20)
        time.sleep(0.5)
        streamed = pool.submit(server.chat, "hello " * 20, stream=True)
        time.sleep(1.5)
        begun = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        if again:
            time.sleep(0.5)
            server.process.send_signal(signal.SIGINT)
        assert whole.result(20).status_code == 503
        assert events(streamed.result(20).text)[-1].startswith("event: error")
        assert server.process.wait(20) == 0 and time.monotonic() - begun < 8


@posix
def test_threads_that_never_end_do_not_hold_up_the_end() -> None:
    with served(drain=1) as server, ThreadPoolExecutor(8) as pool, socket.socket() as slow:
        server.ready()
        asked = [pool.submit(server.chat, text) for text in ("stuck", *["forever"] * 6)]
        slow.connect((server.http.base_url.host, server.http.base_url.port))
        slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                     b"Content-Length: 99\r\n\r\n{")  # fmt: skip
        until(lambda: "glm4_edge_running_requests 1.0" in server.http.get("/metrics").text)
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        assert [each.result(30).status_code for each in asked] == [503] * 7
        assert b" 503 " in slow.recv(100)
        assert server.process.wait(10) == 0
        until(lambda: server.lines[-1] == "Ended.")
        assert "Traceback" not in server.said and "Cancel" not in server.said


@posix
@pytest.mark.parametrize("drain", [20, 0.5])
def test_told_to_end_while_it_loads_it_ends(drain: float) -> None:
    with served(load_seconds=2 if drain > 2 else 60, drain=drain) as server:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
        until(lambda: server.lines[-1] == "Ended.")
        assert "Ready" not in server.said


def test_a_port_that_is_taken() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} on 127.0.0.1 cannot be had") as caught:
            run.bind("127.0.0.1", port)
        assert "--port" in caught.value.hint


@pytest.mark.parametrize("host", ["no.such.host.invalid", "256.1.1.1", "a" * 300])
def test_an_address_that_is_none(host: str) -> None:
    with pytest.raises(UsageError):
        run.bind(host, 0)


@pytest.mark.parametrize(
    ("host", "shown"),
    [("127.0.0.1", "http://127.0.0.1:"), ("localhost", "http://localhost:"), ("0.0.0.0", "http://127.0.0.1:"),
     ("::1", "http://[::1]:"), ("[::1]", "http://[::1]:")],
)  # fmt: skip
def test_the_address_can_be_asked(host: str, shown: str) -> None:
    try:
        bound = run.bind(host, 0)
    except UsageError:
        pytest.skip(f"this machine has no {host}")
    with bound:
        assert run.address(bound, host).startswith(shown)
