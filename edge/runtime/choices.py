"""What was found out about loading a model on a device, kept for the next start.

A finding holds for the very IR, device, driver, versions and settings that it was made with, and for nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Literal

import psutil
from pydantic import AwareDatetime, TypeAdapter, ValidationError

from edge import golden
from edge.errors import OutputError
from edge.files import home, write_text
from edge.manifest import FILE_NAME, MODEL_FILE, TOKENIZER_FILES, Manifest
from edge.runtime import devices
from edge.runtime.settings import Precision, Settings

_PASSING = timedelta(days=1)
"""How long a failure is believed that may have had a passing cause, such as too little memory."""


@dataclass(frozen=True)
class Key:
    """What a finding holds for."""

    ir: str
    device: str
    identity: str
    """The device's own name and its driver."""
    versions: dict[str, str]
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """Short, and as good as unique."""
        return digest(json.dumps(dataclasses.asdict(self), sort_keys=True))


@dataclass(frozen=True)
class Kept:
    """What came of loading a model.

    Args:
        ok: it loaded, and where there was a check, passed it.
        reason: why not, a sentence without a full stop.
        loaded: it loaded, whatever the check said.
        checked: its numbers were looked at.
        figures: of the check.
        thorough: by `canary.thorough`: a start, which looks at less, takes no such failure back.
        lasting: whether a failure is believed until the IR, the driver or a version changes; else for a day.
        when: UTC.
    """

    ok: bool
    reason: str | None = None
    loaded: bool = True
    checked: bool = False
    figures: dict[str, Any] = field(default_factory=dict)
    thorough: bool = False
    lasting: bool = True
    when: AwareDatetime = field(default_factory=lambda: datetime.now(timezone.utc))


@dataclass(frozen=True)
class _File:
    format: Literal[1]
    folder: str
    key: Key
    kept: Kept


_FILE = TypeAdapter(_File)


def key(folder: Path, settings: Settings, ask: devices.Ask = devices.ask) -> Key:
    """What a finding about `folder` with `settings` holds for.

    Raises:
        ModelError: the folder holds no exported model.
    """
    own = devices.canonical(settings.device)  # one record for the first GPU under both of its names
    told = dataclasses.asdict(dataclasses.replace(settings, device=own, properties=dict(settings.properties)))
    device = "CPU" if settings.rehearse else own
    plain = json.loads(json.dumps(told, default=str))  # whatever a property's value may be
    return Key(ir_digest(folder), own, devices.identity(device, ask), versions(), plain)


def ir_digest(folder: Path) -> str:
    """Tells one exported model from another, and from itself after a change, without reading gigabytes."""
    parts = [(folder / FILE_NAME).read_bytes()]
    model_file = folder / MODEL_FILE
    others = [folder / name for name in (golden.FILE_NAME, *TOKENIZER_FILES)]  # which other programs' exports may lack
    for path in (model_file, model_file.with_suffix(".bin"), *(path for path in others if path.is_file())):
        known = path.stat()
        parts.append(f"{path.name} {known.st_size} {known.st_mtime_ns}".encode())
    return digest(b"\n".join(parts))


def versions() -> dict[str, str]:
    """Of the packages that compile and run a model."""
    return {name: importlib.metadata.version(name) for name in ("openvino", "openvino-genai")}


