"""An engine in a process of its own, asked from this one.

OpenVINO GenAI's `ContinuousBatchingPipeline.step` (2026.4.1) keeps Python's GIL while it works. A step reads up to 256
tokens of a prompt: with a 9B model on two cores, 11 seconds in which no other thread of that process runs. In a process
of its own that stops nobody: Ctrl-C, a cancel, a server's /health and a page go on here. And where a driver ends the
process, or the system does for want of memory, it is not this one: who waits gets a `DeviceError`.

The process is `hosting`. It is begun as a fresh interpreter that imports nothing of the caller's: `multiprocessing`
would run a script without `if __name__ == "__main__"` a second time, and begin a process more that tracks resources.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import itertools
import pickle
import queue
import subprocess
import sys
import threading
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edge
from edge.errors import DeviceError, EdgeError, ModelError
from edge.lora.asked import Loras
from edge.messages import Chunk, Conversation, Sampling, Tokens, Usage
from edge.runtime import sampling as samplings
from edge.runtime import trial
from edge.runtime.interface import Probe
from edge.runtime.metrics import Arrivals
from edge.runtime.settings import Settings
from edge.runtime.stream import POLL_SECONDS, Running

if TYPE_CHECKING:
    from edge.manifest import Manifest

# First of all it is deaf to Ctrl-C, which a terminal sends to it, too; and it finds this very package, whatever the
# user's own folder holds.
_BEGIN = "import sys; sys.path[0] = sys.argv[1]; import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
COMMAND = (
    sys.executable, "-c", f"{_BEGIN}from edge.runtime.hosting import main; main()", str(Path(edge.__file__).parents[1]),
)  # fmt: skip
_GRACE_SECONDS = 0.25
"""For the last words of an answer that was cancelled: the child hears of it only between two steps."""
_END_SECONDS = 2.0
"""For the child to end by itself: it, too, waits for a step's end."""
_KILLED_SECONDS = 10.0  # a driver may hold even what was killed
_ENCODED, _ENCODED_SECONDS = 16, 10.0
"""Conversations whose tokens are remembered, and how long: a template may write the time."""

_prepared: list[subprocess.Popen[bytes]] = []


@contextlib.contextmanager
def prepared() -> Iterator[None]:
    """Begin the process of the next engine now: it imports what it needs while this one gets ready to ask."""
    begun = _begin(COMMAND)
    _prepared.append(begun)
    try:
        yield
    finally:
        if begun in _prepared:
            _prepared.remove(begun)
            begun.kill()
            begun.communicate()


def _begin(command: Sequence[str]) -> subprocess.Popen[bytes]:
    said = None if sys.stderr else subprocess.DEVNULL  # pythonw.exe has none
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said)


def _next_process() -> subprocess.Popen[bytes]:
    with contextlib.suppress(IndexError):
        return _prepared.pop()
    return _begin(COMMAND)


