"""The page: what stands where, and what happens on it."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gradio

from edge.errors import EdgeError
from edge.ui.web import compare, controls, shown, words
from edge.ui.web.answering import Job, sentence
from edge.ui.web.desk import Desk
from edge.ui.web.serving import translations
from edge.ui.web.store import ChangedError
from edge.ui.web.talk import Document, Talk

_PART = "edge.mount('{}', {{element, server, trigger, watch, upload, props}}) /* {} */"


def build(desk: Desk) -> Any:
    """The page, a `gradio.Blocks`. Conversations are kept and answered by the desk; a tab only looks on."""
    return _Page(desk).blocks()


class _Page:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._views: dict[str, str] = {}  # tab → what it shows now; who follows an answer for an older view ends

    def blocks(self) -> Any:
        desk, say = self._desk, translations()

        def pulse(asked: Any) -> Any:
            return desk.pulse(asked)

        def act(wanted: Any) -> Any:
            return desk.act(wanted)

        def read(asked: Any) -> Any:
            said, found = words.named(asked), self._read(asked)
            return {key: words.told(value, said) if key in ("error", "remarks") else value
                    for key, value in found.items()}  # fmt: skip

        with gradio.Blocks(title="glm4-edge", analytics_enabled=False, fill_height=True, fill_width=True) as page:
            state = gradio.State(None)
            with gradio.Row(elem_id="edge-frame"):
                with gradio.Column(elem_id="edge-rail"):
                    rail = gradio.HTML(
                        {"open": "", "revision": None, "following": False}, html_template="<div></div>",
                        js_on_load=_PART.format("rail", "select input expand collapse"), apply_default_css=False,
                        server_functions=[pulse, act, read],
                    )  # fmt: skip
                with gradio.Column(elem_id="edge-main"):
                    _part("bar")
                    _part("first")
                    with gradio.Column(elem_id="edge-talk"):
                        chat = gradio.Chatbot(
                            show_label=False, label=say("conversation"), container=False, buttons=["copy", "copy_all"],
                            feedback_options=None, allow_file_downloads=False, editable="user", layout="bubble",
                            latex_delimiters=shown.LATEX, allow_tags=False, elem_id="edge-chat",
                            placeholder="<div id='edge-welcome'></div>",
                        )  # fmt: skip
                        chips = gradio.HTML([], html_template="<div></div>", apply_default_css=False,
                                            js_on_load=_PART.format("chips", "change"))  # fmt: skip
                        field = gradio.Textbox(
                            show_label=False, label=say("message"), container=False, placeholder=say("placeholder"),
                            autofocus=True, submit_btn=True, max_lines=8, elem_id="edge-field",
                        )  # fmt: skip
                    with gradio.Column(elem_id="edge-compare"):
                        lists = compare.build(desk, say)
                with gradio.Column(elem_id="edge-side"):
                    _part("panel")
                    knobs = controls.build(say)
            view = [state, chat, field, rail]
            everything = [*view, *knobs.all]
            quiet = {"show_progress": "hidden", "api_visibility": "private"}

            for opened in (
                page.load(self._load, None, everything, **quiet),
                rail.select(self._select, state, everything, **quiet),
                rail.input(self._refresh, state, everything, **quiet),
            ):
                opened.then(self._go_on, state, view, **quiet)
            rail.expand(lists.refresh, None, lists.outputs, **quiet)
            rail.collapse(lists.leave, None, None, **quiet)
            field.submit(self._send, [field, chips, state], [*view, chips], show_progress="hidden", api_name="chat")
            field.stop(self._stop, state, None, queue=False, api_name="stop", api_visibility="undocumented")
            chat.retry(self._retry, state, view, **quiet)
            chat.edit(self._edit, state, view, **quiet)
            chat.undo(self._undo, state, view, **quiet)
            for name, knob in zip(controls.NAMES, knobs.all, strict=True):
                # Gradio keeps the first input after an update of its own to itself; the end of typing it does tell.
                for event in (knob.input, knob.blur) if hasattr(knob, "blur") else (knob.input,):
                    event(self._settling(name), [state, knob], [state, rail, *knobs.all],
                          trigger_mode="always_last", **quiet)  # fmt: skip
            page.unload(self._left)
            page.unload(lists.leave)
        self._knobs = knobs
        return page

    # What a tab shows

    def _load(self, request: gradio.Request) -> list[Any]:
        return self._open(str(request.query_params.get("c") or ""), request)

    def _select(self, state: Talk | None, event: gradio.EventData, request: gradio.Request) -> list[Any]:
        return self._open(str(event._data.get("id") or ""), request)

    def _refresh(self, state: Talk | None, request: gradio.Request) -> list[Any]:
        return self._open("" if state is None else state.id, request)

    def _open(self, name: str, request: gradio.Request) -> list[Any]:
        """Show a conversation as it is now, a new one without a name.

        In one piece: a second one would take away what was typed in between.
        """
        self._look(request)
        talk = None
        if name:
            try:
                talk = self._desk.store.get(name)
            except EdgeError as error:
                _warn(error, request)
        talk = talk or self._desk.store.new(self._desk.settings)
        return [*self._now(talk, request), *controls.updates(talk.settings)]

    def _go_on(self, state: Talk | None, request: gradio.Request) -> Iterator[list[Any]]:
        """Follow the answer that is under way in what was opened, if there is one."""
        job = None if state is None else self._desk.answers.job(state.id)
        if job is not None:
            yield from self._follow(job, request, self._look(request))
        elif state is not None and state.answering:  # it has just ended
            yield self._now(self._desk.store.get(state.id), request)
        else:
            yield [gradio.skip()] * 4

    def _now(self, talk: Talk, request: gradio.Request) -> list[Any]:
        job = self._desk.answers.job(talk.id)
        if job is None:
            return self._whole(talk, request)
        messages, _ = shown.messages(job.talk, job.turn, _words(request))
        return [talk, messages, gradio.Textbox(submit_btn=False, stop_btn=True), _rail(talk, following=True)]

    def _whole(self, talk: Talk, request: gradio.Request, typed: str | None = None) -> list[Any]:
        """A conversation in which nothing is under way."""
        messages, _ = shown.messages(talk, None, _words(request))
        field = gradio.Textbox(submit_btn=True, stop_btn=False, **({} if typed is None else {"value": typed}))
        return [talk, messages, field, _rail(talk)]

    def _follow(self, job: Job, request: gradio.Request, mine: str) -> Iterator[list[Any]]:
        said, first, before = _words(request), True, None
        for turn in job.follow():
            if self._views.get(request.session_hash or "") != mine:
                return
            if turn == before:
                continue
            before = turn
            messages, _ = shown.messages(job.talk, turn, said)
            if first:
                field = gradio.Textbox(submit_btn=False, stop_btn=True)
                yield [job.talk, messages, field, _rail(job.talk, following=True)]
            else:
                yield [gradio.skip(), messages, gradio.skip(), gradio.skip()]
            first = False
        if self._views.get(request.session_hash or "") == mine:
            try:
                yield self._whole(self._desk.store.get(job.talk.id), request)
            except EdgeError as error:
                _warn(error, request)
                yield self._whole(self._desk.store.new(self._desk.settings), request)

    def _look(self, request: gradio.Request) -> str:
        self._views[request.session_hash or ""] = mine = uuid.uuid4().hex
        return mine

    def _left(self, request: gradio.Request) -> None:
        self._views.pop(request.session_hash or "", None)

    # What is done to a conversation

    def _send(self, text: str, chips: Any, state: Talk | None, request: gradio.Request) -> Iterator[list[Any]]:
        dropped = [chip for chip in chips or [] if isinstance(chip, dict)]
        if names := [str(chip.get("name")) for chip in dropped if not chip.get("key")]:
            gradio.Warning(shown.text(_words(request)["still reading"].format(", ".join(names))))
            yield [*[gradio.skip()] * 2, gradio.Textbox(text), gradio.skip(), gradio.skip()]
            return
        keys = [str(chip["key"]) for chip in dropped]
        if not text.strip() and not keys:
            yield [gradio.skip()] * 5
            return
        talk = state or self._desk.store.new(self._desk.settings)
        try:
            documents = self._desk.take(keys)
            steps = self._begin(talk, text.strip(), documents, request)
        except EdgeError as error:
            _warn(error, request, duration=None)
            yield [*[gradio.skip()] * 2, gradio.Textbox(text), gradio.skip(), gradio.skip()]
            return
        empty: Any = ""
        for each in steps:
            if empty is not None:
                each[2] = gradio.Textbox("", submit_btn=False, stop_btn=True)
            yield [*each, [] if empty is not None else gradio.skip()]
            empty = None

    def _begin(self, talk: Talk, text: str, documents: list[Document], request: gradio.Request) -> Iterator[list[Any]]:
        job = self._desk.begin(talk, text, documents)
        return self._follow(job, request, self._look(request))

    def _stop(self, state: Talk | None) -> None:
        if state is not None and (job := self._desk.answers.job(state.id)) is not None:
            job.stop()

    def _retry(self, state: Talk | None, event: gradio.RetryData, request: gradio.Request) -> Iterator[list[Any]]:
        yield from self._again(state, event.index, None, request)

    def _edit(self, state: Talk | None, event: gradio.EditData, request: gradio.Request) -> Iterator[list[Any]]:
        yield from self._again(state, event.index, event.value, request)

    def _again(self, state: Talk | None, index: Any, text: Any, request: gradio.Request) -> Iterator[list[Any]]:
        """Ask the question at a message again, in other words if there are some."""
        try:
            talk, question = self._cut(state, index, request)
            asked = question.content if text is None else shown.edited(str(text))
            steps = self._begin(talk, asked, question.documents, request)
        except EdgeError as error:
            yield self._refused(error, state, request)
            return
        yield from steps

    def _undo(self, state: Talk | None, event: gradio.UndoData, request: gradio.Request) -> list[Any]:
        try:
            talk, question = self._cut(state, event.index, request)
        except EdgeError as error:
            return self._refused(error, state, request)
        return self._whole(talk, request, typed=question.content)

    def _cut(self, state: Talk | None, index: Any, request: gradio.Request) -> Any:
        assert state is not None
        self._desk.answers.idle(state.id)
        _, places = shown.messages(state, None, _words(request))
        place = index[0] if isinstance(index, list | tuple) else index
        turn = places[min(int(place), len(places) - 1)]
        return self._desk.store.change(state.id, lambda talk: talk.cut(turn), seen=state.revision)

    def _refused(self, error: EdgeError, state: Talk | None, request: gradio.Request) -> list[Any]:
        """Say why, and show the conversation as it is."""
        if isinstance(error, ChangedError):
            gradio.Warning(_words(request)["other tab"])
        else:
            _warn(error, request)
        return self._open("" if state is None else state.id, request)[:4]

    def _settling(self, name: str) -> Callable[..., list[Any]]:
        """Keeps what one knob says with the conversation."""

        def settle(state: Talk | None, value: Any, request: gradio.Request) -> list[Any]:
            def put(talk: Talk) -> None:
                talk.settings = controls.settings(talk.settings, name, value)

            try:
                talk = self._desk.settle(state or self._desk.store.new(self._desk.settings), put)
            except EdgeError as error:
                _warn(error, request)
                return [gradio.skip()] * (2 + len(controls.NAMES))
            return [talk, _rail(talk), *controls.after(name, talk.settings)]

        return settle

    def _read(self, asked: Any) -> dict[str, Any]:
        """A file that the page has uploaded; no other may be read."""
        path = Path(str((asked or {}).get("path"))).resolve()
        if not path.is_relative_to(Path(gradio.utils.get_upload_folder()).resolve()) or not path.is_file():
            return {"error": "This file was not uploaded. Drop it again."}
        try:
            return self._desk.read(path, str((asked or {}).get("name") or path.name)[:200])
        finally:
            with contextlib.suppress(OSError):  # its text is kept with the question; the copy need not lie about
                path.unlink()


def _part(name: str) -> None:
    """A place that the page's own script fills."""
    gradio.HTML("", html_template="<div></div>", js_on_load=_PART.format(name, ""), apply_default_css=False,
                elem_id=f"edge-{name}")  # fmt: skip


def _rail(talk: Talk, *, following: bool = False) -> dict[str, Any]:
    return {"open": talk.id if talk.turns else "", "revision": talk.revision, "following": following}


def _warn(error: EdgeError, request: gradio.Request, **more: Any) -> None:
    gradio.Warning(shown.text(words.told(sentence(error), _words(request))), **more)


def _words(request: gradio.Request) -> Mapping[str, str]:
    return words.preferred(request.headers.get("accept-language"))
