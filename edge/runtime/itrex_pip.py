"""Filling ITREX's virtual environment by pip: PyTorch and each of its large parts by itself, then the rest.

What was installed stays when the work is broken off, whether or not pip caches what it fetches; and no more than one
large wheel lies beside what was made of it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

from edge.errors import DownloadError, OutputError
from edge.files import delete
from edge.messages import Progress

_LARGE = ("nvidia", "triton")
_HAS_PYTHON = (22, 3)
"""pip's version from which it fills another environment."""
_LOOK_SECONDS = 0.5
_UNITS = {"bytes": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9}
_TORCH, _PARTS, _REST = "fetching PyTorch", "fetching what PyTorch needs", "fetching ITREX and the rest"
_UNPACKING = "installing (minutes, and no progress to be told)"


def tidy(place: Path) -> None:
    """Delete what a setup that was killed left half: what it was fetching, and the marks of what it was installing.

    pip takes a package for installed once its METADATA lies there, which may be before its files do.

    Raises:
        OutputError: something cannot be deleted.
    """
    half = [place / "tmp"]
    for where in _packages(place):
        if where.resolve().is_relative_to(place.resolve()):  # what a link leads to belongs to another
            half += [path for path in where.glob("*.dist-info") if not _whole(importlib.metadata.Distribution.at(path))]
    for path in half:
        delete(path)
        if path.exists():
            raise OutputError(f"{path} cannot be deleted", hint="End what uses it, a pip perhaps, and run it again.")


