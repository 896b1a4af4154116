from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest

from edge.bench import search as searching
from edge.bench.search import Change
from edge.cli import _run
from edge.files import HOME_VARIABLE
from edge.messages import Message, Sampling
from edge.runtime import tuned
from edge.runtime.engine import Engine
from edge.runtime.guarding import open_guarded
from edge.runtime.settings import Settings
from edge.runtime.tuned import Tuned


@pytest.fixture
def model(pocket_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The pocket model in a folder that may be written to."""
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    return Path(shutil.copytree(pocket_dir, tmp_path / "model"))


@pytest.mark.model
class TestPocket:
    def test_what_was_found_is_used_and_said(self, model: Path) -> None:
        found = Tuned("chat", "one thread, short steps", {"INFERENCE_NUM_THREADS": 1}, 64, 0.9)
        assert tuned.keep(model, "CPU", found) == model / tuned.FILE_NAME
        assert tuned.read(model, "CPU") == found and tuned.read(model, "GPU") is None
        with open_guarded(model, Settings("CPU")) as engine:
            assert engine.device == "CPU, tuned for chat: one thread, short steps"
            assert list(engine.stream([Message("user", "Hi")], Sampling(max_new_tokens=3)))[-1].usage is not None
        with Engine.load(model, Settings("CPU", tuned=False)) as plain:
            assert plain.tuned == ""
        assert tuned.forget(model, "CPU") and tuned.read(model, "CPU") is None and not tuned.forget(model, "CPU")

    def test_what_is_asked_for_goes_before_what_was_found(self, model: Path) -> None:
        tuned.keep(model, "CPU", Tuned("memory", "a cache in u4", {"KV_CACHE_PRECISION": "no such"}))
        with Engine.load(model, Settings("CPU", {"KV_CACHE_PRECISION": "u8"})):
            pass

    def test_it_holds_for_this_model_machine_and_versions(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tuned.keep(model, "CPU", Tuned("chat", "x", {"INFERENCE_NUM_THREADS": 1}))
        monkeypatch.setattr(tuned.choices, "versions", lambda: {"openvino": "another"})
        assert tuned.read(model, "CPU") is None
        monkeypatch.undo()

    def test_a_damaged_file_is_as_none(self, model: Path) -> None:
        for text in ("{", "[]", json.dumps({"format": 99, "entries": {}}), json.dumps({"format": 1, "entries": 7})):
            (model / tuned.FILE_NAME).write_text(text, encoding="utf-8")
            assert tuned.read(model, "CPU") is None

    def test_the_command_measures_keeps_and_forgets(
        self, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of what real processes measure; the clock stands still, so that the time is never up before they have."""
        change = Change("1 thread", {"INFERENCE_NUM_THREADS": 1})
        monkeypatch.setattr("edge.commands.tune._changes", lambda place: [[change]])
        monkeypatch.setattr(searching, "search", partial(searching.search, clock=lambda: 0.0))
        assert _run(["tune", str(model), "--minutes", "0.2", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        (tried,) = told["tried"]
        assert tried["words"] == change.words and tried["verdict"] in ("better", "no difference", "worse")
        assert told["file"] == str(model / tuned.FILE_NAME)
        assert told["kept"] in ([], [change.words]) and bool(told["kept"]) == (told["against_defaults"] is not None)
        assert told["properties"] == (change.properties if told["kept"] else {})
        kept = tuned.read(model, "CPU")
        assert kept is not None and kept.words == ", ".join(told["kept"]) and kept.properties == told["properties"]
        assert _run(["tune", str(model), "--forget"]) == 0
        assert tuned.read(model, "CPU") is None


def test_npu_and_hetero_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["tune", str(tmp_path), "--device", "TPU"]) == 1
    assert "no device" in capsys.readouterr().err
