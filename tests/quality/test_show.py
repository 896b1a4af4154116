"""Records, tables and charts of quality, of numbers made up here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edge.cli import _run
from edge.errors import UsageError
from edge.quality import plot, show
from edge.quality.record import Cell, Distance, Figures, Model, Needles, Record, Task
from tests.bench.test_show import record as bench_record


def model(name: str = "a", kl: float | None = 0.05, **more: Any) -> Model:
    figures = Figures(
        tokens=4, perplexity=12.5, perplexity_reference=None if kl is None else 12.0, kl_mean=kl,
        kl_p99=kl, kl_worst=kl, top1=None if kl is None else 0.75, top5=None if kl is None else 0.8,
    )  # fmt: skip
    distance = Distance(
        digest="1", reference=None if kl is None else "the checkpoint", exact=False, properties={},
        figures={"all": figures, "en": figures}, losses=[0.5, 1.0, 2.0, 4.25],
        losses_reference=[] if kl is None else [0.5, 0.75, 1.75, 4.0],
        kl=[] if kl is None else [kl / 2, kl, kl * 1.5, kl],
    )  # fmt: skip
    facts = {"name": name, "bytes": {"openvino_model.bin": 5_000_000, "tokenizer.json": 7}}
    return Model(name=name, device="CPU", model=facts, **{"distance": distance, **more})


def needles() -> Needles:
    cells = [
        Cell(
            length=length, depth=depth, language=language, prompt_tokens=[length, length], expected=["1234567"] * 2,
            answers=["1234567", "no"], found=[True, length == 512],
        )
        for language in ("en", "zh") for length in (512, 1024) for depth in (0.0, 1.0)
    ]  # fmt: skip
    return Needles(haystack="ours", cells=cells)


def task(part: str = "gsm8k", metric: str = "exact_match", **more: Any) -> Task:
    facts = {"value": 0.5, "stderr": 0.1, "samples": 20, "few_shot": 5, "chat": True, "limit": None, "seconds": 1.0}
    return Task(**{"task": "gsm8k", "part": part, "metric": metric, **facts, **more})


def record(*models: Model) -> Record:
    made = Record.now(list(models or (model(),)))
    made.machine, made.versions = {"cpu": "A processor", "cores": 2}, {"openvino": "1"}
    return made


def test_a_record_comes_back_and_its_samples_stand_on_a_line(tmp_path: Path) -> None:
    made = record(model(needles=needles(), tasks=[task()]), model("b", None))
    made.write(tmp_path / "a.json")
    assert Record.read(tmp_path / "a.json") == made
    assert '"losses": [0.5, 1.0, 2.0, 4.25]' in (tmp_path / "a.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "it: Invalid JSON"), ("[]", "it: "), ('{"format": 2}', "format: "), ("{}", "made: Field required")],
)
def test_what_is_no_record_is_told(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UsageError, match="is no record of quality") as raised:
        Record.read(tmp_path / "a.json")
    assert said in raised.value.message
    with pytest.raises(UsageError, match="cannot be read"):
        Record.read(tmp_path / "b.json")


def test_columns_in_which_nothing_stands_are_left_out() -> None:
    alone = show.text(record(model(kl=None)))
    assert "12.50" in alone and "KL  " not in alone and "tokens/s" not in alone
    beside = show.text(record(model(kl=None), model("b", decode_rate=33.0)))
    assert "0.0500" in beside and "33.0" in beside and "75.0%" in beside and "Reference: the checkpoint." in beside


def test_what_cannot_be_compared_is_told() -> None:
    other = model("b")
    assert other.distance is not None
    other.distance.digest = "2"
    assert "same tokens" in show.text(record(model(), other)) and "same tokens" not in show.text(record())
    limited = show.text(record(model(tasks=[task(limit=20)])))
    assert "20 (limit 20)" in limited and "no figures to publish" in limited


def test_scores_are_shares_and_perplexities_are_not() -> None:
    told = show.text(record(model(tasks=[task(), task(metric="byte_perplexity", value=2.5, stderr=None)])))
    assert "50.0%" in told and "10.0%" in told and "2.500" in told
    many = [task(part=f"part {number}") for number in range(20)]
    assert "part 11" in show.text(record(model(tasks=many))) and "part 12" not in show.text(record(model(tasks=many)))


def test_needles_are_counted_by_place() -> None:
    assert show.needles(needles()) == [("depth", "512", "1,024"), ("0%", "100%", "50%"), ("100%", "100%", "50%")]
    assert "75% found" in show.text(record(model(needles=needles())))
    assert show.share(needles(), 0.5, 512) is None


def test_the_charts_are_pictures_and_a_page(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    made = record(model(needles=needles()), model("b", 0.2))
    paths = plot.write(made, tmp_path / "charts")
    assert [path.name for path in paths] == ["kl.png", "loss.png", "size.png", "needles.png", "index.html"]
    assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in paths[:-1])
    page = paths[-1].read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 4 and "glm4-edge quality" in page
    assert list(plot.charts(record(model(kl=None)))) == ["loss"]


def test_records_come_into_one_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    record(model("a")).write(Path("a.json"))
    record(model("b", 0.2)).write(Path("b.json"))
    bench_record(names=("b",)).write(Path("bench.json"))
    assert _run(["quality", "a.json", "b.json", "--bench", "bench.json", "--markdown", "--out", "c.json"]) == 0
    shown = capsys.readouterr().out
    rows = [line for line in shown.splitlines() if line.startswith("| b on CPU")]
    assert len(rows) == 2 and rows[0].endswith("| 31.1 |") and "| a on CPU | 5.0 |" in shown
    assert [each.name for each in Record.read(Path("c.json")).models] == ["a", "b"]
    assert _run(["quality", "c.json", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["models"][1]["decode_rate"] == pytest.approx(31.1, abs=0.1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a.json", "--out", "a.json"], "is not replaced"),
        (["a.json", "--charts", "no/where"], "there is no folder"),
        (["a.json", "--needle"], "no model to measure"),
        (["a.json", "--no-distance"], "nothing is left"),
        (["a.json", "--reference", "x", "--against", "y"], "--against names another"),
        (["a.json", "--tasks", "humaneval"], "add --run-code"),
        (["b.json"], "cannot be read"),
        (["nowhere"], "there is no folder nowhere"),
        (["a.json", "--needle-lengths", "x"], "is no list of numbers"),
        (["a.json", "--needle-depths", "2"], "is no list of numbers from 0 to 1"),
        (["a.json", "--tasks", ","], "names nothing"),
    ],
)
def test_what_makes_no_sense_is_told(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    record().write(Path("a.json"))
    assert _run(["quality", *words]) in (1, 2)
    assert said in capsys.readouterr().err
