"""Loading a model where it computes rightly: on the wanted device if that can be, else on the next, and saying why."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edge.errors import DeviceError, EdgeError, ModelError, OutputError, ResourceError
from edge.manifest import Manifest
from edge.messages import Progress
from edge.runtime import compiled, devices, ladder
from edge.runtime import trial as trials
from edge.runtime.choices import Choices, Kept
from edge.runtime.interface import LoadedEngine
from edge.runtime.settings import Settings

Load = Callable[[Path, Settings], LoadedEngine]
_OF_THE_DEVICE = (DeviceError, ModelError, ResourceError, OutputError)
"""Faults that another way may not have, the last where a variant cannot be written; others are the user's to mend."""
_DRIVER = "Update the device's driver, or choose another device."
_DAMAGED = "glm4-edge verify says whether the model's files are damaged; then export the model again."


class Finding(Protocol):
    """What a check of a loaded model found; `canary.Finding` is one."""

    @property
    def ok(self) -> bool:
        """Whether the device computes rightly."""

    @property
    def reason(self) -> str | None:
        """What is wrong, a sentence without a full stop."""

    @property
    def figures(self) -> Mapping[str, Any]:
        """What was measured."""


def _load(folder: Path, settings: Settings) -> LoadedEngine:
    from edge.runtime.engine import Engine

    return Engine.load(folder, settings)


def open_model(
    folder: Path,
    wanted: Settings,
    *,
    fallback: bool = True,
    check: Callable[[LoadedEngine], Finding] | None = None,
    load: Load = _load,
    trial: Callable[..., trials.Outcome] = trials.run,
    say: Callable[[str], None] = lambda line: None,
    progress: Progress = lambda stage, done, total: None,
    present: Callable[[], Sequence[str]] = devices.available,
    choices: Choices | None = None,
    illegal: Callable[[str, Manifest, Path], str | None] = devices.illegal,
) -> LoadedEngine:
    """Load an exported model, as wanted or in the next way that works.

    What a device can do with the model is found out once and kept: at first it is loaded in a process of its own, where
    a crash does no harm (on the CPU only after one). Then its numbers are checked, at every start.

    Args:
        folder: what `glm4-edge export` made.
        wanted: its device may be AUTO, or one that is not here.
        fallback: take more precision or another device where the wanted one fails; without it, only more precision.
        check: looks at the numbers of the loaded model; None looks at nothing.
        load: see `Engine.load`.
        trial: see `trial.run`.
        say: takes one line for every fallback, with its reason.
        present: gives the devices that are there.
        choices: what is known from earlier.
        illegal: see `devices.illegal`.

    Raises:
        ModelError: the folder holds no exported model, or a damaged one.
        DeviceError: no way works; says why of each. Where there is but one, its own error is raised.
        UsageError: the device does not take the wanted properties.
    """
    manifest = Manifest.read(folder)
    known = choices if choices is not None else Choices()
    ways = ladder.candidates(
        wanted,
        manifest,
        ["CPU"] if wanted.device == "CPU" else list(present()),
        fallback=fallback,
        kept=lambda settings: known_failure(known, folder, settings),
        illegal=lambda device: illegal(device, manifest, folder),
    )
    return _Way(folder, fallback, check, load, trial, say, progress, known).down(wanted, ways)


