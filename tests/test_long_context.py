"""What the benchmark of long conversations counts, and that GenAI takes every option it compares."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import long_context, long_report
from edge.runtime import plan as plans

ROOT = Path(__file__).parents[1]


def test_what_two_answers_have_in_common() -> None:
    assert long_context._same([1, 2, 3], [1, 2, 4]) == 2
    assert long_context._same([1, 2, 3], [1, 2, 3]) == 3
    assert long_context._same([1], [2]) == 0


def test_going_round_in_circles() -> None:
    assert long_context._repetition(list(range(50))) == 0
    assert long_context._repetition([1, 2, 3, 4] * 20) == pytest.approx(1 - 4 / 77, abs=1e-4)


def test_perplexity_by_places(tmp_path: Path) -> None:
    base = np.full(3001, -1.0, np.float32)
    other = base.copy()
    other[2049:] = -2.0  # the first is no prediction
    np.save(tmp_path / "a.npy", base)
    np.save(tmp_path / "b.npy", other)
    first, second = long_context._compared([{"log_probs": "a.npy"}, {"log_probs": "b.npy"}], tmp_path)
    assert first["mean_difference"] == 0 and first["perplexity_all"] == pytest.approx(np.e, abs=1e-4)
    assert second["perplexity"] == pytest.approx({"0-2048": np.e, "2048-3000": np.e**2}, abs=1e-4)
    assert second["mean_difference"] == pytest.approx(952 / 3000, abs=1e-5)


def test_the_kept_results_are_in_the_kept_tables() -> None:
    """The Markdown beside the JSON is made from it."""
    kept = ROOT / "benchmarks" / "results" / "long_context.json"
    whole = json.loads(kept.read_text(encoding="utf-8"))
    assert set(whole["stages"]) == set(long_context.STAGES)
    assert long_report.report(whole) == kept.with_suffix(".md").read_text(encoding="utf-8")
    for row in whole["stages"]["memory"]["rows"]:
        assert not row["return_freed"] or abs(row["plan_off"]) < 0.1


OPTIONS: dict[str, dict[str, Any]] = {
    "all": {},
    "trishape": {"sparse": "trishape"},
    "xattention": {"sparse": "xattention"},
    "eviction": {"evict_beyond": 256},
}


@pytest.mark.model
@pytest.mark.heavy
def test_options_work_with_our_model(pocket_dir: Path, tmp_path: Path) -> None:
    """Sparse attention and eviction run, and do what is said: prompts read as without, or nearly, and less kept."""
    rng = random.Random(0)
    text = tmp_path / "text"
    text.write_text(" ".join("".join(rng.choices("abcdefghij", k=rng.randint(2, 7))) for _ in range(4000)))
    found = {}
    for name, options in OPTIONS.items():
        spec = {
            "folder": str(pocket_dir), "text": str(text), "properties": {"INFERENCE_PRECISION_HINT": "f32"},
            "scheduler": plans.scheduler("CPU", 40, **options),
            "jobs": [{"start": 0, "tokens": 900, "new": 8, "echo": True, "log_probs": str(tmp_path / name)}],
        }  # fmt: skip
        command = [sys.executable, "-m", "benchmarks.long_run", json.dumps(spec)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        found[name] = json.loads(done.stdout.splitlines()[-1])["jobs"][0]
        assert found[name]["status"] == "FINISHED" and len(found[name]["new_tokens"]) == 8
    scores = {name: np.load(tmp_path / f"{name}.npy").mean() for name in OPTIONS}
    assert scores["eviction"] == scores["all"]  # it forgets after the prompt
    assert found["eviction"]["kv_used_at_end_bytes"] < 0.5 * found["all"]["kv_used_at_end_bytes"]
    assert found["eviction"]["kv_used_bytes"] == pytest.approx(found["all"]["kv_used_bytes"], rel=0.05)
    assert abs(scores["xattention"] - scores["all"]) < 0.3
    assert abs(scores["trishape"] - scores["all"]) < 0.1
