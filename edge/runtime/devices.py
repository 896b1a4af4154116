"""Which device a model runs on, and how it is told to run there."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from edge.errors import DeviceError
from edge.manifest import Manifest

_KNOWN = re.compile(r"CPU|GPU(\.\d+)?|NPU|AUTO")


def available() -> list[str]:
    """The devices OpenVINO finds on this machine, such as CPU, GPU.0, GPU.1, NPU."""
    from edge.infer import core

    return list(core().available_devices)


def resolve(device: str, devices: Callable[[], Sequence[str]] = available) -> str:
    """The device to load on, for what the user wrote: CPU, GPU, GPU.n, NPU or AUTO, in any case.

    AUTO is the GPU where there is one, else the CPU; the NPU needs a model exported for it and is never
    chosen unasked.

    Raises:
        DeviceError: there is no such device here; names those there are.
    """
    name = device.strip().upper()
    present = devices()
    if not _KNOWN.fullmatch(name):
        raise DeviceError(f"'{device}' is no device", hint=f"Here you can choose {_listed(present)} or AUTO.")
    if name == "AUTO":
        return "GPU" if _has(present, "GPU") else "CPU"
    if not _has(present, name):
        raise DeviceError(
            f"this machine has no {name} that OpenVINO can use; it has {_listed(present)}",
            hint="Choose one of those, or install the device's driver.",
        )
    return name


def default_properties(device: str, manifest: Manifest) -> dict[str, Any]:
    """Plugin properties that are better than the plugin's own defaults.

    Args:
        device: as `resolve` gives it.
        manifest: of the model to be loaded.
    """
    if device == "CPU" and manifest.recipe.get("weights") == "int4":
        # With the bf16 default the int8 dynamic-quantization kernels do not serve decode; f32 turns them
        # on. Measured with GLM-4-9B's shape: +45 % tokens/s on an EPYC, +40 to 60 % on a Xeon with AMX.
        return {"INFERENCE_PRECISION_HINT": "f32"}
    return {}


def _has(present: Sequence[str], name: str) -> bool:
    return any(found == name or (found.split(".")[0] == name and "." not in name) for found in present) or (
        name == "GPU.0" and "GPU" in present  # a single GPU is listed without a number
    )


def _listed(devices: Sequence[str]) -> str:
    return ", ".join(devices) if devices else "none"
