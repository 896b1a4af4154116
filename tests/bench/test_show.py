from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from edge.bench import plot, show
from edge.bench.case import Case, Load, Measured, Sample
from edge.bench.counts import Counts
from edge.bench.record import Record
from edge.bench.roofline import Limits
from edge.cli import _run
from edge.errors import UsageError

COUNTS = Counts(1000, 100.0, 50.0, 1.0, 2.0, 256)


def record(factor: float = 1.0, names: tuple[str, ...] = ("a",), rounds: int = 8) -> Record:
    every = []
    for place, name in enumerate(names):
        samples = []
        for number in range(1, rounds + 1):
            for case in (Case(32, 3), Case(1024, 3)):
                at = factor * (1 + 0.1 * place) * case.prompt_tokens / 100 * (1 + number / 1000)
                size = case.prompt_tokens
                samples.append((case, Sample(number, size, size, (at, at * 1.1, at * 1.2), at * 1.3)))
        model = {"name": name, "bytes": {"openvino_model.bin": 5_000_000}}
        memory = {"anonymous": 2_000_000_000, "resident": 3_000_000_000}
        sensed = {"energy_joules": 12.0, "throttled": 2}
        measured = Measured(name, "CPU", model, {}, [Load(1, 2, 0.1)], samples, dict(memory), sensed)
        measured.limits, measured.counts = asdict(Limits(1e4, (1e4,), 1e5, {"f32": 1e5}, (1, 2, 3))), asdict(COUNTS)
        every.append(measured)
    machine = {"cpu": "A processor", "cores": 2, "memory_bytes": 16_000_000_000, "system": "Linux", "python": "3.11"}
    return Record("2026-01-01T00:00:00+00:00", machine, {"openvino": "1"}, rounds, every, ["nothing"])


def test_a_table_says_everything_once() -> None:
    told = show.text(record())
    for word in ("a on CPU, 5 MB", "32 in, 3 out", "1,024 in, 3 out", "2.00 GB of its own", "12 J", "2 times",
                 "Left out: nothing", "Loaded in 1.00 s", "0.0 GB/s"):  # fmt: skip
        assert word in told, word


def test_tuned_settings_are_said() -> None:
    made = record()
    assert "tune" not in show.text(made)
    made.measured[0].settings["tuned_words"] = "tuned for chat: 2 threads"
    assert "With settings that glm4-edge tune kept: tuned for chat: 2 threads." in show.text(made)


def test_a_p99_of_few_tokens_is_not_said() -> None:
    assert show.text(record()).count("  too few  ") == 2


def test_a_program_gets_the_figures_beside_the_samples() -> None:
    told = record(names=("a", "b")).to_json()
    assert [(each["name"], each["device"], each["case"]["prompt_tokens"]) for each in told["figures"]] == [
        ("a", "CPU", 32), ("a", "CPU", 1024), ("b", "CPU", 32), ("b", "CPU", 1024),
    ]  # fmt: skip
    first = told["figures"][0]
    assert first["ttft"] == pytest.approx(0.32 * 1.0045) and first["step_p99"] is None
    assert first["tpot_share"] == pytest.approx(first["tpot_limit"] / first["tpot"])


def test_csv_has_plain_numbers() -> None:
    rows = list(csv.DictReader(io.StringIO(show.csv_text(record()))))
    assert [row["prompt"] for row in rows] == ["32", "1024"]
    assert float(rows[0]["ttft"]) == pytest.approx(0.32 * 1.0045, rel=1e-3)
    assert rows[0]["busy_elsewhere"] == ""


def test_markdown_is_one_table_for_each_model() -> None:
    page = show.markdown(record(names=("a", "b")))
    assert page.count("| case |") == 2 and "**b on CPU, 5 MB**" in page and "A processor" in page


