"""Which way to load a model is right, each looked at thoroughly and kept for the next start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.errors import DeviceError, EdgeError, OutputError, ResourceError
from edge.golden import Golden
from edge.manifest import Manifest
from edge.messages import Progress
from edge.runtime import canary, devices, ladder
from edge.runtime import trial as trials
from edge.runtime.canary import Finding
from edge.runtime.choices import Choices, Kept
from edge.runtime.opening import known_failure
from edge.runtime.settings import Settings


@dataclass(frozen=True)
class Examined:
    """A way, and what was found of it.

    Args:
        failed: it could not be looked at at all, and why; then the finding has no figures.
        lasting: whether it would fail so again tomorrow.
    """

    settings: Settings
    finding: Finding
    failed: EdgeError | None = None
    lasting: bool = True


Look = Callable[[Path, Settings, Golden, Progress], Examined]


def _look(folder: Path, settings: Settings, golden: Golden, progress: Progress) -> Examined:
    """`canary.thorough`; in a process of its own where a driver may crash it."""
    if settings.device == "CPU" or settings.rehearse:
        return Examined(settings, canary.thorough(folder, settings, golden, progress))
    outcome = trials.run(folder, settings, task="canary", progress=progress)
    if outcome.error is not None:
        return Examined(settings, Finding(False, outcome.error.message, {}), outcome.error, outcome.lasting)
    assert outcome.told is not None
    return Examined(settings, Finding(**outcome.told))


def examine(
    folder: Path,
    wanted: Settings,
    golden: Golden,
    *,
    only: bool = False,
    look: Look = _look,
    say: Callable[[str], None] = lambda line: None,
    progress: Progress = lambda stage, done, total: None,
    present: Callable[[], Sequence[str]] = devices.available,
    choices: Choices | None = None,
    illegal: Callable[[str, Manifest, Path], str | None] = devices.illegal,
) -> list[Examined]:
    """The ways down to the first that is right, which is the last of them; where none is, all.

    With AUTO they are those of a chat with AUTO: other devices are among them, and what is known to fail is not. A
    device that is named is the question itself: it is looked at afresh, with ever more precision.

    Args:
        only: look at the first way, and at no safer one.
        look: examines one way.
        say: takes one line for every way that is passed over.

    Raises:
        ModelError: the folder holds no exported model, or a damaged one.
        DeviceError: the wanted device is not here, or may not be given the model.
    """
    manifest = Manifest.read(folder)
    known = choices if choices is not None else Choices()
    here = ["CPU"] if wanted.device == "CPU" else list(present())
    ways = ladder.candidates(
        wanted, manifest, here, fallback=wanted.device == devices.AUTO,
        kept=lambda settings: known_failure(known, folder, settings),
        illegal=lambda device: illegal(device, manifest, folder),
    )  # fmt: skip
    found: list[Examined] = []
    given_up: set[str] = set()
    for settings, why in ways[:1] if only else ways:
        if settings.device in given_up:
            continue
        if why:
            say(f"{ladder.label(wanted)} → {ladder.label(settings)}: {why}")
        found.append(_examined(folder, settings, golden, look, progress))
        _keep(known, folder, found[-1])
        if found[-1].finding.ok:
            break
        if ladder.gives_up(settings, loaded=found[-1].failed is None):
            given_up.add(settings.device)
    return found


def _examined(folder: Path, settings: Settings, golden: Golden, look: Look, progress: Progress) -> Examined:
    try:
        found = look(folder, settings, golden, progress)
    except (DeviceError, ResourceError, OutputError) as error:
        found = Examined(settings, Finding(False, error.message, {}), error, lasting=False)
    if found.failed is not None:
        devices.readable(folder)  # a damaged file is to be held against no device
        if not isinstance(found.failed, (DeviceError, ResourceError, OutputError)):
            raise found.failed
    return found


def _keep(choices: Choices, folder: Path, found: Examined) -> None:
    settings, finding = found.settings, found.finding
    if isinstance(found.failed, OutputError):
        return
    if settings.device == "NPU" and finding.ok:
        # Its pipeline, which answers, was not loaded: what stood against the device goes, and the next start tries it.
        choices.forget_failure(folder, settings)
        return
    loaded = found.failed is None
    kept = Kept(
        finding.ok, finding.reason, loaded=loaded, checked=loaded, figures=finding.figures, thorough=loaded,
        lasting=found.lasting,
    )  # fmt: skip
    choices.keep(folder, settings, kept)
