"""A peer's process from outside: when it is ready, what it answers, and what it holds."""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import click
import psutil

from benchmarks.watch import memory_of

_LOOK_SECONDS = 0.1
_FAMILY_LOOKS = 10
"""While it loads, its children are sought at every tenth look: walking all processes costs more than reading one."""
_LONGEST_SECONDS = 1800.0
"""For one answer: a process that hangs ends the run with a sentence."""


class Child:
    """The process of `peer_child`, from its start on; see `started`.

    Args:
        said: a file for what it writes to standard error.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], said: IO[bytes]) -> None:
        self._name = " ".join(command[2:4])
        self._said = said
        self._begin = time.perf_counter()
        self._process = psutil.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, env=env, encoding="utf-8"
        )
        self._memory = _Memory(self._process)
        self._memory.start()

    def close(self) -> None:
        """End it: in peace, or after a minute at once."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(60)
        except psutil.TimeoutExpired:
            for process in [*self._process.children(recursive=True), self._process]:
                process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._memory.over.set()
        self._memory.join()

    def loaded(self) -> float:
        """Seconds from the process's start until it said that it had loaded."""
        self._hear("loaded")
        seconds = time.perf_counter() - self._begin
        self._memory.loaded.set()
        self._memory.find_children()
        return seconds

    def ask(self, prompt: Sequence[int], new: int) -> tuple[float, dict[str, Any]]:
        """Seconds from the process's start to the first token of this answer; and "tokens", "token_seconds" from the
        request on, and "busy_elsewhere": the share of the processors that others had.

        Raises:
            ClickException: fewer tokens came than were asked for.
        """
        before = self._used()
        self._send(prompt=list(prompt), new=new)
        self._hear("first")
        first = time.perf_counter() - self._begin
        found = self._hear("tokens")
        after = self._used()
        came = min(len(found["tokens"]), len(found["token_seconds"]))
        if came != new:
            raise click.ClickException(f"{self._name}: {came} of {new} tokens came")
        whole, busy, own = (now - then for now, then in zip(after, before, strict=True))
        found["busy_elsewhere"] = min(max((busy - own) / whole, 0.0), 1.0) if whole > 0.05 else None
        return first, found

    def logits(self, windows: Path, out: Path, *, exact: bool) -> None:
        """Have the logits of every window written to a file."""
        self._send(windows=str(windows), logits=str(out), exact=exact)
        self._hear("done")

    @property
    def memory(self) -> dict[str, int]:
        """Peaks so far of its processes together, in bytes: "anonymous" belongs to no file, "resident" is all."""
        return {"anonymous": self._memory.anonymous, "resident": self._memory.resident}

    def _send(self, **question: Any) -> None:
        with contextlib.suppress(OSError):  # it is over: `_hear` says why
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()

    def _hear(self, wanted: str) -> dict[str, Any]:
        late = threading.Timer(_LONGEST_SECONDS, self._process.kill)
        late.start()
        try:
            line = self._process.stdout.readline()
        finally:
            late.cancel()
        found: dict[str, Any] = json.loads(line) if line else {"error": "its process ended"}
        if wanted not in found:
            self._said.seek(0)
            words = self._said.read().decode("utf-8", "replace").strip()[-1500:]
            raise click.ClickException(f"{self._name}: {found.get('error', found)}\n{words}")
        return found

    def _used(self) -> tuple[float, float, float]:
        """Processor seconds of the machine, of these the busy ones, and those of this measurement."""
        times = psutil.cpu_times()._asdict()
        for twice in ("guest", "guest_nice", "interrupt", "dpc"):  # counted among others, too
            times.pop(twice, None)
        whole = sum(times.values())
        own = 0.0
        for process in (psutil.Process(), *self._memory.processes):
            with contextlib.suppress(psutil.Error):
                used = process.cpu_times()
                own += used.user + used.system
        return whole, whole - times["idle"] - times.get("iowait", 0.0), own


class _Memory(threading.Thread):
    """Looks at a process and its children ten times a second, and keeps the largest sums."""

    def __init__(self, process: psutil.Process) -> None:
        super().__init__(name="memory", daemon=True)
        self.over, self.loaded = threading.Event(), threading.Event()
        self.anonymous = self.resident = 0
        self.processes = [process]
        self._keeping = threading.Lock()

    def find_children(self) -> None:
        """Those that it has now; once it has loaded there come no more. A look begun before that and ended after it is
        older than the one that `loaded` takes, and does not count.
        """
        loading = not self.loaded.is_set()
        with contextlib.suppress(psutil.Error):
            found = [self.processes[0], *self.processes[0].children(recursive=True)]
            with self._keeping:
                if not (loading and self.loaded.is_set()):
                    self.processes = found

    def run(self) -> None:
        """See `threading.Thread.run`."""
        for look in itertools.count():
            if self.over.wait(_LOOK_SECONDS):
                return
            if look % _FAMILY_LOOKS == 0 and not self.loaded.is_set():
                self.find_children()
            held = [memory_of(process) for process in self.processes]
            self.anonymous = max(self.anonymous, sum(anonymous for anonymous, _ in held))
            self.resident = max(self.resident, sum(resident for _, resident in held))


@contextlib.contextmanager
def started(command: Sequence[str], env: Mapping[str, str]) -> Iterator[tuple[Child, float]]:
    """The process once it has loaded, and the seconds that took. It ends with the block.

    Raises:
        ClickException: it does not load.
    """
    with tempfile.TemporaryFile() as said, contextlib.closing(Child(command, env, said)) as child:
        yield child, child.loaded()
