"""Answers that go on whoever looks: each in a thread of its own, kept on disk as it comes.

A tab follows an answer; one that is reloaded, or another one, follows it again from where it is.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from edge.documents import window
from edge.errors import EdgeError, UsageError
from edge.messages import Message, Usage
from edge.runtime.fitting import prompt_room
from edge.runtime.interface import ChatEngine
from edge.tools.parse import Parser
from edge.tools.render import conversation
from edge.ui.web import helpers
from edge.ui.web.store import Store
from edge.ui.web.talk import Document, Figures, Step, Talk, Turn

SAVE_SECONDS = 1.0
_TELL_SECONDS = 0.06  # between two looks of a tab; a browser draws no faster than it can be read
_LOOK_SECONDS = 0.3  # a tab that shows something else by now is not to wait longer
_WINDOW_SECONDS = 3.0  # of the speed that is shown while an answer comes
_MOST_CALLS = 8  # of tools in one answer
SESSION_ANSWERS = 60
"""Answers that the chart of a session has."""


def messages(talk: Talk, turns: list[Turn]) -> list[Message]:
    """What the model reads. A question that got no answer is left out with it."""
    told: list[dict[str, Any]] = []
    if talk.settings.system:
        told.append({"role": "system", "content": talk.settings.system})
    for index, turn in enumerate(turns):
        last = index >= len(turns) - 2
        if turn.role == "user":
            answer = turns[index + 1] if index + 1 < len(turns) else None
            if last or (answer is not None and (answer.content or answer.steps)):
                told.append({"role": "user", "content": turn.asked or turn.content})
            continue
        for number, step in enumerate(turn.steps):
            name = f"call_{index}_{number}"
            function = {"name": step.name, "arguments": step.arguments}
            told += [
                {"role": "assistant", "content": step.before, "tool_calls": [{"id": name, "function": function}]},
                {"role": "tool", "tool_call_id": name, "content": step.result or ""},
            ]
        if turn.content:
            told.append({"role": "assistant", "content": turn.content})
    return conversation(told, helpers.TOOLS if talk.settings.tools else ())


class Job:
    """One answer under way. `turn` is what there is of it."""

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        self.index = len(talk.turns) - 1
        self.turn = talk.turns[-1]
        self.started = time.perf_counter()
        self.prompt_tokens: int | None = None
        self.tokens = 0
        self.ttft_seconds: float | None = None
        self._arrivals: deque[tuple[float, int]] = deque()
        self._changed = threading.Condition()
        self._version = 0
        self.stopping = threading.Event()
        self.ended = threading.Event()
        """Nothing more comes."""
        self.over = threading.Event()
        """And what came is on disk."""

    def stop(self) -> None:
        """End it: within a token, or at once while the prompt is being read."""
        self.stopping.set()
        self.wake()

    @property
    def stopped(self) -> bool:
        """Whether it was ended by the user."""
        return self.stopping.is_set()

    def tokens_per_second(self, now: float | None = None) -> float | None:
        """The speed of the last seconds."""
        now = time.perf_counter() if now is None else now
        recent = [(at, count) for at, count in list(self._arrivals) if at > now - _WINDOW_SECONDS]
        if len(recent) < 2 or recent[-1][0] <= recent[0][0]:
            return None
        return sum(count for _, count in recent[1:]) / (recent[-1][0] - recent[0][0])

    def follow(self) -> Iterator[Turn]:
        """The answer as it is, several times a second whether it has changed or not; the last one is the whole."""
        seen = -1
        while True:
            with self._changed:
                if self._version == seen:
                    self._changed.wait(_LOOK_SECONDS)
                over, seen = self.over.is_set(), self._version
                turn = self.turn.model_copy(deep=True)
            yield turn
            if over:
                return
            self.over.wait(_TELL_SECONDS)

    def arrived(self, count: int) -> None:
        """Note that tokens came."""
        now = time.perf_counter()
        if self.ttft_seconds is None and count:
            self.ttft_seconds = now - self.started
        self.tokens += count
        self._arrivals.append((now, count))
        while self._arrivals and self._arrivals[0][0] < now - _WINDOW_SECONDS:
            self._arrivals.popleft()

    @contextlib.contextmanager
    def changing(self) -> Iterator[Turn]:
        """The turn, to be changed; followers are told."""
        with self._changed:
            yield self.turn
            self._version += 1
            self._changed.notify_all()

    def wake(self) -> None:
        """Have those who follow look."""
        with self._changed:
            self._version += 1
            self._changed.notify_all()


class Answers:
    """Begins answers, finds those under way, and remembers their numbers for this session.

    Args:
        engine: gives the engine that answers now.
    """

    def __init__(self, store: Store, engine: Callable[[], ChatEngine]) -> None:
        self._store = store
        self._engine = engine
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}
        self.session: deque[Figures] = deque(maxlen=SESSION_ANSWERS)
        self.latest: Job | None = None

    def job(self, name: str) -> Job | None:
        """The answer under way in a conversation."""
        with self._lock:
            return self._jobs.get(name)

    def running(self) -> list[Job]:
        """All answers under way."""
        with self._lock:
            return list(self._jobs.values())

    def begin(self, talk: Talk, text: str, documents: list[Document] | None = None) -> Job:
        """Add a question to a conversation, as it is on disk now, and begin to answer it.

        Raises:
            UsageError: it is being answered already.
            EdgeError: no engine is loaded, or nothing can be written.
        """
        engine = self._engine()
        with self._lock:
            if talk.id in self._jobs:
                raise UsageError("this conversation is being answered already", hint="Wait for the answer, or stop it.")
            talk, _ = self._store.change(talk.id, lambda talk: talk.ask(text, documents), new=talk)
            job = self.latest = self._jobs[talk.id] = Job(talk)
        threading.Thread(target=self._run, args=(engine, job), name="answer").start()
        return job

    def idle(self, name: str) -> None:
        """Refuse what must not happen while an answer comes.

        Raises:
            UsageError: one does.
        """
        if self.job(name) is not None:
            raise UsageError("this conversation is being answered", hint="Wait for the answer, or stop it.")

    def stop_all(self) -> None:
        """End every answer and wait until what there is of them is on disk."""
        for job in self.running():
            job.stop()
        for job in self.running():
            job.over.wait(10)

    def _run(self, engine: ChatEngine, job: Job) -> None:
        saving = threading.Thread(target=self._save_as_it_comes, args=(job,), name="saver")
        saving.start()
        fault: str | None = None
        usage: Usage | None = None
        try:
            usage = self._answer(engine, job)
        except EdgeError as error:
            fault = sentence(error)
        except Exception as error:  # a tab must not wait for ever for what broke
            fault = f"This should not have happened ({type(error).__name__}: {error}). Please report it."
            raise
        finally:
            with job.changing() as turn:
                turn.ending = "cancelled" if fault or job.stopped or usage is None else usage.finish_reason
                turn.notices += [fault] if fault else []
                turn.failed = fault is not None
                turn.figures = _figures(job, usage, engine.device)
            if turn.figures is not None and turn.content:
                self.session.append(turn.figures)
            job.ended.set()
            saving.join()
            self._save(job)
            with self._lock:
                self._jobs.pop(job.talk.id, None)
            job.over.set()
            job.wake()

    def _answer(self, engine: ChatEngine, job: Job) -> Usage | None:
        talk, usage = job.talk, None
        if (question := talk.turns[job.index - 1]).documents:
            self._prepare(engine, job, question)
        tools = helpers.TOOLS if talk.settings.tools else ()
        for _ in range(_MOST_CALLS):
            asked = messages(talk, [*talk.turns[:-1], job.turn])
            if job.prompt_tokens is None:
                job.prompt_tokens = engine.count_tokens(asked)
            parser, usage = self._once(engine, job, asked, tools)
            calls = [] if parser is None or job.stopped or parser.parsed.truncated else parser.parsed.calls
            if not calls:
                return usage
            for number, call in enumerate(calls):
                result, failed = helpers.call(call.name, call.arguments)
                with job.changing() as turn:
                    before = turn.content if number == 0 else ""
                    turn.content = ""
                    turn.steps.append(Step(name=call.name, arguments=call.arguments, result=result, failed=failed,
                                           before=before))  # fmt: skip
        with job.changing() as turn:
            turn.notices.append(f"The answer was ended: it called tools {_MOST_CALLS} times in a row.")
        return usage

    def _prepare(self, engine: ChatEngine, job: Job, question: Turn) -> None:
        """Write the question out with its files, or with what of them fits; that is kept, and what was left out told.

        Raises:
            ContextError: not even a part of them fits.
        """
        settings, files = job.talk.settings, [document.read() for document in question.documents]
        opening = [Message("system", settings.system)] if settings.system else []

        def count(text: str) -> int:
            return engine.count_tokens([*opening, Message("user", text)])

        prompt, room = window.whole(files, question.content, count), prompt_room(engine, settings.max_new_tokens)
        if prompt.tokens > room:
            prompt = window.window(files, question.content, count, room)
            left = [f"{file.document.name}: {file.left_places()}" for file in prompt.files if file.left]
            with job.changing() as turn:
                turn.notices.append(f"The files are longer than the context. Left out: {'; '.join(left)}.")
        question.asked = prompt.text
        self._store.change(
            job.talk.id, lambda talk: setattr(talk.turns[job.index - 1], "asked", prompt.text), touch=False
        )

    def _once(
        self, engine: ChatEngine, job: Job, asked: list[Message], tools: tuple[dict[str, Any], ...]
    ) -> tuple[Parser | None, Usage | None]:
        """One reading of the conversation; the text goes into the turn as it comes."""

        def fresh() -> Parser | None:
            return Parser(tools, opened=engine.opens_thought) if tools or engine.opens_thought else None

        sampling = replace(job.talk.settings.sampling(), keep_special=bool(tools))
        parser, usage, thought_before = fresh(), None, job.turn.thought
        for chunk in engine.stream(asked, sampling, job.stopping):
            job.arrived(len(chunk.token_ids))
            usage = chunk.usage or usage
            with job.changing() as turn:
                if chunk.notice:
                    turn.notices.append(chunk.notice[:1].upper() + chunk.notice[1:])
                if chunk.restart:
                    parser, turn.content = fresh(), ""
                if parser is None:
                    turn.content += chunk.text
                else:
                    parser.push(chunk.text)
                    _show(turn, parser, thought_before)
        if parser is not None:
            parser.finish()
            with job.changing() as turn:
                _show(turn, parser, thought_before)
        return parser, usage

    def _save_as_it_comes(self, job: Job) -> None:
        while not job.ended.wait(SAVE_SECONDS):
            self._save(job)

    def _save(self, job: Job) -> None:
        with job.changing():
            turn = job.turn.model_copy(deep=True)

        def put(talk: Talk) -> None:
            if len(talk.turns) <= job.index or talk.turns[job.index].ending != "partial":
                raise UsageError("the answer's place is gone", hint="Ask again.")
            talk.turns[job.index] = turn

        try:
            self._store.change(job.talk.id, put, touch=False)
        except UsageError:  # the conversation was deleted, or the question taken back by another program
            job.stop()
        except EdgeError as error:
            with job.changing() as turn:
                line = sentence(error)
                turn.notices += [] if line in turn.notices else [line]


def sentence(error: EdgeError) -> str:
    """What was wrong, and the way out."""
    return f"{error.message[:1].upper()}{error.message[1:]}. {error.hint}"


def _show(turn: Turn, parser: Parser, thought_before: str) -> None:
    turn.content = parser.parsed.content
    turn.thought = "\n\n".join(part for part in (thought_before, parser.parsed.reasoning) if part)


def _figures(job: Job, usage: Usage | None, device: str) -> Figures | None:
    if usage is None:
        if job.prompt_tokens is None:
            return None
        return Figures(prompt_tokens=job.prompt_tokens, completion_tokens=job.tokens, device=device,
                       ttft_seconds=job.ttft_seconds, tokens_per_second=job.tokens_per_second())  # fmt: skip
    return Figures(
        prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens, ttft_seconds=usage.ttft_seconds,
        tokens_per_second=usage.tokens_per_second, device=device,
    )  # fmt: skip
