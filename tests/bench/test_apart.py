"""Runs with other prompts, such as the checkpoint's own, beside a benchmark."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.bench import apart
from edge.bench.case import Case, Measured, Sample
from edge.bench.record import Record
from edge.cli import _run
from edge.runtime import refstore
from tests.bench.test_show import record


def reference(path: Path, *prompts: tuple[int, float, float], answer: int = 5) -> Path:
    """Entries of so many tokens, with seconds to the first token and from there to the last."""
    rng = np.random.default_rng(0)
    entries, positions = [], []
    for place, (size, first, rest) in enumerate(prompts):
        entries.append(refstore.Entry(id=f"q{place}", language="en", prompt_tokens=size, answer_tokens=answer,
                                      ttft_s=first, decode_s=rest, unlike_forced=0))  # fmt: skip
        rows = size + answer - 1
        positions.append(refstore.Positions(
            rng.integers(0, 9, rows + 1), np.tile(np.arange(5), (rows, 1)), np.zeros((rows, 5)), np.full(rows, 2.0),
            np.full(rows, -2.0),
        ))  # fmt: skip
    about = refstore.About(
        format=1, created="2026-01-01T00:00:00+00:00",
        checkpoint=refstore.Checkpoint(model="a/checkpoint", revision=None, sha256={}, vocab_size=10, num_layers=1),
        dtype="bf16", device="cuda", top_k=5, decoding={}, versions={"torch": "2"}, entries=entries,
        machine={"cpu": "A processor", "cores": 16, "memory_bytes": 64_000_000_000, "gpu": {"name": "A card"}},
    )  # fmt: skip
    refstore.Reference(about, positions).write(path)
    return path


def run(*seconds: float, size: int = 32) -> Measured:
    samples = [
        (Case(size, 3), Sample(place, size, size, (each, each * 1.1, each * 1.2), each * 2))
        for place, each in enumerate(seconds)
    ]
    return Measured("a", "CPU", {}, {}, samples=samples)


def test_a_references_times_come_as_a_run(tmp_path: Path) -> None:
    path = reference(tmp_path / "a.ref", (30, 0.5, 0.4), (1024, 2.0, 0.8))
    assert apart.is_reference(path) and not apart.is_reference(tmp_path / "none")
    (found,) = apart.read(path).measured
    assert (found.name, found.device) == ("checkpoint in bf16 by PyTorch", "A card")
    assert [(case.prompt_tokens, case.new_tokens) for case in found.cases()] == [(30, 5), (1024, 5)]
    (_, first), (_, second) = found.samples
    assert (first.ttft_seconds, first.tpot_seconds) == pytest.approx((0.5, 0.1))
    assert second.tpot_seconds == pytest.approx(0.2)


def test_prompts_of_about_the_same_length_are_compared() -> None:
    other = run(*[0.1] * 7)
    other.samples += run(*[0.3] * 7, size=60).samples + run(*[9.0] * 7, size=1000).samples
    ttft, tpot = apart.compare(run(*[1.0] * 7), other)
    assert (ttft.metric, ttft.lengths, ttft.ratio) == ("TTFT", (32, 32), pytest.approx(0.1))
    assert (tpot.metric, tpot.lengths) == ("TPOT", (32, 60))
    assert ttft.verdict == "faster" and not ttft.few
    assert apart.compare(run(1.0, size=5000), other) == []


def test_a_longer_prompt_is_not_slower_for_its_length() -> None:
    """A quarter more to read takes a quarter more time, and that is no difference between the machines."""
    noisy = [1.0, 1.1, 0.9, 1.05, 0.95, 1.02, 0.98]
    ttft, _ = apart.compare(run(*noisy, size=1000), run(*[1.25 * each for each in noisy], size=1250))
    assert (ttft.verdict, ttft.ratio, ttft.lengths) == ("no difference", pytest.approx(1.0), (1250, 1250))


def test_the_cases_are_the_benchmarks_on_either_side() -> None:
    checkpoint = run(*[0.5] * 8, size=41)
    checkpoint.model["reference"] = True
    for before, after, verdict in ((checkpoint, run(*[1.0] * 8), "slower"), (run(*[1.0] * 8), checkpoint, "faster")):
        (tpot,) = apart.compare(before, after)  # 41 is too far from 32 for the first token
        assert (tpot.case, tpot.metric, tpot.lengths, tpot.verdict) == (Case(32, 3), "TPOT", (41, 41), verdict)


def test_of_two_against_seven_nothing_can_be_told() -> None:
    assert apart.compare(run(*[1.0] * 7), run(9.0, 9.0))[0].few
    ttft = apart.compare(run(*[1.0] * 7), run(9.0, 9.0, 9.0))[0]
    assert not ttft.few and ttft.verdict == "slower"


@pytest.mark.parametrize(("one", "other"), [(3, 4), (5, 4), (1, 6), (6, 7)])
def test_the_interval_is_mann_and_whitneys(one: int, other: int) -> None:
    """By counting every order of the values."""
    orders = [
        sum(place - rank for rank, place in enumerate(places))
        for places in itertools.combinations(range(one + other), one)
    ]
    allowed = [most for most in range(one * other + 1) if sum(n <= most for n in orders) / len(orders) <= 0.025]
    assert apart._outside(one, other) == len(allowed)


def test_noise_alone_is_seldom_a_difference() -> None:
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(300):
        one, other = np.exp(0.1 * rng.standard_normal((2, 8)))
        wrong += apart.compare(run(*one), run(*other[:6]))[0].verdict != "no difference"
    assert wrong <= 300 * 0.08


def test_compare_reads_a_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = reference(tmp_path / "a.ref", *[(30 + place, 0.01, 0.004) for place in range(7)])
    record().write(tmp_path / "today.json")
    words = ["bench", "compare", str(path), str(tmp_path / "today.json")]
    assert _run(words) == 0
    told = capsys.readouterr()
    assert "checkpoint in bf16 by PyTorch on A card → a on CPU" in told.out
    assert "32 in, 3 out | 30 to 36 in" in told.out and "slower" in told.out and "not the same" in told.out
    assert "A processor, 16 cores, 64 GB; A processor, 2 cores, 16 GB" in told.err
    assert _run([*words, "--fail-if-slower", "10%"]) == 1
    capsys.readouterr()
    assert _run([*words, "--json"]) == 0
    (block,) = json.loads(capsys.readouterr().out)
    assert block["differences"][0]["lengths"] == [30, 36] and not block["same_machine"]
    for wrong in ([str(path)], [str(path), str(path)]):
        assert _run(["bench", "compare", *wrong]) == 2
        assert "compared with a benchmark" in capsys.readouterr().err


def test_a_benchmark_of_the_reference_comes_into_the_same_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run on a GPU beside one of another machine: those whose results are shipped."""
    from benchmarks import reference_record

    results = Path(__file__).parents[2] / "benchmarks" / "results"
    reference_record.main([str(results / "reference_cuda.json"), str(tmp_path / "cuda.json")])
    words = ["bench", "compare", str(tmp_path / "cuda.json"), str(results / "bench_9b_xeon.json"), "--json"]
    assert _run(words) == 0
    blocks = json.loads(capsys.readouterr().out)
    names = [block["before"][0] for block in blocks]
    assert "9b in bf16 by transformers eager" in names and len(names) == len(set(names)) > 2
    for block in blocks:
        long = [each for each in block["differences"] if each["case"]["prompt_tokens"] == 1024]
        assert [each["metric"] for each in long] == ["TTFT", "TPOT"] and long[0]["ratio"] > 10


