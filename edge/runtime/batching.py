"""Several answers at once on one pipeline, which works a step at a time for all of them. Knows no OpenVINO."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from edge.errors import ContextError, DeviceError
from edge.runtime.prefix import Reading
from edge.runtime.stream import Write

_STOP = object()
_FORESEEN = 256  # tokens of an answer that room is kept for


@dataclass
class _Request:
    """An answer that is asked for, until it is there."""

    token_ids: Sequence[int]
    config: Any
    write: Write
    reading: Reading
    adapters: tuple[str, ...] = ()
    handle: Any = None
    steps: int = 0
    """Of the pipeline's, before the first token came."""
    resumed_at: int = 0
    """Tokens it had when it last had to begin anew."""
    refused: bool = False
    """The pipeline had no room for it, though nobody else was there."""
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    error: BaseException | None = None
    over: threading.Event = field(default_factory=threading.Event)


class Batching:
    """Runs a continuous-batching pipeline in a thread of its own.

    What is asked for joins the others at the next step and leaves when its answer ends. A step computes one token
    for each answer, or reads a piece of a prompt; between two steps an answer can be cancelled.

    Where the cache has no room for one more, it waits until another ends. Most answers are shorter than they may be:
    room is kept for a part of them. When the cache is full all the same, the pipeline drops who is in it; they go on
    from what they had said when there is room again.

    Args:
        pipeline: has `add_request`, `step`, `has_non_finished_requests` and `get_metrics`, as OpenVINO GenAI's
            has. Only the thread of this object touches it from now on.
        tensor: a prompt as the pipeline takes it.
        finished: tells from a handle's status whether its answer is over, and whether it was refused.
        name: of the device, for messages.
        room: tokens in the cache.
        block: tokens that it gives away at once.
        guessed: tokens that the pipeline guesses at each step. What it has guessed for an answer that a step then has
            no room for, GenAI (2026.4.1) takes for said: with it, room is kept for whole answers, and there is always
            room.
        switch: turns adapters on in the pipeline, for all answers at once; called while there are none.
    """

    def __init__(
        self,
        pipeline: Any,
        tensor: Callable[[Sequence[int]], Any],
        finished: Callable[[Any], tuple[bool, bool]],
        name: str,
        *,
        room: int,
        block: int = 32,
        guessed: int = 0,
        switch: Callable[[tuple[str, ...]], None] | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._tensor = tensor
        self._room = room
        self._block = block
        self._guessed = guessed
        self._switch = switch
        self._on: tuple[str, ...] | None = None
        """The adapters that are on; None: that is not known."""
        self._next: deque[_Request] = deque()  # asked for, but there is no room yet
        self._finished = finished
        self._name = name
        self._numbers = itertools.count()
        self._waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._active: list[_Request] = []
        self._leaving: list[_Request] = []  # ended from here, and in the cache until the next step is over
        self._broken: BaseException | None = None
        self._cache_share: float | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="batching", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # or the interpreter ends under a step that runs

    def generate(
        self, token_ids: Sequence[int], config: Any, write: Write, reading: Reading, adapters: tuple[str, ...] = ()
    ) -> tuple[list[int], list[float]]:
        """Answer one prompt; returns when it is over: all its tokens and their log-probabilities, if asked for.

        It is answered beside those alone that have the same adapters on; whoever wants others waits for them to end.

        Args:
            token_ids: the prompt.
            config: the pipeline's own; its `max_new_tokens` is changed.
            write: gets the tokens as they come; called with none between steps, to ask whether to go on.
            reading: gets the number of steps the prompt took.
            adapters: that are on.

        Raises:
            ContextError: the pipeline has no room for it.
            DeviceError: the pipeline has been closed.
        """
        request = _Request(token_ids, config, write, reading, adapters)
        self._waiting.put(request)
        while not request.over.wait(0.5):
            if not self._thread.is_alive():
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
            idle = not self._has_work()
            if idle and self._cache_share is not None:
                self._cache_share = 0.0  # the pipeline's own figure stays at that of the last step
            self._next.extend(self._fresh(wait=idle))
            if self._closed.is_set():
                for request in (*self._active, *self._next):
                    self._end(request, _closed())
                return
            try:
                self._admit()
                if self._has_work():
                    self._pipeline.step()
                    self._leaving.clear()
                    self._cache_share = self._pipeline.get_metrics().cache_usage / 100
                for request in list(self._active):
                    self._after_step(request)
                # The next step keeps the GIL (GenAI 2026.4.1): whoever was written to would have it a whole step late.
                time.sleep(0)
            except Exception as error:  # of the device's: all who wait for it hear of it
                self._fail(error)

    @property
    def cache_share(self) -> float | None:
        """How much of the KV cache the answers under way took at the last step, 0 to 1; None before the first."""
        return self._cache_share

    def _has_work(self) -> bool:
        """Also when all who asked have gone: a cancelled answer gives back what it held in one more step."""
        if self._broken is not None:
            return bool(self._next)
        return bool(self._active or self._next) or self._pending()

    def _pending(self) -> bool:
        try:
            return bool(self._pipeline.has_non_finished_requests())
        except Exception as error:
            self._broken = error
            return False

    def _fail(self, error: Exception) -> None:
        for request in list(self._active):
            self._end(request, error)
            with contextlib.suppress(Exception):  # whatever it says: the request has been told the first error
                request.handle.cancel()
        try:
            while self._pipeline.has_non_finished_requests():
                self._pipeline.step()
        except Exception as again:  # it does not recover; who asks from now on is told the same
            self._broken = again
        self._leaving.clear()

    def _fresh(self, *, wait: bool) -> list[_Request]:
        found: deque[Any] = deque()
        if wait:
            found.append(self._waiting.get())
        while True:
            try:
                found.append(self._waiting.get_nowait())
            except queue.Empty:
                return [item for item in found if item is not _STOP]

    def _admit(self) -> None:
        """Begin what there is room for, in the order of asking; who has gone meanwhile is let go."""
        for request in list(self._next):
            error = None
            try:
                if request.write(()):
                    continue
            except Exception as raised:  # the asker's own
                error = raised
            self._next.remove(request)
            self._end(request, error)
        while self._next:
            there = [*self._active, *self._leaving]
            taken = sum(map(self._need, there))
            if there and taken + self._need(self._next[0]) > self._room:
                return
            if self._switch is not None and self._next[0].adapters != self._on and not self._switched(there):
                return
            self._begin(self._next.popleft())

    def _switched(self, there: Sequence[_Request]) -> bool:
        """Whether the adapters that the next answer wants are on; they cannot be turned on while others go on."""
        if there or (self._broken is None and self._pending()):
            return False
        if self._broken is not None:  # which who asks is told when it begins
            return True
        wanted, self._on = self._next[0].adapters, None
        try:
            assert self._switch is not None
            self._switch(wanted)
        except Exception as error:
            self._end(self._next.popleft(), error)
            return False
        self._on = wanted
        return True

    def _need(self, request: _Request) -> int:
        """Tokens of the cache to keep for an answer. One whose form is prescribed cannot go on in the middle."""
        left: int = request.config.max_new_tokens - (len(request.tokens) - request.resumed_at)
        if request.config.structured_output_config is None and not self._guessed:
            left = min(left, _FORESEEN)
        tokens = len(request.token_ids) + len(request.tokens) + left + self._guessed
        blocks = -(-tokens // self._block) + 1
        return blocks * self._block

    def _begin(self, request: _Request) -> None:
        if self._broken is not None:
            self._end(request, self._broken)
            return
        prompt = [*request.token_ids, *request.tokens]
        try:
            request.handle = self._pipeline.add_request(next(self._numbers), self._tensor(prompt), request.config)
        except Exception as error:
            self._end(request, error)
            return
        self._active.append(request)

    def _after_step(self, request: _Request) -> None:
        request.steps += not request.tokens
        ids: list[int] = []
        log_probs: list[float] = []
        while request.handle.can_read():
            for output in request.handle.read().values():
                ids += output.generated_ids
                log_probs += output.generated_log_probs
        if ids and not request.tokens:
            request.reading.steps = request.steps if len(self._active) == 1 else None
        request.tokens += ids
        request.log_probs += log_probs
        over, dropped = self._finished(request.handle.get_status())
        try:
            going_on = request.write(ids, log_probs)
        except Exception as error:  # the asker's own, and no matter of the others
            request.handle.cancel()
            self._leaving.append(request)
            self._end(request, error)
            return
        if dropped and going_on:
            self._again(request)
        elif over:
            self._end(request, None)
        elif not going_on:
            request.handle.cancel()
            self._leaving.append(request)
            self._end(request, None)

    def _again(self, request: _Request) -> None:
        """The cache was full: let it go on when there is room, first of all who wait."""
        alone = len(self._active) == 1
        self._active.remove(request)
        told = len(request.tokens)
        if alone and request.refused and not told:
            self._end(request, _no_room(request.reading, self._name))
        elif alone and request.refused:  # the cache ends here, and so does the answer
            self._end(request, None)
        else:
            request.refused = alone
            request.config.max_new_tokens -= told - request.resumed_at
            request.resumed_at = told
            self._next.appendleft(request)

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
