"""Where things are kept, and writing them so that a reader sees the old state or the new one."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from edge.errors import OutputError

HOME_VARIABLE = "GLM4_EDGE_HOME"


def home() -> Path:
    """The folder for downloads and for models exported by name; GLM4_EDGE_HOME overrides it."""
    override = os.environ.get(HOME_VARIABLE)
    return Path(override).expanduser() if override else platformdirs.user_cache_path("glm4-edge", appauthor=False)


def check_room(folder: Path, needed_bytes: int, purpose: str) -> None:
    """Refuse, before work starts, what the disk under `folder` cannot hold.

    Raises:
        OutputError: less than `needed_bytes` free.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise OutputError(
            f"{purpose} needs {needed_bytes / 1e9:.2f} GB at {existing}, where {free / 1e9:.2f} GB are free",
            hint=f"Free some space, name a folder on another disk, or set {HOME_VARIABLE} to one.",
        )


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Build a folder beside `target`; it takes the name only if the block ends well.

    A folder that stood there is put aside during the swap and then deleted. Whatever ends the block
    early, Ctrl-C included, leaves `target` as it was and nothing beside it.

    Raises:
        OutputError: the place cannot be written, or the disk filled up.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    except OSError as error:
        raise _unwritable(target, error) from error
    try:
        yield work
        work.chmod(0o755)  # mkdtemp made it private
        _swap(work, target)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a reader never sees half of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # mkstemp's would be readable by us alone
        try:
            beside.write_text(text, encoding="utf-8", newline="\n")
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def _swap(work: Path, target: Path) -> None:
    aside = None
    if target.exists():
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
        target.rename(aside / "old")
    try:
        work.rename(target)
    except OSError:
        if aside is not None:
            (aside / "old").rename(target)
            aside.rmdir()
        raise
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)


def _unwritable(target: Path, error: OSError) -> OutputError:
    if error.errno == errno.ENOSPC:
        return OutputError(
            f"the disk filled up while writing {target}",
            hint="Nothing was kept; free some space or name a folder on another disk.",
        )
    return OutputError(
        f"{target} cannot be written ({error.strerror or error})",
        hint="Choose a folder you may write to, and close programs that have files open there.",
    )
