"""A model loaded in a process of its own, so that what ends that process comes back as a sentence.

Compilers of devices do not always refuse what they cannot do: some call abort, some hang, some take all memory. What
they compile is kept on disk (`compiled`), so that the loading that follows is fast.

Tasks of other kinds, the thorough canary and parity's loading, are run there in the same way.

Run as a module it is the child: settings come on standard input, the answer goes to standard output.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import edge
from edge import errors
from edge.errors import DeviceError, EdgeError
from edge.files import HOME_VARIABLE, home
from edge.messages import Progress
from edge.runtime.ladder import label
from edge.runtime.settings import Settings

TIMEOUT_SECONDS = 900.0
"""A 9B model takes minutes to compile for an NPU."""
Task = Literal["load", "canary", "parity"]
COMMAND = (sys.executable, "-m", "edge.runtime.trial")
_ANSWER = "glm4-edge trial: "  # compilers write to standard output, too
_DRIVER = "update the device's driver, or choose another device."
_DAMAGED = "see whether glm4-edge verify finds the model damaged, and export it again."
_KILLED_SECONDS = 5.0  # a driver may hold even what was killed
_POLL_SECONDS = 0.1  # on Windows a blocked wait does not see Ctrl-C
_ERROR_BITS = 0x0001 | 0x0002  # of Windows: no dialog for a fault, SEM_FAILCRITICALERRORS and SEM_NOGPFAULTERRORBOX
_NO_MEMORY = {-9, 137, 0xC0000017, 0xC000012D}  # SIGKILL, as a shell has it; Windows: no memory, commit limit
_WINDOWS = {
    0xC0000005: "an access violation", 0xC00000FD: "a stack overflow", 0xC0000374: "a damaged heap",
    0xC0000409: "an abort", 0xC000001D: "an instruction that the processor does not have",
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Args:
        ok: the model loaded and gave a token.
        sentence: what happened, without a full stop.
        seconds: how long it took.
        error: where it failed, what to raise.
        lasting: whether it would fail again tomorrow: a crash would, a want of memory may not.
        told: what the task found.
    """

    ok: bool
    sentence: str
    seconds: float
    error: EdgeError | None = None
    lasting: bool = False
    told: dict[str, Any] | None = None


def run(
    folder: Path,
    settings: Settings,
    timeout: float = TIMEOUT_SECONDS,
    *,
    task: Task = "load",
    progress: Progress = lambda stage, done, total: None,
    command: Sequence[str] = COMMAND,
) -> Outcome:
    """Do a task with `folder` and `settings` in a child process, and say how that ended.

    The child ends when this process does, however that ends.

    Args:
        timeout: seconds after which the child is killed.
        task: "load": load the model and run one token; "canary": `canary.thorough`;
            "parity": `parity.try_out`.
        command: the child.

    Raises:
        RuntimeError: a fault of ours, which says nothing of the model or the device.
    """
    started = time.monotonic()
    asked = dataclasses.asdict(dataclasses.replace(settings, properties=dict(settings.properties)))
    question = json.dumps({"folder": str(folder.expanduser().resolve()), "settings": asked, "task": task})
    here = label(settings)
    stage = f"trying {here} in a process of its own"
    code, out, said = _child(command, question, started + timeout, lambda: progress(stage, 0, 0))
    seconds = time.monotonic() - started
    answer = _answer(out)
    if answer is not None and answer.get("ok") is True:
        return Outcome(True, f"{here} loaded the model and gave a token", seconds, told=answer.get("told"))
    if answer is not None and "ours" in answer:
        raise RuntimeError(f"in a process of its own, {answer['ours']}")
    if answer is not None and "error" in answer:
        error = rebuilt(answer["error"])
        return Outcome(False, error.message, seconds, error)
    if code is None:
        what, lasting, hint = f"was not done in {timeout:,.0f} seconds", False, "Try again when the machine is idle."
    else:
        what, lasting = ending(code)
        hint = "Close other programs if memory is short, or "
        hint += _DAMAGED if settings.device == "CPU" or settings.rehearse else _DRIVER
    last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "")
    sentence = f"loading the model on {here} {what}" + (f"; its last words: {last[:200]}" if last else "")
    return Outcome(False, sentence, seconds, DeviceError(sentence, hint=hint), lasting)