class Choices:
    """The findings of earlier starts, each in a file of its own. Files that are damaged count as not there.

    Args:
        folder: where they lie; None: in the cache.
        ask: how a device is asked for its name and driver.
        now: the time.
    """

    def __init__(
        self,
        folder: Path | None = None,
        ask: devices.Ask = devices.ask,
        now: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        self._folder = folder or home() / "choices"
        self.ask = ask
        self._now = now

    def get(self, folder: Path, settings: Settings) -> Kept | None:
        """What is known of loading `folder` so, if it still counts."""
        found = _read(self._path(folder, settings))
        return found.kept if found is not None and self._counts(found.kept) else None

    def keep(self, folder: Path, settings: Settings, kept: Kept) -> None:
        """Write it down. A cache that cannot be written only costs the next start its time."""
        own = key(folder, settings, self.ask)
        content = dataclasses.asdict(_File(1, str(folder.absolute()), own, kept))
        self._prune(folder.absolute(), own.ir)
        with contextlib.suppress(OutputError):
            write_text(self._folder / f"{own.name}.json", json.dumps(content, indent=2, default=str) + "\n")

    def forget_failure(self, folder: Path, settings: Settings) -> None:
        """Take back that `folder` fails so."""
        kept = self.get(folder, settings)
        if kept is not None and not kept.ok:
            with contextlib.suppress(OSError):
                self._path(folder, settings).unlink()

    def about(self, folder: Path, device: str) -> list[tuple[Precision, Kept]]:
        """Everything that still counts of `folder` on a device, whatever the other settings; the latest first."""
        wanted = key(folder, Settings(device), self.ask)
        found = []
        for path in self._folder.glob("*.json"):
            read = _read(path)
            if read is None or not self._counts(read.kept) or read.key.settings.get("rehearse"):
                continue
            its = read.key
            if (its.ir, its.identity, its.versions) == (wanted.ir, wanted.identity, wanted.versions):
                found.append((its.settings.get("precision", "chosen"), read.kept))
        return sorted(found, key=lambda each: each[1].when, reverse=True)

    def failed(self, folder: Path, present: list[str]) -> dict[str, str]:
        """Devices on which every attempt failed, and why the last one did: AUTO passes them over."""
        found = {}
        for device in present:
            about = self.about(folder, device)
            if about and not any(kept.ok for _, kept in about):
                found[device] = about[0][1].reason or "it failed"
        return found

    def resolved(self, device: str, folder: Path, present: Sequence[str] | None = None) -> str:
        """`devices.resolve` of the device that a chat with this model begins with: what AUTO is goes by what is known.

        Raises:
            ModelError: the folder holds no exported model.
            DeviceError: there is no such device here.
        """
        here = devices.available() if present is None else list(present)
        if devices.parse(device) != devices.AUTO:
            return devices.resolve(device, lambda: here)
        manifest = Manifest.read(folder)
        unfit = [each for each in here if devices.illegal(each, manifest, folder) is not None]
        return devices.resolve(device, lambda: here, manifest, [*unfit, *self.failed(folder, here)])

    @contextlib.contextmanager
    def trying(self, folder: Path, settings: Settings) -> Iterator[None]:
        """Leave a mark while a model is loaded in this process: should that end the process, the mark stays."""
        mark = self._mark(folder, settings, str(os.getpid()))
        of = {"folder": str(folder.absolute()), "ir": ir_digest(folder)}
        with contextlib.suppress(OutputError):
            write_text(mark, json.dumps({"started": psutil.Process().create_time(), **of}))
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                mark.unlink()

    def crashed(self, folder: Path, settings: Settings) -> bool:
        """Whether an earlier start ended while it loaded the model so: it crashed, or was killed."""
        return bool(self._dead_marks(folder, settings))

    def forget_crash(self, folder: Path, settings: Settings) -> None:
        """Take the marks away: a trial has shown what there was to know."""
        for mark in self._dead_marks(folder, settings):
            with contextlib.suppress(OSError):
                mark.unlink()

    def _dead_marks(self, folder: Path, settings: Settings) -> list[Path]:
        return [mark for mark in self._folder.glob(self._mark(folder, settings, "*").name) if not alive(mark)]

    def _mark(self, folder: Path, settings: Settings, process: str) -> Path:
        return self._folder / f"{key(folder, settings, self.ask).name}.{process}.trying"

    def _path(self, folder: Path, settings: Settings) -> Path:
        return self._folder / f"{key(folder, settings, self.ask).name}.json"

    def _prune(self, folder: Path, ir: str) -> None:
        """Delete what can never count again: of models that are gone, of what was in `folder` before, and damaged."""

        def counts(of: str, its: str) -> bool:
            return (Path(of) / MODEL_FILE).is_file() and (Path(of) != folder or its == ir)

        dead = [path for path in self._folder.glob("*.json")
                if (found := _read(path)) is None or not counts(found.folder, found.key.ir)]  # fmt: skip
        dead += [mark for mark in self._folder.glob("*.trying") if not alive(mark) and not counts(*_marked(mark))]
        for path in dead:
            with contextlib.suppress(OSError):  # Windows, where another process reads it
                path.unlink()

    def _counts(self, kept: Kept) -> bool:
        # A clock that was wrong may have dated it in the future.
        return kept.ok or kept.lasting or abs(self._now() - kept.when) < _PASSING


def _read(path: Path) -> _File | None:
    try:
        return _FILE.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def alive(mark: Path) -> bool:
    """Whether the process that left the mark still runs; its number may be another's by now."""
    try:
        started = float(json.loads(mark.read_text(encoding="utf-8"))["started"])
        return bool(abs(psutil.Process(int(mark.name.split(".")[-2])).create_time() - started) < 1)
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return False


def _marked(mark: Path) -> tuple[str, str]:
    """Folder and IR that a mark is of; empty where it does not say."""
    try:
        told = json.loads(mark.read_text(encoding="utf-8"))
        return str(told["folder"]), str(told["ir"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", ""


def digest(content: str | bytes) -> str:
    """A short name for some content."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:24]
