"""Takes a request, has it answered, and gives the answer back: whole, or as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any, Literal

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope

from edge.errors import DeviceError, EdgeError, ModelError, ResourceError
from edge.runtime.interface import ChatEngine
from edge.server import asking, faults, streaming, whole
from edge.server.answering import Cut, Ended, Happening, Notice, Piece, happenings
from edge.server.asking import Asked
from edge.server.faults import RefusedError
from edge.server.numbers import Numbers
from edge.server.options import Options
from edge.server.protocol import ChatRequest, CompletionRequest
from edge.server.queueing import Gate
from edge.server.reading import GoneError, Readers, in_thread
from edge.server.replies import Reply
from edge.server.sending import EventStream, reply
from edge.server.work import Work, late

CLIENT_GONE = 499
"""Status of what nobody is there to read, as nginx has it."""
CUT_SHORT = 503
"""Status of what the end of the server has cut short."""
log = logging.getLogger("edge.server")


@dataclass(frozen=True)
class Kind:
    """What differs between a chat and a text that is gone on with."""

    request: type[ChatRequest] | type[CompletionRequest]
    understand: Callable[[ChatEngine, Any], Asked]
    writer: type[streaming.Writer]
    whole: Callable[[whole.Head, Asked, list[Ended]], Reply]
    prefix: Literal["chatcmpl", "cmpl"]


CHAT = Kind(ChatRequest, asking.chat, streaming.ChatWriter, whole.chat, "chatcmpl")
TEXT = Kind(CompletionRequest, asking.completion, streaming.TextWriter, whole.completion, "cmpl")


class Desk:
    """One server's engine, queue and counters.

    Everything but `open` belongs to the event loop's thread.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.created = int(time.time())
        self.draining = False
        """What is being answered goes on; nothing new is taken."""
        self.failing = False
        """The last answer could not be made, and for a fault of ours; the next may well be."""
        self.asked = 0
        """Requests for answers that are here, waiting or not."""
        self._engine: ChatEngine | None = None
        self._works: set[Work] = set()
        self.gate = Gate(self._places, options.queue)
        self._readers = Readers(lambda: options.queue + self._places())
        self.numbers = Numbers(
            waiting=lambda: self.gate.waiting, running=lambda: self.gate.running,
            cache_share=lambda: None if self._engine is None else self._engine.cache_share,
            ready=lambda: self.status == "ready",
        )  # fmt: skip

    def open(self, engine: ChatEngine) -> None:
        """The model is loaded; from any thread."""
        self._engine = engine

    @property
    def status(self) -> Literal["ready", "loading", "failing", "draining"]:
        """Whether it can answer."""
        if self.draining or self._engine is None:
            return "draining" if self.draining else "loading"
        return "failing" if self.failing else "ready"

    def engine(self) -> ChatEngine:
        """The engine, if it may be asked.

        Raises:
            RefusedError: the model is still being loaded, or the server is ending: 503.
        """
        if self.draining:
            raise RefusedError("the server is ending", hint="Ask another, or later.", code="shutting_down", status=503,
                               retry_seconds=10)  # fmt: skip
        if self._engine is None:
            raise RefusedError("the model is still being loaded", hint="Ask again when /health says ready.",
                               code="model_loading", status=503, retry_seconds=5)  # fmt: skip
        return self._engine

    def model_name(self, engine: ChatEngine) -> str:
        """By which the model is asked for."""
        return self.options.name or engine.name

    def models(self, engine: ChatEngine) -> tuple[str, ...]:
        """All that may be asked for: the model, and its adapters by their own names."""
        return (self.model_name(engine), *engine.adapters)

    def _places(self) -> int:
        return 1 if self._engine is None else self._engine.together

    def end_all(self) -> None:
        """End what is being answered, or read; who asked is told."""
        for _ in range(self._readers.end_all()):
            self.numbers.cancelled("shutdown")
        for work in self._works:
            self.numbers.cancelled("shutdown")
            work.end(faults.CutShortError())

    async def answer(self, request: Request, kind: Kind) -> Response:
        """Answer a request.

        Raises:
            EdgeError: what is wrong with it, or with us.
        """
        arrived = time.monotonic()
        engine = self.engine()
        self.gate.check()  # before the body is read, which may be large
        try:
            body = await self._readers.watched(read_body(request, self.options.body_bytes), self.options.body_seconds)
        except asyncio.TimeoutError:
            raise RefusedError(f"the body was not there after {self.options.body_seconds:g} s", hint="Send it faster.",
                               code="timeout", status=408) from None  # fmt: skip
        except ClientDisconnect:
            return self._gone(request.scope)
        gone = asyncio.create_task(_disconnected(request.receive))
        try:
            left = arrived + self.options.timeout_seconds - time.monotonic()
            reading = self._readers.read(self._understood, engine, kind, body)
            asked_for, asked = await self._readers.watched(reading, left, gone)
            self.engine()  # it may have begun to end meanwhile
            at_once = max(1, min(len(asked.parts), engine.together))
            work = Work(
                self.gate, len(asked.parts), lambda cancelled: happenings(engine, asked, cancelled, at_once),
                arrived=arrived, seconds=self.options.timeout_seconds, note=lambda event: self._count(event, asked.n),
            )  # fmt: skip
        except BaseException as error:
            gone.cancel()
            if isinstance(error, GoneError):
                return self._gone(request.scope)
            if isinstance(error, asyncio.TimeoutError):
                self.numbers.cancelled("timeout")
                raise late(self.options.timeout_seconds) from None
            raise
        self._works.add(work)
        gone.add_done_callback(lambda task: None if task.cancelled() else work.end(GoneError()))

        def close() -> None:
            gone.cancel()
            work.close()
            self._works.discard(work)

        seen = self._seen(work, arrived, request.scope)
        named = asked_for.model if asked_for.model in engine.adapters else self.options.name
        head = whole.Head.of(engine, kind.prefix, named)
        try:
            if asked_for.stream:
                options = asked_for.stream_options
                writer = kind.writer(head, asked, usage=bool(options and options.include_usage))
                work.beat_seconds = self.options.first_seconds
                first = await anext(seen, None)  # a fault before it has a status of its own
                work.beat_seconds = self.options.beat_seconds
                return EventStream(self._events(writer, first, seen, request.scope), close)
            ended = [event async for event in seen if isinstance(event, Ended)]
            close()
            return reply(await in_thread(kind.whole, head, asked, ended))
        except GoneError:
            close()
            return self._gone(request.scope)
        except BaseException:
            close()
            raise

    def _understood(self, engine: ChatEngine, kind: Kind, body: bytes) -> tuple[ChatRequest | CompletionRequest, Asked]:
        """In a thread of the readers."""
        request: ChatRequest | CompletionRequest = faults.read(kind.request, body)
        if self.options.log_prompts:
            log.info("asked: %s", json.dumps(request.model_dump(exclude_none=True, by_alias=True)))
        asking.check_model(request.model, self.model_name(engine), engine.adapters)
        return request, kind.understand(engine, request)

    async def _events(
        self, writer: streaming.Writer, first: Happening | None, seen: AsyncGenerator[Happening | None, None],
        scope: Scope,
    ) -> AsyncGenerator[bytes, None]:  # fmt: skip
        """A streamed reply, with what went wrong on the way."""
        try:
            for piece in writer.begin():
                yield streaming.event(piece)
            for event in self._written(writer, first):
                yield event
            async for happening in seen:
                for event in self._written(writer, happening):
                    yield event
            for piece in writer.end():
                yield streaming.event(piece)
            yield streaming.DONE
        except GoneError:
            self._gone(scope)
        except Exception as error:
            if not isinstance(error, EdgeError):
                faults.log_fault(error, with_message=self.options.log_prompts)
            status, told, _ = faults.describe(error)
            scope["edge.status"] = status  # for counting: who asked has long been told of a good beginning
            yield streaming.error_event(told)

    def _written(self, writer: streaming.Writer, happening: Happening | None) -> list[bytes]:
        if happening is None:
            return [streaming.comment("still at it")]
        if isinstance(happening, Notice):
            return [streaming.comment(happening.text)]
        return [streaming.event(piece) for piece in writer.write(happening)]

    async def _seen(self, work: Work, arrived: float, scope: Scope) -> AsyncGenerator[Happening | None, None]:
        """What happens, with what comes of it for the request and the server."""
        first, usages = True, []
        try:
            async for event in work.happenings():
                if isinstance(event, Piece) and first:
                    first = False
                    self.numbers.first_token(time.monotonic() - arrived)
                elif isinstance(event, Ended):
                    self.failing = False
                    usages.append(event.usage)
                elif isinstance(event, Notice):
                    log.warning("%s", event.text)
                yield event
        except RefusedError as error:
            if error.code == "timeout":
                self.numbers.cancelled("timeout")
            raise
        except (DeviceError, ModelError, ResourceError):
            self.failing = True
            raise
        finally:
            if work.begun is not None:
                self.numbers.queued(work.begun - arrived)
            read, made = (sum(getattr(usage, name) for usage in usages) for name in
                          ("prompt_tokens", "completion_tokens"))  # fmt: skip
            scope["edge.told"] = f", {read:,} tokens read, {made:,} written" if usages else ""

    def _count(self, event: Happening, n: int) -> None:
        """Count an answer, also one that nobody waits for any more: the device has worked for it."""
        if isinstance(event, (Ended, Cut)):
            reason = event.reason if isinstance(event, Ended) else None
            self.numbers.answer(event.usage, reason, first=event.index % n == 0)

    def _gone(self, scope: Scope) -> Response:
        self.numbers.cancelled("client")
        scope["edge.told"], scope["edge.status"] = ", the client has gone", CLIENT_GONE
        return Response(status_code=CLIENT_GONE)


async def read_body(request: Request, limit: int) -> bytes:
    """The body of a request for JSON.

    Raises:
        RefusedError: it is larger than `limit` bytes, whatever it says of itself, or says that it is no JSON.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise RefusedError(f"the content encoding {encoding[:80]!r} is not read", hint="Send it as it is.",
                           code="unsupported_media_type", status=415)  # fmt: skip
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # also keeps out the forms of foreign pages, which need no leave to be sent
        raise RefusedError(f"the content type {kind[:80]!r} is not read", hint="Send application/json.",
                           code="unsupported_media_type", status=415)  # fmt: skip
    too_large = RefusedError(f"the body is larger than {limit:,} bytes", hint="Send less.", code="request_too_large",
                             status=413)  # fmt: skip
    with contextlib.suppress(ValueError):
        if int(request.headers.get("content-length", "0")) > limit:
            raise too_large
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise too_large
    return bytes(body)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
