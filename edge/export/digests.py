"""SHA-256 of the checkpoint's files, taken while the export needs them anyway.

The thread reads each file from front to back, as disks like it, a little ahead of the export, which then finds its
tensors in the system's file cache: the disk is read once, and the digest costs no time of its own.
"""

from __future__ import annotations

import hashlib
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import psutil

_PIECE = 1 << 22
_AHEAD = 2_000_000_000


class Digests:
    """A context in which the digests of `paths` are being made.

    Args:
        ahead: bytes that may be read before the export has said that it is done with as many; the file cache has
            to hold them. Left out, a quarter of the memory that is free now, or 2 GB.
    """

    def __init__(self, paths: Iterable[Path], *, ahead: int | None = None) -> None:
        self._paths = list(paths)
        self._limit = min(psutil.virtual_memory().available // 4, _AHEAD) if ahead is None else ahead
        self._read = 0
        self._changed = threading.Condition()
        self._stopped = False
        self._error: OSError | None = None
        self._found: dict[str, str] = {}
        self._thread = threading.Thread(target=self._run, name="digests", daemon=True)

    def __enter__(self) -> Digests:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def done_with(self, count: int) -> None:
        """The export will not ask again for this many bytes."""
        with self._changed:
            self._limit += count
            self._changed.notify()

    def result(self) -> dict[str, str]:
        """The digests by file name, as soon as all are made.

        Raises:
            OSError: a file could not be read.
        """
        self.done_with(sys.maxsize)
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._found

    def _run(self) -> None:
        try:
            for path in self._paths:
                digest = hashlib.sha256()
                with path.open("rb") as file:
                    while piece := file.read(_PIECE):
                        digest.update(piece)
                        self._read += len(piece)
                        with self._changed:
                            self._changed.wait_for(lambda: self._stopped or self._read <= self._limit)
                            if self._stopped:
                                return
                self._found[path.name] = digest.hexdigest()
        except OSError as error:
            self._error = error
