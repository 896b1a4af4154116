"""The machine and versions that stand beside every figure."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """The processor's name, cores and memory; nothing that says whose machine it is."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return {"cpu": model, "cores": os.cpu_count(), "memory_bytes": _memory_bytes()}


def versions(*names: str) -> dict[str, str]:
    """Of the packages that made the figures."""
    return {name: importlib.metadata.version(name) for name in names}


def _memory_bytes() -> int:
    try:
        import psutil
    except ModuleNotFoundError:  # a machine that only runs the reference
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(psutil.virtual_memory().total)
