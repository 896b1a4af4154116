"""What goes on beside answers: an engine that is judged, and one that is replaced. Each in a thread of its own."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from edge.errors import ContextError, DeviceError, ModelError
from edge.messages import Chunk, Usage
from edge.runtime.canary import Finding
from edge.runtime.engine import Engine
from edge.runtime.settings import Settings
from edge.runtime.stream import POLL_SECONDS

Open = Callable[[], Engine]
Blame = Callable[[Settings, Finding, bool], None]
"""Is told of settings that failed, how that showed, and whether it was the numbers; if not, it may pass."""
Judge = Callable[[Engine], "Finding | None"]
"""Holds an engine that is loaded, and may be answering, against the golden logits; None: it cannot be done."""


class Beside(ABC):
    """Work that others wait for, each as long as its own answer is wanted."""

    def __init__(self, name: str) -> None:
        self.over = threading.Event()
        self.error: BaseException | None = None
        """What it ended with, if not as it should; for those who wait."""
        self._name = name

    def start(self) -> None:
        """Begin. Where there is no thread to be had, it is over at once, with that as its error."""
        try:
            threading.Thread(target=self._run, name=self._name).start()
        except RuntimeError as error:
            self.error = error
            self.over.set()

    def wait(self, cancelled: threading.Event) -> bool:
        """Until it is over, which is True, or `cancelled` is set. In pieces: Windows does not interrupt a long wait."""
        while not self.over.wait(POLL_SECONDS):
            if cancelled.is_set():
                return False
        return True

    def _run(self) -> None:
        try:
            self.work()
        except BaseException as error:  # of whoever waits
            self.error = error
        self.over.set()

    @abstractmethod
    def work(self) -> None:
        """What is done."""


class Judgement(Beside):
    """An engine held against the golden logits while it answers.

    Args:
        then: told the finding when it is there.
        late: it looks at less than one that a suspicious answer gives rise to.
    """

    def __init__(
        self, engine: Engine, judge: Judge, then: Callable[[Finding | None], None], *, late: bool = False
    ) -> None:
        super().__init__("judging")
        self.engine = engine
        self.late = late
        self.finding: Finding | None = None
        self._judge = judge
        self._then = then

    @property
    def wrong(self) -> Finding | None:
        """What is wrong with the engine, once that is known."""
        return self.finding if self.over.is_set() and self.finding is not None and not self.finding.ok else None

    @property
    def sound(self) -> bool:
        """Whether it is known to compute rightly."""
        return self.over.is_set() and self.finding is not None and self.finding.ok

    def work(self) -> None:
        """See `Beside.work`."""
        try:
            self.finding = self._judge(self.engine)
        except (ContextError, ModelError):  # no golden prompt fits; or it has been closed
            self.finding = None
        except DeviceError as error:
            self.finding = Finding(False, error.message, {})
        self._then(self.finding)


class _Change(Beside):
    """An engine that is left for another.

    Args:
        why: a sentence without a full stop.
        replace: does it.
    """

    def __init__(self, why: str, replace: Callable[[], None]) -> None:
        super().__init__("replacing the engine")
        self.why = why
        self._replace = replace

    def work(self) -> None:
        """See `Beside.work`."""
        self._replace()


class Held:
    """The engine that is asked, while it may be replaced.

    Args:
        engine: loaded.
        reopen: opens the model again, in the best way that is known by now.
        blame: told of each way that is left.
    """

    def __init__(self, engine: Engine, reopen: Open, blame: Blame) -> None:
        self.engine = engine
        """The last one, where it is being replaced."""
        self.closed = False
        self.why = ""
        """The engine before was left; a sentence without a full stop."""
        self.untold = False
        """Nobody has heard of that."""
        self._reopen = reopen
        self._blame = blame
        self._lock = threading.Lock()  # held for moments
        self._change: _Change | None = None  # None: the engine is there to be asked

    def usable(self, cancelled: threading.Event, *, again: bool = True) -> Engine | None:
        """The engine, as soon as there is one to be asked; None if that is no longer wanted.

        Args:
            again: where the last opening failed, try it again; the reason may have passed.

        Raises:
            EdgeError: it failed, while this waited or before; or there is to be no engine any more.
        """
        while not cancelled.is_set():
            with self._lock:
                if self.closed:
                    raise _closed()
                change = self._change
                if change is None:
                    return self.engine
                if again and change.over.is_set():
                    change = self._change = _Change(change.why, self._open)
                    change.start()
            change.wait(cancelled)
            if change.error is not None:
                raise change.error
        return None

    def left(self, engine: Engine) -> bool:
        """Whether `engine` has been replaced, or is just being."""
        # In this order: the new engine is there before the change is over.
        return self._change is not None or self.engine is not engine

    def leave(self, engine: Engine, finding: Finding, why: str, *, wrong: bool) -> None:
        """Begin to replace `engine`, unless that has begun.

        Args:
            why: a sentence without a full stop.
            wrong: its numbers are, so that it is not used again.
        """

        def replace() -> None:
            engine.close()  # a second copy of a large model has no room beside it
            self._blame(engine.settings, finding, wrong)
            self._open()

        with self._lock:
            if not self.closed and not self.left(engine):
                self._change = _Change(why, replace)
                self._change.start()

    def close(self) -> None:
        """End what runs. An engine that is just being opened is waited for, and closed."""
        with self._lock:
            self.closed = True
            change = self._change
        if change is not None:
            change.wait(threading.Event())
        self.engine.close()

    def _open(self) -> None:
        fresh = self._reopen()
        with self._lock:
            if not self.closed:
                assert self._change is not None
                self.engine, self.why, self.untold = fresh, self._change.why, True
                self._change = None
                return
        fresh.close()
        raise _closed()


@dataclass
class Answer:
    """One answer on its way, on however many engines."""

    cancelled: threading.Event
    """By who asked, and not by a change of the engine."""
    watched: bool
    restarted: bool = False
    """A fault of the engine's was seen in this very answer: there is to be but one."""
    dropped: str | None = None
    """What it was told of turns that are no longer read."""
    prompt_tokens: int = 0
    tokens: int = 0

    def begin(self, prompt_tokens: int) -> None:
        """Another engine begins it."""
        self.prompt_tokens, self.tokens = prompt_tokens, 0

    def ended(self) -> Chunk:
        """The last chunk of an answer that was ended from here."""
        return Chunk("", usage=Usage(self.prompt_tokens, self.tokens, None, None, "cancelled"))


def _closed() -> ModelError:
    return ModelError("the model has been closed", hint="Load it again.")
