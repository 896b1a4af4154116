"""Engines without a model that the server's tests ask."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import httpx

from edge.messages import Chunk, Conversation, Sampling, Usage
from edge.runtime.echo import EchoEngine
from edge.runtime.prefix import Reading
from edge.runtime.stream import Write, stream_tokens
from edge.server.app import build
from edge.server.desk import Desk
from edge.server.options import Options


class Counting(EchoEngine):
    """Says `x` without an end, with the real streaming, and counts what it makes.

    Args:
        together: answers at once.
        seconds_per_token: each takes.
        prefill_seconds: the prompt takes; it is read in pieces of 10 ms, between which it can be ended.
    """

    def __init__(self, *, together: int = 8, seconds_per_token: float = 0.005, prefill_seconds: float = 0.0) -> None:
        super().__init__(context_length=100_000)
        self.together = together
        self.made = 0
        self.begun = 0
        self.most = 0
        """Answers that were ever made at the same time."""
        self.under_way = 0
        self.asked: list[Sampling] = []
        self.read_pieces = 0
        self._turn = threading.Semaphore(together)
        self._counting = threading.Lock()
        self._token_seconds, self._prefill_pieces = seconds_per_token, round(prefill_seconds / 0.01)

    def stream(
        self, conversation: Conversation, sampling: Sampling, cancelled: threading.Event | None = None
    ) -> Generator[Chunk, None, None]:
        with self._counting:
            self.asked.append(sampling)
            self.begun += 1

        def produce(write: Write) -> None:
            with self._counting:
                self.under_way += 1
                self.most = max(self.most, self.under_way)
            try:
                for _ in range(self._prefill_pieces):
                    time.sleep(0.01)
                    self.read_pieces += 1
                    if not write(()):
                        return
                for _ in range(sampling.max_new_tokens or 10**6):
                    time.sleep(self._token_seconds)
                    with self._counting:
                        self.made += 1
                    if not write([120], [-0.5]):
                        return
            finally:
                with self._counting:
                    self.under_way -= 1

        with self._running.begin(cancelled) as ended:
            yield from stream_tokens(
                produce, decode=lambda ids: "".join(map(chr, ids)), reading=Reading(self.count_tokens(conversation)),
                stop_ids=frozenset(), stop=sampling.stop, lock=self._turn, cancelled=ended,
                started=time.perf_counter(),
            )  # fmt: skip


class Told(EchoEngine):
    """Gives the chunks it was told to give; an exception among them is raised."""

    def __init__(self, *chunks: Chunk | Exception, together: int = 8, opens_thought: bool = False) -> None:
        super().__init__()
        self.chunks = chunks
        self.together = together
        self.opens_thought = opens_thought
        self.asked: list[tuple[Conversation, Sampling]] = []

    def stream(
        self, conversation: Conversation, sampling: Sampling, cancelled: threading.Event | None = None
    ) -> Generator[Chunk, None, None]:
        self.asked.append((conversation, sampling))
        for chunk in self.chunks:
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk


def says(*pieces: str, reason: Any = "stop", **usage: Any) -> list[Chunk]:
    """Chunks that say this, one token each; a token is its character."""
    chunks = [
        Chunk(piece, token_ids=tuple(map(ord, piece)), log_probs=tuple(-0.25 for _ in piece)) for piece in pieces
    ]  # fmt: skip
    return [*chunks, Chunk("", usage=Usage(7, sum(map(len, pieces)), 0.1, 0.01, reason, **usage))]


class Live:
    """A server that runs in a thread."""

    def __init__(self, desk: Desk, port: int) -> None:
        self.desk = desk
        self.address = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.address, timeout=30)

    def chat(self, text: str = "hello", **fields: Any) -> httpx.Response:
        return self.http.post("/v1/chat/completions", json=question(text, **fields))

    def number(self, name: str) -> float:
        """One of `/metrics`, with its labels."""
        for line in self.http.get("/metrics").text.splitlines():
            if line.rpartition(" ")[0] == name:
                return float(line.rpartition(" ")[2])
        raise AssertionError(f"there is no {name}")


def question(text: str = "hello", **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **fields}


@contextlib.contextmanager
def serving(engine: Any, **options: Any) -> Iterator[Live]:
    """A real server on a free port; `engine` None: the model is still being loaded."""
    import uvicorn

    from edge.server import run

    how = Options(**options)
    desk = Desk(how)
    if engine is not None:
        desk.open(engine)
    bound = run.bind(how.host, 0)
    server = uvicorn.Server(uvicorn.Config(build(desk), lifespan="off", log_config=None, access_log=False,
                                           timeout_graceful_shutdown=2))  # fmt: skip
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    live = Live(desk, bound.getsockname()[1])
    try:
        until(lambda: server.started)
        yield live
    finally:
        desk.end_all()
        live.http.close()
        server.should_exit = True
        thread.join(20)
        bound.close()
        if engine is not None:
            engine.close()
    assert not thread.is_alive()


def until(what: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for something to become true."""
    ends = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.01)


def steady(number: Callable[[], int], seconds: float = 0.3) -> bool:
    """Whether a number stays as it is."""
    before = number()
    time.sleep(seconds)
    return number() == before


def events(text: str) -> Sequence[str]:
    """The blocks of a stream of server-sent events."""
    assert text.endswith("\n\n")
    return text.removesuffix("\n\n").split("\n\n")
