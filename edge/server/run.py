"""A server's life: a port, a model loaded beside, answers, and an end that lets running answers finish.

The only importer of uvicorn.
"""

from __future__ import annotations

import contextlib
import importlib.util
import ipaddress
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

from edge.errors import MissingExtraError, UsageError
from edge.server.options import Options

Say = Callable[[str], None]
_FLUSH_SECONDS = 3.0
"""For what tells the askers that their answers were ended."""
_CLOSE_SECONDS = 15.0
"""For an engine to end what it is at and give its memory back."""
_OURS = ("loading", "reading", "answer", "answers", "generation", "closing")
"""Threads that may be left when the server has ended: a thread cannot be told to end."""


def require() -> None:
    """Find out early, before a model is loaded, whether the packages are there.

    Raises:
        MissingExtraError: one is not.
    """
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "serve")


def bind(host: str, port: int) -> socket.socket:
    """The socket to serve on; port 0 is any that is free.

    Raises:
        UsageError: the port is taken or not allowed, or the host is no address of this machine.
    """
    bare = host.strip("[]")
    try:
        family, _, _, _, address = socket.getaddrinfo(bare, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UsageError(f"{host} is no address", hint="Take 127.0.0.1, or one of this machine's.") from error
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "nt":
            made.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)  # type: ignore[attr-defined, unused-ignore]
        else:  # what a server that ended left behind is no hindrance
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        made.close()
        raise _taken(host, port, error) from error
    made.setblocking(False)
    return made


def address(bound: socket.socket, host: str) -> str:
    """Where the server is found, for a person on this machine."""
    port = bound.getsockname()[1]
    try:
        number = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return f"http://{host}:{port}"
    if number.is_unspecified:  # no address to ask, but all of this machine's
        return f"http://{'127.0.0.1' if number.version == 4 else '[::1]'}:{port}"
    return f"http://[{number}]:{port}" if number.version == 6 else f"http://{number}:{port}"


def serve(bound: socket.socket, options: Options, load: Callable[[], object], say: Say) -> None:
    """Serve until told to end (Ctrl-C, SIGTERM); then what runs has `options.drain_seconds` to finish.

    Threads that do not end by then are left behind; see `leave`.

    Args:
        bound: see `bind`; closed here.
        load: gives the engine, a `ChatEngine`; called in a thread, while /health already says "loading".
        say: prints a line for the person.

    Raises:
        EdgeError: the port was taken meanwhile, or the model could not be loaded.
    """
    import uvicorn

    from edge.runtime.interface import ChatEngine
    from edge.server.app import build
    from edge.server.desk import Desk

    try:
        bound.listen(128)  # only now: who connects is answered at once
    except OSError as error:
        raise _taken(options.host, bound.getsockname()[1], error) from error
    _log_to_stderr()
    desk = Desk(options)
    where = address(bound, options.host)

    class Server(uvicorn.Server):
        """Ends when what runs has ended."""

        ends_at: float | None = None
        told = False
        signals = 0

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            say(f"{where}/v1 is the address, for OpenAI's clients; it answers when the model is loaded. "
                "Ctrl-C ends it.")  # fmt: skip
            loading.start()

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            self.signals += 1  # all else is done by the loop, where it can disturb nothing

        async def on_tick(self, counter: int) -> bool:
            if await super().on_tick(counter):
                return True
            if not self.signals:
                return False
            now = time.monotonic()
            if self.ends_at is None:
                desk.draining = True
                self.ends_at = now + options.drain_seconds
                if desk.asked:
                    answers = "1 answer" if desk.asked == 1 else f"{desk.asked} answers"
                    say(f"Ending: {answers} may take {options.drain_seconds:g} s more; "
                        "Ctrl-C again ends them now.")  # fmt: skip
            if desk.asked and not self.told and (now >= self.ends_at or self.signals > 1):
                self.told, self.ends_at = True, now
                logging.getLogger("uvicorn.error").setLevel(
                    logging.CRITICAL
                )  # who cannot be told is cut off in silence
                desk.end_all()
            return not desk.asked or now >= self.ends_at + _FLUSH_SECONDS

    server = Server(uvicorn.Config(
        build(desk), lifespan="off", log_config=None, access_log=False, server_header=False,
        timeout_graceful_shutdown=1,
    ))  # fmt: skip
    engines: list[ChatEngine] = []
    failed: list[BaseException] = []

    def open_model() -> None:
        try:
            engine: ChatEngine = load()  # type: ignore[assignment]
            engines.append(engine)
            engine.warm_up()
            desk.open(engine)
            if server.signals:  # told to end meanwhile
                return
            told = f"{desk.model_name(engine)} on {engine.device}, a context of {engine.context_length:,} tokens"
            say(f"Ready: {told}, {engine.together} answers at once. {_how(where, options)}")
        except BaseException as error:  # of whoever started the server
            failed.append(error)
            server.should_exit = True

    loading = threading.Thread(target=open_model, name="loading", daemon=True)
    server.run(sockets=[bound])
    if loading.is_alive():
        say(f"The model is still being loaded; when it is, or after {options.drain_seconds:g} s, this ends. "
            "Ctrl-C ends it now.")  # fmt: skip
        _wait(loading, options.drain_seconds)
    for engine in engines:
        closing = threading.Thread(target=engine.close, name="closing", daemon=True)
        closing.start()
        _wait(closing, _CLOSE_SECONDS)
    if failed:
        raise failed[0]
    say("Ended.")


def leave() -> None:
    """End the process after `serve` at once, where a thread is left that is in the middle of something.

    Python would wait for it, or take down under it what it uses.
    """
    left = [thread for thread in threading.enumerate() if thread.name in _OURS]
    for thread in left:
        thread.join(1 / len(left))
    if not any(thread.is_alive() for thread in left):
        return
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed, or nobody reads it any more
            stream.flush()
    os._exit(0)


def _wait(thread: threading.Thread, seconds: float) -> None:
    ends = time.monotonic() + seconds
    while thread.is_alive() and time.monotonic() < ends:  # in pieces: Windows does not interrupt one long wait
        thread.join(0.2)


def _taken(host: str, port: int, error: OSError) -> UsageError:
    return UsageError(
        f"port {port} on {host} cannot be had ({error.strerror or error})",
        hint="Name another with --port, or end what uses it.",
    )


def _how(where: str, options: Options) -> str:
    key = ' -H "Authorization: Bearer KEY"' if options.keys else ""
    return (
        f"Try: curl {where}/v1/chat/completions{key} -H \"Content-Type: application/json\" "
        '-d \'{"messages": [{"role": "user", "content": "Hi"}]}\''
    )  # fmt: skip


def _log_to_stderr() -> None:
    log = logging.getLogger("edge.server")
    if not log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # it would tell of everybody who sends no HTTP
