"""The command and the real pocket model, in a real browser: from no model to an answer, and through a crash."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.files import HOME_VARIABLE
from tests.ui.browser import Browser
from tests.ui.test_browser import FIELD, answer, finished, said, send, until

pytestmark = pytest.mark.model
Start = Callable[..., str]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Program:
    """`glm4-edge ui` in a process of its own, with a home of its own."""

    def __init__(self, home: Path, port: int) -> None:
        self.home = home
        self.port = port
        self.process: subprocess.Popen[str] | None = None

    def start(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "edge", "ui", *arguments, "--port", str(self.port)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, HOME_VARIABLE: str(self.home)},
        )  # fmt: skip
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def models(self) -> list[Any]:
        """The processes in which it runs models."""
        psutil = pytest.importorskip("psutil")
        assert self.process is not None
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it has just ended
                found += [child] if any("edge.runtime.hosting" in part for part in child.cmdline()) else []
        return found

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(20)


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    pytest.importorskip("gradio")
    running = Program(tmp_path / "home", free_port())
    yield running
    running.kill()


@pytest.fixture(autouse=True)
def quiet(browser: Browser, program: Program) -> Any:
    yield
    browser.close()
    assert browser.outside == []
    browser.faults.clear()


def test_an_answer_through_a_crash(browser: Browser, program: Program, pocket_dir: Path) -> None:
    address = program.start(str(pocket_dir))
    assert address == f"http://127.0.0.1:{program.port}/"
    page = browser.open(address)
    page.locator(FIELD).wait_for(timeout=60_000)
    send(page, "What is the capital of France? Answer with one short sentence.")
    finished(page)
    assert "Paris" in answer(page).inner_text()
    facts = page.locator(".edge-panel dl")
    until(lambda: re.search(r"Speed\s+[\d.]+ tokens/s", facts.inner_text()) is not None)
    assert "CPU" in facts.inner_text() and "Why" in facts.inner_text()
    browser.shoot(page, "pocket")

    send(page, "Tell me a very long story about a fox and a river, with all its details.")
    until(lambda: len(said(page)) > 60, 60)
    time.sleep(1.5)  # it is kept each second
    before = said(page)[:40]
    program.kill()
    page.locator("body.edge-lost").wait_for()
    browser.shoot(page, "lost")
    program.start(str(pocket_dir))
    page.get_by_text("cut off").wait_for(timeout=90_000)  # the tab comes back by itself
    assert said(page).startswith(before)
    assert page.locator("#edge-chat .user").count() == 2
    page.locator("#edge-chat button[title='Retry']").last.click()
    until(lambda: page.get_by_text("cut off").count() == 0)
    page.keyboard.press("Escape")
    finished(page)


def test_a_model_whose_process_is_killed_is_loaded_again(browser: Browser, program: Program, pocket_dir: Path) -> None:
    page = browser.open(program.start(str(pocket_dir)))
    page.locator(FIELD).wait_for(timeout=90_000)
    send(page, "Tell me a very long story about a fox and a river, with all its details.")
    until(lambda: len(said(page)) > 40, 60)
    for model in program.models():
        model.kill()
    page.get_by_text("was killed").wait_for(timeout=120_000)  # the answer begins again, and says why
    until(lambda: len(program.models()) == 1)
    page.keyboard.press("Escape")
    finished(page)
    browser.shoot(page, "pocket-killed")
    for model in program.models():  # while nobody asks
        model.kill()
    send(page, "Say hello.")
    page.get_by_text("It goes on on CPU").wait_for(timeout=120_000)
    finished(page)
    assert answer(page).inner_text() and not page.locator("#edge-chat blockquote em").count()


@pytest.mark.skipif(os.name == "nt", reason="a Ctrl-C cannot be sent to one process there")
def test_ctrl_c_in_the_middle_of_an_answer_leaves_nothing(browser: Browser, program: Program, pocket_dir: Path) -> None:
    page = browser.open(program.start(str(pocket_dir)))
    page.locator(FIELD).wait_for(timeout=90_000)
    send(page, "Tell me a very long story about a fox and a river, with all its details.")
    until(lambda: len(said(page)) > 40, 60)
    models = program.models()
    assert len(models) == 1 and program.process is not None
    program.process.send_signal(signal.SIGINT)
    assert program.process.wait(20) == 130
    assert not any(model.is_running() for model in models)
    (kept,) = (program.home / "conversations").glob("*.json")
    assert '"ending": "cancelled"' in kept.read_text(encoding="utf-8")


@pytest.mark.skipif(os.name == "nt", reason="a Ctrl-C cannot be sent to one process there")
def test_ctrl_c_while_the_model_is_loaded_leaves_nothing(program: Program, pocket_dir: Path) -> None:
    def begin() -> None:
        program.start(str(pocket_dir))  # its address comes only after gradio's seconds

    waiting = threading.Thread(target=begin)
    waiting.start()
    until(lambda: program.process is not None)
    until(lambda: len(program.models()) > 0)
    models = program.models()
    assert program.process is not None
    began = time.monotonic()
    program.process.send_signal(signal.SIGINT)
    assert program.process.wait(30) == 130 and time.monotonic() < began + 15
    waiting.join(20)
    until(lambda: not any(model.is_running() for model in models))


def test_two_models_answer_side_by_side(browser: Browser, program: Program, pocket_dir: Path) -> None:
    second = program.home / "models" / "second-int4-cpu"
    shutil.copytree(pocket_dir, second)
    page = browser.open(program.start(str(pocket_dir)))
    page.locator(FIELD).wait_for(timeout=90_000)
    page.get_by_role("button", name="Compare").click()
    until(lambda: second.name in page.locator("#edge-right-model input").input_value())
    page.locator("#edge-compare textarea").fill("What is the capital of France? Answer with one short sentence.")
    page.get_by_role("button", name="Ask both").click()
    right = page.locator("#edge-right .prose.edge-figures")
    until(
        lambda: re.search(r"First token [\d.]+ s · [\d.]+ tokens/s · \d+ tokens", right.inner_text()) is not None, 120
    )
    answers = [page.locator(f"#edge-{side} .prose.edge-answer").inner_text() for side in ("left", "right")]
    assert all("Paris" in each for each in answers)
    assert len(program.models()) == 2
    browser.shoot(page, "pocket-compare")
    page.get_by_role("button", name="Chat", exact=True).click()
    until(lambda: len(program.models()) == 1)


@pytest.mark.heavy  # it exports the pocket model
def test_from_nothing_to_a_chat_through_a_stopped_export(
    browser: Browser, program: Program, pocket_checkpoint: Path
) -> None:
    target = program.home / "checkpoints" / pocket_checkpoint.name
    shutil.copytree(pocket_checkpoint, target, copy_function=shutil.copyfile)
    page = browser.open(program.start())
    page.get_by_role("radio", name="Pocket").check()
    page.get_by_role("button", name="See what it takes").click()
    page.get_by_text("This machine can do it.").wait_for(timeout=120_000)
    browser.shoot(page, "pocket-cost")
    page.get_by_role("button", name="Make it ready").click()
    bar = page.get_by_role("progressbar")
    until(lambda: int(bar.get_attribute("aria-valuenow") or 0) >= 10, 180)
    browser.shoot(page, "pocket-export")
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped. What was done").wait_for(timeout=120_000)
    assert not list((program.home / "models").glob("*/edge.json"))
    page.get_by_role("button", name="Go on").click()
    page.locator(FIELD).wait_for(timeout=400_000)
    send(page, "Say hello.")
    finished(page)
    assert said(page)
    assert (program.home / "models" / "pocket-int4-cpu" / "edge.json").is_file()
    assert len(list((program.home / "conversations").glob("*.json"))) == 1


def test_a_model_that_cannot_be_loaded_is_a_sentence(browser: Browser, program: Program, pocket_dir: Path) -> None:
    damaged = program.home / "damaged"
    shutil.copytree(pocket_dir, damaged)
    (damaged / "openvino_model.bin").write_bytes(b"no weights")
    page = browser.open(program.start())
    page.get_by_role("radio", name="A folder").check()
    page.get_by_label("The folder's path").fill(str(damaged))
    page.keyboard.press("Enter")
    page.get_by_role("alert").wait_for(timeout=90_000)
    told = page.get_by_role("alert").inner_text()
    assert "openvino_model.bin" in told and "Traceback" not in told
    browser.shoot(page, "pocket-damaged")
