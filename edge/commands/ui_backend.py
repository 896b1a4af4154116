"""What the page may not reach itself: finding, exporting and loading models."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edge.commands import loading
from edge.commands.export import default_folder, is_exported
from edge.commands.named import is_name, target_for
from edge.errors import EdgeError, OutputError
from edge.manifest import Manifest
from edge.messages import Progress
from edge.model import pocket
from edge.report import say as say_on_stderr
from edge.runtime.context import Policy
from edge.runtime.interface import ChatEngine
from edge.ui.web.host import StoppedError

_GRACE_SECONDS = 60.0  # for a step that hears no Ctrl-C; what is written is whole then, too


class _Checked(Exception):  # noqa: N818
    """Nothing was wrong with what was asked for."""


def check(model: str | None, *, overflow: Policy, **options: Any) -> None:
    """Meet what cannot be before a page is served.

    Raises:
        EdgeError: there is no such device or model, or options that make no sense.
    """

    def stop() -> None:
        raise _Checked

    with contextlib.suppress(_Checked):
        loading.look(model or pocket.NAME, read=stop, **options)


class Loader:
    """The page's `Backend`.

    Args:
        options: of `loading.look` and `loading.load`, as the command line has them.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = dict(options)

    def made(self) -> list[tuple[str, Path]]:
        """See `Backend.made`."""
        from edge.files import home

        found = []
        for folder in sorted((home() / "models").glob("*")):
            if is_exported(folder):
                with contextlib.suppress(EdgeError):  # a damaged one is no choice
                    found.append((Manifest.read(folder).source.model, folder))
        return found

    def find(self, model: str) -> Path | None:
        """See `Backend.find`."""
        loading.check_model(model)
        if not is_name(model):
            return Path(model).expanduser()
        folder = self._place(model)
        return folder if is_exported(folder) else None

    def cost(self, model: str, progress: Progress, stop: threading.Event) -> Mapping[str, Any]:
        """See `Backend.cost`."""
        return dict(self._child("cost", model, progress, stop))

    def export(self, model: str, progress: Progress, stop: threading.Event) -> Path:
        """See `Backend.export`."""
        return Path(self._child("export", model, progress, stop))

    def open(self, folder: Path, device: str | None, say: Callable[[str], None], progress: Progress) -> ChatEngine:
        """See `Backend.open`."""
        progress(folder.name, 0, 0)
        options = {**self._options, **({} if device is None else {"device": device, "rehearse": False})}
        overflow = options.pop("overflow")
        wanted = loading.look(str(folder), read=lambda: None, **options)
        told: list[str] = []

        def remark(line: str) -> None:
            say_on_stderr(line)
            told.append(line)

        engine = loading.load(wanted, overflow=overflow, remark=remark)
        for line in told or [_why(wanted.settings.device, engine.device)]:
            say(line)
        return engine

    def devices(self) -> list[str]:
        """See `Backend.devices`."""
        from edge.runtime import devices

        return devices.available()

    def _place(self, model: str) -> Path:
        return default_folder(model, self._target())

    def _target(self) -> str:
        from edge.runtime import devices

        return target_for(loading.exported_for(devices.parse(self._options["device"]), self._options["rehearse"]))

    def _child(self, job: str, model: str, progress: Progress, stop: threading.Event) -> Any:
        asked = {"job": job, "model": model, "out": str(self._place(model)), "target": self._target()}
        child = subprocess.Popen(
            [sys.executable, "-m", "edge.commands.export_child"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8",
        )  # fmt: skip
        assert child.stdin is not None and child.stdout is not None
        over = threading.Event()

        def end_when_asked() -> None:
            while not over.wait(0.05):
                if stop.is_set():
                    with contextlib.suppress(OSError, ValueError):  # it has just ended
                        child.stdin.close()  # type: ignore[union-attr]
                    if not over.wait(_GRACE_SECONDS):
                        child.kill()
                    return

        result: dict[str, Any] = {}
        try:
            child.stdin.write(json.dumps(asked) + "\n")
            child.stdin.flush()
            threading.Thread(target=end_when_asked, name="end export", daemon=True).start()
            for event in _events(child.stdout):
                if "progress" in event:
                    progress(*event["progress"])
                else:
                    result = event
            child.wait()
        finally:
            over.set()
            with contextlib.suppress(OSError, ValueError):
                child.stdin.close()
        if "done" in result:
            return result["done"]
        if "error" in result:
            raise EdgeError(result["error"][0], hint=result["error"][1])
        if stop.is_set():
            raise StoppedError("the export was stopped", hint="It can go on.")
        raise OutputError(
            f"the export ended in an unforeseen way (code {child.returncode})",
            hint=f"In a terminal, glm4-edge export {model} says more.",
        )


def _events(lines: Iterator[str] | Any) -> Iterator[dict[str, Any]]:
    for line in lines:
        with contextlib.suppress(ValueError):  # something else printed
            event = json.loads(line)
            if isinstance(event, dict):
                yield event


def _why(asked: str, device: str) -> str:
    """Why this device, where nothing stood in the way."""
    from edge.runtime import devices

    if asked != devices.AUTO:
        return f"{asked} was asked for."
    present = devices.available()
    if present == ["CPU"]:
        return "No other device is here."
    return f"The first of {', '.join(present)} that runs this model and computes right."
