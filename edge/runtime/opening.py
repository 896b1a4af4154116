"""Loading a model where it computes rightly: on the wanted device if that can be, else on the next, and saying why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edge.errors import DeviceError, EdgeError, ModelError, ResourceError
from edge.manifest import Manifest
from edge.messages import Progress
from edge.runtime import devices, ladder, trial
from edge.runtime.choices import Choices, Kept
from edge.runtime.settings import Settings

if TYPE_CHECKING:
    from edge.runtime.engine import Engine

_OF_THE_DEVICE = (DeviceError, ModelError, ResourceError)
"""Faults that another device may not have; others are the user's to mend."""


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


def _load(folder: Path, settings: Settings) -> Engine:
    from edge.runtime.engine import Engine

    return Engine.load(folder, settings)


def open_model(
    folder: Path,
    wanted: Settings,
    *,
    fallback: bool = True,
    check: Callable[[Engine], Finding] | None = None,
    load: Callable[[Path, Settings], Engine] = _load,
    attempt: Callable[..., trial.Outcome] = trial.run,
    say: Callable[[str], None] = lambda line: None,
    progress: Progress = lambda stage, done, total: None,
    present: Callable[[], Sequence[str]] = devices.available,
    choices: Choices | None = None,
    illegal: Callable[[str, Manifest, Path], str | None] = devices.illegal,
) -> Engine:
    """Load an exported model, as wanted or in the next way that works.

    What a device can do with the model is found out once and kept: at first it is loaded in a process of its own, where
    a crash does no harm (on the CPU only after one). Then its numbers are checked, at every start.

    Args:
        folder: what `glm4-edge export` made.
        wanted: its device may be AUTO, or one that is not here.
        fallback: take more precision or another device where the wanted one fails; without it, only more precision.
        check: looks at the numbers of the loaded model; None looks at nothing.
        load: see `Engine.load`.
        attempt: see `trial.run`.
        say: takes one line for every fallback, with its reason.
        present: gives the devices that are there.
        choices: what is known from earlier.
        illegal: see `devices.illegal`.

    Raises:
        ModelError: the folder holds no exported model.
        DeviceError: no way works; says why of each. Where there is but one, its own error is raised.
        UsageError: the device does not take the wanted properties.
    """
    manifest = Manifest.read(folder)
    known = choices if choices is not None else Choices()
    ways = ladder.candidates(
        wanted,
        manifest,
        list(present()),
        fallback=fallback,
        kept=lambda settings: _known_failure(known, folder, settings),
        illegal=lambda device: illegal(device, manifest, folder),
    )
    return _Climb(folder, fallback, check, load, attempt, say, progress, known).down(wanted, ways)


class _Climb:
    """One walk down the ladder."""

    def __init__(
        self,
        folder: Path,
        fallback: bool,
        check: Callable[[Engine], Finding] | None,
        load: Callable[[Path, Settings], Engine],
        attempt: Callable[..., trial.Outcome],
        say: Callable[[str], None],
        progress: Progress,
        choices: Choices,
    ) -> None:
        self._folder, self._fallback, self._check, self._load = folder, fallback, check, load
        self._attempt, self._say, self._progress, self._choices = attempt, say, progress, choices

    def down(self, wanted: Settings, ways: Sequence[ladder.Candidate]) -> Engine:
        failures: list[tuple[str, EdgeError]] = []
        given_up: set[str] = set()
        before, why = ladder.label(wanted), ""
        for settings, known in ways:
            if settings.device in given_up:
                continue
            if why or known:
                self._say(f"{before} → {ladder.label(settings)}: {why or known}")
            try:
                return self._open(settings)
            except _Wrong as wrong:
                error: EdgeError = wrong.error
            except _OF_THE_DEVICE as error_of_device:
                error = error_of_device
                if settings.precision == "chosen":  # more precision is no help where nothing loads
                    given_up.add(settings.device)
            before, why = ladder.label(settings), error.message
            failures.append((before, error))
        if len(failures) == 1 or not self._fallback:
            raise failures[0][1]
        raise DeviceError(
            f"no device here can run {self._folder}: " + "; ".join(f"{way}: {fault}" for way, fault in (
                (way, fault.message) for way, fault in failures)),
            hint=failures[-1][1].hint,
        )  # fmt: skip

    def _open(self, settings: Settings) -> Engine:
        """The model loaded so; what comes of it is kept."""
        earlier = self._choices.get(self._folder, settings)
        crashed = self._choices.crashed(self._folder, settings)
        if crashed or (settings.device != "CPU" and (earlier is None or not earlier.ok)):
            outcome = self._attempt(self._folder, settings, progress=self._progress)
            self._choices.forget_crash(self._folder, settings)
            if outcome.error is not None:
                self._keep_failure(settings, outcome.error, lasting=outcome.lasting)
                raise outcome.error
        with self._choices.trying(self._folder, settings):
            try:
                self._progress(f"loading {self._folder.name} on {ladder.label(settings)}", 0, 0)
                engine = self._load(self._folder, settings)
                figures = self._checked(engine, settings)
            except _Wrong as wrong:
                self._keep_failure(settings, wrong.error, lasting=True)
                raise
            except _OF_THE_DEVICE as error:
                self._keep_failure(settings, error, lasting=False)
                raise
        if earlier is None or not earlier.ok or (figures is not None and not earlier.checked):
            kept = Kept(True, checked=figures is not None, figures=dict(figures or {}))
            self._choices.keep(self._folder, settings, kept)
        return engine

    def _checked(self, engine: Engine, settings: Settings) -> Mapping[str, Any] | None:
        """Figures of the check, None where there is none; the engine is closed if it does not pass."""
        if self._check is None:
            return None
        try:
            self._progress(f"checking the numbers of {ladder.label(settings)}", 0, 0)
            finding = self._check(engine)
            if not finding.ok:
                raise _Wrong(settings, finding)
        except BaseException:
            engine.close()
            raise
        return finding.figures

    def _keep_failure(self, settings: Settings, error: EdgeError, *, lasting: bool) -> None:
        self._choices.keep(self._folder, settings, Kept(False, error.message, lasting=lasting))


class _Wrong(Exception):
    """The device computes wrongly."""

    def __init__(self, settings: Settings, finding: Finding) -> None:
        self.error = DeviceError(
            f"{ladder.label(settings)} computes wrongly: {finding.reason or 'no reason given'}",
            hint="Update the device's driver, or choose another device.",
        )
        super().__init__(self.error.message)


def _known_failure(choices: Choices, folder: Path, settings: Settings) -> str | None:
    kept = choices.get(folder, settings)
    if kept is None or kept.ok:
        return None
    return f"{kept.reason or 'it failed'} (found on {kept.when:%Y-%m-%d}; --no-fallback tries again)"
