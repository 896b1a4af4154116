"""An engine that is minded: conversations that fit, and answers that a sound device gives.

Opens a model in a way that computes rightly, drops the oldest turns of a conversation that outgrows its context, and
looks at the tokens of every answer. What looks like a faulty device's is stopped; the device is held against the golden
logits, and where it is at fault the model is opened in the next safer way and the question answered again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from edge import golden as goldens
from edge.errors import ContextError, DeviceError, EdgeError
from edge.manifest import Manifest
from edge.messages import Chunk, Message, Progress, Sampling
from edge.runtime import canary, devices
from edge.runtime.choices import Choices, Kept
from edge.runtime.context import Policy, answer_reserve, dropped_sentence, fit
from edge.runtime.engine import Engine
from edge.runtime.interface import ChatEngine
from edge.runtime.opening import open_model
from edge.runtime.settings import Settings
from edge.runtime.watch import Watch

Open = Callable[[], Engine]
Judge = Callable[[Settings], "canary.Finding | None"]
"""Holds a device against the golden logits; None where the model has none."""


class Guarded:
    """A `ChatEngine` around another, which it may replace.

    Args:
        engine: loaded.
        reopen: opens the model again, in the best way that is known by now.
        judge: called with nothing loaded.
        blame: told that settings compute wrongly, and how it showed.
        policy: "trim" drops the oldest turns of what does not fit; "refuse" raises a ContextError.
        late_check: a quick check that has yet to be made; `warm_up` makes it.
    """

    def __init__(
        self,
        engine: Engine,
        reopen: Open,
        judge: Judge,
        blame: Callable[[Settings, canary.Finding], None],
        *,
        policy: Policy = "trim",
        late_check: Callable[[Engine], canary.Finding] | None = None,
    ) -> None:
        self._engine = engine
        self._reopen = reopen
        self._judge = judge
        self._blame = blame
        self._policy: Policy = policy
        self._late_check = late_check
        self._sound: set[str] = set()
        self._dropped = 0
        self._changing = threading.Lock()

    @property
    def name(self) -> str:
        """See `ChatEngine.name`."""
        return self._engine.name

    @property
    def device(self) -> str:
        """See `ChatEngine.device`; with what was made safer, and whether it is a rehearsal."""
        from edge.runtime.ladder import label

        return label(self._engine.settings)

    @property
    def settings(self) -> Settings:
        """How the model is loaded now."""
        return self._engine.settings

    @property
    def context_length(self) -> int:
        """See `ChatEngine.context_length`."""
        return self._engine.context_length

    @property
    def max_prompt(self) -> int | None:
        """See `ChatEngine.max_prompt`."""
        return self._engine.max_prompt

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Generator[Chunk, None, None]:
        """See `ChatEngine.stream`. Of what was dropped and what was changed, chunks with a notice tell."""
        reason = yield from self._once(messages, sampling)
        if reason is None:
            return
        blamed, notice = self._mind(reason)
        if not blamed:
            yield Chunk("", notice=notice)
            return
        yield Chunk("", notice=notice, restart=True)
        reason = yield from self._once(messages, sampling)
        if reason is not None:
            yield Chunk("", notice=f"The answer was ended: again {reason}.")

    def _once(self, messages: Sequence[Message], sampling: Sampling) -> Generator[Chunk, None, str | None]:
        """One attempt; returns what is wrong with its tokens, if they look like a faulty device's."""
        engine = self._engine
        kept, notice = self._fitted(engine, messages, sampling)
        if notice is not None:
            yield Chunk("", notice=notice)
        watch = Watch(engine.encode(kept))
        with contextlib.closing(engine.stream(kept, sampling)) as chunks:
            for chunk in chunks:
                reason = watch.push(chunk.token_ids)
                if reason is not None and _way(engine.settings) not in self._sound:
                    yield Chunk(chunk.text, token_ids=chunk.token_ids)
                    return reason
                yield chunk
        return None

    def _fitted(
        self, engine: ChatEngine, messages: Sequence[Message], sampling: Sampling
    ) -> tuple[Sequence[Message], str | None]:
        reserve = answer_reserve(engine.context_length, sampling.max_new_tokens)
        room = engine.max_prompt or engine.context_length - reserve
        try:
            fitted = fit(messages, engine.count_tokens, room + reserve, reserve, policy=self._policy)
        except ContextError:
            if engine.max_prompt is not None:
                raise
            # A last message that leaves less than that for the answer is better read than refused.
            fitted = fit(messages, engine.count_tokens, engine.context_length, 1, policy=self._policy)
        more, self._dropped = fitted.dropped_turns > self._dropped, fitted.dropped_turns
        notice = dropped_sentence(fitted.dropped_turns, engine.max_prompt or engine.context_length) if more else None
        return fitted.messages, notice

    def _mind(self, reason: str) -> tuple[bool, str]:
        """Find out whose fault it is; with the device at fault the model is opened anew. And what to say of it."""
        with self._changing:
            engine = self._engine
            before = engine.device
            engine.close()  # a second copy of a large model has no room beside it
            finding = self._judge(engine.settings)
            if finding is not None and not finding.ok:
                self._blame(engine.settings, finding)
            else:
                self._sound.add(_way(engine.settings))
            self._engine = self._reopen()
        ended = f"The answer was ended: {reason}."
        if finding is None:
            return False, f"{ended} Whether {before} is at fault cannot be checked: the model has no golden logits."
        if finding.ok:
            return False, f"{ended} {before} was checked and computes right: it is the model's own."
        return True, f"{before} computes wrongly ({finding.reason}). From the beginning, on {self.device}:"

    def cancel(self) -> None:
        """See `ChatEngine.cancel`."""
        self._engine.cancel()

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """See `ChatEngine.count_tokens`."""
        return self._engine.count_tokens(messages)

    def warm_up(self) -> None:
        """See `ChatEngine.warm_up`; makes the check that the opening left for now.

        Raises:
            DeviceError: the device failed, or computes wrongly.
        """
        if self._late_check is None:
            self._engine.warm_up()
            return
        check, self._late_check = self._late_check, None
        engine = self._engine
        finding = check(engine)
        if not finding.ok:
            self._blame(engine.settings, finding)
            engine.close()
            raise DeviceError(
                f"{self.device} computes wrongly: {finding.reason}",
                hint="It was right before: glm4-edge verify says whether the model's files are damaged.",
            )

    def close(self) -> None:
        """See `ChatEngine.close`."""
        self._engine.close()

    def __enter__(self) -> Guarded:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_guarded(
    folder: Path,
    wanted: Settings,
    *,
    fallback: bool = True,
    policy: Policy = "trim",
    say: Callable[[str], None] = lambda line: None,
    progress: Progress = lambda stage, done, total: None,
) -> Guarded:
    """Open an exported model on a device that computes it rightly, and mind it.

    On the CPU numbers that were right at the last start are looked at while the user types, else before anything.

    Raises:
        EdgeError: see `open_model`.
    """
    manifest = Manifest.read(folder)
    golden = goldens.read(folder)
    choices = Choices()
    late: list[Callable[[Engine], canary.Finding]] = []

    def look(engine: Engine) -> canary.Finding:
        assert golden is not None
        return canary.quick(engine, golden)

    def check(engine: Engine) -> canary.Finding:
        kept = choices.get(folder, engine.settings)
        if engine.settings.device == "CPU" and kept is not None and kept.ok and kept.checked:
            late.append(look)
            return canary.Finding(True, None, kept.figures)
        return look(engine)

    def opened() -> Engine:
        return open_model(
            folder, wanted, fallback=fallback, check=None if golden is None else check, say=say, progress=progress,
            choices=choices,
        )  # fmt: skip

    def judge(settings: Settings) -> canary.Finding | None:
        if golden is None:
            return None
        try:
            properties = {**devices.default_properties(settings.device, manifest), **settings.properties}
            whole = dataclasses.replace(settings, properties=properties)
            return canary.thorough(folder, whole, golden, progress)
        except EdgeError as error:
            return canary.Finding(False, error.message, {})

    def blame(settings: Settings, finding: canary.Finding) -> None:
        choices.keep(folder, settings, Kept(False, finding.reason, loaded=True, checked=True, figures=finding.figures))

    engine = opened()
    return Guarded(engine, opened, judge, blame, policy=policy, late_check=late[0] if late else None)


def _way(settings: Settings) -> str:
    return repr(settings)
