"""A command and all its children, watched from outside: time, memory, bytes, disk."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import psutil

_MEMORY_SECONDS = 0.05
_CHILDREN_SECONDS = 0.5
_DISK_SECONDS = 1.0
_POINTS = 500


def watch(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, folders: Iterable[Path] = ()
) -> dict[str, Any]:
    """Run a command to its end and say what it took; memory is the sum over its process tree.

    `anonymous` is memory that belongs to the processes alone (RssAnon on Linux, USS elsewhere); pages of mapped
    files, which the system drops when it needs room, count in `rss` only. `read_bytes` and `write_bytes` are what
    went to and from the disk, None where the system does not say; `read_calls_bytes` and `written_calls_bytes` what
    went through read and write, from the page cache or not.

    Args:
        folders: whose growth is the command's use of the disk.
    """
    places = list(folders)
    before = sum(map(size_on_disk, places))
    begin = time.perf_counter()
    child = psutil.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    probe = _Probe(child, places, before, begin)
    samplers = [threading.Thread(target=probe.look_at_memory), threading.Thread(target=probe.look_at_disk)]
    said: dict[str, list[tuple[float, str]]] = {"stdout": [], "stderr": []}
    readers = [
        threading.Thread(target=_read, args=(stream, said[name], begin))
        for name, stream in (("stdout", child.stdout), ("stderr", child.stderr))
    ]
    for thread in (*samplers, *readers):
        thread.start()
    try:
        used = _wait(child)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        wall = time.perf_counter() - begin
        probe.over.set()
        for thread in (*samplers, *readers):
            thread.join()
    return {
        "wall_seconds": round(wall, 2),
        **used,
        "peak_anonymous_bytes": max((anonymous for _, anonymous, _ in probe.memory), default=None),
        "peak_rss_bytes": max((rss for _, _, rss in probe.memory), default=None),
        "peak_disk_bytes": max((size for _, size in probe.disk), default=0),
        "left_on_disk_bytes": sum(map(size_on_disk, places)) - before,
        "returncode": child.returncode,
        "stdout": [line for _, line in said["stdout"]],
        "stderr": [[round(at, 2), line] for at, line in said["stderr"]],
        "memory_samples": [[round(at, 2), anonymous, rss] for at, anonymous, rss in thinned(probe.memory)],
        "disk_samples": [[round(at, 1), size] for at, size in thinned(probe.disk)],
    }


class _Probe:
    """What is sampled while the command runs."""

    def __init__(self, child: psutil.Popen, folders: list[Path], before: int, begin: float) -> None:
        self.over = threading.Event()
        self.memory: list[tuple[float, int, int]] = []
        self.disk: list[tuple[float, int]] = []
        self._child, self._folders, self._before, self._begin = child, folders, before, begin

    def look_at_memory(self) -> None:
        tree: list[psutil.Process] = [self._child]
        due = 0.0
        while not self.over.wait(_MEMORY_SECONDS):
            now = time.perf_counter()
            if now > due:  # walking all processes of a machine costs more than reading one
                due = now + _CHILDREN_SECONDS
                try:
                    tree = [self._child, *self._child.children(recursive=True)]
                except psutil.Error:
                    continue
            held = [memory_of(process) for process in tree]
            if any(rss for _, rss in held):
                self.memory.append((now - self._begin, sum(a for a, _ in held), sum(rss for _, rss in held)))

    def look_at_disk(self) -> None:
        while not self.over.wait(_DISK_SECONDS):
            size = sum(map(size_on_disk, self._folders)) - self._before
            self.disk.append((time.perf_counter() - self._begin, size))


def memory_of(process: psutil.Process) -> tuple[int, int]:
    """Anonymous and resident bytes; zeros of a process that is over."""
    status = Path(f"/proc/{process.pid}/status")
    try:
        if status.is_file():
            lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
            if "RssAnon" in lines:
                return tuple(1024 * int(lines[key].split()[0]) for key in ("RssAnon", "VmRSS"))  # type: ignore[return-value]
        if not status.parent.is_dir():
            memory = process.memory_full_info()
            return memory.uss, memory.rss
    except (psutil.Error, OSError):
        pass  # it ended between two looks
    return 0, 0


def _wait(child: psutil.Popen) -> dict[str, Any]:
    """Wait, and say what the child and all children that it waited for used."""
    nothing = dict.fromkeys(("read_bytes", "write_bytes", "read_calls_bytes", "written_calls_bytes"))
    if sys.platform == "win32":
        child.wait()
        return {"user_seconds": None, "system_seconds": None, **nothing}
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    bytes_: dict[str, int | None] = {**nothing}
    if sys.platform == "linux":
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it is over, and its counters are still there
        bytes_ = io_of(child.pid)
    child.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "user_seconds": round(after.ru_utime - before.ru_utime, 2),
        "system_seconds": round(after.ru_stime - before.ru_stime, 2),
        **bytes_,
    }


def io_of(pid: int) -> dict[str, int | None]:
    """What a process, and children that it waited for, read and wrote."""
    try:
        text = Path(f"/proc/{pid}/io").read_text(encoding="utf-8")
    except PermissionError:  # of a process that is over, for all but root on some systems
        text = ""
    found = {key: int(value) for key, _, value in (line.partition(": ") for line in text.splitlines())}
    names = {"read_bytes": "read_bytes", "write_bytes": "write_bytes", "read_calls_bytes": "rchar",
             "written_calls_bytes": "wchar"}  # fmt: skip
    return {ours: found.get(theirs) for ours, theirs in names.items()}


def _read(stream: IO[bytes], lines: list[tuple[float, str]], begin: float) -> None:
    for raw in stream:
        text = raw.decode("utf-8", "replace").rstrip("\r\n").rpartition("\r")[2]
        lines.append((time.perf_counter() - begin, text))


def thinned(samples: list[Any]) -> list[Any]:
    """At most 500 of the samples: of each stretch, the largest in its second figure, so that peaks stay."""
    step = -(-len(samples) // _POINTS) or 1
    return [max(samples[i : i + step], key=lambda sample: sample[1]) for i in range(0, len(samples), step)]


def size_on_disk(folder: Path) -> int:
    """Bytes of the files in it, as long as they are there."""
    total = 0
    for path in folder.rglob("*"):
        try:
            stat = path.lstat()
        except OSError:
            continue  # deleted meanwhile
        if not path.is_dir():
            total += getattr(stat, "st_blocks", -(-stat.st_size // 512)) * 512
    return total


def drop_from_cache(paths: Sequence[Path]) -> float | None:
    """Ask the system to forget the files' pages; returns the share still cached, None where that cannot be asked."""
    if sys.platform != "linux":
        return None
    for path in paths:
        with path.open("rb+") as file:
            os.fsync(file.fileno())  # what has not been written cannot be forgotten
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return cached_share(paths)


def cached_share(paths: Sequence[Path]) -> float:
    """Share of the files' pages that lie in the page cache (Linux)."""
    mincore = ctypes.CDLL(None, use_errno=True).mincore
    page, cached, pages = os.sysconf("SC_PAGE_SIZE"), 0, 0
    for path in paths:
        data = np.memmap(path, np.uint8, "r")
        seen = (ctypes.c_ubyte * -(-data.size // page))()
        if mincore(ctypes.c_void_p(data.ctypes.data), ctypes.c_size_t(data.size), seen):
            raise OSError(ctypes.get_errno(), f"mincore of {path}")
        cached += int((np.frombuffer(bytes(seen), np.uint8) & 1).sum())
        pages += len(seen)
    return cached / pages if pages else 0.0
