"""`glm4-edge serve`: what is refused before a model is loaded, and the command as a user runs it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from edge.cli import _run
from edge.files import HOME_VARIABLE
from edge.server import run
from edge.server.options import Options
from tests.runtime.test_devices import write_model
from tests.server.engines import until

KEY = "a-key-of-more-than-16"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Options]:
    """What would have been served."""
    asked: list[Options] = []
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    monkeypatch.setattr("edge.runtime.devices.available", lambda: ["CPU", "GPU"])
    monkeypatch.setattr(run, "serve", lambda bound, how, load, say: asked.append(how))
    return asked


def serve(folder: Path, *options: str) -> int:
    return _run(["serve", str(write_model(folder / "model")), "--port", "0", *options])


def test_options(served: list[Options], tmp_path: Path) -> None:
    assert serve(tmp_path) == 0
    keys = tmp_path / "keys.txt"
    keys.write_text(KEY, encoding="utf-8")
    assert serve(
        tmp_path, "--host", "0.0.0.0", "--api-key-file", str(keys), "--name", "gpt-4o", "--queue", "3", "--timeout",
        "9", "--drain", "2", "--cors-origin", "http://localhost:3000", "--cors-origin", "*", "--log-prompts",
    ) == 0  # fmt: skip
    first, second = served
    assert first == Options()
    assert second == Options(
        host="0.0.0.0", keys=(KEY.encode(),), name="gpt-4o", queue=3, timeout_seconds=9, drain_seconds=2,
        cors_origins=("http://localhost:3000", "*"), log_prompts=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "there is no key"), (["--host", "192.168.1.5"], "there is no key"),
        (["--host", "::"], "there is no key"), (["--api-key-file", "none.txt"], "there is no file none.txt"),
        (["--cors-origin", "localhost:3000"], "is no origin"), (["--cors-origin", "http://x/y"], "is no origin"),
        (["--port", "70000"], "--port"), (["--queue", "-1"], "--queue"), (["--timeout", "0"], "--timeout"),
        (["--device", "GPU", "--kv-precision", "u4", "--no-fallback"], "in u4"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_is_refused(
    options: list[str], said: str, served: list[Options], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve(tmp_path, *options) == 2
    assert said in capsys.readouterr().err and served == []


def test_a_port_that_is_taken_is_met_before_the_model(
    served: list[Options], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert _run(["serve", str(tmp_path / "no model"), "--port", port]) == 2
    error = capsys.readouterr().err
    assert f"port {port} on 127.0.0.1 cannot be had" in error and "no model" not in error


def test_without_the_extra_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "uvicorn" else object())
    assert _run(["serve", "pocket"]) == 1
    assert 'pip install "glm4-edge[serve]"' in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such bits")
def test_a_key_file_that_others_can_read_is_told(
    served: list[Options], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text(KEY, encoding="utf-8")
    keys.chmod(0o644)
    assert serve(tmp_path, "--api-key-file", str(keys)) == 0
    assert "Others on this machine can read the keys" in capsys.readouterr().err


class Running:
    """`glm4-edge serve` in a process of its own."""

    def __init__(self, *options: str) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edge", "serve", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL, encoding="utf-8", env=os.environ | {"PYTHONUTF8": "1"},
        )  # fmt: skip
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines += (line.rstrip("\n") for line in self.process.stderr)

    def end(self, sent: int) -> tuple[int, str]:
        """Exit code and standard output."""
        self.process.send_signal(sent)
        code = self.process.wait(60)  # not `communicate`, which would take lines away from the thread that reads them
        assert self.process.stdout is not None
        return code, self.process.stdout.read()


@pytest.fixture
def pocket(pocket_dir: Path) -> Iterator[Any]:
    running = Running(str(pocket_dir), "--port", "0", "--device", "CPU", "--context", "1024")
    yield running
    running.process.kill()
    running.process.wait(30)


@pytest.mark.model
@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send these signals to another process")
def test_as_a_user_runs_it(pocket: Running) -> None:
    until(lambda: any("/v1 is the address" in line for line in pocket.lines), 60)
    found = re.search(r"http://127\.0\.0\.1:\d+", "\n".join(pocket.lines))
    assert found is not None
    with httpx.Client(base_url=found[0], timeout=60) as http:
        assert http.get("/health").status_code in (200, 503)
        until(lambda: http.get("/health").status_code == 200, 120)
        until(lambda: any(line.startswith("Ready: pocket on CPU, a context of 1,024 tokens, 8 answers") for line in
                          pocket.lines))  # fmt: skip
        asked = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
        answer = http.post("/v1/chat/completions", json=asked)
        assert "Paris" in answer.json()["choices"][0]["message"]["content"]
        too_long = http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "word " * 2000}]})
        assert too_long.json()["error"]["code"] == "context_length_exceeded"
        share = re.search(r"^glm4_edge_kv_cache_used_ratio (\S+)$", http.get("/metrics").text, re.M)
        assert share is not None and 0 <= float(share[1]) <= 1
    code, out = pocket.end(signal.SIGINT)
    assert code == 0 and out == ""
    until(lambda: pocket.lines[-1] == "Ended.")
    assert not any("France" in line or "Traceback" in line for line in pocket.lines)


@pytest.mark.model
@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send these signals to another process")
def test_ctrl_c_while_the_model_loads(pocket: Running) -> None:
    until(lambda: any("/v1 is the address" in line for line in pocket.lines), 60)
    code, _ = pocket.end(signal.SIGINT)
    assert code == 0
    until(lambda: pocket.lines[-1] == "Ended.")
    assert not any("Traceback" in line for line in pocket.lines)
