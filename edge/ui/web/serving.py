"""The page on this machine's own address, and what has to be there for it."""

from __future__ import annotations

import errno
import importlib.util
import ipaddress
import json
import os
import socket
from pathlib import Path
from typing import Any

from edge.errors import MissingExtraError, UsageError
from edge.ui.web.guard import Guard
from edge.ui.web.words import EN, LANGUAGES, ZH

HOST = "127.0.0.1"
_HERE = Path(__file__).parent


def require() -> None:
    """Find out early, before a model is loaded, whether gradio is there.

    Raises:
        MissingExtraError: it is not.
    """
    if importlib.util.find_spec("gradio") is None:
        raise MissingExtraError("gradio", "ui")


def translations() -> Any:
    """The page's words for gradio's own parts."""
    import gradio

    return gradio.I18n(en=dict(EN), **{name: dict(ZH) for name in ("zh", "zh-CN", "zh-TW", "zh-HK", "zh-SG")})


def check_port(port: int | None, host: str = HOST) -> None:
    """Find out early whether the page can be served there.

    Raises:
        UsageError: the port is taken, or the address is not this machine's.
    """
    if port is None and host == HOST:
        return
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            if os.name != "nt":  # as the server does it: what a server that ended left behind is no hindrance
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (socket.gaierror, UnicodeError) as error:
        raise _no_address(host) from error
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise _no_address(host) from error
        if error.errno == errno.EACCES:
            raise UsageError(
                f"port {port} needs rights that this program has not", hint="Name one from 1024 on with --port."
            ) from error
        raise _taken(port) from error


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(page: Any, *, port: int | None, host: str = HOST, password: str | None = None) -> str:
    """Serve the page from a thread, and return its address.

    Args:
        port: None takes the first free one from 7860.
        host: whose address; another than this machine's own demands a password.
        password: asked for, with the name "edge".

    Raises:
        UsageError: the port is taken, or there is no password for others.
    """
    import gradio
    from starlette.middleware import Middleware

    if not is_loopback(host) and not password:
        raise UsageError(f"{host} can be reached by others", hint="Give a password, or serve 127.0.0.1 alone.")
    names = [HOST, "localhost", "::1", host.lower()] if is_loopback(host) else None
    guard = Middleware(Guard, names=names)
    page.queue(default_concurrency_limit=None)
    try:
        _, address, _ = page.launch(
            server_name=f"[{host}]" if ":" in host else host, server_port=port, share=False, quiet=True,
            prevent_thread_lock=True, footer_links=[],
            ssr_mode=False, show_error=True, theme=_theme(gradio), head=_head(), i18n=translations(),
            auth=("edge", password) if password else None, app_kwargs={"middleware": [guard]}, enable_monitoring=False,
            run_history=False,  # gradio would keep what was said in the browser, too, where deleting does not reach
        )  # fmt: skip
    except OSError as error:
        raise _taken(port) from error
    return str(address)


def _head() -> str:
    """The page's own look, words and script: within the page, so that nothing has to be fetched.

    Gradio would put its own container before every rule of a `css` that is given to it.
    """
    look = (_HERE / "look.css").read_text(encoding="utf-8")
    words = json.dumps(LANGUAGES, ensure_ascii=False).replace("</", "<\\/")
    script = "\n".join((_HERE / name).read_text(encoding="utf-8") for name in ("page.js", "panes.js", "first_run.js"))
    return f"<style>{look}</style><script>window.edgeWords = {words};\n{script}</script>"


def _theme(gradio: Any) -> Any:
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Noto Sans", "PingFang SC", "Microsoft YaHei", "sans-serif"]
    mono = ["ui-monospace", "Cascadia Code", "Consolas", "Menlo", "monospace"]
    theme = gradio.themes.Default(font=fonts, font_mono=mono, primary_hue="teal", neutral_hue="stone",
                                  radius_size="lg")  # fmt: skip
    return theme.set(
        body_background_fill="var(--edge-ground)", body_background_fill_dark="var(--edge-ground)",
        block_background_fill="transparent", block_background_fill_dark="transparent",
        block_border_width="0px", block_shadow="none", block_label_background_fill="transparent",
    )  # fmt: skip


def _no_address(host: str) -> UsageError:
    return UsageError(
        f"{host} is no address of this machine", hint="Leave --host out, or name 0.0.0.0 to let other machines in."
    )


def _taken(port: int | None) -> UsageError:
    return UsageError(f"port {port or '7860 to 7959'} is taken", hint="Name another with --port, or end what uses it.")
