"""`glm4-edge batch` as a user runs it: on an engine without a model, and on the real pocket model."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge.batch.journal import partial
from edge.cli import _run
from edge.commands.batch import _settings
from edge.files import alone
from edge.messages import Sampling
from edge.runtime.echo import EchoEngine

COMMAND = [sys.executable, "-m", "edge", "batch"]


class Loaded(EchoEngine):
    """Knows what it was asked; stops the whole program at the `killed_at`th question, as Ctrl-C would."""

    created = "today"

    def __init__(self) -> None:
        super().__init__()
        self.manifest = SimpleNamespace(source=SimpleNamespace(model="echo"), created=self.created)
        self.asked: list[str] = []
        self.killed_at: int | None = None

    def stream(self, conversation: Any, sampling: Any, cancelled: Any = None) -> Any:
        self.asked.append(conversation[-1].content)
        if len(self.asked) == self.killed_at:
            raise KeyboardInterrupt
        return super().stream(conversation, sampling, cancelled)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Loaded:
    loaded = Loaded()

    @contextlib.contextmanager
    def load(model: str, **options: Any) -> Iterator[tuple[Loaded, None]]:
        yield loaded, None

    monkeypatch.setenv("GLM4_EDGE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("edge.commands.batch._loaded", load)
    return loaded


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


def contents(path: Path) -> list[str | None]:
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        record["response"]["body"]["choices"][0]["message"]["content"] if record["error"] is None else None
        for record in records
    ]


def test_a_batch_from_end_to_end(engine: Loaded, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "in.jsonl", '"你好"\n', "\n", {"prompt": "B", "model": "gpt-5"}, '"C"\n')
    assert _run(["batch", str(source), str(tmp_path / "out.jsonl"), "--json"]) == 0
    said = capsys.readouterr()
    assert contents(tmp_path / "out.jsonl") == ["你好", "B", "C"]
    facts = json.loads(said.out)
    assert facts["requests"] == 3 and facts["failed"] == 0 and facts["completion_tokens"] == 7
    assert facts["tokens_per_second"] == pytest.approx(7 / facts["seconds"])
    assert "1 request asks for the model gpt-5: echo answers." in said.err
    assert "3 requests, 0 failed, 7 tokens in " in said.err
    assert sorted(path.name for path in tmp_path.glob("*out*")) == ["out.jsonl"]


def test_faults_are_in_their_place_and_in_the_exit_code(
    engine: Loaded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "in.jsonl", '"A"\n', "{broken\n", '"C"\n')
    assert _run(["batch", str(source), str(tmp_path / "out.jsonl")]) == 1
    assert contents(tmp_path / "out.jsonl") == ["A", None, "C"]
    said = capsys.readouterr().err
    assert "line-2: The line is no JSON" in said and "3 requests, 1 failed" in said


def test_it_goes_on_where_it_was_stopped(engine: Loaded, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write(tmp_path / "in.txt", *(f"prompt {number}\n" for number in range(9))), tmp_path / "out.jsonl"
    engine.killed_at = 5
    assert _run(["batch", str(source), str(out)]) == 130
    said = capsys.readouterr().err
    assert f"4 of 9 answers are kept in {partial(out)}; the same command goes on." in said
    assert not out.exists() and partial(out).exists()
    with partial(out).open("ab") as file:
        file.write(b'{"line": 5, "rec')  # as a kill leaves it
    engine.asked.clear()
    engine.killed_at = None
    assert _run(["batch", str(source), str(out), "--json"]) == 0
    said = capsys.readouterr()
    assert "4 of 9 requests were answered before" in said.err
    facts = json.loads(said.out)
    assert facts["answered_before"] == 4 and facts["completion_tokens"] == 5 * len("prompt 4.")
    assert engine.asked == [f"prompt {number}" for number in range(4, 9)]
    assert contents(out) == [f"prompt {number}" for number in range(9)]
    assert not partial(out).exists()


def test_an_adapter_that_was_trained_further_is_another_setting(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    told = []
    for weights, scale in (("a", ""), ("b", ""), ("b", ":0.5"), ("b", ":0.5")):
        (folder / "adapter_model.safetensors").write_text(weights)
        told.append(_settings(Sampling(), None, {"lora": (f"{folder}{scale}",)}))
    assert told[0] != told[1] != told[2] == told[3]
    assert _settings(Sampling(), None, {"lora": ()})["lora"] == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("input", "was begun with another input"),
        ("option", "was begun with another setting: temperature was null and is 0.5"),
        ("model", "was begun with another model: created was"),
    ],
)
def test_another_batch_does_not_go_on_with_it(
    change: str, said: str, engine: Loaded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write(tmp_path / "in.txt", "a\nb\nc\n"), tmp_path / "out.jsonl"
    engine.killed_at = 2
    assert _run(["batch", str(source), str(out)]) == 130
    before = partial(out).read_bytes()
    engine.killed_at = None
    if change == "input":
        write(source, "a\nb\nd\n")
    if change == "model":
        engine.manifest.created = "tomorrow"
    assert _run(["batch", str(source), str(out), *(["--temperature", "0.5"] if change == "option" else [])]) == 2
    told = capsys.readouterr().err
    assert said in told and f"delete {partial(out)} to begin anew" in told
    assert partial(out).read_bytes() == before and not out.exists()


def test_a_kill_between_the_name_and_the_journals_end(engine: Loaded, tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.txt", "a\nb\n"), tmp_path / "out.jsonl"
    engine.killed_at = 2
    assert _run(["batch", str(source), str(out)]) == 130
    engine.killed_at = None
    unlink = Path.unlink
    with pytest.MonkeyPatch.context() as patch:

        def killed(self: Path, missing_ok: bool = False) -> None:
            if self == partial(out):
                raise KeyboardInterrupt
            unlink(self, missing_ok=missing_ok)

        patch.setattr(Path, "unlink", killed)
        assert _run(["batch", str(source), str(out)]) == 130
    assert contents(out) == ["a", "b"] and partial(out).exists()
    engine.asked.clear()
    assert _run(["batch", str(source), str(out)]) == 0
    assert engine.asked == [] and contents(out) == ["a", "b"] and not partial(out).exists()


def test_an_output_that_is_there_is_not_overwritten(
    engine: Loaded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write(tmp_path / "in.txt", "a\n"), write(tmp_path / "out.jsonl", "mine\n")
    assert _run(["batch", str(source), str(out)]) == 1
    assert "exists and is not overwritten" in capsys.readouterr().err
    assert out.read_text(encoding="utf-8") == "mine\n" and engine.asked == []


def test_what_cannot_be_done_is_told_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setenv("GLM4_EDGE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("edge.commands.batch._loaded", load)
    source = str(write(tmp_path / "in.jsonl", '"A"\n'))
    twice = str(write(tmp_path / "twice.jsonl", *[{"prompt": "?", "custom_id": "x"}] * 2))
    for arguments, code, said in [
        ([str(tmp_path / "none.jsonl"), "o"], 2, "none.jsonl cannot be read (No such file"),
        ([str(tmp_path), str(tmp_path / "o")], 2, "cannot be read (it is a folder)"),
        ([source, str(tmp_path)], 1, "is a folder"),
        ([source, str(tmp_path / "no" / "out")], 1, "there is no folder"),
        ([source, source], 2, "IN and OUT are both"),
        ([twice, str(tmp_path / "o")], 2, 'the same custom_id stands more than once: "x" in lines 1, 2'),
        ([source, "-", "--json"], 2, "would both go to standard output"),
        ([source, str(tmp_path / "o"), "--temperature", "3"], 2, "temperature"),
    ]:
        assert _run(["batch", *arguments]) == code, arguments
        assert said in capsys.readouterr().err
    with alone((tmp_path / "o").resolve()):
        assert _run(["batch", source, str(tmp_path / "o")]) == 1
    assert "another process is writing" in capsys.readouterr().err


def test_through_a_pipe(
    engine: Loaded, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO('"你好"\n"B"\n'.encode())))
    assert _run(["batch", "-", "-"]) == 0
    records = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    assert [record["response"]["body"]["choices"][0]["message"]["content"] for record in records] == ["你好", "B"]


# ---- the pocket model


def batch_process(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONUTF8": "1"}
    return subprocess.run([*COMMAND, *argv], capture_output=True, encoding="utf-8", timeout=300, env=env, **options)


QUESTIONS = ["What is the capital of France?", "Name a colour.", "What is water made of?"]


@pytest.mark.model
def test_a_dozen_lines_by_the_pocket_model(pocket_dir: Path, tmp_path: Path) -> None:
    lines: list[Any] = [
        {"custom_id": f"q{number}", "method": "POST", "url": "/v1/chat/completions",
         "body": {"messages": [{"role": "user", "content": QUESTIONS[number % 3]}], "max_tokens": 16}}
        for number in range(9)
    ]  # fmt: skip
    completion = {"prompt": "The capital of France is", "max_tokens": 4}
    lines.append({"custom_id": "t", "method": "POST", "url": "/v1/completions", "body": completion})
    lines.append({"prompt": "word " * 9000})
    schema = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"],
              "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "colour", "schema": schema}}
    lines.append({"prompt": "Red or blue?", "response_format": form, "max_tokens": 40})
    source, out = write(tmp_path / "in.jsonl", *lines), tmp_path / "out.jsonl"
    done = batch_process(str(source), str(out), "--model", str(pocket_dir), "--temperature", "0", "--json")
    assert done.returncode == 1, done.stderr
    records = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [record["custom_id"] for record in records] == [
        *(f"q{number}" for number in range(9)),
        "t",
        "line-11",
        "line-12",
    ]
    assert all("Paris" in records[n]["response"]["body"]["choices"][0]["message"]["content"] for n in (0, 3, 6))
    assert "Paris" in records[9]["response"]["body"]["choices"][0]["text"]
    assert records[10]["response"]["body"]["error"]["code"] == "context_length_exceeded"
    assert json.loads(records[11]["response"]["body"]["choices"][0]["message"]["content"])["colour"] in ("red", "blue")
    facts = json.loads(done.stdout)
    assert facts["requests"] == 12 and facts["failed"] == 1
    made = [record["response"]["body"]["usage"]["completion_tokens"] for record in records if record is not records[10]]
    assert facts["completion_tokens"] == sum(made)


@pytest.mark.model
def test_killed_in_the_middle_it_goes_on(pocket_dir: Path, tmp_path: Path) -> None:
    """SIGKILL on POSIX, TerminateProcess on Windows: neither can be caught."""
    source = write(tmp_path / "in.txt", *(f"Tell me about the number {number}.\n" for number in range(40)))
    out = tmp_path / "out.jsonl"
    argv = [str(source), str(out), "--model", str(pocket_dir), "--temperature", "0", "--max-new-tokens", "60"]
    process = subprocess.Popen([*COMMAND, *argv], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not partial(out).exists() or partial(out).read_bytes().count(b"\n") < 12:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait(timeout=60)
    assert not out.exists()
    kept = {}
    for line in partial(out).read_bytes().splitlines(keepends=True)[1:]:
        if line.endswith(b"\n"):
            entry = json.loads(line)
            kept[entry["line"]] = entry["record"]
    assert 11 <= len(kept) < 40
    done = batch_process(*argv, "--json")
    assert done.returncode == 0, done.stderr
    assert f"{len(kept)} of 40 requests were answered before" in done.stderr
    assert json.loads(done.stdout)["answered_before"] == len(kept)
    records = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [record["custom_id"] for record in records] == [f"line-{number}" for number in range(1, 41)]
    assert all(records[number - 1] == record for number, record in kept.items())  # ids included: not asked again
    assert not partial(out).exists()


@pytest.mark.model
@pytest.mark.skipif(sys.platform == "win32", reason="a process is interrupted otherwise there")
@pytest.mark.parametrize("sent", ["SIGINT", "SIGTERM"])
def test_interrupted_it_says_how_to_go_on(sent: str, pocket_dir: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.txt", *(f"Tell me about the number {number}.\n" for number in range(60)))
    out = tmp_path / "out.jsonl"
    argv = [str(source), str(out), "--model", str(pocket_dir), "--temperature", "0", "--max-new-tokens", "200"]
    process = subprocess.Popen([*COMMAND, *argv], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8")
    deadline = time.monotonic() + 240
    while not partial(out).exists() or partial(out).read_bytes().count(b"\n") < 3:  # the last may not be counted yet
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.Signals[sent])
    _, said = process.communicate(timeout=60)
    assert process.returncode == (130 if sent == "SIGINT" else 143)
    assert "answers are kept in" in said and "the same command goes on" in said
    assert partial(out).read_bytes().endswith(b"\n") and not out.exists()
