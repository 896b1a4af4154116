"""The benchmark of the reference, on a tiny model on the CPU: what it writes, and what it does when a road fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from benchmarks import reference_cuda, reference_gpu, synthetic

TINY = {"vocab_size": 320, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": None}  # fmt: skip


def run(out: Path, *more: str) -> dict[str, Any]:
    words = ["--stage", "gpu", "--model", "tiny", "--device", "cpu", "--prompt", "9", "--answer", "6", "--no-static"]
    reference_cuda.main([*words, "--repeats", "2", "--out", str(out), *more])
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


@pytest.fixture(autouse=True)
def tiny_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(synthetic.SHAPES, "tiny", TINY)
    monkeypatch.setattr(synthetic, "_TILE", 1 << 16)


def test_roads_are_measured_beside_eager(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    found = run(out, "--roads", "nothing compiled, sdpa")["gpu"]["tiny"]
    roads = found["roads"]
    assert set(roads) == {reference_gpu.EAGER, "nothing compiled, sdpa"}
    for road in roads.values():
        assert len(road["tokens"]) == 6 and len(road["samples"]) == 2
        assert road["decode_tokens_per_s"] > 0 and road["ttft_s"] > 0
    assert "| nothing compiled, sdpa |" in out.with_suffix(".md").read_text(encoding="utf-8")
    assert found["settings"]["answer"] == 6 and str(tmp_path) not in out.read_text(encoding="utf-8")


def test_a_road_that_fails_says_why_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(reference_gpu.ROADS, "broken", {"attention": "flex", "compiled": "none of these"})
    from edge.runtime import greedy

    monkeypatch.setattr(greedy._FixedAttention, "_one", lambda *_: 1 / 0)
    out = tmp_path / "result.json"
    roads = run(out, "--roads", "broken; nothing compiled, sdpa")["gpu"]["tiny"]["roads"]
    assert roads["broken"]["failure"].startswith("ZeroDivisionError")
    assert "did not run: ZeroDivisionError" in out.with_suffix(".md").read_text(encoding="utf-8")
    assert roads[reference_gpu.EAGER]["decode_tokens_per_s"] > 0


def test_no_road_is_begun_after_the_time(tmp_path: Path) -> None:
    roads = run(tmp_path / "result.json", "--minutes", "0")["gpu"]["tiny"]["roads"]
    assert all(road["failure"] == "not begun: 0.0 minutes were over" for road in roads.values())


def test_stages_and_models_stand_beside_each_other(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    out.write_text(json.dumps({"gpu": {"pocket": {"settings": {"prompt": 1, "answer": 1, "repeats": 1},
                                                  "versions": {}}}}))  # fmt: skip
    assert set(run(out, "--roads", "nothing compiled, sdpa")["gpu"]) == {"pocket", "tiny"}
