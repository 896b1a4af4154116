"""The process behind a `remote.RemoteEngine`: it holds an `Engine` and answers what comes over pipes.

Questions are read from standard input, each a pickled tuple that begins with what is asked and a number; answers go to
what was standard output, each a pickled (number, kind, value). Its end is the end of standard input, which comes when
the parent closes it and when the parent is gone, however that went.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from edge.errors import EdgeError
from edge.lora.asked import Loras
from edge.messages import Chunk, Conversation, Sampling
from edge.runtime.settings import Settings
from edge.runtime.trial import show_no_dialogs

if TYPE_CHECKING:
    from edge.runtime.engine import Engine

FACTS = (
    "name", "device", "context_length", "max_prompt", "opens_thought", "adapters", "always_on", "together", "tuned",
    "manifest",
)  # fmt: skip
"""Of an engine, what never changes; told once."""
_LONG = ("probe", "warm_up")
"""Calls that wait for a turn; all others are answered between two questions."""
_BEAT_SECONDS = 0.5


def main(load: Callable[..., Engine] | None = None) -> None:
    """Be that process. Does not return.

    Args:
        load: for tests; left out, `Engine.load`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets Ctrl-C, too, and decides
    show_no_dialogs()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    if load is None:  # before it is asked: see `remote.prepared`
        from edge.runtime.pipelines import import_all

        import_all()
    _Host(sys.stdin.buffer, answers).run(load or _load)


def _load(folder: Path, settings: Settings, *loras: Loras) -> Engine:
    from edge.runtime.engine import Engine

    return Engine.load(folder, settings, *loras)


class _Host:
    """Answers, each stream in a thread of its own."""

    def __init__(self, questions: BinaryIO, answers: BinaryIO) -> None:
        self._questions, self._answers = questions, answers
        self._writing = threading.Lock()
        self._streams: dict[int, threading.Event] = {}
        """Those under way, and what cancels them."""
        self._engine: Any = None

    def run(self, load: Callable[..., Engine]) -> None:
        """Load the model that the first question names, say how that went, and answer all others."""
        try:
            _, number, folder, settings, loras = pickle.load(self._questions)
        except (EOFError, OSError, pickle.UnpicklingError):
            os._exit(1)
        threading.Thread(target=self._read, name="reading", daemon=True).start()  # sees the parent go meanwhile, too
        try:
            self._engine = load(folder, settings) if loras is None else load(folder, settings, loras)
        except Exception as error:
            self._tell_error(number, error)
            os._exit(0)
        self._tell_share()
        self._tell(number, "value", {fact: getattr(self._engine, fact) for fact in FACTS})
        while True:
            time.sleep(_BEAT_SECONDS)
            if self._streams:
                self._tell_share()

    def _read(self) -> None:
        try:
            while True:
                self._take(*pickle.load(self._questions))
        except (EOFError, OSError, pickle.UnpicklingError):  # the parent has closed it, or is gone
            os._exit(0)  # the system takes the memory back; some drivers crash while they are taken down
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    def _take(self, what: str, number: int, *facts: Any) -> None:
        if what == "cancel":
            with contextlib.suppress(KeyError):  # it has ended
                self._streams[number].set()
            return
        work = self._stream if what == "stream" else self._call
        if what == "stream":
            self._streams[number] = threading.Event()  # here, so that a cancel right behind finds it
        elif facts[0] not in _LONG:
            work(number, *facts)
            return
        try:
            threading.Thread(target=work, args=(number, *facts), name=what, daemon=True).start()
        except RuntimeError as error:  # there is no thread to be had
            self._streams.pop(number, None)
            self._tell_error(number, error)

    def _stream(self, number: int, conversation: Conversation, sampling: Sampling, asked: float) -> None:
        late = max(0.0, time.perf_counter() - asked)
        try:
            for chunk in self._engine.stream(conversation, sampling, self._streams[number]):
                if chunk.usage is not None:
                    self._streams.pop(number, None)
                    self._tell_share()
                self._tell(number, "value", _from_the_request(chunk, late))
        except Exception as error:
            self._tell_error(number, error)
        finally:
            self._streams.pop(number, None)

    def _call(self, number: int, name: str, *facts: Any) -> None:
        try:
            value = getattr(self._engine, name)(*facts)
        except Exception as error:
            self._tell_error(number, error)
            return
        if name in _LONG:
            self._tell_share()
        self._tell(number, "value", value)

    def _tell_error(self, number: int, error: Exception) -> None:
        if isinstance(error, EdgeError):
            self._tell(number, "error", (type(error).__name__, error.message, error.hint))
        else:  # a fault of the program's; the parent says so, and here stands where
            traceback.print_exception(error)
            self._tell(number, "fault", f"{type(error).__name__}: {error}")

    def _tell_share(self) -> None:
        self._tell(0, "share", self._engine.cache_share)

    def _tell(self, number: int, kind: str, value: Any) -> None:
        data = pickle.dumps((number, kind, value), pickle.HIGHEST_PROTOCOL)
        try:
            with self._writing:
                self._answers.write(data)
                self._answers.flush()
        except OSError:  # nobody is there to hear it
            os._exit(0)


def _from_the_request(chunk: Chunk, late: float) -> Chunk:
    """The chunk with the times of its usage counted from the parent's request, which was `late` seconds earlier.

    They are still those at which the tokens came here: the pipe to the parent takes less than a millisecond.
    `time.perf_counter` is the system's, the same in both processes.
    """
    usage = chunk.usage
    if usage is None or usage.ttft_seconds is None:
        return chunk
    later = replace(
        usage,
        ttft_seconds=usage.ttft_seconds + late,
        token_seconds=tuple(at + late for at in usage.token_seconds),
    )
    return replace(chunk, usage=later)


if __name__ == "__main__":
    main()
