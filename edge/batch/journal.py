"""The answers of a batch that is not done: kept beside its output as they come, and gone on with after a kill.

`.OUT.partial` has a first line that says what was begun, then a line for each answer, written to the disk before the
next. A last line that a kill has torn is cut off. When all are there, they are put in order under the output's name.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

from edge.errors import OutputError, UsageError

FORMAT = "glm4-edge batch 1"


class Journal:
    """Opened with `take_up`; a context manager that closes its file."""

    def __init__(self, path: Path, file: BinaryIO, places: dict[int, tuple[int, int]]) -> None:
        self.path = path
        self._file = file
        self._places = places

    @classmethod
    def take_up(cls, out: Path, begun: Mapping[str, Any]) -> Journal:
        """Go on with what is there, or begin.

        Args:
            out: the output; what is not done lies beside it.
            begun: what makes two batches the same: input, model, settings.

        Raises:
            UsageError: what is there was begun with something else.
            OutputError: the file cannot be written.
        """
        path = partial(out)
        try:
            check(out, begun)
            file = path.open("r+b" if path.exists() else "w+b")
        except OSError as error:
            raise _unwritable(path, error) from error
        journal = cls(path, file, {})
        try:
            journal._read()
            if not journal.done:
                file.truncate(0)
                journal._put({"format": FORMAT, **begun})
        except BaseException:
            file.close()
            raise
        return journal

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if not self._places:  # nothing to go on with
            self.path.unlink(missing_ok=True)

    @property
    def done(self) -> frozenset[int]:
        """Numbers of the lines that have their answer."""
        return frozenset(self._places)

    def add(self, number: int, record: Mapping[str, Any]) -> None:
        """Keep the answer to a line; when this returns, it is on the disk.

        Raises:
            OutputError: it cannot be written.
        """
        self._places[number] = self._put({"line": number, "record": record})

    def record(self, number: int) -> dict[str, Any]:
        """The answer to a line that is done."""
        begin, size = self._places[number]
        self._file.seek(begin)
        record: dict[str, Any] = json.loads(self._file.read(size))["record"]
        return record

    def finish(self, out: Path, numbers: Iterable[int]) -> None:
        """Write the answers to `out`, whole or not at all, in the order of `numbers`; then the journal goes.

        Raises:
            OutputError: it cannot be written; the journal stays.
        """
        beside = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
        try:
            try:
                with beside.open("wb") as file:
                    for number in numbers:
                        file.write(encoded(self.record(number)))
                    file.flush()
                    os.fsync(file.fileno())
                beside.replace(out)
            finally:
                beside.unlink(missing_ok=True)
            self._file.close()
            self.path.unlink()
        except OSError as error:
            raise _unwritable(out, error) from error

    def _read(self) -> None:
        """Find the answers, and cut off what is torn; a whole line that holds no answer is passed over."""
        self._file.seek(0)
        at, first = 0, True
        for line in self._file:
            entry = _entry(line)
            if not line.endswith(b"\n") or (first and entry is None):
                break
            if not first and _is_answer(entry):
                self._places[entry["line"]] = (at, len(line))
            at, first = at + len(line), False
        self._file.truncate(at)

    def _put(self, entry: Mapping[str, Any]) -> tuple[int, int]:
        line = encoded(entry)
        try:
            begin = self._file.seek(0, os.SEEK_END)
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _unwritable(self.path, error) from error
        return begin, len(line)


def partial(out: Path) -> Path:
    """Where the answers lie until all are there."""
    return out.with_name(f".{out.name}.partial")


def check(out: Path, begun: Mapping[str, Any]) -> None:
    """Refuse to go on with a batch that was begun with something else; only what `begun` names is looked at.

    Raises:
        UsageError: which it was.
    """
    path = partial(out)
    if not path.exists():
        return
    with path.open("rb") as file:
        line, first = file.readline(), file.readline()
    there = _entry(line)
    if not line.endswith(b"\n") or (there is not None and there.get("format") == FORMAT and _entry(first) is None):
        return  # it ended before there was an answer
    if there is None or there.get("format") != FORMAT:
        raise UsageError(
            f"{path} is no batch of this version that was begun", hint=f"Delete {path}, or name another output."
        )
    for name, value in begun.items():
        if there.get(name) != value:
            raise UsageError(
                f"{path} was begun with another {name}{_difference(there.get(name), value)}",
                hint=f"Take the same again to go on with it, delete {path} to begin anew, or name another output.",
            )


def encoded(record: Mapping[str, Any]) -> bytes:
    """One line of JSON. Halves of characters, which UTF-8 does not have, are written as escapes."""
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(record).encode() + b"\n"


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def _is_answer(entry: dict[str, Any] | None) -> TypeGuard[dict[str, Any]]:
    record = None if entry is None else entry.get("record")
    if entry is None or not isinstance(entry.get("line"), int) or not isinstance(record, dict):
        return False
    failed, response = record.get("error"), record.get("response")
    told = isinstance(failed, dict) or (isinstance(response, dict) and {"status_code", "body"} <= response.keys())
    return told and "custom_id" in record


def _difference(there: Any, value: Any) -> str:
    """The first option that is not the same."""
    if not (isinstance(there, dict) and isinstance(value, dict)):
        return ""
    name = next((name for name in {**value, **there} if there.get(name) != value.get(name)), "")
    return f": {name} was {json.dumps(there.get(name))} and is {json.dumps(value.get(name))}"


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path} cannot be written ({error.strerror or error})",
        hint="Free some space, or look at the folder's permissions; the same command then goes on.",
    )