class RemoteEngine:
    """An exported model, loaded in a process of its own. Has what `Engine` has, and may be asked from any thread."""

    name: str
    device: str
    context_length: int
    max_prompt: int | None
    opens_thought: bool
    adapters: tuple[str, ...]
    always_on: tuple[str, ...]
    together: int
    tuned: str
    manifest: Manifest

    def __init__(
        self, folder: Path, settings: Settings, command: Sequence[str] | None = None, loras: Loras | None = None
    ) -> None:
        self.settings = settings
        self._numbers = itertools.count(1)
        self._asked: dict[int, _Asked] = {}
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._running = Running()
        self._share: float | None = None
        self._closing = threading.Lock()
        self._gone: Callable[[], EdgeError] | None = None
        """What is raised from now on."""
        self._loaded = False
        self._encoded: OrderedDict[bytes, tuple[float, array[int]]] = OrderedDict()
        self._encoding = threading.Lock()  # of the line above
        self._written_by: list[bytes] | None = None
        self._process = _begin(command) if command else _next_process()
        self._reader = threading.Thread(target=self._read, name="remote reader", daemon=True)
        atexit.register(self.close)
        try:
            self._reader.start()
            threading.Thread(target=self._write, name="remote writer", daemon=True).start()
            plain = replace(settings, properties=dict(settings.properties))
            facts = self._ask("load", folder, plain, loras)
            for fact, value in facts.items():
                setattr(self, fact, value)
            self._loaded = True
        except BaseException:
            self.close()
            raise

    @classmethod
    def load(cls, folder: Path, settings: Settings, loras: Loras | None = None) -> RemoteEngine:
        """Load an exported model; see `Engine.load`.

        Raises:
            DeviceError: also where loading it ended the process.
        """
        return cls(folder, settings, loras=loras)

    def __enter__(self) -> RemoteEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stream(
        self, conversation: Conversation, sampling: Sampling, cancelled: threading.Event | None = None
    ) -> Generator[Chunk, None, None]:
        """See `Engine.stream`. Ends at once when cancelled, whatever the child is in the middle of."""
        return self._stream(conversation, sampling, cancelled, self._running.asked())

    def _stream(
        self, conversation: Conversation, sampling: Sampling, cancelled: threading.Event | None, asked: object
    ) -> Generator[Chunk, None, None]:
        arrivals = Arrivals(time.perf_counter())
        samplings.check(sampling)
        with self._running.begin(cancelled, asked=asked) as ended:
            prompt = self._tokens(conversation, ended)
            if prompt is None or ended.is_set():
                yield _cancelled(len(prompt or ()), arrivals)
                return
            with self._asking("stream", Tokens(tuple(prompt)), sampling, arrivals.started, ended=ended) as answer:
                while True:
                    try:
                        chunk = answer.next()
                    except EdgeError:
                        if not ended.is_set():
                            raise
                        chunk = None
                    if chunk is None:  # the child is in a long step, or gone
                        yield _cancelled(len(prompt), arrivals)
                        return
                    arrivals.add(time.perf_counter(), len(chunk.token_ids))
                    answer.over = chunk.usage is not None
                    yield chunk
                    if answer.over:
                        return

    def cancel(self) -> None:
        """See `ChatEngine.cancel`."""
        self._running.cancel()
        for asked in list(self._asked.values()):  # nobody may be waiting for their next piece, and see it
            if asked.ended.is_set():
                asked.cancel()

    def encode(self, conversation: Conversation) -> list[int]:
        """See `Engine.encode`."""
        tokens = self._tokens(conversation, _NEVER)
        assert tokens is not None
        return tokens

    def _tokens(self, conversation: Conversation, ended: threading.Event) -> list[int] | None:
        """The conversation as tokens; None if they are no longer wanted. Remembered: who counts them asks with them."""
        if self._gone is not None:
            raise self._gone()
        given = conversation if isinstance(conversation, str | Tokens) else list(conversation)
        key = hashlib.sha256(pickle.dumps(given)).digest()
        with self._encoding:
            since, tokens = self._encoded.get(key, (-_ENCODED_SECONDS, array("q")))
        if time.monotonic() - since < _ENCODED_SECONDS:
            return tokens.tolist()
        found: list[int] | None = self._ask("call", "encode", given, ended=ended)
        if found is not None:
            with self._encoding:
                self._encoded[key] = time.monotonic(), array("q", found)
                self._encoded.move_to_end(key)
                while len(self._encoded) > _ENCODED:
                    self._encoded.popitem(last=False)
        return found

    def count_tokens(self, conversation: Conversation) -> int:
        """See `Engine.count_tokens`."""
        return len(self.encode(conversation))

    def token_bytes(self, token_ids: Sequence[int]) -> list[bytes]:
        """See `ChatEngine.token_bytes`."""
        if self._written_by is None:  # all at once: the child answers between two steps
            self._written_by = self._ask("call", "token_bytes", range(self.manifest.architecture.vocab_size))
        known = self._written_by
        return [known[token] if 0 <= token < len(known) else b"" for token in token_ids]

    @property
    def cache_share(self) -> float | None:
        """See `ChatEngine.cache_share`; as it was half a second ago, or at the end of a step that takes longer."""
        under_way = any(asked.ended is not _NEVER for asked in list(self._asked.values()))
        return self._share if under_way or self._share is None else 0.0

    def warm_up(self) -> None:
        """See `Engine.warm_up`."""
        self._ask("call", "warm_up")

    def probe(self, token_ids: Sequence[int]) -> Probe:
        """See `Probing.probe`."""
        found: Probe = self._ask("call", "probe", list(token_ids))
        return found

    def close(self) -> None:
        """End what runs, and the process, whose memory is free then. What is asked from now on is refused."""
        self._running.shut()
        with self._closing:
            if self._gone is None:
                self._gone = _closed
            atexit.unregister(self.close)
            self._outbox.put(None)
            for wait in (_END_SECONDS, _KILLED_SECONDS):
                try:
                    self._process.wait(wait)
                    break
                except subprocess.TimeoutExpired:
                    self._process.kill()
            self._reader.join(_END_SECONDS)  # or the interpreter may end while it holds a pipe

    def _ask(self, what: str, *facts: Any, ended: threading.Event | None = None) -> Any:
        with self._asking(what, *facts, ended=ended) as asked:
            found = asked.next()
            asked.over = True
            return found

    @contextlib.contextmanager
    def _asking(self, what: str, *facts: Any, ended: threading.Event | None = None) -> Iterator[_Asked]:
        """A question on its way; if it is left before its end, the child is told."""
        asked = _Asked(next(self._numbers), ended or _NEVER, self._outbox)
        question = pickle.dumps((what, asked.number, *facts), pickle.HIGHEST_PROTOCOL)
        self._asked[asked.number] = asked
        try:
            if self._gone is not None:  # looked at after adding, so that none slips between
                raise self._gone()
            self._outbox.put(question)
            yield asked
        finally:
            del self._asked[asked.number]
            if not asked.over:
                asked.cancel()

    def _write(self) -> None:
        """In a thread, since a child in a long step reads nothing, and a pipe holds little."""
        pipe = self._process.stdin
        assert pipe is not None
        with contextlib.suppress(OSError):  # the child is gone, of which the reader tells
            while (question := self._outbox.get()) is not None:
                pipe.write(question)
                pipe.flush()
        with contextlib.suppress(OSError):
            pipe.close()

    def _read(self) -> None:
        pipe = self._process.stdout
        assert pipe is not None
        with contextlib.suppress(EOFError, OSError, pickle.UnpicklingError), pipe:
            while True:
                number, kind, value = pickle.load(pipe)
                if kind == "share":
                    self._share = value
                    continue
                asked = self._asked.get(number)
                if asked is not None:  # else it was given up
                    asked.answers.put((kind, value))
                    if asked.ended.is_set():  # nobody may be waiting for the next piece, and see it
                        asked.cancel()
        self._end()

    def _end(self) -> None:
        """The child is gone, or is no longer heard: tell all who wait, and leave no process."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        if self._process.poll() is None:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_KILLED_SECONDS)
        what, _ = trial.ending(self._process.returncode or 0)
        doing = "the process that runs the model" if self._loaded else "loading the model"

        def lost() -> EdgeError:
            return DeviceError(
                f"{doing} on {self.settings.device} {what}",
                hint="Close other programs if memory is short, or update the device's driver, or choose another "
                "device.",
            )

        if self._gone is None:
            self._gone = lost
        self._outbox.put(None)
        for asked in list(self._asked.values()):
            asked.answers.put(("gone", self._gone))


_NEVER = threading.Event()
"""Of what cannot be cancelled; nobody sets it."""


class _Asked:
    """A question on its way, and its answers.

    Args:
        ended: set where no more are wanted.
    """

    def __init__(self, number: int, ended: threading.Event, outbox: queue.SimpleQueue[bytes | None]) -> None:
        self.number, self.ended = number, ended
        self.answers: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self.over = False
        self._outbox = outbox
        self._cancelled_at: float | None = None

    def cancel(self) -> None:
        """Tell the child, once."""
        if self._cancelled_at is None:
            self._cancelled_at = time.monotonic()
            self._outbox.put(pickle.dumps(("cancel", self.number), pickle.HIGHEST_PROTOCOL))

    def next(self) -> Any:
        """The next answer; None where it is no longer wanted, and has not come.

        Raises:
            EdgeError: the child's own, or the child is gone.
        """
        while True:
            try:
                kind, value = self.answers.get(timeout=POLL_SECONDS)  # in pieces: Windows does not interrupt a wait
            except queue.Empty:
                if self.ended.is_set():
                    self.cancel()
                    assert self._cancelled_at is not None
                    if time.monotonic() >= self._cancelled_at + _GRACE_SECONDS:
                        return None
                continue
            if kind == "value":
                return value
            self.over = True
            if kind == "gone":
                raise value()
            raise trial.rebuilt(value) if kind == "error" else RuntimeError(value)


def _cancelled(prompt_tokens: int, arrivals: Arrivals) -> Chunk:
    """The last chunk of an answer that the child has not ended itself; times are those at which it came here."""
    times = arrivals.ttft_seconds, arrivals.tpot_seconds
    return Chunk(
        "", usage=Usage(prompt_tokens, arrivals.tokens, *times, "cancelled", None, None, arrivals.token_seconds)
    )


def _closed() -> ModelError:
    return ModelError("the model has been closed", hint="Load it again.")
