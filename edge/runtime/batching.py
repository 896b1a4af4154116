"""Several answers at once on one pipeline, which works a step at a time for all of them. Knows no OpenVINO."""

from __future__ import annotations

import atexit
import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from edge.errors import ContextError, DeviceError
from edge.runtime.prefix import Reading
from edge.runtime.stream import Write

_STOP = object()


@dataclass
class _Request:
    """An answer that is asked for, until it is there."""

    token_ids: Any
    config: Any
    write: Write
    reading: Reading
    handle: Any = None
    steps: int = 0
    """Of the pipeline's, before the first token came."""
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    error: BaseException | None = None
    over: threading.Event = field(default_factory=threading.Event)


class Batching:
    """Runs a continuous-batching pipeline in a thread of its own.

    What is asked for joins the others at the next step and leaves when its answer ends. A step computes one token
    for each answer, or reads a piece of a prompt; between two steps an answer can be cancelled.

    Args:
        pipeline: has `add_request`, `step` and `has_non_finished_requests`, as OpenVINO GenAI's has. Only the
            thread of this object touches it from now on.
        finished: tells from a handle's status whether its answer is over, and whether it was refused.
        name: of the device, for messages.
    """

    def __init__(self, pipeline: Any, finished: Callable[[Any], tuple[bool, bool]], name: str) -> None:
        self._pipeline = pipeline
        self._finished = finished
        self._name = name
        self._numbers = itertools.count()
        self._waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._active: list[_Request] = []
        self._broken: BaseException | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="batching", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # or the interpreter ends under a step that runs

    def generate(self, token_ids: Any, config: Any, write: Write, reading: Reading) -> tuple[list[int], list[float]]:
        """Answer one prompt; returns when it is over: all its tokens and their log-probabilities, if asked for.

        Args:
            token_ids: the prompt as the pipeline takes it.
            config: the pipeline's own.
            write: gets the tokens as they come; called with none between steps, to ask whether to go on.
            reading: gets the number of steps the prompt took.

        Raises:
            ContextError: the pipeline has no room for it.
            DeviceError: the pipeline has been closed.
        """
        request = _Request(token_ids, config, write, reading)
        self._waiting.put(request)
        while not request.over.wait(0.5):
            if self._closed.is_set() and not self._thread.is_alive():
                raise _closed()
        if request.error is not None:
            raise request.error
        return request.tokens, request.log_probs

    def close(self) -> None:
        """End all answers, wait for the step that runs, and let go of the pipeline."""
        atexit.unregister(self.close)
        self._closed.set()
        self._waiting.put(_STOP)
        self._thread.join()
        self._pipeline = None

    def _work(self) -> None:
        while True:
            fresh = self._fresh(wait=not self._has_work())
            if self._closed.is_set():
                for request in (*self._active, *fresh):
                    self._end(request, _closed())
                return
            for request in fresh:
                self._begin(request)
            try:
                if self._has_work():
                    self._pipeline.step()
            except Exception as error:  # of the device's: all who wait for it hear of it
                self._fail(error)
                continue
            for request in list(self._active):
                self._after_step(request)

    def _has_work(self) -> bool:
        """Also when all who asked have gone: a cancelled answer gives back what it held in one more step."""
        return self._broken is None and (bool(self._active) or self._pipeline.has_non_finished_requests())

    def _fail(self, error: Exception) -> None:
        for request in list(self._active):
            request.handle.cancel()
            self._end(request, error)
        try:
            while self._pipeline.has_non_finished_requests():
                self._pipeline.step()
        except Exception as again:  # it does not recover; who asks from now on is told the same
            self._broken = again

    def _fresh(self, *, wait: bool) -> list[_Request]:
        found: deque[Any] = deque()
        if wait:
            found.append(self._waiting.get())
        while True:
            try:
                found.append(self._waiting.get_nowait())
            except queue.Empty:
                return [item for item in found if item is not _STOP]

    def _begin(self, request: _Request) -> None:
        if self._broken is not None:
            self._end(request, self._broken)
            return
        try:
            request.handle = self._pipeline.add_request(next(self._numbers), request.token_ids, request.config)
        except Exception as error:
            self._end(request, error)
            return
        self._active.append(request)

    def _after_step(self, request: _Request) -> None:
        request.steps += not request.tokens
        ids: Sequence[int] = ()
        while request.handle.can_read():
            for output in request.handle.read().values():
                ids = [*ids, *output.generated_ids]
                request.log_probs += output.generated_log_probs
        if ids and not request.tokens:
            request.reading.steps = request.steps if len(self._active) == 1 else None
        request.tokens += ids
        over, refused = self._finished(request.handle.get_status())
        going_on = request.write(ids)
        if refused and not request.tokens:
            self._end(request, _no_room(request.reading, self._name))
        elif over:
            self._end(request, None)
        elif not going_on:
            request.handle.cancel()
            self._end(request, None)

    def _end(self, request: _Request, error: BaseException | None) -> None:
        if request in self._active:
            self._active.remove(request)
        request.error = error
        request.over.set()


def _closed() -> DeviceError:
    return DeviceError("the model has been closed", hint="Load it again.")


def _no_room(reading: Reading, name: str) -> ContextError:
    return ContextError(
        f"the conversation has {reading.tokens:,} tokens, for which the cache on {name} has no room",
        hint="Make it shorter, or load the model with a larger --context.",
    )