def test_a_record_comes_back_and_nothing_else_does(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    record().write(path)
    assert json.dumps(Record.read(path).to_json()) == json.dumps(record().to_json())
    for broken in ("{", "[]", "{}", json.dumps({**record().to_json(), "measured": [1]})):
        path.write_text(broken, encoding="utf-8")
        with pytest.raises(UsageError):
            Record.read(path)
    path.write_text(json.dumps({**record().to_json(), "format": 99}), encoding="utf-8")
    with pytest.raises(UsageError, match="newer"):
        Record.read(path)
    with pytest.raises(UsageError, match="cannot be read"):
        Record.read(tmp_path / "none.json")


def test_charts_and_page_need_nothing_from_outside(tmp_path: Path) -> None:
    paths = plot.write(record(names=("a", "b<b>")), tmp_path / "charts")
    assert [path.name for path in paths] == ["ttft.png", "tpot.png", "roofline.png", "index.html"]
    for path in paths[:3]:
        assert path.read_bytes().startswith(b"\x89PNG")
    page = paths[-1].read_text(encoding="utf-8")
    assert "http" not in page and "b<b>" not in page and page.count("data:image/png") == 3


def files(tmp_path: Path, factor: float) -> tuple[str, str]:
    record().write(tmp_path / "one.json")
    record(factor).write(tmp_path / "two.json")
    return str(tmp_path / "one.json"), str(tmp_path / "two.json")


def test_compare_says_what_is_slower_and_fails_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = files(tmp_path, 1.2)
    assert _run(["bench", "compare", one, two]) == 0
    out = capsys.readouterr().out
    assert "slower" in out and "1.20" in out and "not measured in one run" in out
    assert _run(["bench", "compare", one, two, "--fail-if-slower", "10%"]) == 1
    assert "slower by more than 10%" in capsys.readouterr().err
    assert _run(["bench", "compare", one, two, "--fail-if-slower", "30%"]) == 0
    assert _run(["bench", "compare", two, one, "--fail-if-slower", "0"]) == 0
    assert "faster" in capsys.readouterr().out


def test_compare_cannot_tell_what_is_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = files(tmp_path, 1.0)
    assert _run(["bench", "compare", one, two, "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert {each["verdict"] for each in told["differences"]} == {"no difference"}


def test_runs_of_different_times_that_were_disturbed_cannot_be_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = files(tmp_path, 1.2)
    busy = record(1.2)
    busy.measured[0].samples = [(case, replace(each, busy_elsewhere=0.5)) for case, each in busy.measured[0].samples]
    busy.write(Path(two))
    assert _run(["bench", "compare", one, two, "--fail-if-slower", "10%"]) == 0
    told = capsys.readouterr()
    assert "slower" not in told.out and "50%" in told.err


def test_an_earlier_measurement_is_not_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record().write(tmp_path / "r.json")
    assert _run(["bench", str(tmp_path), "--out", str(tmp_path / "r.json")]) == 2
    assert "is not replaced" in capsys.readouterr().err


def test_models_of_one_run_are_compared_with_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(names=("a", "b")).write(tmp_path / "r.json")
    assert _run(["bench", "compare", str(tmp_path / "r.json")]) == 0
    out = capsys.readouterr().out
    assert "a on CPU → b on CPU" in out and "slower" in out and "not measured in one run" not in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compare", "none.json"], "cannot be read"),
        (["compare", "{r}"], "only one model"),
        (["compare", "{r}", "{r}", "--fail-if-slower", "much"], "no percentage"),
        (["{r}", "--prompts", "32;64"], "no list of numbers"),
        (["none-of-such"], "none-of-such"),
        ([".", "--device", "TPU"], "no device"),
        ([".", "--rehearse"], "Write --device NPU"),
        ([".", "--out", "no/such/folder/x.json"], "there is no folder"),
    ],
)
def test_wrong_usage_is_one_sentence(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record().write(tmp_path / "r.json")
    assert _run(["bench", *[word.format(r=tmp_path / "r.json") for word in words]]) != 0
    assert said in capsys.readouterr().err
