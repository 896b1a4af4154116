"""An export interrupted again and again, at moments nobody chose, ends as an undisturbed one does."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edge.cli import _run
from edge.export import pipeline
from edge.files import HOME_VARIABLE
from tests.conftest import write_checkpoint

SIZES: dict[str, Any] = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
OPTIONS = ["--weights", "int4", "--group-size", "-1", "--sym", "--ratio", "1", "--for", "npu"]
SEED = 20240605
TIMES = 10


class Exports:
    """Starts exports of one checkpoint; on POSIX they are forked from a process that has imported everything."""

    def __init__(self, checkpoint: Path) -> None:
        self._context: Any = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
        if sys.platform != "win32":
            self._context.set_forkserver_preload(["tests.export.interrupted"])
        self._checkpoint = checkpoint

    def start(self, out: Path) -> Any:
        from tests.export.interrupted import export

        ready = self._context.Event()
        child = self._context.Process(target=export, args=([str(self._checkpoint), str(out), *OPTIONS], ready))
        child.start()
        assert ready.wait(60)
        return child


def interrupt(child: Any, how: str) -> None:
    if how == "kill":
        child.kill()  # SIGKILL, on Windows TerminateProcess
    else:
        os.kill(child.pid, signal.SIGINT)


def content(folder: Path) -> dict[str, Any]:
    files: dict[str, Any] = {path.name: path.read_bytes() for path in folder.iterdir()}
    described = json.loads(files["edge.json"])
    assert described.pop("created")
    return {**files, "edge.json": described}


@pytest.mark.heavy
@pytest.mark.slow
def test_interrupted_ten_times_at_random_it_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    draw = random.Random(SEED)
    exports = Exports(write_checkpoint(tmp_path / "c", num_hidden_layers=4, **SIZES))
    child = exports.start(tmp_path / "undisturbed")
    started = time.monotonic()
    child.join(120)
    duration = time.monotonic() - started
    assert child.exitcode == 0
    expected = content(tmp_path / "undisturbed")

    out, said, cut_short, gone_on_with = tmp_path / "out", [f"seed {SEED}, undisturbed {duration:.2f} s"], 0, 0
    while cut_short < TIMES:
        held = len(list((tmp_path / ".out.partial" / "parts").glob("*.xml")))
        gone_on_with += held > 0
        moment, how = draw.uniform(0, duration), draw.choice(["kill", "Ctrl-C"] if os.name == "posix" else ["kill"])
        child = exports.start(out)
        child.join(moment)
        interrupt(child, how) if child.exitcode is None else None
        child.join(60)
        said.append(f"{how} after {moment:.2f} s, with {held} parts from before: exit code {child.exitcode}")
        print(said[-1])
        if child.exitcode == 0:  # it was faster than the moment
            assert content(out) == expected, said
            shutil.rmtree(out)
            continue
        cut_short += 1
        assert child.exitcode == (130 if how == "Ctrl-C" else -9 if os.name == "posix" else 1), said
        assert not out.exists(), said
    child = exports.start(out)
    child.join(120)
    assert child.exitcode == 0 and content(out) == expected, said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "home", "out", "undisturbed"], said
    assert gone_on_with, said  # else it was never interrupted where it hurts


def test_interrupted_while_the_parts_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of them would be taken for a model half made; and what else was written is not passed on."""
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    monkeypatch.setattr(pipeline, "_WORTH_KEEPING", 0)
    command = ["export", str(write_checkpoint(tmp_path / "c", **SIZES))]
    assert _run([*command, str(tmp_path / "undisturbed"), *OPTIONS]) == 0
    rmtree = shutil.rmtree

    def delete_half(path: Path, **options: Any) -> None:
        if Path(path).name.startswith("parts") and Path(path).exists():
            (Path(path) / "layer-0.xml").unlink()
            raise KeyboardInterrupt
        rmtree(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", delete_half)
        assert _run([*command, str(tmp_path / "out"), *OPTIONS]) == 130
    (tmp_path / ".out.partial" / ".edge.json.1a2b").write_text("half")
    assert _run([*command, str(tmp_path / "out"), *OPTIONS]) == 0
    first, second = content(tmp_path / "undisturbed"), content(tmp_path / "out")
    assert first.keys() == second.keys() and first["edge.json"]["bytes"].keys() == second["edge.json"]["bytes"].keys()
    for name in ("openvino_model.xml", "openvino_model.bin"):  # a tokenizer's nodes are numbered through the process
        assert first[name] == second[name]
