"""How the page gets its models: found, forecast, exported in a process of its own, stopped, loaded."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edge.commands.ui_backend import Loader
from edge.errors import EdgeError
from edge.files import HOME_VARIABLE
from edge.messages import Message, Sampling
from edge.ui.web.host import StoppedError

OPTIONS = {
    "device": "CPU", "no_fallback": False, "rehearse": False, "context": None, "kv_precision": None, "sparse": None,
    "evict_beyond": None, "prompt_lookup": False, "overflow": "trim", "yes": False,
}  # fmt: skip


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Loader:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    return Loader(OPTIONS)


def test_found_forecast_exported_and_loaded(loader: Loader, tiny: Path) -> None:
    told: list[str] = []

    def progress(stage: str, done: int, total: int) -> None:
        told.append(stage)

    never = threading.Event()
    assert loader.find(str(tiny)) is None and loader.made() == []
    cost = loader.cost(str(tiny), progress, never)
    assert cost["possible"] is True and cost["write"]["bytes"] > 0 and cost["seconds"]["total"] > 0
    assert loader.made() == []
    folder = loader.export(str(tiny), progress, never)
    assert loader.find(str(tiny)) == folder and [path for _, path in loader.made()] == [folder]
    assert "proving the result" in told
    said: list[str] = []
    engine = loader.open(folder, None, said.append, progress)
    try:
        assert said == ["CPU was asked for."]
        chunks = list(engine.stream([Message("user", "hi")], Sampling(max_new_tokens=3, temperature=0)))
        assert chunks[-1].usage is not None
    finally:
        engine.close()
    assert "CPU" in loader.devices()


def test_a_stopped_export_leaves_nothing_and_can_be_made_again(loader: Loader, tiny: Path) -> None:
    stop = threading.Event()

    def progress(stage: str, done: int, total: int) -> None:
        stop.set()  # at the first sign of life

    with pytest.raises(StoppedError):
        loader.export(str(tiny), progress, stop)
    assert loader.find(str(tiny)) is None
    assert loader.find(str(loader.export(str(tiny), lambda stage, done, total: None, threading.Event())))


@pytest.mark.parametrize("job", ["cost", "export"])
def test_what_is_wrong_is_the_same_sentence_as_in_the_terminal(loader: Loader, tmp_path: Path, job: str) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    with pytest.raises(EdgeError, match="bert") as error:
        getattr(loader, job)(str(tmp_path / "c"), lambda stage, done, total: None, threading.Event())
    assert error.value.hint


def test_no_such_folder(loader: Loader) -> None:
    with pytest.raises(EdgeError, match="there is no folder nowhere"):
        loader.find("nowhere")


def test_the_child_ends_with_who_asked(loader: Loader, tiny: Path, tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "edge.commands.export_child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    asked = {"job": "export", "model": str(tiny), "out": str(tmp_path / "out"), "target": "cpu"}
    out, _ = child.communicate(json.dumps(asked) + "\n", timeout=120)  # communicate closes its input: we are gone
    assert json.loads(out.splitlines()[-1]) == {"stopped": True}
    assert not (tmp_path / "out").exists() and child.returncode == 0
