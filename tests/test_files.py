"""Folders and files take their name whole or not at all."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from edge import files
from edge.errors import OutputError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_folder_appears_at_the_end(tmp_path: Path) -> None:
    with files.new_folder(tmp_path / "out") as work:
        (work / "a").write_text("1")
        assert not (tmp_path / "out").exists()
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["a"]


def test_an_old_folder_is_replaced_only_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with files.new_folder(tmp_path / "out") as work:
        (work / "new").touch()
        assert names(tmp_path / "out") == ["old"]
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["new"]


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(files.HOME_VARIABLE, str(tmp_path_factory.mktemp("home")))


def test_what_an_interrupted_block_leaves_is_taken_up_by_the_same_key(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), files.new_folder(tmp_path / "out", key="a") as work:
        (work / "done").touch()
        raise KeyboardInterrupt
    assert names(tmp_path) == [".out.partial"]
    with files.new_folder(tmp_path / "out", key="a") as work:
        assert (work / "done").exists()
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["done"]


@pytest.mark.parametrize("key", ["b", None])
def test_what_an_interrupted_block_leaves_is_deleted_by_another(tmp_path: Path, key: str | None) -> None:
    with pytest.raises(KeyboardInterrupt), files.new_folder(tmp_path / "out", key="a") as work:
        (work / "done").touch()
        raise KeyboardInterrupt
    with files.new_folder(tmp_path / "out", key=key) as work:
        assert not (work / "done").exists()
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == []


def test_a_fault_is_not_an_interruption(tmp_path: Path) -> None:
    with pytest.raises(ValueError), files.new_folder(tmp_path / "out", key="a") as work:
        (work / "done").touch()
        raise ValueError
    assert names(tmp_path) == []


def test_two_at_once_are_told_apart(tmp_path: Path) -> None:
    with files.new_folder(tmp_path / "out"):
        with pytest.raises(OutputError, match="another process is writing"), files.new_folder(tmp_path / "out"):
            pass
        with files.new_folder(tmp_path / "other"):
            pass
    assert names(tmp_path) == ["other", "out"]


@pytest.mark.parametrize("fault", [KeyboardInterrupt, ValueError, OSError(28, "No space left on device")])
def test_a_fault_leaves_the_old_state(tmp_path: Path, fault: BaseException) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with pytest.raises((KeyboardInterrupt, ValueError, OutputError)), files.new_folder(tmp_path / "out") as work:
        (work / "half").touch()
        raise fault
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["old"]


@pytest.mark.parametrize("which", ["old one aside", "new one in"])
@pytest.mark.parametrize("fault", [PermissionError(13, "open elsewhere"), KeyboardInterrupt()], ids=["fault", "Ctrl-C"])
def test_a_swap_that_fails_puts_the_old_folder_back(
    which: str, fault: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name == ("out" if which == "old one aside" else ".out.partial"):
            raise fault
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises((OutputError, KeyboardInterrupt)), files.new_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["old"]


def test_what_a_kill_between_the_renames_hid_comes_back(tmp_path: Path) -> None:
    (tmp_path / ".out.old").mkdir()
    (tmp_path / ".out.old" / "old").touch()
    with pytest.raises(ValueError), files.new_folder(tmp_path / "out"):
        assert names(tmp_path / "out") == ["old"]
        raise ValueError
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["old"]


def test_what_came_meanwhile_is_not_replaced_unasked(tmp_path: Path) -> None:
    def empty_only(target: Path) -> None:
        if target.exists() and any(target.iterdir()):
            raise OutputError("not ours", hint="Name another.")

    with pytest.raises(OutputError, match="not ours"), files.new_folder(tmp_path / "out", may_replace=empty_only):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis").touch()
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["thesis"]


def test_a_fault_with_a_file_elsewhere_is_not_blamed_on_the_target(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), files.new_folder(tmp_path / "here" / "out"):
        (tmp_path / "elsewhere").read_text()


def test_two_spellings_are_one_folder(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with (
        files.new_folder(tmp_path / "out"),
        pytest.raises(OutputError, match="another process is writing"),
        files.new_folder(tmp_path / "x" / ".." / "out"),
    ):
        pass


def test_the_folder_one_is_in_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="is the folder you are in"), files.new_folder(Path()):
        pass


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"), files.new_folder(tmp_path / "file" / "out"):
        pass


def test_room_is_checked_where_the_folder_will_be(tmp_path: Path) -> None:
    files.check_room(tmp_path / "not" / "yet", 1, "a test")
    with pytest.raises(OutputError, match=r"a test needs 1000000000\.00 GB"):
        files.check_room(tmp_path / "not" / "yet", 10**18, "a test")


def test_home_follows_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(files.HOME_VARIABLE, str(tmp_path))
    assert files.home() == tmp_path
    monkeypatch.delenv(files.HOME_VARIABLE)
    assert files.home().name == "glm4-edge"


def test_what_may_not_be_written_is_deleted_on_windows_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out" / "deep").mkdir(parents=True)
    for name in ("deep/blob", "blob"):
        (tmp_path / "out" / name).touch()
        (tmp_path / "out" / name).chmod(stat.S_IREAD)
    if sys.platform != "win32":
        unlink = os.unlink

        def as_windows_does(path: Any, *, dir_fd: int | None = None) -> None:
            if not os.stat(path, dir_fd=dir_fd, follow_symlinks=False).st_mode & stat.S_IWRITE:
                raise PermissionError(13, "Access is denied", str(path))
            unlink(path, dir_fd=dir_fd)

        monkeypatch.setattr(os, "unlink", as_windows_does)
    files.delete(tmp_path / "out")
    assert names(tmp_path) == []


def test_deleting_what_is_not_there_or_is_held_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.delete(tmp_path / "nothing")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "held").touch()
    (tmp_path / "out" / "other").touch()
    unlink = os.unlink

    def held(path: Any, **where: Any) -> None:
        if Path(path).name == "held":
            raise PermissionError(13, "Access is denied", str(path))
        unlink(path, **where)

    monkeypatch.setattr(os, "unlink", held)
    files.delete(tmp_path / "out")
    assert names(tmp_path / "out") == ["held"]
