"""The files' digests, and the reading ahead that is bounded."""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path

import pytest

from edge.export import digests as module
from edge.export.digests import Digests


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in ("a", "b", "empty")]
    for path, size in zip(paths, (100_000, 70_001, 0), strict=True):
        path.write_bytes(bytes(range(256)) * (size // 256) + b"x" * (size % 256))
    return paths


def test_equal_to_hashing_each_file(files: list[Path]) -> None:
    with Digests(files) as digests:
        found = digests.result()
    assert found == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_reads_no_further_ahead_than_allowed(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIECE", 1000)
    with Digests(files, ahead=120_000) as digests:
        deadline = time.monotonic() + 10
        while "a" not in digests._found and time.monotonic() < deadline:
            time.sleep(0.01)
        assert set(digests._found) == {"a"}
        assert set(digests.result()) == {"a", "b", "empty"}


def test_leaving_early_ends_the_thread(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIECE", 1000)
    with pytest.raises(KeyboardInterrupt), Digests(files, ahead=0):
        raise KeyboardInterrupt
    assert "digests" not in {thread.name for thread in threading.enumerate()}


def test_a_file_that_cannot_be_read_is_told(files: list[Path]) -> None:
    files[1].unlink()
    with Digests(files) as digests, pytest.raises(FileNotFoundError):
        digests.result()
