"""The round trip that the documents show is one that runs."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.engines import Live, serving

PAGE = (Path(__file__).parents[2] / "docs" / "tools.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pocket(pocket_dir: Path) -> Iterator[Live]:
    from edge.runtime.engine import Engine
    from edge.runtime.settings import Settings

    with serving(Engine.load(pocket_dir, Settings("CPU", context=2048))) as live:
        yield live


@pytest.mark.model
def test_the_round_trip_runs_as_shown(pocket: Live) -> None:
    (script,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert script.count("http://127.0.0.1:8000") == 1
    script = script.replace("http://127.0.0.1:8000", pocket.address)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    called, answered, counted = done.stdout.splitlines()[0], done.stdout, done.stdout.splitlines()[-1]
    assert re.fullmatch(r"tool_calls get_weather \{'city': '(Paris|Rome)', 'unit': '[CF]'\}", called)
    assert "stop " in answered or "length " in answered
    assert re.fullmatch(r"\d+ \d+", counted)