@dataclass(frozen=True)
class _Way:
    """Down the ladder, with what `open_model` was given."""

    folder: Path
    fallback: bool
    check: Callable[[LoadedEngine], Finding] | None
    load: Load
    trial: Callable[..., trials.Outcome]
    say: Callable[[str], None]
    progress: Progress
    choices: Choices

    def down(self, wanted: Settings, ways: Sequence[ladder.Candidate]) -> LoadedEngine:
        failures: list[tuple[str, EdgeError]] = []
        given_up: set[str] = set()
        before, why = ladder.label(wanted), ""
        for settings, known in ways:
            if settings.device in given_up:
                continue
            here = ladder.label(settings)
            if why or known:
                self.say(f"{before} → {here}: {why or known}")
            try:
                return self._open(settings)
            except _DamagedError:
                raise
            except _OF_THE_DEVICE as error:
                if ladder.gives_up(settings, loaded=isinstance(error, _WrongNumbersError)):
                    given_up.add(settings.device)
                before, why = here, error.message
                failures.append((here, error))
        if len(failures) == 1 or not self.fallback:
            raise failures[0][1]
        told = "; ".join(f"{way}: {error.message}" for way, error in failures)
        raise DeviceError(f"no device here can run {self.folder}: {told}", hint=failures[-1][1].hint)

    def _open(self, settings: Settings) -> LoadedEngine:
        """The model loaded so; what comes of it is kept."""
        earlier = self.choices.get(self.folder, settings)
        proven = settings.device == "CPU" if earlier is None else earlier.ok or earlier.loaded
        kept_from_before = compiled.compiled_before(self.folder, settings, self.choices.ask)
        try:
            try:
                engine, figures = self._loaded(settings, proven)
            except (DeviceError, ModelError) as error:
                if not kept_from_before or not compiled.forget(self.folder, settings, self.choices.ask):
                    raise
                self.say(f"{error.message}: what was compiled earlier may be damaged, so it is compiled again")
                engine, figures = self._loaded(settings, proven=False)
        except OutputError:  # the cache's fault: nothing to be kept of the device
            raise
        except _OF_THE_DEVICE as error:
            loaded = isinstance(error, _WrongNumbersError)
            if not loaded:
                self._not_the_files_fault()
            lasting = loaded or isinstance(error, _CrashedError)
            self.choices.keep(self.folder, settings, Kept(False, error.message, loaded=loaded, lasting=lasting))
            raise
        if earlier is not None and _wrong(earlier):
            return engine
        if earlier is None or not earlier.ok or (figures is not None and not earlier.checked):
            kept = Kept(True, checked=figures is not None, figures=dict(figures or {}))
            self.choices.keep(self.folder, settings, kept)
        return engine

    def _loaded(self, settings: Settings, proven: bool) -> tuple[LoadedEngine, Mapping[str, Any] | None]:
        """The model, and figures of the check. What is not proven is tried in a process of its own before."""
        if not proven or self.choices.crashed(self.folder, settings):
            self._try(settings)
        with self.choices.trying(self.folder, settings):
            self.progress(f"loading {self.folder.name} on {ladder.label(settings)}", 0, 0)
            engine = self.load(self.folder, settings)
            return engine, self._checked(engine, settings)

    def _not_the_files_fault(self) -> None:
        """A damaged file is to be held against no device."""
        try:
            devices.readable(self.folder)
        except ModelError as error:
            raise _DamagedError(error.message, hint=error.hint) from error

    def _try(self, settings: Settings) -> None:
        outcome = self.trial(self.folder, settings, progress=self.progress)
        self.choices.forget_crash(self.folder, settings)
        if outcome.error is not None:
            if outcome.lasting:
                raise _CrashedError(outcome.error.message, hint=outcome.error.hint)
            raise outcome.error

    def _checked(self, engine: LoadedEngine, settings: Settings) -> Mapping[str, Any] | None:
        """Figures of the check, None where there is none; the engine is closed if it does not pass."""
        if self.check is None:
            return None
        here = ladder.label(settings)
        try:
            finding = self.check(engine)
            if not finding.ok:
                raise _WrongNumbersError(
                    f"{here} computes wrongly: {finding.reason or 'no reason given'}",
                    hint=_DAMAGED if settings.device == "CPU" or settings.rehearse else _DRIVER,
                )
        except BaseException:
            engine.close()
            raise
        return finding.figures


class _DamagedError(ModelError):
    """The model's own files are at fault."""


class _WrongNumbersError(DeviceError):
    """The device computes, but wrongly."""


class _CrashedError(DeviceError):
    """Loading the model ended the process that tried it."""


def known_failure(choices: Choices, folder: Path, settings: Settings) -> ladder.Failure | None:
    """How an earlier attempt failed, if it did. Numbers that are wrong are so in a context of any length."""
    kept = choices.get(folder, settings)
    if settings.device != "NPU":  # whose shapes are compiled for the length
        plain = dataclasses.replace(settings, context=None, sparse=None, evict_beyond=None)
        without = choices.get(folder, plain)
        kept = without if without is not None and _wrong(without) else kept
    if kept is None or kept.ok:
        return None
    again = "glm4-edge canary looks again" if _wrong(kept) else "--no-fallback tries again"
    return ladder.Failure(f"{kept.reason or 'it failed'} (found on {kept.when:%Y-%m-%d}; {again})", kept.loaded)


def _wrong(kept: Kept) -> bool:
    """Whether canary found wrong numbers, which looks at more than a start does: only it takes that back."""
    return not kept.ok and kept.thorough
