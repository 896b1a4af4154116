"""A page without a model: an engine that echoes, and a backend that pretends to export."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from edge.errors import EdgeError, ModelError
from edge.messages import Progress
from edge.runtime.echo import EchoEngine
from edge.ui.web.desk import Desk
from edge.ui.web.host import StoppedError
from edge.ui.web.talk import Settings
from tests.ui import browser as browsers

COST = {
    "download": {"bytes": 93_000_000, "from": "PyPI", "free_bytes": 90e9},
    "write": {"bytes": 120_000_000, "free_bytes": 90e9},
    "memory": {"bytes": 900_000_000, "available_bytes": 12e9, "total_bytes": 16e9},
    "seconds": {"total": 75.0},
    "possible": True, "reason": None, "way_out": None,
}  # fmt: skip


class FakeBackend:
    """Models are names: "echo" is made, "broken" cannot be, all others have to be exported; ten steps of one."""

    def __init__(self, engine: Callable[[], EchoEngine] = EchoEngine, step_seconds: float = 0.01) -> None:
        self.engine = engine
        self.step_seconds = step_seconds
        self.done = 0
        self.closed: list[Any] = []
        self.opened: list[tuple[str, str | None]] = []
        self.remarks = ["GPU → CPU: this machine has no GPU that OpenVINO can use; it has CPU"]

    def made(self) -> list[tuple[str, Path]]:
        return [("echo", Path("models/echo-int4-cpu")), ("other", Path("models/other-int4-cpu"))]

    def find(self, model: str) -> Path | None:
        if model == "broken":
            raise ModelError("there is no folder broken", hint="Name a folder that is there.")
        return Path(model) if "echo" in model or model == "other" or "models" in model else None

    def cost(self, model: str, progress: Progress, stop: threading.Event) -> Mapping[str, Any]:
        progress("looking at the machine", 0, 0)
        return COST if model != "huge" else {**COST, "possible": False, "reason": "it needs 90 GB of memory",
                                             "way_out": "Take a bigger machine."}  # fmt: skip

    def export(self, model: str, progress: Progress, stop: threading.Event) -> Path:
        while self.done < 10:
            if stop.is_set():
                raise StoppedError("stopped", hint="Go on.")
            progress(f"compressing layer {self.done + 1}", self.done, 10)
            time.sleep(self.step_seconds)
            self.done += 1
        return Path(model)

    def open(self, folder: Path, device: str | None, say: Callable[[str], None], progress: Progress) -> EchoEngine:
        self.opened.append((str(folder), device))
        if "locked" in str(folder):
            raise EdgeError("the GPU has no room for it", hint="Take the CPU.")
        for line in self.remarks:
            say(line)
        engine = self.engine()
        close = engine.close

        def closed() -> None:
            self.closed.append(engine)
            close()

        engine.close = closed  # type: ignore[method-assign]
        return engine

    def devices(self) -> list[str]:
        return ["CPU", "GPU"]


MakeDesk = Callable[..., Desk]


@pytest.fixture
def make_desk(tmp_path: Path) -> Iterator[MakeDesk]:
    """Makes desks over the same conversations; `model` None: none is loaded."""
    desks: list[Desk] = []

    def make(
        engine: Callable[[], EchoEngine] = EchoEngine, model: str | None = "echo", settings: Settings | None = None,
        **options: Any,
    ) -> Desk:  # fmt: skip
        desk = Desk(FakeBackend(engine, **options), tmp_path / "conversations", settings or Settings())
        desks.append(desk)
        if model is not None:
            desk.host.choose(model)
            assert desk.host.wait(20)
        return desk

    yield make
    for desk in desks:
        desk.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browsers.Browser]:
    """A headless Chromium; its screenshots go where `browsers.SHOTS_VARIABLE` says."""
    shots = os.environ.get(browsers.SHOTS_VARIABLE)
    yield from browsers.run(Path(shots) if shots else tmp_path_factory.mktemp("shots"))


Serve = Callable[[Desk], str]


@pytest.fixture
def serve(make_desk: MakeDesk) -> Iterator[Serve]:
    """Serves a desk's page, and gives its address."""
    pytest.importorskip("gradio")
    from edge.ui.web import page, serving

    pages: list[Any] = []

    def start(desk: Desk) -> str:
        pages.append(page.build(desk))
        return serving.serve(pages[-1], port=None)

    yield start
    for built in pages:
        built.close(verbose=False)