def fill(python: Path, pins: Path, progress: Progress) -> None:
    """Install what stands in `pins` into the environment of `python`, but for what is there.

    Raises:
        DownloadError: pip failed, or there is none.
        OutputError: what an earlier setup left half cannot be deleted.
    """
    place = python.parents[1]
    tidy(place)
    scratch = place / "tmp"
    scratch.mkdir()
    try:
        pip = _Pip(python, scratch)
        lines = [line for line in pins.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
        (torch,) = (line for line in lines if line.startswith("torch=="))
        if not _installed(place, "torch"):
            pip.install(["--no-deps", torch], functools.partial(progress, _TORCH), lambda: progress(_UNPACKING, 0, 0))
        large = [line for line in _needs(place, "torch") if line.startswith(_LARGE)]
        for number, line in enumerate(large, 1):
            if not _installed(place, re.split(r"[^\w.-]", line)[0]):
                stage = f"{_PARTS}, {number} of {len(large)}"  # a stage each, for the sizes of others are not known
                progress(stage, 0, 0)
                pip.install(["--no-deps", line], functools.partial(progress, stage))
        seen: set[str] = set()

        def at(name: str) -> None:
            seen.add(name)
            progress(_REST, min(len(seen), len(lines)), len(lines))

        progress(_REST, 0, len(lines))
        pip.install(["-r", str(pins)], None, lambda: progress(_UNPACKING, 0, 0), at)
    finally:
        delete(scratch)


def environment() -> dict[str, str]:
    """Without other interpreters' packages: pip would find them in the new place, where they are not."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


class _Pip:
    """The one that runs this program; the environment's own where there is none, or too old a one.

    Args:
        scratch: a folder for what it fetches and unpacks; the system's may be small, or lie in memory.
    """

    def __init__(self, python: Path, scratch: Path) -> None:
        self._scratch = scratch
        self._env = {**environment(), **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))}
        if _version() >= _HAS_PYTHON:
            self._words = [sys.executable, "-m", "pip", "--python", str(python)]
        else:
            self._words = [str(python), "-I", "-m", "pip"]
            made = subprocess.run(
                [str(python), "-I", "-m", "ensurepip"], env=self._env, capture_output=True, text=True, errors="replace"
            )
            if made.returncode:
                raise DownloadError(
                    "ITREX is fetched with pip 22.3 or newer, which neither this Python nor the other one has",
                    hint=f"Install it with: {sys.executable} -m ensurepip --upgrade",
                )

    def install(
        self, what: Sequence[str], fetched: Callable[[int, int], None] | None,
        unpacking: Callable[[], None] = lambda: None, at: Callable[[str], None] = lambda name: None,
    ) -> None:  # fmt: skip
        """Run `pip install` and tell what it is at.

        Args:
            fetched: told now and then the bytes that came of a download, and those of all of it.
            at: told each package that it names.

        Raises:
            DownloadError: it failed.
        """
        # no cache: it would keep another 3 GB, and what is installed is not asked for again
        words = [*self._words, "install", "--no-input", "--disable-pip-version-check", "--no-cache-dir",
                 "--progress-bar", "off", *what]  # fmt: skip
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                   text=True, encoding="utf-8", errors="replace", env=self._env)  # fmt: skip
        said: list[str] = []
        whole = 0
        try:
            for line in _lines(process):
                if line is None:
                    if whole and fetched is not None:
                        fetched(min(_size(self._scratch), whole), whole)
                    continue
                said = [*said[-20:], line.rstrip()]
                kind, _, rest = line.strip().partition(" ")
                if kind in ("Collecting", "Requirement") and rest:
                    at(rest)
                elif kind == "Downloading" and (size := re.search(r"\(([\d.]+) (\w+)\)$", rest)):
                    whole = int(float(size[1]) * _UNITS.get(size[2], 0))
                elif kind == "Installing":
                    unpacking()
                    whole = 0
            process.wait()
        finally:
            if process.poll() is None:
                _end(process)
        if process.returncode:
            reasons = [line for line in said if line.startswith("ERROR")] or said[-1:] or ["pip said nothing"]
            raise DownloadError(
                f"pip could not install ITREX: {reasons[0].removeprefix('ERROR: ')}",
                hint="Run it again when the network is back; what was installed is kept.",
            )


def _version() -> tuple[int, ...]:
    """Of the pip of this interpreter; () where it has none."""
    try:
        version = importlib.metadata.version("pip")
    except importlib.metadata.PackageNotFoundError:
        return ()
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _lines(process: subprocess.Popen[str]) -> Iterator[str | None]:
    """What it says until its end; None whenever that takes a while."""
    said: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        assert process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            for line in process.stdout:
                said.put(line)
        said.put(None)

    threading.Thread(target=read, name="pip reader", daemon=True).start()
    while True:
        try:
            line = said.get(timeout=_LOOK_SECONDS)
        except queue.Empty:
            yield None
            continue
        if line is None:
            return
        yield line


def _size(folder: Path) -> int:
    """Bytes of the files in it, some of which may go at any moment."""
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            size += path.stat().st_size if path.is_file() else 0
    return size


def _end(process: subprocess.Popen[str]) -> None:
    """Its children, too: with --python, pip works in one."""
    found: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        found = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    for each in found:
        with contextlib.suppress(psutil.Error):
            each.kill()
    psutil.wait_procs(found, timeout=10)  # what they write to is about to be deleted


def _packages(place: Path) -> list[Path]:
    return [*place.glob("lib/*/site-packages"), place / "Lib" / "site-packages"]


def _found(place: Path, name: str) -> importlib.metadata.Distribution | None:
    return next(iter(importlib.metadata.distributions(name=name, path=list(map(str, _packages(place))))), None)


def _installed(place: Path, name: str) -> bool:
    found = _found(place, name)
    return found is not None and _whole(found)


def _whole(found: importlib.metadata.Distribution) -> bool:
    """Installed to its end: pip writes these two last, its own list of files over the wheel's."""
    return found.read_text("INSTALLER") is not None and found.read_text("RECORD") is not None


def _needs(place: Path, name: str) -> list[str]:
    """What it asks for, with the conditions, which pip knows to read."""
    found = _found(place, name)
    return [] if found is None else list(found.requires or [])
