"""A small chat in the browser. The only importer of gradio."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import queue
import re
import socket
import threading
from collections.abc import Generator, Iterator
from typing import Any

from edge.errors import EdgeError, MissingExtraError, UsageError
from edge.messages import Chunk, Message, Sampling
from edge.runtime.interface import ChatEngine

_HOST = "127.0.0.1"
_POLL_SECONDS = 0.05
_VISITORS = 8  # answered at once, as many as the engine makes; it lets others wait itself
_STOPPED = "*(stopped)*"
# Fenced, indented and inline code, the last fence perhaps not closed yet: Markdown shows what is in it as it is.
_CODE = re.compile(
    r"(^```.*?(?:^```|\Z)|(?:\A|(?<=\n\n))(?:(?: {4}|\t)[^\n]*\n?)+|(`+)(?!`).+?(?<!`)\2(?!`))", re.S | re.M
)


def require() -> None:
    """Find out early, before a model is loaded, whether gradio is there.

    Raises:
        MissingExtraError: it is not.
    """
    if importlib.util.find_spec("gradio") is None:
        raise MissingExtraError("gradio", "ui")


def check_port(port: int | None) -> None:
    """Find out early whether the port can be had.

    Raises:
        UsageError: it is taken.
    """
    if port is None:
        return
    with socket.socket() as probe:
        if os.name != "nt":  # as the server does it: what a server that ended left behind is no hindrance
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            raise _taken(port) from error


def build(engine: ChatEngine, sampling: Sampling, system: str | None, remark: str | None = None) -> Any:
    """The page, a `gradio.Blocks`: one conversation for each visitor, answers streamed, a stop button.

    A message that is refused leaves the conversation as it was and goes back into its field. `remark` is a line below
    the title.
    """
    require()
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read on import: gradio reports usage to its makers otherwise
    import gradio

    running: dict[str, threading.Event] = {}

    def warm_up() -> None:
        with contextlib.suppress(EdgeError):  # the first answer meets the same fault, and says it
            engine.warm_up()

    threading.Thread(target=warm_up, name="warm-up").start()  # while the visitor types

    def answer(text: str, told: list[dict[str, str]], request: gradio.Request) -> Iterator[tuple[Any, ...]]:
        if not text.strip():
            yield gradio.skip(), gradio.skip(), gradio.skip()
            return
        busy = gradio.Textbox("", interactive=False, submit_btn=False, stop_btn=True)
        asked = [*told, {"role": "user", "content": text}]
        yield told, _shown(asked), busy
        messages = [Message("system", system)] if system else []
        messages += [Message(turn["role"], turn["content"]) for turn in asked]  # type: ignore[arg-type]
        visitor, stopped, said, cut = request.session_hash or "", threading.Event(), "", False
        running[visitor] = stopped
        try:
            for chunk in _until(stopped, engine.stream(messages, sampling)):
                if chunk.notice:
                    gradio.Info(_shown_text(chunk.notice), duration=None)
                said = chunk.text if chunk.restart else said + chunk.text
                yield told, _shown([*asked, {"role": "assistant", "content": said}]), gradio.skip()
            cut = stopped.is_set()
            refused = cut and not said
        except EdgeError as error:
            gradio.Warning(_shown_text(f"{error.message[:1].upper()}{error.message[1:]}. {error.hint}"), duration=None)
            refused = True
        finally:
            stopped.set()  # also where the visitor has left
            running.pop(visitor, None)
        if not refused:
            told = [*asked, {"role": "assistant", "content": said, **({"stopped": "yes"} if cut else {})}]
        back = gradio.Textbox(text if refused else "", interactive=True, submit_btn=True, stop_btn=False)
        yield told, _shown(told), back

    def stop(request: gradio.Request) -> None:
        if (stopped := running.get(request.session_hash or "")) is not None:
            stopped.set()

    def undo(told: list[dict[str, str]]) -> tuple[Any, ...]:
        return told[:-2], _shown(told[:-2]), told[-2]["content"] if told else ""

    for function in (answer, stop):  # gradio looks there for who asks, and would find a string
        function.__annotations__["request"] = gradio.Request
    with gradio.Blocks(title="glm4-edge", analytics_enabled=False, fill_height=True) as page:
        gradio.Markdown(f"# glm4-edge\n{engine.name} on {engine.device}")
        if remark:
            gradio.Markdown(_shown_text(remark))
        told = gradio.State([])
        shown = gradio.Chatbot(
            show_label=False, scale=1, buttons=["copy", "copy_all"], feedback_options=None, allow_file_downloads=False
        )
        field = gradio.Textbox(
            show_label=False,
            container=False,
            placeholder="Write a message …",
            autofocus=True,
            submit_btn=True,
            max_lines=6,
        )
        outputs = [told, shown, field]
        field.submit(
            answer, [field, told], outputs, api_name="chat", concurrency_limit=_VISITORS, show_progress="hidden"
        )
        field.stop(stop, queue=False, api_name="stop", api_visibility="undocumented")
        shown.undo(undo, told, outputs, queue=False, api_visibility="private")
        shown.retry(undo, told, outputs, queue=False, api_visibility="private").then(
            answer, [field, told], outputs, api_visibility="private", concurrency_limit=_VISITORS,
            show_progress="hidden",
        )  # fmt: skip
        shown.clear(list, None, told, queue=False, api_visibility="private")
    return page


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
            server_name=_HOST, server_port=port, share=False, quiet=True, theme=theme, prevent_thread_lock=True,
            footer_links=[], ssr_mode=False, show_error=True,
        )  # fmt: skip
    except OSError as error:
        raise _taken(port) from error
    return str(address)


def _taken(port: int | None) -> UsageError:
    return UsageError(f"port {port or '7860 to 7959'} is taken", hint="Name another with --port, or end what uses it.")


def _until(stopped: threading.Event, chunks: Generator[Chunk, None, None]) -> Iterator[Chunk]:
    """The chunks until there are no more or `stopped` is set: then at once, also while the prompt is being read."""
    came: queue.SimpleQueue[Chunk | EdgeError | None] = queue.SimpleQueue()

    def work() -> None:
        end: EdgeError | None = None
        try:
            with contextlib.closing(chunks):
                for chunk in chunks:
                    came.put(chunk)
                    if stopped.is_set():
                        break
        except EdgeError as error:
            end = error
        finally:
            came.put(end)

    threading.Thread(target=work, name="answer").start()
    while not stopped.is_set():
        try:
            event = came.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            continue
        if event is None:
            return
        if isinstance(event, EdgeError):
            raise event
        yield event


def _shown(told: list[dict[str, str]]) -> list[dict[str, str]]:
    """The conversation as the page has it: a stopped answer bears a mark."""
    return [
        {
            "role": turn["role"],
            "content": "\n\n".join([_shown_text(turn["content"]), *([_STOPPED] if "stopped" in turn else [])]),
        }
        for turn in told
    ]


def _shown_text(text: str) -> str:
    """Markdown that shows HTML as it was written, instead of obeying it."""
    pieces, place = [], 0
    for code in _CODE.finditer(text):
        pieces += [_escaped(text[place : code.start()]), code[0]]
        place = code.end()
    return "".join([*pieces, _escaped(text[place:])])


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
