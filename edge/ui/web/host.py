"""From nothing to a loaded model, step by step, while the page looks on: choose, see the cost, export, load."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from edge.errors import EdgeError, ModelError
from edge.messages import Progress
from edge.runtime.interface import ChatEngine
from edge.ui.web.answering import sentence

_END_SECONDS = 30.0  # for a step of an export that hears no Ctrl-C

Stage = Literal["choose", "cost", "costed", "export", "stopped", "load", "ready"]


class StoppedError(EdgeError):
    """An export was stopped by the user; what was done is kept where going on is worth it."""


class Backend(Protocol):
    """What the command hands to the page, which may not look into the rooms of models and exports itself."""

    def made(self) -> list[tuple[str, Path]]:
        """Exported models that are here: what they were made from, and the folder."""

    def find(self, model: str) -> Path | None:
        """The folder of the exported `model`, a name or a folder; None where it has to be exported first.

        Raises:
            EdgeError: it is neither exported nor can it be.
        """

    def cost(self, model: str, progress: Progress, stop: threading.Event) -> Mapping[str, Any]:
        """What an export would take, as `glm4-edge export --dry-run --json` says it.

        Raises:
            EdgeError: it cannot begin; StoppedError: `stop` was set.
        """

    def export(self, model: str, progress: Progress, stop: threading.Event) -> Path:
        """Export it, and return the folder.

        Raises:
            EdgeError: it failed; StoppedError: `stop` was set.
        """

    def open(self, folder: Path, device: str | None, say: Callable[[str], None], progress: Progress) -> ChatEngine:
        """Load it; `device` None takes what the command line said.

        Raises:
            EdgeError: no device here runs it.
        """

    def devices(self) -> list[str]:
        """The devices that are here."""


@dataclass
class _Shown:
    stage: Stage = "choose"
    model: str = ""
    error: str | None = None
    cost: Mapping[str, Any] | None = None
    what: str = ""
    done: int = 0
    total: int = 0
    since: float = field(default_factory=time.monotonic)


class Host:
    """Holds the engine that answers, and what is being done to get one.

    Args:
        ready: called once with each engine that was loaded, from the thread that loaded it.
    """

    def __init__(self, backend: Backend, ready: Callable[[ChatEngine], None] = lambda engine: None) -> None:
        self.backend = backend
        self.remarks: list[str] = []
        """Why this device: what was said while the model was loaded."""
        self.folder: Path | None = None
        self._ready = ready
        self._engine: ChatEngine | None = None
        self._shown = _Shown()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._worker: threading.Thread | None = None
        self._closed = False

    @property
    def engine(self) -> ChatEngine | None:
        """The engine, once there is one."""
        return self._engine

    def need_engine(self) -> ChatEngine:
        """The engine.

        Raises:
            ModelError: none is loaded yet.
        """
        if self._engine is None:
            raise ModelError("no model is loaded yet", hint="Choose one first, or wait until it is loaded.")
        return self._engine

    def state(self) -> dict[str, Any]:
        """What the page shows of it."""
        with self._lock:
            shown = self._shown
            return {
                "stage": shown.stage, "loaded": self._engine is not None, "model": shown.model,
                "error": shown.error, "cost": shown.cost,
                "what": shown.what, "done": shown.done, "total": shown.total,
                "seconds": time.monotonic() - shown.since,
            }  # fmt: skip

    def choose(self, model: str, *, at_once: bool = False) -> None:
        """Load `model` if it is exported; else find out what that would cost, or export it `at_once`."""
        model = model.strip()
        if not model:
            self._show("choose", "", error="Nothing was chosen. Write a folder or a name.")
            return

        def work(progress: Progress) -> None:
            found = self.backend.find(model)
            if found is not None:
                self._load(found, progress)
                return
            if at_once:
                self._show("export", model)
                self._load(self.backend.export(model, progress, self._stop), progress)
                return
            cost = self.backend.cost(model, progress, self._stop)
            self._show("costed", model, cost=cost)

        self._begin("cost", model, work, "choose")

    def export(self, model: str) -> None:
        """Export it, or go on with an export that was stopped; then load it."""

        def work(progress: Progress) -> None:
            folder = self.backend.export(model, progress, self._stop)
            self._load(folder, progress)

        self._begin("export", model, work, "stopped")

    def load(self, folder: Path) -> None:
        """Load an exported model."""
        self._begin("load", str(folder), lambda progress: self._load(folder, progress), "choose")

    def stop(self) -> None:
        """Stop what is being done, as Ctrl-C would."""
        self._stop.set()

    def back(self) -> None:
        """Choose again, or go on with the model that is loaded."""
        if self._worker is None or not self._worker.is_alive():
            self._show("choose" if self._engine is None else "ready", "")

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until nothing is being done any more; False: it still is."""
        worker = self._worker
        if worker is not None:
            worker.join(seconds)
        return worker is None or not worker.is_alive()

    def working(self) -> bool:
        """Whether its thread is in the middle of something, a load that was not waited for."""
        return self._worker is not None and self._worker.is_alive()

    def close(self) -> None:
        """Stop what is being done and give the engine back. A model that is being loaded is not waited for."""
        self.stop()
        with self._lock:
            self._closed = True
            loading = self._shown.stage == "load"
        self.wait(0 if loading else _END_SECONDS)
        if self._engine is not None:
            self._engine.close()

    def _load(self, folder: Path, progress: Progress) -> None:
        self._show("load", self._shown.model)
        remarks: list[str] = []
        before, self._engine = self._engine, None
        if before is not None:
            before.close()  # first: a laptop has no memory for two
        engine = self.backend.open(folder, None, remarks.append, progress)
        with self._lock:
            closed = self._closed
            if not closed:
                self._engine, self.folder, self.remarks = engine, folder, remarks
        if closed:
            engine.close()
            return
        self._ready(engine)
        self._show("ready", engine.name)

    def _begin(self, stage: Stage, model: str, work: Callable[[Progress], None], after: Stage) -> None:
        with self._lock:
            if self._worker is not None and self._worker.is_alive():
                return  # two tabs pressed the same button
            self._stop = threading.Event()
            self._shown = _Shown(stage, model)

            def progress(what: str, done: int, total: int) -> None:
                with self._lock:
                    shown = self._shown
                    shown.what, shown.done, shown.total = what, done, total

            def run() -> None:
                try:
                    work(progress)
                except StoppedError:
                    self._show(after, model)
                except EdgeError as error:
                    self._show(after, model, error=sentence(error))
                except Exception as error:
                    self._show(after, model, error=f"This should not have happened ({type(error).__name__}: {error}).")
                    raise

            self._worker = threading.Thread(target=run, name="host", daemon=True)
            self._worker.start()

    def _show(
        self, stage: Stage, model: str, *, error: str | None = None, cost: Mapping[str, Any] | None = None
    ) -> None:
        with self._lock:
            self._shown = _Shown(stage, model, error=error, cost=cost)
