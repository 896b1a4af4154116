"""What the doctor knows a machine by. Every fact comes through `Machine`, so that a test can make one up."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

import edge
from edge.files import home

_LOOK_SECONDS = 120
_NO_LIMIT = 1 << 60  # what a cgroup of version 1 says that limits nothing


@dataclass(frozen=True)
class Memory:
    """Of the machine, in bytes; limits of a container are not in it."""

    total: int
    available: int
    swap: int


@dataclass(frozen=True)
class Package:
    """An installed distribution."""

    version: str
    requires: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sight:
    """What OpenVINO sees.

    Args:
        devices: name → what its plugin tells: name, driver, memory_bytes and others, each only where it is told.
        reasons: GPU, NPU → OpenVINO's own words, where it has some, about why it does not see one.
        fault: why OpenVINO itself could not be asked.
    """

    devices: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    fault: str | None = None


def look(command: tuple[str, ...] = (sys.executable, "-m", "edge.runtime.sight")) -> Sight:
    """Ask OpenVINO in a process of its own: a broken driver may end the process that asks."""
    root = str(Path(edge.__file__).parents[1])  # before anything that the user's own folder calls `edge`
    try:
        done = subprocess.run(command, capture_output=True, timeout=_LOOK_SECONDS, cwd=root, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return Sight(fault=f"OpenVINO had not listed its devices after {_LOOK_SECONDS} seconds")
    with contextlib.suppress(ValueError, IndexError, TypeError):  # no answer; how it ended is told below
        return Sight(**json.loads(done.stdout.decode("utf-8", "replace").splitlines()[-1]))
    said = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    last = f": {said[-1].strip()[:300]}" if said else ""
    return Sight(fault=f"listing OpenVINO's devices ended with exit code {done.returncode}{last}")


def _memory() -> Memory:
    now = psutil.virtual_memory()
    return Memory(int(now.total), int(now.available), int(psutil.swap_memory().total))


def _package(name: str) -> Package | None:
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    return Package(found.version, tuple(found.requires or ()))


def _affinity() -> int | None:
    return len(psutil.Process().cpu_affinity()) if sys.platform in ("linux", "win32") else None


def _may_open(path: Path) -> bool:
    return os.access(path, os.R_OK | os.W_OK)


def _group_of(path: Path) -> str | None:
    try:
        return path.group()
    except (KeyError, NotImplementedError, OSError):  # a group without a name; Windows
        return None


def _my_groups() -> frozenset[str]:
    """Names of the groups that this process runs with."""
    if sys.platform == "win32":
        return frozenset()
    import grp

    known = {entry.gr_gid: entry.gr_name for entry in grp.getgrall()}
    return frozenset(known.get(gid, str(gid)) for gid in {*os.getgroups(), os.getegid()})


def _my_lasting_groups() -> frozenset[str]:
    """Names of the groups that the user has after the next login."""
    if sys.platform == "win32":
        return frozenset()
    import grp
    import pwd

    try:
        user = pwd.getpwuid(os.getuid())
    except KeyError:  # a container's user without a name
        return frozenset()
    return frozenset(e.gr_name for e in grp.getgrall() if user.pw_name in e.gr_mem or e.gr_gid == user.pw_gid)


def _windows_features() -> frozenset[str] | None:
    try:
        from archspec.cpu.detect import detected_info
    except ImportError:
        return None
    return frozenset(detected_info().features)


@dataclass(frozen=True)
class Machine:
    """Where facts come from: files below `root`, and a few questions to the system.

    The defaults are this machine. A missing fact is None, never 0.
    """

    root: Path = Path("/")
    system: str = field(default_factory=platform.system)
    """Linux, Windows or Darwin."""
    architecture: str = field(default_factory=platform.machine)
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    encoding: str = field(default_factory=lambda: getattr(sys.stdout, "encoding", None) or "")
    """Of standard output; empty where it is closed, as under pythonw.exe."""
    home: Path = field(default_factory=home)
    look: Callable[[], Sight] = look
    memory: Callable[[], Memory] = _memory
    affinity: Callable[[], int | None] = _affinity
    """Logical processors this process may run on."""
    package: Callable[[str], Package | None] = _package
    may_open: Callable[[Path], bool] = _may_open
    group_of: Callable[[Path], str | None] = _group_of
    my_groups: Callable[[], frozenset[str]] = _my_groups
    my_lasting_groups: Callable[[], frozenset[str]] = _my_lasting_groups
    other_features: Callable[[], frozenset[str] | None] = _windows_features
    """Of the processor, under Linux's names, where there is no /proc/cpuinfo."""

    def path(self, name: str) -> Path:
        """Where the system's /`name` lies."""
        return self.root / name

    def text(self, name: str) -> str | None:
        """What a file says, without white space around it; None where it cannot be read."""
        try:
            return self.path(name).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return None

    def number(self, name: str) -> int | None:
        """The same of a file that holds a whole number."""
        found = self.text(name)
        return int(found) if found and re.fullmatch(r"-?\d+", found) else None

    def glob(self, pattern: str) -> list[Path]:
        """Files whose path below / fits the pattern, in order."""
        return sorted(self.root.glob(pattern))

    @functools.cached_property
    def sight(self) -> Sight:
        """What OpenVINO sees, asked once."""
        return self.look()

    @functools.cached_property
    def os_release(self) -> dict[str, str]:
        """Of a Linux distribution: ID, ID_LIKE, VERSION_ID, PRETTY_NAME, as far as they are told."""
        text = self.text("etc/os-release") or ""
        return {key: value.strip("\"'") for key, _, value in (line.partition("=") for line in text.splitlines())}

    @property
    def container(self) -> str | None:
        """The kind of container this runs in: docker, podman, or what systemd calls it."""
        if self.path(".dockerenv").exists():
            return "docker"
        if self.path("run/.containerenv").exists():
            return "podman"
        return self.text("run/systemd/container") or self.environ.get("container") or None

    @property
    def wsl(self) -> bool:
        """Whether this is Linux inside Windows."""
        return "microsoft" in (self.text("proc/sys/kernel/osrelease") or "").lower()

    def cgroup_files(self, controller: str, name_v2: str, name_v1: str) -> Iterator[str]:
        """What the files say that limit this process, those of the groups around its own included."""
        for line in (self.text("proc/self/cgroup") or "").splitlines():
            number, controllers, place = [*line.split(":", 2), "", ""][:3]
            if not (number.isdigit() and place):
                continue
            if controllers and controller not in controllers.split(","):
                continue
            base, name = ("sys/fs/cgroup", name_v2) if not controllers else (f"sys/fs/cgroup/{controller}", name_v1)
            # Inside a container the path may be that of the host; then the root of what is mounted speaks.
            parts = [part for part in place.split("/") if part and part != ".."]
            for depth in range(len(parts), -1, -1):
                text = self.text("/".join([base, *parts[:depth], name]))
                if text is not None:
                    yield text

    def memory_limit(self) -> int | None:
        """Bytes that a cgroup lets this process and its relatives have together; None without a limit."""
        found = self.cgroup_files("memory", "memory.max", "memory.limit_in_bytes")
        limits = [int(text) for text in found if text.isdecimal() and int(text) < _NO_LIMIT]
        return min(limits, default=None)

    def memory_used_of_limit(self) -> int:
        """Bytes of the cgroup's limit that are taken and cannot be dropped: what the page cache holds is not in it."""
        used = next(self.cgroup_files("memory", "memory.current", "memory.usage_in_bytes"), "0")
        figures = next(self.cgroup_files("memory", "memory.stat", "memory.stat"), "")
        cached = re.search(r"^(?:total_)?inactive_file (\d+)", figures, re.MULTILINE)
        return max((int(used) if used.isdecimal() else 0) - (int(cached[1]) if cached else 0), 0)

    def room(self) -> Memory:
        """The memory that this process can have: the machine's, or less where a cgroup limits it."""
        now, limit = self.memory(), self.memory_limit()
        if limit is None or limit >= now.total:
            return now
        return Memory(limit, min(now.available, max(limit - self.memory_used_of_limit(), 0)), now.swap)

    def processor_limit(self) -> float | None:
        """Processors' worth of time that a cgroup gives; None without a limit."""
        limits = []
        for text in self.cgroup_files("cpu", "cpu.max", "cpu.cfs_quota_us"):
            quota, _, told = text.partition(" ")
            period = told or self.text("sys/fs/cgroup/cpu/cpu.cfs_period_us") or ""
            if quota.isdecimal() and int(quota):
                limits.append(int(quota) / (int(period if period.isdecimal() else 0) or 100_000))
        return min(limits, default=None)


def processor_name(machine: Machine) -> str:
    """The processor's own name, as far as the system or OpenVINO tells it."""
    found = re.search(r"^model name\s*:\s*(.+)$", machine.text("proc/cpuinfo") or "", re.MULTILINE)
    if found:
        return found[1].strip()
    return machine.sight.devices.get("CPU", {}).get("name") or platform.processor() or platform.machine()
