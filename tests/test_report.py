"""What a log hears of a long job."""

from __future__ import annotations

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
    assert lines[1:-1] == [f"fetching a (1.00 GB) … {percent} %" for percent in range(10, 101, 10)]


def test_a_log_is_not_flooded_by_a_fast_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with report.progress_lines() as progress:
        for done in range(101):
            progress("compressing", done, 100)
    assert capsys.readouterr().err == "compressing …\n"
