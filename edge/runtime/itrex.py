"""A model run by intel-extension-for-transformers, which lives in a virtual environment and a process of its own.

Upstream is archived since October 2024, and needs PyTorch 2.3 and transformers 4.49: it cannot share an interpreter
with this program. What goes between the two are JSON lines over pipes and, at loading, a file of weights for each
layer, which is deleted when it has been read. `itrex_worker.py` is the other side.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import DeviceError, UsageError
from edge.manifest import Manifest
from edge.messages import Progress
from edge.runtime import itrex_home, itrex_weights, trial
from edge.runtime.cores import usable_threads
from edge.runtime.machine import Machine
from edge.runtime.prefix import Reading
from edge.runtime.stream import POLL_SECONDS, Write

ARCHIVED = (
    "ITREX (intel-extension-for-transformers) is archived upstream since October 2024: nobody mends it, nor the old "
    "PyTorch and transformers it needs. Use it for models you trust, to compare."
)
_SCRIPT = Path(__file__).with_name("itrex_worker.py")
_END_SECONDS = 5.0
_TOP_K = 2**31 - 1


def command() -> list[str]:
    """The worker under ITREX's own interpreter.

    Raises:
        DeviceError: `glm4-edge itrex setup` has not been run.
    """
    return [str(itrex_home.python()), "-I", str(_SCRIPT)]


class Worker:
    """The process. One question at a time; what it answers before the end of one goes to `told`.

    Args:
        command: left out, `command()`.
    """

    def __init__(self, command_: Sequence[str] | None = None) -> None:
        words = list(command_ or command())  # before there is anything to be left behind
        self._scratch = tempfile.TemporaryDirectory(prefix="glm4-edge-itrex-", ignore_cleanup_errors=True)
        self.folder = Path(self._scratch.name)
        self._log = (self.folder / "log").open("wb")
        self._numbers = itertools.count(1)
        self._answers: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._turn = threading.Lock()
        self._writing = threading.Lock()
        hidden = ("PYTHONPATH", "PYTHONHOME")
        env = {name: value for name, value in os.environ.items() if name not in hidden}
        # PyTorch and QBits have OpenMP each to itself: threads of one that spin keep those of the other waiting
        env.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        env |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=env, cwd=self.folder, text=True,
            encoding="utf-8", errors="replace",
        )  # fmt: skip
        threading.Thread(target=self._read, name="itrex reader", daemon=True).start()
        try:
            self.versions: dict[str, str] = self._await(0)
        except BaseException:
            self.close()
            raise

    def ask(
        self, what: str, told: Callable[[dict[str, Any]], bool] = lambda line: True,
        look: Callable[[], bool] | None = None, **facts: Any,
    ) -> Any:  # fmt: skip
        """Put a question and return its answer.

        Args:
            told: called with each line before the end; False ends the work.
            look: called between lines; False ends the work.

        Raises:
            DeviceError: the worker failed, or is gone.
        """
        with self._turn:
            number = next(self._numbers)
            self._send({"id": number, "do": what, **facts})
            try:
                return self._await(number, told, look)
            except DeviceError:
                raise
            except BaseException:  # the asker's own: whoever asks next is not to wait for this
                with contextlib.suppress(DeviceError):
                    self._send({"id": number, "do": "cancel"})
                raise

    def close(self) -> None:
        """End the process and remove what it wrote."""
        with contextlib.suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        self._scratch.cleanup()

    def _send(self, question: dict[str, Any]) -> None:
        try:
            with self._writing:
                assert self._process.stdin is not None
                self._process.stdin.write(json.dumps(question) + "\n")
                self._process.stdin.flush()
        except (OSError, ValueError) as error:
            raise self._lost() from error

    def _await(
        self, number: int, told: Callable[[dict[str, Any]], bool] = lambda line: True,
        look: Callable[[], bool] | None = None,
    ) -> Any:  # fmt: skip
        cancelled = False
        while True:
            try:
                line = self._answers.get(timeout=POLL_SECONDS)
            except queue.Empty:
                if not cancelled and look is not None and not look():
                    cancelled = True
                    self._send({"id": number, "do": "cancel"})
                continue
            if line is None:
                self._answers.put(None)  # for the next who asks
                raise self._lost()
            if line["id"] != number:
                continue
            if "error" in line:
                raise DeviceError(
                    f"ITREX failed: {line['error']}",
                    hint="Use --runtime openvino, or set it up anew: glm4-edge itrex setup.",
                )
            if "ok" in line:
                return line["ok"]
            if not cancelled and not told(line):
                cancelled = True
                self._send({"id": number, "do": "cancel"})

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            assert self._process.stdout is not None
            for line in self._process.stdout:
                with contextlib.suppress(ValueError):  # what a library printed, as any other line without a number
                    found = json.loads(line)
                    if isinstance(found, dict) and "id" in found:
                        self._answers.put(found)
        self._answers.put(None)

    def _lost(self) -> DeviceError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        how, _ = trial.ending(self._process.poll() or 0)
        last = ""
        with contextlib.suppress(OSError):
            said = (self.folder / "log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            last = f": {said[-1].strip()}" if said else ""
        return DeviceError(
            f"the process that runs ITREX {how}{last}",
            hint="Close other programs if memory is short; or set it up anew: glm4-edge itrex setup.",
        )


def load(
    folder: Path, manifest: Manifest, progress: Progress = lambda stage, done, total: None,
    command_: Sequence[str] | None = None,
) -> Worker:  # fmt: skip
    """Start a worker and hand it the exported model in `folder`, a layer at a time.

    Raises:
        ModelError: a model that ITREX does not run.
        DeviceError: ITREX is not set up, or failed.
    """
    config = itrex_weights.config(folder, manifest)
    progress("starting ITREX", 0, 0)
    worker = Worker(command_)
    try:
        from safetensors.numpy import save_file

        worker.ask("begin", config=config, threads=usable_threads(Machine()))
        total = config["num_hidden_layers"] + 2  # embedding and head
        for done, part in enumerate(itrex_weights.parts(folder, config)):
            progress("handing the weights to ITREX", done, total)
            path = worker.folder / "part.safetensors"
            save_file(part.tensors, path)
            worker.ask("add", path=str(path), matrices=part.matrices)
            path.unlink()
            del part
        worker.ask("ready")
    except BaseException:
        worker.close()
        raise
    return worker


class ItrexBackend:
    """A `pipelines.Backend`: one answer at a time."""

    cache_share: float | None = None

    def __init__(self, worker: Worker) -> None:
        self._worker: Worker | None = worker

    def generate(
        self, token_ids: Sequence[int], config: Any, write: Write, reading: Reading, adapters: tuple[str, ...] = ()
    ) -> tuple[list[int], list[float]]:
        """See `Backend.generate`."""
        assert self._worker is not None
        if config.structured_output_config is not None:
            raise UsageError(
                "ITREX cannot be held to a grammar", hint="Ask without a schema and without tools, or use OpenVINO."
            )
        tokens: list[int] = list(token_ids) if config.echo else []
        log_probs: list[float] = []

        def told(line: dict[str, Any]) -> bool:
            if "prompt" in line:
                log_probs.extend([0.0, *line["prompt"]])
                return True
            tokens.append(line["token"])
            log_probs.append(line["log_prob"])
            return write([line["token"]], [line["log_prob"]] if config.logprobs else [])

        stop = [] if config.ignore_eos else sorted(config.stop_token_ids)
        self._worker.ask(
            "generate", told, lambda: write(()), ids=list(token_ids), max_new_tokens=int(config.max_new_tokens),
            stop=stop, echo=bool(config.echo), sampling=_sampling(config),
        )  # fmt: skip
        return tokens, log_probs

    def close(self) -> None:
        """See `Backend.close`."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None


class Reader:
    """Logits of known tokens, one sequence after the other; a context manager that ends the worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.close()

    def read(self, tokens: NDArray[np.int64], past: int) -> NDArray[np.float32]:
        """Logits [S, vocab] of S tokens after `past` earlier ones; 0 begins anew."""
        from safetensors.numpy import load_file

        path = self._worker.folder / "logits.safetensors"
        self._worker.ask("logits", ids=[int(token) for token in tokens], past=past, path=str(path))
        found: NDArray[np.float32] = load_file(path)["logits"]
        path.unlink()
        return found


def _sampling(config: Any) -> dict[str, Any]:
    """Of a `GenerationConfig` what the worker looks at."""
    return {
        "do_sample": bool(config.do_sample), "temperature": float(config.temperature), "top_p": float(config.top_p),
        "top_k": min(int(config.top_k), _TOP_K), "repetition_penalty": float(config.repetition_penalty),
        "presence_penalty": float(config.presence_penalty), "frequency_penalty": float(config.frequency_penalty),
        "seed": int(config.rng_seed),
    }  # fmt: skip
