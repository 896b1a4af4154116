"""The machine and versions that stand beside every figure."""

from __future__ import annotations

import importlib.metadata
import os
from typing import Any

import psutil

from edge.runtime.machine import processor_name


def machine() -> dict[str, Any]:
    """The processor's name, cores and memory; nothing that says whose machine it is."""
    return {"cpu": processor_name(), "cores": os.cpu_count(), "memory_bytes": psutil.virtual_memory().total}


def versions(*names: str) -> dict[str, str]:
    """Of the packages that made the figures."""
    return {name: importlib.metadata.version(name) for name in names}
