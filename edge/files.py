"""Where things are kept, and writing them so that a reader sees the old state or the new one."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

from edge.errors import ModelError, OutputError

HOME_VARIABLE = "GLM4_EDGE_HOME"
PARTIAL_KEY = "partial.json"
"""Lies in an unfinished folder and says of what."""


def home() -> Path:
    """The folder for downloads and for models exported by name; GLM4_EDGE_HOME overrides it."""
    override = os.environ.get(HOME_VARIABLE)
    return Path(override).expanduser() if override else platformdirs.user_cache_path("glm4-edge", appauthor=False)


def check_room(folder: Path, needed_bytes: int, purpose: str, variable: str = HOME_VARIABLE) -> None:
    """Refuse, before work starts, what the disk under `folder` cannot hold; `variable` would move it.

    Raises:
        OutputError: less than `needed_bytes` free.
    """
    existing = existing_part(folder)
    free = shutil.disk_usage(existing).free
    if not free and not shutil.disk_usage(existing).total:
        raise OutputError(f"{folder} cannot be written ({existing} is on no disk)", hint="Name a folder on a disk.")
    if free < needed_bytes:
        raise OutputError(
            f"{purpose} needs {needed_bytes / 1e9:.2f} GB at {existing}, where {free / 1e9:.2f} GB are free",
            hint=f"Free some space, name a folder on another disk, or set {variable} to one.",
        )


def check_readable(path: Path) -> None:
    """Tell a file that this account may not read from one that is damaged.

    Raises:
        ModelError: it may not be read.
    """
    if not os.access(path, os.R_OK):
        raise ModelError(
            f"{path} may not be read by this account",
            hint="Ask its owner for the right to read it: nothing needs to be exported again.",
        )


def existing_part(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists: it lies on the same disk."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def check_place(target: Path) -> None:
    """Refuse a place where no folder can be put.

    Raises:
        OutputError: it is the folder one is in, or around it, or may not be written.
    """
    target = target.expanduser().resolve()
    if target == Path.cwd() or target in Path.cwd().parents:
        raise OutputError(
            f"{target} is the folder you are in, or one around it", hint="Name a folder that does not exist yet."
        )
    above = existing_part(target.parent)
    if not os.access(above, os.W_OK):
        raise _unwritable(target, PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(above)))


@contextlib.contextmanager
def new_folder(
    target: Path, *, key: str | None = None, may_replace: Callable[[Path], None] = lambda target: None
) -> Iterator[Path]:
    """Build a folder beside `target`; it takes the name only if the block ends well.

    A folder that stood there is put aside during the swap and then deleted. Whatever ends the block early
    leaves `target` as it was and nothing beside it, with two exceptions: a killed process cannot clean
    up, and with a `key` neither Ctrl-C nor a full disk does. What they leave, `.NAME.partial`, is taken up
    again by the next block with the same target and key, and deleted by one with another.

    Args:
        may_replace: called before the work and again before the swap; raises if what stands at `target`
            is not to be replaced.

    Raises:
        OutputError: the place cannot be written, the disk filled up, or another process is at it.
    """
    check_place(target)
    target = target.expanduser().resolve()
    work, aside = (target.with_name(f".{target.name}.{ending}") for ending in ("partial", "old"))
    with alone(target):
        keep = False
        try:
            if aside.exists() and not target.exists():  # a process was killed between two renames
                aside.rename(target)
            may_replace(target)
            _take_up(work, key)
            yield work
            (work / PARTIAL_KEY).unlink(missing_ok=True)
            may_replace(target)
            _swap(work, target, aside)
        except (KeyboardInterrupt, SystemExit):
            keep = key is not None
            raise
        except OSError as error:
            keep = key is not None
            if error.errno != errno.ENOSPC and not _is_about(error, target.parent):
                raise
            raise _unwritable(target, error) from error
        finally:
            if not keep:
                _discard(work)


@contextlib.contextmanager
def alone(target: Path, wait_seconds: float = 0) -> Iterator[None]:
    """Hold a lock on `target`'s name; it lies in the cache, and a killed process holds it no longer.

    Raises:
        OutputError: another process holds it, for longer than is to be waited; or the place cannot be written.
    """
    name = hashlib.sha256(str(target).encode()).hexdigest()[:16]
    lock = FileLock(home() / "locks" / f"{name}.lock")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=wait_seconds)
    except Timeout:
        raise OutputError(
            f"another process is writing {target}", hint="Wait until it is done, or name another folder."
        ) from None
    except OSError as error:
        raise _unwritable(target, error) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows does not delete what is open
            Path(lock.lock_file).unlink()
        lock.release()


def _take_up(work: Path, key: str | None) -> None:
    """Leave `work` there if it was begun with the same key, else empty."""
    path = work / PARTIAL_KEY
    if key is None or not path.is_file() or path.read_text(encoding="utf-8") != key:
        _discard(work)
        work.mkdir()
        if key is not None:
            path.write_text(key, encoding="utf-8")


def _discard(work: Path) -> None:
    """Delete `work`, its key first: killed on the way, what is left of it is not taken up."""
    (work / PARTIAL_KEY).unlink(missing_ok=True)
    delete(work)


def delete(folder: Path) -> None:
    """Delete a folder and all that is in it, as far as that can be: what another program holds open may stay.

    Windows refuses to delete a file that may not be written, and OpenVINO leaves what it compiled so.
    """

    def again(remove: Callable[..., object], path: str, _: object) -> None:
        with contextlib.suppress(OSError):
            Path(path).chmod(stat.S_IRWXU)
            remove(path)

    with contextlib.suppress(OSError):
        if sys.version_info >= (3, 12):
            shutil.rmtree(folder, onexc=again)
        else:
            shutil.rmtree(folder, onerror=again)


def as_others(path: Path) -> None:
    """Give a file the permissions that new files get here; safetensors writes through one that is ours alone."""
    if os.name == "nt":
        return
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    beside.touch()  # the umask can be read only by changing it, for all threads
    try:
        path.chmod(stat.S_IMODE(beside.stat().st_mode))
    finally:
        beside.unlink()


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


def _swap(work: Path, target: Path, aside: Path) -> None:
    delete(aside)
    try:
        if target.exists():
            target.rename(aside)
        work.rename(target)
    except BaseException:  # Ctrl-C, too, must find the old state
        if aside.exists() and not target.exists():
            aside.rename(target)
        raise
    delete(aside)


def _is_about(error: OSError, folder: Path) -> bool:
    """Whether the error names something in `folder`, or nothing at all."""
    return error.filename is None or Path(str(error.filename)).absolute().is_relative_to(folder)


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
