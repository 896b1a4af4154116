"""An engine that is minded: conversations that fit, and answers that a sound device gives.

Opens a model in a way that computes rightly, drops the oldest turns of a conversation that outgrows its context, and
looks at the tokens of every answer. Where they look like a faulty device's, the device is held against the golden
logits while all answers go on. Found sound, it is left in peace; found wrong, or lost on the way, it is left: the model
is opened in the next way, and every answer that was under way begins again there.
"""

from __future__ import annotations

import contextlib
import enum
import threading
from collections.abc import Generator, Sequence

from edge.errors import DeviceError, EdgeError
from edge.manifest import Manifest
from edge.messages import Chunk, Conversation, Sampling
from edge.runtime.canary import Finding
from edge.runtime.context import Policy
from edge.runtime.fitting import fitted
from edge.runtime.interface import LoadedEngine
from edge.runtime.ladder import label
from edge.runtime.minding import Answer, Blame, Held, Judge, Judgement, Open
from edge.runtime.settings import Settings
from edge.runtime.stream import Running
from edge.runtime.watch import Watch

IN_PEACE = 16
"""Answers that are not watched after one led to a device that is sound: who asks for such answers asks again."""
_PATIENCE = 128
"""Tokens that a suspicious answer goes on for without a verdict: it may itself take the judge's place."""


class _Outcome(enum.Enum):
    DONE = enum.auto()
    LEFT = enum.auto()
    """The engine is being left, or has been."""
    AGAIN = enum.auto()
    """The answer was ended for the judge's sake, and need not have been."""


