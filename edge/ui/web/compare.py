"""The same question to two models or devices, one after the other, side by side."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio

from edge.errors import EdgeError
from edge.messages import Message, Sampling, Usage
from edge.runtime.interface import ChatEngine
from edge.ui.web import shown, words
from edge.ui.web.answering import sentence
from edge.ui.web.desk import Desk

_EVERY_TOKENS = 2  # a look at the page
_END_SECONDS = 60.0  # for a comparison that was stopped: it may be loading a model


@dataclass(frozen=True)
class Lists:
    """The lists of models and devices, which are read when the view is opened."""

    outputs: list[Any]
    refresh: Callable[[], list[Any]]
    leave: Callable[[gradio.Request], None]
    """Of a tab that no longer shows the view."""


class _Engines:
    """At most one engine beside the one that chats."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._lock = threading.Lock()
        self._key: tuple[str, str] | None = None
        self._engine: ChatEngine | None = None

    def get(self, folder: str, device: str) -> ChatEngine:
        host = self._desk.host
        engine = host.engine
        if engine is not None and str(host.folder) == folder and engine.device.split(" ")[0] == device:
            return engine
        if self._key != (folder, device):
            self.close()
            self._engine = host.backend.open(Path(folder), device, lambda line: None, lambda stage, done, total: None)
            self._key = folder, device
        assert self._engine is not None
        return self._engine

    def close(self) -> None:
        """Give its memory back."""
        if self._engine is not None:
            self._engine.close()
        self._engine = self._key = None

    def alone(self) -> threading.Lock:
        """One comparison at a time: two would measure each other."""
        return self._lock

    def close_unless_asked(self) -> None:
        """Give its memory back as soon as what was stopped has ended, unless another tab compares."""
        if self._lock.acquire(timeout=_END_SECONDS):
            try:
                self.close()
            finally:
                self._lock.release()


def build(desk: Desk, say: Any) -> Lists:
    """Put the view here."""
    engines = _Engines(desk)
    gradio.Markdown(say("compare title"), elem_id="edge-compare-title")
    gradio.Markdown(say("compare more"))
    question = gradio.Textbox(label=say("message"), placeholder=say("placeholder"), lines=2, max_lines=8)
    with gradio.Row(elem_id="edge-compare-buttons"):
        ask = gradio.Button(say("ask both"), variant="primary", elem_id="edge-ask-both")
        stop = gradio.Button(say("stop"), elem_id="edge-stop-both", visible=False)
    sides = []
    with gradio.Row(elem_id="edge-sides"):
        for side in ("left", "right"):
            with gradio.Column(elem_id=f"edge-{side}", min_width=280):
                model = gradio.Dropdown([], label=say("model"), elem_id=f"edge-{side}-model")
                device = gradio.Dropdown([], label=say("on device"), elem_id=f"edge-{side}-device")
                figures = gradio.Markdown("", elem_classes="edge-figures")
                answer = gradio.Markdown("", latex_delimiters=shown.LATEX, elem_classes="edge-answer",
                                         line_breaks=True)  # fmt: skip
                sides.append((model, device, figures, answer))
    (left, right) = sides

    under_way: dict[str, threading.Event] = {}  # tab → set, it ends what it asked

    def run(
        text: str, model: Any, device: Any, other: Any, elsewhere: Any, request: gradio.Request
    ) -> Iterator[list[Any]]:
        chosen = [model, device, other, elsewhere]
        said = words.preferred(request.headers.get("accept-language"))
        if not text.strip() or not all(chosen):
            return
        end(request)  # Enter asks again while an answer comes: the question before is ended
        tab = request.session_hash or ""
        stopping = under_way[tab] = threading.Event()
        buttons = [gradio.Button(interactive=False), gradio.Button(visible=True)]
        yield ["", "", "", "", *buttons]
        with engines.alone():
            yield [*[""] * 4, *[gradio.skip()] * 2]  # what the question before has said last
            for place in (0, 1):
                for figures, answer in _asked(engines, text, chosen[2 * place], chosen[2 * place + 1], said, stopping):
                    both: list[Any] = [gradio.skip()] * 6
                    both[2 * place : 2 * place + 2] = figures, answer
                    yield both
        if under_way.get(tab) not in (None, stopping):
            return  # another is asked, and can be stopped
        under_way.pop(tab, None)
        yield [*[gradio.skip()] * 4, gradio.Button(interactive=True), gradio.Button(visible=False)]

    def end(request: gradio.Request) -> None:
        stopping = under_way.pop(request.session_hash or "", None)
        if stopping is not None:
            stopping.set()

    def leave(request: gradio.Request) -> None:
        end(request)
        engines.close_unless_asked()

    for each in (run, end, leave):
        each.__annotations__["request"] = gradio.Request
    outputs = [left[2], left[3], right[2], right[3], ask, stop]
    inputs = [question, left[0], left[1], right[0], right[1]]
    for event in (ask.click, question.submit):
        event(run, inputs, outputs, show_progress="hidden", concurrency_limit=None, api_visibility="private")
    stop.click(end, None, None, show_progress="hidden", queue=False, api_visibility="private")

    def refresh() -> list[Any]:
        made = [(f"{model} · {folder.name}", str(folder)) for model, folder in desk.host.backend.made()]
        here, devices = str(desk.host.folder), desk.host.backend.devices()
        if desk.host.folder is not None and here not in [folder for _, folder in made]:
            made.insert(0, (f"{desk.host.need_engine().name} · {desk.host.folder.name}", here))
        other = next((folder for _, folder in made if folder != here), here)
        second = devices[-1] if other == here else devices[0]
        choices = [(here, devices[0]), (other, second)]
        return [
            each
            for folder, device in choices
            for each in (gradio.Dropdown(made, value=folder), gradio.Dropdown(devices, value=device))
        ]

    return Lists([left[0], left[1], right[0], right[1]], refresh, leave)


def _asked(
    engines: _Engines, text: str, folder: str, device: str, said: Any, stopping: threading.Event
) -> Iterator[tuple[str, str]]:
    """Figures and answer as they come."""
    if stopping.is_set():
        yield said["stopped"], ""
        return
    yield said["stage load"] + " …", ""
    answer, usage, count = "", None, 0
    try:
        engine = engines.get(folder, device)
        yield said["reading"], ""
        for chunk in engine.stream([Message("user", text)], Sampling(temperature=0), stopping):
            answer = chunk.text if chunk.restart else answer + chunk.text
            usage, count = chunk.usage or usage, count + 1
            if count % _EVERY_TOKENS == 0:
                yield engine.device, shown.text(answer)
        figures = _figures(engine.device, usage, said)
        yield f"{figures} · {said['stopped']}" if stopping.is_set() else figures, shown.text(answer)
    except EdgeError as error:
        yield said["failed"], shown.text(words.told(sentence(error), said))


def _figures(device: str, usage: Usage | None, said: Any) -> str:
    parts = [f"**{device}**"]
    if usage is not None and usage.ttft_seconds is not None:
        parts.append(f"{said['ttft']} {usage.ttft_seconds:.2f} s")
    if usage is not None and usage.tokens_per_second is not None:
        parts.append(f"{usage.tokens_per_second:.1f} {said['per second']}")
    if usage is not None:
        parts.append(said["tokens"].format(usage.completion_tokens))
    return " · ".join(parts)
