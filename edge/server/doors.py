"""What every request passes before a route sees it: who may ask, and what is counted. Plain ASGI."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge.errors import EdgeError
from edge.server.desk import CUT_SHORT, Desk
from edge.server.faults import RefusedError, log_fault
from edge.server.options import Options, is_loopback
from edge.server.sending import fault

FREE = {"/", "/docs", "/openapi.json", "/health"}
"""Need no key: they tell nothing of anybody's."""
ANSWERING = ("/v1/chat/completions", "/v1/completions")
_KNOWN = {*FREE, *ANSWERING, "/v1/models", "/v1/embeddings", "/metrics"}
log = logging.getLogger("edge.server")


class Door:
    """Lets in who may ask.

    With keys, who has one. Without, programs of this machine: a page in the browser that leads its own name to this
    address, or sends forms across, is turned away by the names it comes under.
    """

    def __init__(self, app: ASGIApp, options: Options) -> None:
        self._app, self._options = app, options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http":
            try:
                self._check(scope)
            except RefusedError as error:
                await fault(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        if not self._options.keys:
            self._check_names(headers)
        elif scope["path"] not in FREE:
            kind, _, key = headers.get(b"authorization", b"").partition(b" ")
            if not key:
                raise RefusedError("this server asks for a key", hint="Send it as: Authorization: Bearer KEY.",
                                   code="missing_api_key", status=401)  # fmt: skip
            if kind.lower() != b"bearer" or not self._options.lets_in(key.strip()):
                raise RefusedError("the key is not one of this server's", hint="Its --api-key-file has them.",
                                   code="invalid_api_key", status=401)  # fmt: skip

    def _check_names(self, headers: Mapping[bytes, bytes]) -> None:
        host = headers.get(b"host", b"").decode("latin-1")
        name = (urlsplit(f"//{host}").hostname or "") if _plain(host) else ""
        if not (is_loopback(name) or name == self._options.host):
            raise RefusedError(f"this server is not called {host[:80]!r}", code="wrong_host", status=403,
                               hint="Ask it by its address, or start it with --api-key-file.")  # fmt: skip
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and origin not in self._options.cors_origins and "*" not in self._options.cors_origins:
            if _plain(origin) and urlsplit(origin).netloc == host:
                return
            raise RefusedError(f"pages of {origin[:80]!r} may not ask this server", code="wrong_origin", status=403,
                               hint="Start it with --cors-origin for those that may.")  # fmt: skip


class Observed:
    """Counts and logs requests, and answers for faults that nobody foresaw. Of what was asked, nothing is logged."""

    def __init__(self, app: ASGIApp, desk: Desk) -> None:
        self._app, self._desk = app, desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, started, status = _path(scope["path"]), time.monotonic(), 0
        answering = path in ANSWERING

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._desk.asked += answering
        try:
            await self._app(scope, receive, noting)
        except EdgeError as error:
            await fault(error)(scope, receive, noting)
        except asyncio.CancelledError:
            if not self._desk.draining:
                raise
            scope["edge.status"] = CUT_SHORT  # the server's end came before the answer's: there is nobody to raise to
        except Exception as error:
            log_fault(error, with_message=self._desk.options.log_prompts)
            if not status:
                await fault(error)(scope, receive, noting)
        finally:
            self._desk.asked -= answering
            seconds, status = time.monotonic() - started, scope.get("edge.status", status)
            self._desk.numbers.request(path, status, seconds)
            if path not in FREE and path != "/metrics":
                told = scope.get("edge.told", "")
                log.info("%s %s %d, %.2f s%s", scope["method"][:8], path, status, seconds, told)


def _path(path: str) -> str:
    """One of few, for counting."""
    if path.startswith("/v1/models/"):
        return "/v1/models/{model}"
    return path if path in _KNOWN else "other"


def _plain(name: str) -> bool:
    """Whether `urlsplit` can read it."""
    try:
        urlsplit(f"//{name}" if "//" not in name else name)
    except ValueError:
        return False
    return True
