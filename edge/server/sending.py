"""Replies → HTTP."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from edge.server.faults import describe
from edge.server.replies import Reply

EVENT_STREAM = "text/event-stream"


def reply(what: Reply, status: int = 200) -> Response:
    """As JSON."""
    return Response(what.json_text(), status, media_type="application/json")


def fault(error: BaseException) -> Response:
    """What was raised, in OpenAI's form."""
    status, body, retry = describe(error)
    response = reply(body, status)
    if retry is not None:
        response.headers["retry-after"] = str(retry)
    if status == 401:
        response.headers["www-authenticate"] = "Bearer"
    return response


class EventStream(Response):
    """Server-sent events, each sent when it is there.

    Args:
        events: as bytes.
        close: called when the last has been sent, or none will be any more.
    """

    media_type = EVENT_STREAM

    def __init__(self, events: AsyncGenerator[bytes, None], close: Callable[[], None]) -> None:
        self.status_code = 200
        self.background = None
        self._events, self._close = events, close
        # the last asks proxies not to collect what should be seen at once
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for event in self._events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._close()
            await self._events.aclose()