def test_a_benchmark_of_the_reference_that_is_none_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import reference_record

    def told(model: str, **other: Any) -> str:
        path = Path(__file__).parents[2] / "benchmarks" / "results" / "reference_cuda.json"
        found = json.loads(path.read_text(encoding="utf-8"))
        found["gpu"]["9b"] |= other
        (tmp_path / "it.json").write_text(json.dumps(found), encoding="utf-8")
        with pytest.raises(SystemExit) as ended:
            reference_record.main([str(tmp_path / "it.json"), str(tmp_path / "out.json"), "--model", model])
        assert ended.value.code == 2 and not (tmp_path / "out.json").exists()
        return " ".join(capsys.readouterr().err.split())

    assert "has no --model 32b, but 9b, pocket" in told("32b")
    assert "answers of 1 token, which say nothing" in told("9b", settings={"prompt": 1000, "answer": 1})
    none = {"eager": {"failure": "out of memory"}, "static": {"samples": []}}
    assert "no road of 9b ran (eager: out of memory; static: not measured)" in told("9b", roads=none)


def test_compare_draws_both_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    path = reference(tmp_path / "a.ref", *[(30 + place, 0.01, 0.004) for place in range(7)])
    record().write(tmp_path / "one.json")
    slower = record(1.3)
    slower.machine = replace(slower).machine | {"cores": 8}
    slower.write(tmp_path / "two.json")
    for number, first in enumerate(("one.json", path.name)):
        charts = tmp_path / f"charts{number}"
        words = [str(tmp_path / first), str(tmp_path / "two.json"), "--charts", str(charts)]
        assert _run(["bench", "compare", *words]) == 0
        names = sorted(each.name for each in charts.iterdir())
        assert names == ["index.html", "ratios.png", "roofline.png", "tpot.png", "ttft.png"]
        page = (charts / "index.html").read_text(encoding="utf-8")
        assert page.count("data:image/png") == 4 and "slower" in page and "http" not in page
        capsys.readouterr()
    record(names=("a", "b", "c")).write(tmp_path / "three.json")
    assert _run(["bench", "compare", str(tmp_path / "three.json"), "--charts", str(tmp_path / "more")]) == 0
    assert (tmp_path / "more" / "ratios-2.png").is_file()
    assert _run(["bench", "compare", str(tmp_path / "three.json"), "--charts", str(tmp_path / "no" / "where")]) == 2


def test_what_a_reference_looks_like_is_no_record(tmp_path: Path) -> None:
    record().write(tmp_path / "r.json")
    assert not apart.is_reference(tmp_path / "r.json")
    assert Record.read(tmp_path / "r.json").measured[0].name == "a"
