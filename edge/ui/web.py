"""A small chat in the browser. The only importer of gradio."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from edge.errors import EdgeError, MissingExtraError, UsageError
from edge.messages import Message, Role, Sampling
from edge.runtime.interface import ChatEngine

_ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant"}


def require() -> None:
    """Find out early, before a model is loaded, whether gradio is there.

    Raises:
        MissingExtraError: it is not.
    """
    if importlib.util.find_spec("gradio") is None:
        raise MissingExtraError("gradio", "ui")


def build(engine: ChatEngine, sampling: Sampling, system: str | None) -> Any:
    """The page, a `gradio.Blocks`: one conversation for each visitor, answers streamed, a stop button."""
    require()
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read on import: gradio reports usage to its makers otherwise
    import gradio

    def answer(message: str, history: Sequence[dict[str, Any]]) -> Iterator[str]:
        messages = [Message("system", system)] if system else []
        messages += [Message(_ROLES[turn["role"]], _text(turn["content"])) for turn in history]
        messages.append(Message("user", message))
        said = ""
        try:
            with contextlib.closing(engine.stream(messages, sampling)) as chunks:
                for chunk in chunks:
                    if chunk.notice:
                        gradio.Info(chunk.notice, duration=None)
                    said = chunk.text if chunk.restart else said + chunk.text
                    yield said
        except EdgeError as error:
            raise gradio.Error(str(error), duration=None, print_exception=False) from error

    def warm_up() -> None:
        with contextlib.suppress(EdgeError):  # the first answer meets the same fault, and says it
            engine.warm_up()

    threading.Thread(target=warm_up, name="warm-up").start()  # while the visitor types
    return gradio.ChatInterface(
        answer,
        title="glm4-edge",
        description=f"{engine.name} on {engine.device}",
        analytics_enabled=False,
        flagging_mode="never",
        api_name="chat",
        concurrency_limit=8,  # as many as the engine makes at once; it lets others wait itself
    )


def serve(page: Any, *, port: int | None) -> str:
    """Serve the page on this machine alone, from a thread, and return its address.

    `port` None takes the first free one from 7860.

    Raises:
        UsageError: the port is taken.
    """
    import gradio

    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    try:
        _, address, _ = page.launch(
            server_name="127.0.0.1", server_port=port, share=False, quiet=True, theme=theme, prevent_thread_lock=True,
            footer_links=[], ssr_mode=False, show_error=True,
        )  # fmt: skip
    except OSError as error:
        raise UsageError(
            f"port {port or '7860 to 7959'} is taken", hint="Name another with --port, or end what uses it."
        ) from error
    return str(address)


def _text(content: Any) -> str:
    """A turn's text; gradio hands it over as a list of parts."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content if isinstance(part, dict))
