"""What a log hears of a long job."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import time

import pytest

from edge import report


def test_a_log_hears_of_a_long_stage_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("edge.report.time.monotonic", lambda: now)
    with report.progress_lines() as progress:
        for percent in range(101):
            now += 3.0
            progress("fetching a (1.00 GB)", percent * 10**7, 10**9)
        progress("reading", 0, 0)
        progress("reading", 0, 0)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "fetching a (1.00 GB) …" and lines[-1] == "reading …"
    left = {percent: f", about {3 * (100 - percent)} s left" for percent in range(10, 100, 10)}
    assert lines[1:-1] == [
        f"fetching a (1.00 GB) … {percent} %, {3 * percent} s{left.get(percent, '')}" for percent in range(10, 101, 10)
    ]


def test_a_log_says_how_far_a_stage_is_that_goes_on_from_another(capsys: pytest.CaptureFixture[str]) -> None:
    with report.progress_lines() as progress:
        for done in range(4):
            progress(f"round {done + 1} of 4", done, 4)
    rounds = capsys.readouterr().err.splitlines()
    assert rounds == ["round 1 of 4 …", "round 2 of 4 … 25 %", "round 3 of 4 … 50 %", "round 4 of 4 … 75 %"]


def test_requests_are_counted(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("edge.report.time.monotonic", lambda: now)
    with report.progress_lines(counted=True) as progress:
        for done in range(0, 1201, 300):
            progress("Answering 1,200 requests", done, 1200)
            now += 20.0
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == "Answering 1,200 requests … 300 of 1,200, 20 s, about 60 s left"
    assert lines[-1] == "Answering 1,200 requests … 1,200 of 1,200, 80 s"


def test_a_sign_of_life_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    heard = io.StringIO()
    monkeypatch.setattr(sys, "stderr", heard)
    monkeypatch.setattr("edge.report.time.monotonic", lambda: now)
    monkeypatch.setattr(report, "_BEAT_SECONDS", 0.01)
    begin = time.perf_counter()
    with report.progress_lines() as progress:
        progress("reading one token after the other", 0, 64)
        progress("reading one token after the other", 16, 64)
        now = 10.0
        while heard.getvalue().count("\n") < 2 and time.perf_counter() < begin + 60:
            time.sleep(0.01)
    assert heard.getvalue().splitlines()[1:] == ["reading one token after the other … 25 %, 10 s, about 30 s left"]


def test_a_log_shows_life_in_a_long_stage(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_SILENCE_SECONDS", 0.2)
    monkeypatch.setattr(report, "_BEAT_SECONDS", 0.01)
    with report.progress_lines() as progress:
        progress("rehearsing the NPU", 0, 0)
        time.sleep(2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "rehearsing the NPU …" and set(lines[1:]) <= {f"rehearsing the NPU … {s} s" for s in range(3)}
    assert 2 <= len(lines[1:]) <= 4, "at 0.2, 0.6 and 1.4 seconds: ever rarer"


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX")
def test_the_clock_of_a_stage_that_is_over_stands_still() -> None:
    """Also of one that another was interrupted for."""
    import pty
    import re

    script = (
        "import time\nfrom edge.report import progress_lines\n"
        "with progress_lines() as progress:\n"
        "    progress('compressing', 0, 2)\n    progress('choosing', 1, 2)\n    time.sleep(0.3)\n"
        "    for done in (1, 2):\n        progress('compressing', done, 2)\n        time.sleep(1.2)\n"
    )
    ours, theirs = pty.openpty()
    child = subprocess.Popen([sys.executable, "-c", script], stderr=theirs, env=os.environ | {"COLUMNS": "100"})
    os.close(theirs)
    told = b""
    with contextlib.suppress(OSError):  # what a closed pseudo-terminal says on Linux
        while piece := os.read(ours, 4096):
            told += piece
    os.close(ours)
    assert child.wait(timeout=60) == 0
    times = dict(re.findall(r"(compressing|choosing) [^\n]*?(\d:\d\d:\d\d)", told.decode()))
    assert times == {"compressing": "0:00:02", "choosing": "0:00:00"}


def test_a_log_is_not_flooded_by_a_fast_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with report.progress_lines() as progress:
        for done in range(101):
            progress("compressing", done, 100)
    assert capsys.readouterr().err == "compressing …\n"
