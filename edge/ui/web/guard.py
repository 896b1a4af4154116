"""Who may speak to the page, and what the page may reach: between the server and everything that it answers.

A browser lends itself to any page it shows: one from elsewhere could ask this server for what was said, under a name
that was made to point here, or have it act. And a model may be talked into an answer with a picture from elsewhere,
whose address tells what it has read. Neither is let happen.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

# Gradio makes functions of strings and writes styles in place; nothing is fetched but from here.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self' data: blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    b"content-security-policy": POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
}


class Guard:
    """Around an ASGI application.

    Args:
        names: by which the page may be asked for; None: by any, since a password is needed.
    """

    def __init__(self, app: Any, names: Collection[str] | None) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer, or refuse."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        why = refusal(str(scope.get("method", "")), headers, self._names)
        if why is not None:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            kind = [(b"content-type", b"text/plain; charset=utf-8"), *_HEADERS.items()]
            await send({"type": "http.response.start", "status": 403, "headers": kind})
            await send({"type": "http.response.body", "body": why.encode()})
            return

        async def told(message: Any) -> None:
            if message["type"] == "http.response.start":
                others = [(name, value) for name, value in message["headers"] if name.lower() not in _HEADERS]
                message = {**message, "headers": [*others, *_HEADERS.items()]}
            await send(message)

        await self._app(scope, receive, told)


def refusal(method: str, headers: Mapping[str, str], names: Collection[str] | None) -> str | None:
    """Why a request is not answered; None: it is. Names of `headers` are in lower case."""
    host, origin = headers.get("host", ""), headers.get("origin")
    if names is not None and _hostname(host) not in names:
        return f"This page is not served under the name {host[:100]}. Open the address that the program printed."
    if origin is not None and origin.partition("://")[2] != host:
        return "A page from elsewhere asked. Open the address that the program printed."
    # A link that leads here may be followed; nothing here is drawn within a page from elsewhere, or asked by it.
    followed = method in ("GET", "HEAD") and headers.get("sec-fetch-dest") == "document"
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not followed:
        return "A page from elsewhere asked. Open the address that the program printed."
    return None


def _hostname(host: str) -> str:
    """Without its port, in lower case; "" of what is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:  # a bracket that is not closed
        return ""
