"""Where intel-extension-for-transformers is kept, and making that place: a virtual environment of pinned wheels."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from edge.errors import DeviceError, DownloadError, OutputError, UsageError
from edge.files import alone, check_room, home, write_text
from edge.messages import Progress
from edge.runtime import itrex_pip

DISK_BYTES = 6_700_000_000
"""That have to be free: 6.5 GB were taken at the most while it was made."""
COST = f"about 3 GB to download, {DISK_BYTES / 1e9:.1f} GB of disk while it is made and 6.2 GB after"
_PYTHONS = ((3, 11), (3, 10))
"""For which there are wheels; the first was measured."""
_READY = "glm4-edge.json"
_PROBE = (
    "import json, platform, sys; print(json.dumps([sys.version_info[:2], platform.machine().lower(), sys.platform]))"
)


def folder() -> Path:
    """Of the virtual environment."""
    return home() / "itrex"


@dataclass(frozen=True)
class Status:
    """What is there."""

    state: str
    """absent, unfinished, outdated or ready."""
    folder: Path
    versions: dict[str, str]
    bytes: int


def status() -> Status:
    """What is there; `outdated` where another version of glm4-edge, with other pins, made it."""
    place = folder()
    size = sum(path.lstat().st_size for path in place.rglob("*") if path.is_file()) if place.is_dir() else 0
    if not _python(place).exists():
        return Status("unfinished" if place.exists() else "absent", place, {}, size)
    told = _told(place)
    if told is None:
        return Status("unfinished", place, {}, size)
    return Status("ready" if told.get("pins") == _digest() else "outdated", place, told.get("versions", {}), size)


def python() -> Path:
    """Its interpreter.

    Raises:
        DeviceError: it is not set up.
    """
    place = folder()
    told = _told(place)
    if told is None or told.get("pins") != _digest() or not _python(place).exists():
        raise DeviceError(f"ITREX is not set up in {place}", hint=f"Run: glm4-edge itrex setup ({COST}).")
    return _python(place)


def setup(progress: Progress, wanted: Path | None = None) -> Status:
    """Make it, or go on with what an interrupted setup left.

    Args:
        wanted: the interpreter to make it of; left out, the first that suits is taken.

    Raises:
        UsageError: no interpreter suits.
        OutputError: the disk is too full.
        DownloadError: pip failed.
    """
    base = find_python(wanted)
    place = folder()
    place.parent.mkdir(parents=True, exist_ok=True)
    with alone(place):
        if status().state == "ready":
            return status()
        itrex_pip.tidy(place)  # what it deletes is not there already
        there = status().bytes
        check_room(place.parent, max(0, DISK_BYTES - there), "setting up ITREX")
        (place / _READY).unlink(missing_ok=True)
        progress("making a virtual environment", 0, 0)
        _run([str(base), "-m", "venv", "--without-pip", str(place)])
        with resources.as_file(resources.files("edge.runtime").joinpath("itrex-pins.txt")) as pins:
            itrex_pip.fill(_python(place), pins, progress)
        progress("importing ITREX", 0, 0)
        names = ("intel-extension-for-transformers", "torch", "transformers")
        script = (
            "import importlib.metadata as m, json\nfrom intel_extension_for_transformers import qbits\n"
            f"print(json.dumps({{n: m.version(n) for n in {names!r}}}))"
        )
        versions = json.loads(_run([str(_python(place)), "-I", "-c", script], cwd=place).splitlines()[-1])
        write_text(place / _READY, json.dumps({"pins": _digest(), "versions": versions}, indent=1) + "\n")
    return status()


def remove() -> bool:
    """Delete it; False where there is none.

    Raises:
        OutputError: it cannot be deleted.
    """
    place = folder()
    if not place.exists():
        return False
    with alone(place):
        (place / _READY).unlink(missing_ok=True)
        try:
            shutil.rmtree(place)
        except OSError as error:
            raise OutputError(
                f"{place} cannot be deleted ({error.strerror or error})", hint="End what runs ITREX, and try again."
            ) from error
    return True


def find_python(wanted: Path | None = None) -> Path:
    """An interpreter for which there are wheels.

    Raises:
        UsageError: there is none; says what was looked at.
    """
    seen = []
    for candidate in [str(wanted)] if wanted else _candidates():
        found = _probe(candidate)
        if found is None:
            if wanted:
                seen.append(f"{candidate} does not run")
            continue
        version, machine, system = found
        number = ".".join(map(str, version))
        if tuple(version) not in _PYTHONS:
            seen.append(f"{candidate} is {number}")
        elif machine not in ("x86_64", "amd64") or system not in ("linux", "win32"):
            seen.append(f"{candidate} is for {system} on {machine}")
        else:
            return Path(candidate)
    looked = f" ({'; '.join(seen)})" if seen else ""
    raise UsageError(
        f"ITREX has wheels for Python 3.11 and 3.10, for Linux and Windows on x86-64, and none was found{looked}",
        hint="Install Python 3.11, or name one with --python.",
    )


def _candidates() -> Iterator[str]:
    yield sys.executable
    for major, minor in _PYTHONS:
        for name in (f"python{major}.{minor}", f"python{major}.{minor}.exe"):
            found = shutil.which(name)
            if found:
                yield found
    launcher = shutil.which("py") if platform.system() == "Windows" else None
    for major, minor in _PYTHONS if launcher else ():
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            words = [str(launcher), f"-{major}.{minor}", "-c", "import sys; print(sys.executable)"]
            yield subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def _probe(candidate: str) -> Any:
    try:
        done = subprocess.run([candidate, "-I", "-c", _PROBE], capture_output=True, text=True, timeout=60, check=True)
        return json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def _run(words: Sequence[str], cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=cwd, env=itrex_pip.environment())
        return done.stdout
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        raise DownloadError(
            f"ITREX was not set up: {said[-1] if said else error}",
            hint="Remove it and set it up again: glm4-edge itrex remove.",
        ) from error


def _python(place: Path) -> Path:
    return place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _told(place: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((place / _READY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _digest() -> str:
    return hashlib.sha256(resources.files("edge.runtime").joinpath("itrex-pins.txt").read_bytes()).hexdigest()
