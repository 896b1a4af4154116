"""Standard streams that are closed, full or left by their reader."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge.cli import _run, cli
from edge.files import HOME_VARIABLE
from tests.laptops import write_model

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="streams are closed by their numbers here")
CLOSED = "import os, sys; os.close(int(sys.argv[1])); os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
OPEN = (
    "import sys\nfrom edge import cli\n"
    "cli._run = lambda argv: 5 if None in (sys.stdin, sys.stdout, sys.stderr) else 4\ncli.main()"
)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))


def run_without(stream: int, *argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CLOSED, str(stream), *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("stream", [0, 1, 2])
def test_what_is_closed_leads_nowhere(stream: int) -> None:
    assert run_without(stream, "-c", OPEN).returncode == 4


def test_a_command_needs_no_standard_output(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_model(folder)
    done = run_without(1, "-m", "edge", "plan", str(folder), "--memory", "16GB")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_nothing_is_asked_of_a_closed_standard_input(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    done = run_without(0, "-m", "edge", "chat", str(tmp_path / "model"), "--device", "CPU")
    assert done.returncode == 2 and "the input is empty" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device here")
@pytest.mark.parametrize("words", [["plan"], ["plan", "--json"], ["devices"], ["--help"]])
def test_a_full_disk_is_a_sentence(words: list[str], tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    command = [sys.executable, "-m", "edge", words[0], str(tmp_path / "model"), *words[1:]]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-2:] == [
        "Error: the output cannot be written (No space left on device).", "Look at where stdout goes."
    ]  # fmt: skip


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_is_gone_ends_it_quietly(stream: str, tmp_path: Path) -> None:
    """With a number of its own: 1 is what a canary says of a wrong device."""
    write_model(tmp_path / "model")
    words = ["devices"] if stream == "stdout" else ["plan", str(tmp_path / "model"), "--context", "999999"]
    reading, writing = os.pipe()
    os.close(reading)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: writing}
    try:
        done = subprocess.run([sys.executable, "-m", "edge", *words], timeout=60, text=True, **streams)  # type: ignore[call-overload]
    finally:
        os.close(writing)
    assert done.returncode == 141 and not done.stderr


def test_what_a_child_or_a_file_does_is_not_the_outputs(capsys: pytest.CaptureFixture[str]) -> None:
    @cli.command()
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/some/file")

    try:
        assert _run(["full"]) == 1
    finally:
        cli.commands.pop("full")
    assert "should not have happened" in capsys.readouterr().err
