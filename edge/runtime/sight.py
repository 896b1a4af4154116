"""Run as a module: print what OpenVINO sees as one line of JSON, the last. See `machine.look`."""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any

_FACTS = {
    "name": re.compile(r"FULL_DEVICE_NAME"),
    "driver": re.compile(r"(\w+_)?DRIVER_VERSION"),
    "memory_bytes": re.compile(r"\w+_DEVICE_TOTAL_MEM_SIZE"),
    "architecture": re.compile(r"DEVICE_ARCHITECTURE"),
    "capabilities": re.compile(r"OPTIMIZATION_CAPABILITIES"),
}


def main() -> None:
    """Ask every plugin; what one refuses to tell is left out."""
    from edge.infer import core

    devices = {device: _facts(core(), device) for device in core().available_devices}
    reasons = {
        kind: reason
        for kind in ("GPU", "NPU")
        if all(device.split(".")[0] != kind for device in devices) and (reason := _reason(core(), kind))
    }
    answer = json.dumps({"devices": devices, "reasons": reasons})
    sys.stdout.write(f"\n{answer}\n")
    sys.stdout.flush()
    os._exit(0)  # some drivers crash while they are taken down, and the answer is given


def _facts(core: Any, device: str) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for name in core.get_property(device, "SUPPORTED_PROPERTIES"):
        fact = next((fact for fact, pattern in _FACTS.items() if pattern.fullmatch(name)), None)
        if fact is not None:
            try:
                value = core.get_property(device, name)
            except (RuntimeError, TypeError):  # supported, and yet not told
                continue
            facts[fact] = value if isinstance(value, int) else list(value) if fact == "capabilities" else str(value)
    return facts


def _reason(core: Any, kind: str) -> str | None:
    for name in ("AVAILABLE_DEVICES", "FULL_DEVICE_NAME", f"{kind}_DRIVER_VERSION"):
        try:
            core.get_property(kind, name)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines()]
            told = [line for line in lines if line and not line.startswith(("Exception from", "Unsupported"))]
            if told:
                return told[-1]
    return None


if __name__ == "__main__":
    main()
