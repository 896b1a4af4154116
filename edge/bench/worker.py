"""A model in a process of its own, which answers and tells how long that took.

So that memory is its own, that a device's crash is a sentence, and that several can be measured in turn: while one
works, the others wait.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge import errors
from edge.bench.case import Case, Load, Prompts, Sample
from edge.errors import DeviceError, EdgeError, ModelError
from edge.lora.asked import Loras
from edge.runtime import trial
from edge.runtime.settings import Settings

if TYPE_CHECKING:
    from edge.bench.roofline import Limits
    from edge.runtime.engine import Engine

_POLL_SECONDS = 0.2
_END_SECONDS = 20.0


class Worker:
    """The process. A context manager, which ends it.

    Args:
        folder: of the exported model.
        settings: how it is loaded; the device by its name, not AUTO.
        loras: adapters that its answers have.
    """

    def __init__(self, folder: Path, settings: Settings, loras: Loras | None = None) -> None:
        self.folder, self.settings, self.loras = folder, settings, loras
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there,), name="bench", daemon=True)
        self._process.start()
        there.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def load(self) -> Load:
        """Load the model, check its numbers, and make one token.

        Raises:
            EdgeError: it cannot be loaded, or the device computes wrongly or ended the process.
        """
        settings = replace(self.settings, properties=dict(self.settings.properties))
        return Load(**self._ask("load", str(self.folder.resolve()), settings, self.loras))

    def facts(self) -> dict[str, Any]:
        """Of the loaded model: "model", "settings", "context", "shortest"."""
        found: dict[str, Any] = self._ask("facts")
        return found

    def run(self, case: Case, number: int, *, later: bool = False) -> list[tuple[Case, Sample]]:
        """Measure a first turn and, if `later`, a further one behind it, in the round `number`."""
        found: list[tuple[Case, Sample]] = self._ask("run", case, number, later)
        return found

    def limits(self) -> Limits:
        """See `roofline.measure`, with this model on this device. It need not be loaded."""
        settings = replace(self.settings, properties=dict(self.settings.properties))
        found: Limits = self._ask("limits", str(self.folder.resolve()), settings)
        return found

    def memory(self) -> dict[str, int | None]:
        """Peaks so far, in bytes: "anonymous", "resident"."""
        found: dict[str, int | None] = self._ask("memory")
        return found

    def error(self) -> float | None:
        """Mean error of the log-probabilities of a known text, in nats; None where the model has no golden logits."""
        found: float | None = self._ask("error")
        return found

    def close(self) -> None:
        """End the process."""
        if self._process.is_alive():
            with contextlib.suppress(OSError):
                self._here.send(("end",))
            self._process.join(_END_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._here.close()

    def kill(self) -> None:
        """End it at once, whatever it does."""
        self._process.kill()
        self._process.join()
        self._here.close()

    def _ask(self, what: str, *facts: Any) -> Any:
        try:
            self._here.send((what, *facts))
            while not self._here.poll(_POLL_SECONDS):  # in pieces: Windows does not interrupt one long wait
                pass
            answered, found = self._here.recv()
        except (EOFError, OSError) as error:
            self._process.join(_END_SECONDS)
            said, _ = trial.ending(self._process.exitcode or 0)
            raise DeviceError(
                f"the process that measured {self.settings.device} {said}",
                hint="Close other programs if memory is short, or choose another device.",
            ) from error
        if not answered:
            kind, message, hint = found
            raise getattr(errors, kind, EdgeError)(message, hint=hint)
        return found


def _serve(asked: Connection) -> None:
    """The process: one question after the other."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets Ctrl-C, too, and decides
    from edge.bench.sensors import MemoryWatch

    with MemoryWatch() as watch, contextlib.suppress(EOFError, BrokenPipeError):
        server = _Server(watch)
        while (question := asked.recv())[0] != "end":
            try:
                asked.send((True, getattr(server, question[0])(*question[1:])))
            except EdgeError as error:
                asked.send((False, [type(error).__name__, error.message, error.hint]))
            except Exception as error:  # a plugin's; the parent says it in its own words
                words = " ".join(str(error).split())[-300:] or type(error).__name__
                asked.send(
                    (False, ["DeviceError", f"measuring failed: {words}", "Choose another device, or settings."])
                )
        server.close()


class _Server:
    """What a worker can be asked, in its own process."""

    def __init__(self, watch: Any) -> None:
        self._watch = watch
        self._folder = Path()
        self._engine: Engine | None = None
        self._prompts: Prompts | None = None
        self._error: float | None = None

    def load(self, folder: str, settings: Settings, loras: Loras | None) -> dict[str, float]:
        start = time.perf_counter()
        import openvino_genai  # noqa: F401 - its time is told apart

        from edge import golden as goldens
        from edge.runtime import canary
        from edge.runtime.engine import Engine
        from edge.runtime.plan import BLOCK

        imported = time.perf_counter()
        self._folder = Path(folder)
        self._engine = engine = Engine.load(self._folder, settings, *([] if loras is None else [loras]))
        if settings.runtime != "openvino":
            self._watch.with_children()
        loaded = time.perf_counter()
        engine.warm_up()
        warm = time.perf_counter()
        golden = goldens.read(self._folder)
        if loras is not None and golden is not None:  # the check reads without them, and its blocks must be nobody's
            golden = golden.beyond(BLOCK["CPU"])
        if golden is not None:
            found = canary.quick(engine, golden)
            if not found.ok:
                raise DeviceError(
                    f"{settings.device} computes wrongly: {found.reason}",
                    hint=f"glm4-edge canary {folder} --device {settings.device} finds settings that are right.",
                )
            errors = [row["mean_error"] for row in found.figures["by_length"] if row.get("mean_error") is not None]
            self._error = sum(errors) / len(errors) if errors else None
        self._prompts = Prompts(engine.encode, engine.manifest.architecture.vocab_size)
        return asdict(Load(loaded - imported, warm - loaded, imported - start))

    def facts(self) -> dict[str, Any]:
        from edge.runtime import devices

        engine, prompts = self._loaded()
        manifest, settings = engine.manifest, engine.settings
        return {
            "model": {
                "name": manifest.source.model, "revision": manifest.source.revision, "target": manifest.target,
                "parameters": manifest.architecture.parameters, "recipe": manifest.recipe, "bytes": manifest.bytes,
            },
            "settings": {
                **asdict(replace(settings, properties=dict(settings.properties))),
                "tuned_words": engine.tuned,
                "adapters": list(engine.always_on),
                "defaults": devices.default_properties(settings.device, manifest),
            },
            "context": engine.context_length,
            "longest_prompt": engine.max_prompt,
            "shortest": prompts.shortest,
        }  # fmt: skip

    def run(self, case: Case, number: int, later: bool) -> list[tuple[Case, Sample]]:
        from edge.bench.ask import ask

        engine, prompts = self._loaded()
        return ask(engine, prompts, case, number, later=later)

    def limits(self, folder: str, settings: Settings) -> Limits:
        from edge.bench import roofline
        from edge.manifest import Manifest
        from edge.runtime import devices

        properties = dict(
            devices.default_properties(settings.device, Manifest.read(Path(folder))), **settings.properties
        )
        return roofline.measure(Path(folder), settings.device, properties)

    def error(self) -> float | None:
        return self._error

    def memory(self) -> dict[str, int | None]:
        return {"anonymous": self._watch.anonymous, "resident": self._watch.resident or None}

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()

    def _loaded(self) -> tuple[Engine, Prompts]:
        if self._engine is None or self._prompts is None:
            raise ModelError("no model is loaded", hint="Load one first.")
        return self._engine, self._prompts
