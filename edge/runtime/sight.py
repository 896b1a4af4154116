"""Run as a module: print what OpenVINO sees as one line of JSON, the last. See `machine.look`."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from typing import Any

_FACTS = {
    "name": re.compile(r"FULL_DEVICE_NAME"),
    "driver": re.compile(r"(\w+_)?DRIVER_VERSION"),
    "memory_bytes": re.compile(r"\w+_DEVICE_TOTAL_MEM_SIZE"),
    "architecture": re.compile(r"DEVICE_ARCHITECTURE"),
    "capabilities": re.compile(r"OPTIMIZATION_CAPABILITIES"),
}

_VENDOR = re.compile(r"vendor=(0x[0-9a-fA-F]+)")
_INTEL = 0x8086


def main() -> None:
    """Ask every plugin; what one refuses to tell is left out."""
    from edge.infer import core

    listed = {device: _facts(core(), device) for device in core().available_devices}
    answer = json.dumps(seen(listed, lambda kind: _reason(core(), kind)))
    sys.stdout.write(f"\n{answer}\n")
    sys.stdout.flush()
    os._exit(0)  # some drivers crash while they are taken down, and the answer is given


def seen(listed: dict[str, dict[str, Any]], reason: Callable[[str], str | None]) -> dict[str, Any]:
    """What is there of what OpenVINO lists, and why there is no GPU or NPU where there is none.

    OpenVINO lists every GPU that speaks OpenCL, and runs models on Intel's alone: of an NVIDIA GPU beside an Intel one
    it would otherwise be said that it is the better choice.
    """
    others = {
        device: facts
        for device, facts in listed.items()
        if (vendor := _VENDOR.search(str(facts.get("architecture", "")))) and int(vendor[1], 16) != _INTEL
    }
    devices = {device: facts for device, facts in listed.items() if device not in others}
    reasons = {}
    for kind in ("GPU", "NPU"):
        if any(device.split(".")[0] == kind for device in devices):
            continue
        strange = next((facts for device, facts in others.items() if device.split(".")[0] == kind), None)
        told = (
            reason(kind) if strange is None else f"{strange.get('name', 'it')} is not Intel's, and runs no models here"
        )
        if told:
            reasons[kind] = told
    return {"devices": devices, "reasons": reasons}


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
