"""The machine and versions that stand beside every figure."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import psutil


def machine() -> dict[str, Any]:
    """The processor's name, cores and memory; nothing that says whose machine it is."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return {"cpu": model, "cores": os.cpu_count(), "memory_bytes": psutil.virtual_memory().total}


def versions(*names: str) -> dict[str, str]:
    """Of the packages that made the figures."""
    return {name: importlib.metadata.version(name) for name in names}
