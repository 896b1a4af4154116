"""Where a compiled model is kept, so that the next start need not compile it again.

One for each exported model and device: a new one takes the place of the old.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from pathlib import Path

import psutil

from edge.errors import OutputError
from edge.files import check_room, delete, home, write_text
from edge.manifest import MODEL_FILE
from edge.runtime import choices, devices
from edge.runtime.settings import Settings

_BLOB = 1.5  # of the weights; the NPU's shapes of the pocket model, on the CPU, took 1.4
_USED = "used.{}.by"  # a process's number; beside the blobs
_OF = "of.txt"  # names the model that a folder's compiled ones are of


def compiled_folder(folder: Path, settings: Settings, ask: devices.Ask = devices.ask) -> Path | None:
    """The folder for what OpenVINO's CACHE_DIR keeps of `folder` with these settings; None: it is not kept.

    Its name holds for the IR, the device and its driver, the versions, the properties and the lengths. What was
    compiled of the same model for the same device otherwise is deleted, as is what belongs to a model that is gone.

    It is not kept for the CPU, where it saves no time, nor where the disk has no room for it.
    """
    if settings.device == "CPU":
        return None
    folder = folder.expanduser().resolve()
    wanted = _place(folder, settings, ask)
    if wanted.is_dir():
        _mark_use(wanted)
        return wanted
    _sweep(wanted.parent, wanted)
    with contextlib.suppress(OutputError):
        size = (folder / MODEL_FILE).with_suffix(".bin").stat().st_size
        check_room(wanted, int(_BLOB * size), "a compiled model")
        write_text(wanted.parent / _OF, str(folder))
        wanted.mkdir(parents=True, exist_ok=True)
        _mark_use(wanted)
        return wanted
    return None


def _mark_use(place: Path) -> None:
    """Say that this process uses it, so that no other one sweeps it away meanwhile."""
    for mark in place.glob(_USED.format("*")):
        if not choices.alive(mark):
            with contextlib.suppress(OSError):
                mark.unlink()
    with contextlib.suppress(OutputError):
        started = json.dumps({"started": psutil.Process().create_time()})
        write_text(place / _USED.format(os.getpid()), started)


def _used_by_another(place: Path) -> bool:
    mine = _USED.format(os.getpid())
    return any(mark.name != mine and choices.alive(mark) for mark in place.glob(_USED.format("*")))


def compiled_before(folder: Path, settings: Settings, ask: devices.Ask = devices.ask) -> bool:
    """Whether something compiled is kept from an earlier start, which may have been damaged since."""
    if settings.device == "CPU":
        return False
    place = _place(folder.expanduser().resolve(), settings, ask)
    return place.is_dir() and any(not path.match(_USED.format("*")) for path in place.iterdir())


def forget(folder: Path, settings: Settings, ask: devices.Ask = devices.ask) -> bool:
    """Delete what is kept, so that the next start compiles; returns whether it is gone."""
    place = _place(folder.expanduser().resolve(), settings, ask)
    delete(place)
    return not place.exists()


def _place(folder: Path, settings: Settings, ask: devices.Ask) -> Path:
    settings = dataclasses.replace(settings, device=devices.canonical(settings.device))
    # Only what the compiler sees: the NPU's shapes are its own, the rest is decided after compiling.
    context = settings.context if settings.device == "NPU" else None
    compiled = dataclasses.replace(settings, context=context, sparse=None, evict_beyond=None, prefix_cache=True)
    key = choices.key(folder, compiled, ask)
    place = home() / "compiled" / choices.digest(str(folder))
    device = settings.device.replace(":", "-").replace(",", "-") + ("-rehearsed" if settings.rehearse else "")
    return place / f"{device}.{key.ir}.{key.name}"


def _sweep(place: Path, wanted: Path) -> None:
    """Delete what `wanted` replaces, and everything of models that are not there any more."""
    device, ir, _ = wanted.name.rsplit(".", 2)
    for old in place.glob("*.*.*"):
        its_device, its_ir, _ = old.name.rsplit(".", 2)
        if (its_device == device or its_ir != ir) and not _used_by_another(old):
            delete(old)  # Windows keeps what is in use; the next sweep gets it
    for other in place.parent.glob("*"):
        try:
            gone = not (Path((other / _OF).read_text(encoding="utf-8")) / MODEL_FILE).is_file()
        except (OSError, UnicodeDecodeError):
            gone = False  # another process may be making it
        if gone:
            delete(other)
