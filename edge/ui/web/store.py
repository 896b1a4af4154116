"""Conversations on disk, one JSON file each: any number of tabs and programs may be at them at once.

A change is made to what the file says now, not to what a tab remembers, under a lock that programs share; so nothing
that another has written is lost. Files are written beside and renamed into place. One that cannot be read is put aside
and told of.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import platformdirs
from filelock import FileLock, Timeout
from pydantic import ValidationError

from edge.errors import OutputError, UsageError
from edge.files import HOME_VARIABLE, home, write_text
from edge.ui.web.talk import Settings, Talk

_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{8}")
_LOCK_SECONDS = 20.0
_Result = TypeVar("_Result")


def default_folder() -> Path:
    """Where conversations are kept: the user's data, not the cache; GLM4_EDGE_HOME has both."""
    if os.environ.get(HOME_VARIABLE):
        return home() / "conversations"
    return platformdirs.user_data_path("glm4-edge", appauthor=False) / "conversations"


class ChangedError(UsageError):
    """A tab wanted to change what it no longer shows rightly."""


@dataclass(frozen=True)
class Entry:
    """A line of the list."""

    id: str
    title: str
    changed: float
    turns: int


class Store:
    """The conversations in one folder. Safe from any thread, and beside other programs.

    Args:
        say: takes one line for each file that had to be put aside.
    """

    def __init__(self, folder: Path, say: Callable[[str], None] = lambda line: None) -> None:
        self.folder = folder
        self._say = say
        self._lock = threading.RLock()
        self._known: dict[str, tuple[tuple[int, int], Talk]] = {}  # id → (time and size of the file, what it says)

    def new(self, settings: Settings | None = None) -> Talk:
        """A conversation that is not kept before something changes it."""
        name = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"
        return Talk(id=name, settings=(settings or Settings()).model_copy(deep=True))

    def get(self, name: str) -> Talk:
        """What is kept of a conversation now.

        Raises:
            UsageError: there is none of this name, or its file was damaged.
        """
        with self._lock:
            talk = self._read(name)
        if talk is None:
            raise _gone(name)
        return talk.model_copy(deep=True)

    def change(
        self,
        name: str,
        what: Callable[[Talk], _Result],
        *,
        seen: int | None = None,
        new: Talk | None = None,
        touch: bool = True,
    ) -> tuple[Talk, _Result]:
        """Have `what` change the conversation as it is now, and keep it; both come back.

        Args:
            seen: the revision that the change was decided on; None: it is right on any.
            new: what to begin with where nothing is kept yet.
            touch: move it to the top of the list.

        Raises:
            ChangedError: another has changed it since `seen`.
            UsageError: it is gone.
            OutputError: it cannot be written.
        """
        with self._alone():
            talk = self._read(name)
            talk = talk.model_copy(deep=True) if talk is not None else new and new.model_copy(deep=True)
            if talk is None:
                raise _gone(name)
            if seen is not None and seen != talk.revision:
                raise ChangedError(
                    "this conversation was changed in another tab", hint="It is shown as it is now; do it again."
                )
            result = what(talk)
            talk.revision += 1
            if touch:
                talk.changed = time.time()
            self._write(talk)
        return talk.model_copy(deep=True), result

    def delete(self, name: str) -> None:
        """Delete a conversation; one that is gone already stays so.

        Raises:
            OutputError: it cannot be deleted.
        """
        with self._alone():
            try:
                self._path(name).unlink(missing_ok=True)
            except OSError as error:
                raise OutputError(
                    f"{self._path(name)} cannot be deleted ({error.strerror or error})",
                    hint="Close programs that have it open.",
                ) from error
            self._known.pop(name, None)

    def entries(self, words: str = "") -> list[Entry]:
        """The conversations that hold all of the words, the last changed first."""
        found = []
        with self._lock:
            for path in self._files():
                talk = self._read(path.stem)
                if talk is not None and talk.turns and talk.holds(words):
                    found.append(Entry(talk.id, talk.title, talk.changed, len(talk.turns)))
        return sorted(found, key=lambda entry: entry.changed, reverse=True)

    def _files(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return [path for path in self.folder.glob("*.json") if _ID.fullmatch(path.stem)]

    def _path(self, name: str) -> Path:
        if not _ID.fullmatch(name):  # it comes from a browser, and becomes a file's name
            raise _gone(name)
        return self.folder / f"{name}.json"

    def _read(self, name: str) -> Talk | None:
        path = self._path(name)
        try:
            status = path.stat()
            stamp = status.st_mtime_ns, status.st_size
            known = self._known.get(name)
            if known is not None and known[0] == stamp:
                return known[1]
            talk = Talk.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            self._known.pop(name, None)
            return None
        except OSError as error:
            raise OutputError(
                f"{path} cannot be read ({error.strerror or error})", hint="Mend its permissions."
            ) from error
        except ValidationError as error:
            self._put_aside(path, error)
            return None
        if talk.id != name:  # copied by hand under another name: that is what it is called now
            talk.id = name
        self._known[name] = stamp, talk
        return talk

    def _write(self, talk: Talk) -> None:
        path = self._path(talk.id)
        write_text(path, talk.model_dump_json(indent=1, exclude_defaults=False) + "\n")
        status = path.stat()
        self._known[talk.id] = (status.st_mtime_ns, status.st_size), talk

    def _put_aside(self, path: Path, error: ValidationError) -> None:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        aside = path.with_name(f"{path.name}.damaged-{secrets.token_hex(3)}")
        self._known.pop(path.stem, None)
        why = f"{where + ': ' if where else ''}{fault['msg']}"
        try:
            path.replace(aside)
            self._say(f"A conversation could not be read ({why}). It was put aside, whole, as {aside}.")
        except OSError:
            self._say(f"The conversation {path} cannot be read ({why}).")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else changes anything meanwhile, in this program or another."""
        with self._lock:
            path = self.folder / "conversations.lock"
            lock = FileLock(path)
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                lock.acquire(timeout=_LOCK_SECONDS)
            except Timeout:
                raise OutputError(
                    f"{path} is held by another program", hint="End the other glm4-edge that hangs."
                ) from None
            except OSError as error:
                raise OutputError(
                    f"{self.folder} cannot be written ({error.strerror or error})",
                    hint=f"Mend its permissions, or name another folder with {HOME_VARIABLE}.",
                ) from error
            try:
                yield
            finally:
                lock.release()


def _gone(name: str) -> UsageError:
    return UsageError(f"there is no conversation {name[:40]!r} any more", hint="Choose another, or begin a new one.")