def _child(
    command: Sequence[str], question: str, deadline: float, tick: Callable[[], None]
) -> tuple[int | None, str, str]:
    """Exit code (None: killed at the deadline), standard output and standard error of a child that is asked."""
    root = str(Path(edge.__file__).parents[1])  # before anything that the user's own folder calls `edge`
    # Held open by us and by nobody else: the child sees it close when we are gone.
    reading, writing = os.pipe()
    try:
        try:
            process = subprocess.Popen(
                command, stdin=reading, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root,
                env={**os.environ, HOME_VARIABLE: str(home().absolute())},
            )  # fmt: skip
        finally:
            os.close(reading)
        try:
            with contextlib.suppress(OSError):  # it is gone already
                os.write(writing, question.encode() + b"\n")
            while True:
                tick()
                try:
                    out, said = process.communicate(timeout=_POLL_SECONDS)
                    return process.returncode, _text(out), _text(said)
                except subprocess.TimeoutExpired:
                    if time.monotonic() >= deadline:
                        process.kill()
                        try:
                            out, said = process.communicate(timeout=_KILLED_SECONDS)
                        except subprocess.TimeoutExpired as held:
                            out, said = held.stdout or b"", held.stderr or b""
                        return None, _text(out), _text(said)
        finally:
            if process.poll() is None:
                process.kill()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_KILLED_SECONDS)
    finally:
        os.close(writing)


def _text(data: bytes | None) -> str:
    return (data or b"").decode("utf-8", "replace")


def _answer(out: str) -> dict[str, Any] | None:
    for line in reversed(out.splitlines()):
        if line.startswith(_ANSWER):
            with contextlib.suppress(ValueError):
                answer = json.loads(line[len(_ANSWER) :])
                return answer if isinstance(answer, dict) else None
    return None


def rebuilt(told: Sequence[str]) -> EdgeError:
    """The child's error again, of its own kind."""
    kind, message, hint = told
    found = getattr(errors, kind, EdgeError)
    if found is errors.MissingExtraError:  # says its sentence itself
        found = EdgeError
    error: EdgeError = found(message, hint=hint)
    return error


def ending(code: int) -> tuple[str, bool]:
    """What an exit code of a child says, and whether it would be the same tomorrow."""
    if code in _NO_MEMORY:
        return "was killed, most likely for want of memory", False
    if code in _WINDOWS:
        return f"ended in {_WINDOWS[code]} (0x{code:08X})", True
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"ended in a crash ({name})", name not in ("SIGTERM", "SIGINT", "SIGHUP")
    if code == 3 and sys.platform == "win32":
        return "ended in an abort", True
    return f"ended without an answer (exit code {code})", False


def main() -> None:
    """The child: one question from standard input, one answer to standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets Ctrl-C, too, and decides
    show_no_dialogs()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    asked = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        told = _TASKS[asked["task"]](Path(asked["folder"]), Settings(**asked["settings"]))
        answer: dict[str, Any] = {"ok": True, "told": told}
    except EdgeError as error:
        answer = {"error": [type(error).__name__, error.message, error.hint]}
    except (RuntimeError, MemoryError):  # OpenVINO's; they end as last words
        raise
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        answer = {"ours": f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}: {error}"}
    print(_ANSWER + json.dumps(answer), file=answers, flush=True)
    os._exit(0)  # the answer is given; some drivers crash while they are taken down


def show_no_dialogs() -> None:
    """Have Windows end this process when it crashes, and not ask anybody first."""
    if sys.platform == "win32":
        import ctypes

        ctypes.windll.kernel32.SetErrorMode(_ERROR_BITS)


def _end_with_parent() -> None:
    while os.read(0, 1024):  # not sys.stdin, whose lock would be held while the interpreter goes down
        pass
    os._exit(1)


def _load(folder: Path, settings: Settings) -> None:
    from edge.runtime.engine import Engine

    with Engine.load(folder, settings) as engine:
        engine.warm_up()


def _canary(folder: Path, settings: Settings) -> dict[str, Any]:
    from edge import golden as goldens
    from edge.runtime import canary

    golden = goldens.read(folder)
    assert golden is not None
    return dataclasses.asdict(canary.thorough(folder, settings, golden))


def _parity(folder: Path, settings: Settings) -> None:
    from edge.runtime import parity

    parity.try_out(folder, settings.device)


_TASKS: dict[str, Callable[[Path, Settings], dict[str, Any] | None]] = {
    "load": lambda folder, settings: _load(folder, settings),
    "canary": lambda folder, settings: _canary(folder, settings),
    "parity": lambda folder, settings: _parity(folder, settings),
}


if __name__ == "__main__":
    main()