class Guarded:
    """A `ChatEngine` around another, which it may replace. Any number of threads may ask it.

    Args:
        engine: loaded.
        reopen: opens the model again, in the best way that is known by now.
        judge: called while the engine may be answering.
        blame: told of each way that is left.
        policy: "trim" drops the oldest turns of what does not fit; "refuse" raises a ContextError.
        fallback: take the next way where the device fails in the middle of an answer; without it that is raised.
        late_check: a quick check that has yet to be made: by `warm_up`, or beside the first answer.
        aside: the judge is answered beside answers; else, as on the NPU, it has to wait for them to end.
    """

    def __init__(
        self,
        engine: LoadedEngine,
        reopen: Open,
        judge: Judge,
        blame: Blame,
        *,
        policy: Policy = "trim",
        fallback: bool = True,
        late_check: Judge | None = None,
        aside: bool = True,
    ) -> None:
        self._held = Held(engine, reopen, blame)
        self._judge = judge
        self._policy: Policy = policy
        self._fallback = fallback
        self._late_check = late_check
        self._aside = aside
        self._running = Running()
        self._lock = threading.Lock()  # of what follows
        self._judgement: Judgement | None = None
        self._in_peace = 0

    @property
    def name(self) -> str:
        """See `ChatEngine.name`."""
        return self._held.engine.name

    @property
    def device(self) -> str:
        """See `ChatEngine.device`; with what was made safer or faster, and whether it is a rehearsal."""
        settings = self._held.engine.settings
        found = self._held.engine.tuned
        return (
            label(settings)
            + (" with prompt lookup" if settings.prompt_lookup else "")
            + (f", {found}" if found else "")
        )

    @property
    def settings(self) -> Settings:
        """How the model is loaded now."""
        return self._held.engine.settings

    @property
    def context_length(self) -> int:
        """See `ChatEngine.context_length`."""
        return self._held.engine.context_length

    @property
    def manifest(self) -> Manifest:
        """What the model says of itself, however it is loaded."""
        return self._held.engine.manifest

    @property
    def max_prompt(self) -> int | None:
        """See `ChatEngine.max_prompt`."""
        return self._held.engine.max_prompt

    @property
    def together(self) -> int:
        """See `ChatEngine.together`."""
        return self._held.engine.together

    @property
    def adapters(self) -> tuple[str, ...]:
        """See `ChatEngine.adapters`."""
        return self._held.engine.adapters

    @property
    def always_on(self) -> tuple[str, ...]:
        """See `ChatEngine.always_on`."""
        return self._held.engine.always_on

    def token_bytes(self, token_ids: Sequence[int]) -> list[bytes]:
        """See `ChatEngine.token_bytes`."""
        return self._held.engine.token_bytes(token_ids)

    @property
    def opens_thought(self) -> bool:
        """See `ChatEngine.opens_thought`."""
        return self._held.engine.opens_thought

    @property
    def cache_share(self) -> float | None:
        """See `ChatEngine.cache_share`."""
        return self._held.engine.cache_share

    def stream(
        self, conversation: Conversation, sampling: Sampling, cancelled: threading.Event | None = None
    ) -> Generator[Chunk, None, None]:
        """See `ChatEngine.stream`. Of what was dropped and what was changed, chunks with a notice tell.

        What follows a chunk with `restart` takes the place of what came before it.

        Raises:
            EdgeError: also why the model could not be opened again, where the device had to be left.
        """
        return self._stream(conversation, sampling, cancelled, self._running.asked())

    def _stream(
        self, conversation: Conversation, sampling: Sampling, cancelled: threading.Event | None, asked: object
    ) -> Generator[Chunk, None, None]:
        with self._running.begin(cancelled, asked=asked) as ended:
            answer = Answer(ended, watched=not self._left_in_peace())
            engine = self._held.usable(ended)
            if engine is not None:
                self._begin_late_check(engine)
                if self._held.untold:
                    self._held.untold = False
                    yield Chunk("", notice=f"{self._held.why}. It goes on on {self.device}.")
            while engine is not None:
                outcome = yield from self._once(engine, answer, conversation, sampling)
                if outcome is _Outcome.DONE:
                    return
                before, engine = engine, self._held.usable(ended, again=False)
                if engine is before:
                    notice = f"{self.device} was checked and computes right. From the beginning:"
                    yield Chunk("", notice=notice, restart=True)
                elif engine is not None:
                    self._held.untold = False
                    yield Chunk("", notice=f"{self._held.why}. From the beginning, on {self.device}:", restart=True)
            yield answer.ended()

    def _once(
        self, engine: LoadedEngine, answer: Answer, conversation: Conversation, sampling: Sampling
    ) -> Generator[Chunk, None, _Outcome]:
        """One attempt on one engine."""
        try:
            return (yield from self._attempt(engine, answer, conversation, sampling))
        except EdgeError as error:
            if self._held.closed:
                raise
            if self._held.left(engine):
                return _Outcome.LEFT
            if not isinstance(error, DeviceError) or answer.restarted or not self._fallback:
                raise
            answer.restarted = True
            self._held.leave(engine, Finding(False, error.message, {}), error.message, wrong=False)
            return _Outcome.LEFT

    def _attempt(
        self, engine: LoadedEngine, answer: Answer, conversation: Conversation, sampling: Sampling
    ) -> Generator[Chunk, None, _Outcome]:
        kept, notice = fitted(engine, conversation, sampling, self._policy)
        if notice is not None and notice != answer.dropped:
            answer.dropped = notice
            yield Chunk("", notice=notice)
        ids = engine.encode(kept)
        answer.begin(len(ids))
        watch = Watch(ids) if answer.watched else None
        suspicion, since, last = None, 0, None
        with contextlib.closing(engine.stream(kept, sampling, answer.cancelled)) as chunks:
            for chunk in chunks:
                answer.tokens += len(chunk.token_ids)
                reason = watch.push(chunk.token_ids) if watch is not None else None
                if reason is not None and self._begin_judgement(engine):
                    suspicion, since = reason, answer.tokens
                if chunk.usage is not None:
                    last = chunk
                    break
                judgement = self._judgement_of(engine)
                if judgement is not None and judgement.wrong is not None:
                    break
                if suspicion is not None and judgement is not None and not judgement.sound:
                    alone = engine.settings.device == "NPU" or not self._aside  # that answers one at a time
                    patience = 0 if alone else _PATIENCE
                    if judgement.over.is_set() or answer.tokens - since >= patience:
                        break
                yield chunk
        # From here on the answer's place is free, which the judge may have been waiting for.
        if answer.cancelled.is_set():
            yield last or answer.ended()
            return _Outcome.DONE
        return (yield from self._verdict(engine, answer, last, suspicion))

    def _verdict(
        self, engine: LoadedEngine, answer: Answer, last: Chunk | None, suspicion: str | None
    ) -> Generator[Chunk, None, _Outcome]:
        """An answer has ended, by itself (with `last`) or for the judge; what becomes of it."""
        if self._held.left(engine) and (last is None or last.usage is None or last.usage.finish_reason == "cancelled"):
            return _Outcome.LEFT
        judgement = self._judgement_of(engine)
        if judgement is not None:
            known = judgement.wait(answer.cancelled)
            if known and judgement.error is not None:
                raise judgement.error
            if known and self._held.left(engine):
                return _Outcome.LEFT
            if known and judgement.wrong is not None:
                before, reason = label(engine.settings), judgement.wrong.reason
                if not answer.restarted:
                    answer.restarted = True
                    self._held.leave(engine, judgement.wrong, f"{before} computes wrongly ({reason})", wrong=True)
                    return _Outcome.LEFT
                yield Chunk("", notice=f"The answer was ended: {before} computes wrongly, too ({reason}).")
                last = None
            elif known and last is None and judgement.sound:
                answer.watched = False
                return _Outcome.AGAIN
            elif known and last is None:
                yield Chunk(
                    "",
                    notice=f"The answer was ended: {suspicion}. Whether {label(engine.settings)} is at fault cannot be "
                    "checked: the model has no golden logits.",
                )
        yield last or answer.ended()
        return _Outcome.DONE

    def _left_in_peace(self) -> bool:
        """Whether an answer that begins now is not watched."""
        with self._lock:
            peace = self._in_peace > 0
            self._in_peace -= peace
        return peace

    def _begin_judgement(self, engine: LoadedEngine) -> bool:
        """Whether the engine is being judged now, or has been found wrong."""

        def judged(finding: Finding | None) -> None:
            if finding is not None and finding.ok:
                self._in_peace = IN_PEACE

        with self._lock:
            if self._held.left(engine) or self._in_peace:
                return False
            if self._judgement is None or self._judgement.over.is_set() or self._judgement.late:
                self._judgement = Judgement(engine, self._judge, judged)
                self._judgement.start()
            return True

    def _begin_late_check(self, engine: LoadedEngine) -> Judgement | None:
        """The check that the opening left for later, begun now; None where it has been."""
        with self._lock:
            late, self._late_check = self._late_check, None
            if late is None or self._held.left(engine):
                return None
            self._judgement = Judgement(engine, late, lambda finding: None, late=True)
            self._judgement.start()
            return self._judgement

    def _judgement_of(self, engine: LoadedEngine) -> Judgement | None:
        judgement = self._judgement
        return judgement if judgement is not None and judgement.engine is engine else None

    def cancel(self) -> None:
        """See `ChatEngine.cancel`. Answers that wait for a judge or for another engine end at once, too."""
        self._running.cancel()
        self._held.engine.cancel()

    def count_tokens(self, conversation: Conversation) -> int:
        """See `ChatEngine.count_tokens`. What was lost while nobody asked is opened again, as for an answer."""
        restarted = False
        while True:
            engine = self._held.usable(threading.Event())
            assert engine is not None
            try:
                return engine.count_tokens(conversation)
            except EdgeError as error:
                if self._held.closed:
                    raise
                if self._held.left(engine):
                    continue
                if not isinstance(error, DeviceError) or restarted or not self._fallback:
                    raise
                restarted = True
                self._held.leave(engine, Finding(False, error.message, {}), error.message, wrong=False)

    def warm_up(self) -> None:
        """See `ChatEngine.warm_up`; makes the check that the opening left for now, and replaces what does not pass.

        Raises:
            EdgeError: the device failed, or computes wrongly and there is no other.
        """
        never = threading.Event()
        engine = self._held.usable(never)
        assert engine is not None
        late = self._begin_late_check(engine)
        if late is None:
            engine.warm_up()
            return
        late.wait(never)
        if late.error is not None:
            raise late.error
        if late.wrong is not None:
            why = f"{label(engine.settings)} computes wrongly ({late.wrong.reason})"
            self._held.leave(engine, late.wrong, why, wrong=True)
            self._held.usable(never)

    def close(self) -> None:
        """See `ChatEngine.close`. An engine that is just being opened is waited for, and closed."""
        self._running.cancel()
        self._held.close()

    def __enter__(self) -> Guarded:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
