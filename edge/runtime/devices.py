"""Which devices there are, what they can do with a model, and how it is told to run there."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from edge import npu
from edge.errors import DeviceError, ModelError
from edge.manifest import MODEL_FILE, Manifest
from edge.runtime import plan as plans
from edge.runtime.machine import Machine, Sight, look

AUTO = "AUTO"
_PLACE = r"(CPU|GPU(\.\d+)?|NPU)"
_KNOWN = re.compile(rf"{_PLACE}|AUTO|HETERO:{_PLACE}(,{_PLACE})+")
_PRECISION = re.compile(r"[BN]?FP?\d+(_\w+)?|INT\d+")

Ask = Callable[[str, str], Any]
"""A property of a device; None where it does not tell."""


@functools.cache
def sight() -> Sight:
    """What OpenVINO sees, asked once in a process of its own: to list devices is to start every driver there is."""
    return look()


def available() -> list[str]:
    """The devices OpenVINO finds on this machine, such as CPU, GPU.0, GPU.1, NPU; the CPU where it cannot be asked."""
    return list(sight().devices) or ["CPU"]


def ask(device: str, name: str) -> Any:
    """A property of a device's plugin, or None where it has none such."""
    place = device.partition(".")[0]
    fact = {"FULL_DEVICE_NAME": "name", f"{place}_DRIVER_VERSION": "driver"}.get(name)
    if fact is not None and (place != "CPU" or sight.cache_info().currsize):
        # Known already, without a driver in this process. Of the CPU alone nobody need have asked.
        seen = sight().devices
        found = seen.get(device) or next((facts for each, facts in seen.items() if each.startswith(place)), {})
        return found.get(fact)
    from edge.infer import core

    try:
        return core().get_property(device, name)
    except RuntimeError:
        return None


def parse(device: str, present: Sequence[str] | None = None) -> str:
    """What the user wrote, as it is written elsewhere: CPU, GPU, GPU.n, NPU, AUTO or HETERO:A,B.

    Raises:
        DeviceError: it is none of these; names those `present`, left out, those that are here.
    """
    name = "".join(device.split()).upper()
    if not _KNOWN.fullmatch(name):
        present = available() if present is None else present
        hetero = f", or several as HETERO:{','.join(present)}" if len(present) > 1 else ""
        raise DeviceError(f"'{device}' is no device", hint=f"Here you can choose {', '.join(present)} or AUTO{hetero}.")
    return name


def members(device: str) -> list[str]:
    """The devices that HETERO spreads a model over; of any other, itself."""
    return device.removeprefix("HETERO:").split(",")


def together(device: str) -> bool:
    """Whether several answers can be made at once there (continuous batching): on one device, and not on the NPU."""
    return "," not in device and device != "NPU"


def canonical(device: str) -> str:
    """The name under which a device is remembered: OpenVINO gives the first GPU two, GPU and GPU.0."""
    prefix = "HETERO:" if device.startswith("HETERO:") else ""
    return prefix + ",".join("GPU" if member == "GPU.0" else member for member in members(device))


def resolve(
    device: str,
    devices: Callable[[], Sequence[str]] = available,
    manifest: Manifest | None = None,
    failed: Collection[str] = (),
) -> str:
    """The device to load on, for what the user wrote in any case: CPU, GPU, GPU.n, NPU, AUTO or HETERO:A,B.

    Args:
        devices: gives those that are present.
        manifest: of the model to be loaded. AUTO is the NPU only for one that was exported for it; else the GPU where
            there is one, else the CPU.
        failed: devices that AUTO passes over, for what is known of them (`Choices.failed`).

    Raises:
        DeviceError: there is no such device here; names those there are.
    """
    present = list(devices())
    name = parse(device, present)
    if name != AUTO:
        require(name, present)
        return name
    return next((found for found in automatic(manifest, present) if found not in failed), "CPU")


def require(device: str, present: Sequence[str]) -> None:
    """Refuse a device that is not here.

    Raises:
        DeviceError: names those there are.
    """
    for member in members(device):
        if not has(present, member):
            fault = sight().fault
            raise DeviceError(
                f"this machine has no {member} that OpenVINO can use; it has {', '.join(present) or 'none'}"
                + (f" ({fault})" if fault else ""),
                hint="Choose one of those, or install the device's driver; `glm4-edge devices` says what is known.",
            )


def automatic(manifest: Manifest | None, present: Sequence[str], ask: Ask = ask) -> list[str]:
    """What AUTO may choose, the best first; of several GPUs a discrete one, and the one with more memory."""
    order = ["NPU", "GPU", "CPU"] if manifest is not None and manifest.target == "npu" else ["GPU", "CPU"]
    found = {kind: [name for name in present if name.split(".")[0] == kind] for kind in order}
    if len(found["GPU"]) > 1:
        found["GPU"].sort(key=lambda name: (discrete(name, ask), _memory(name, "TOTAL", ask) or 0), reverse=True)
    return [name for names in found.values() for name in names]


class Room(NamedTuple):
    """Memory of a device, in bytes, and what of that is only assumed."""

    total: int
    available: int
    assumed: str | None = None


def room(device: str, machine: Machine | None = None, ask: Ask = ask) -> Room:
    """The memory that a model on the device can have.

    A discrete GPU has its own. All others take the machine's, as far as a cgroup leaves it to this process, and GPU and
    NPU no more of it than their drivers say.
    """
    here = (machine or Machine()).room()
    if device == "CPU" or len(members(device)) > 1:
        return Room(here.total, here.available)
    told = _memory(device, "TOTAL", ask)
    if not told:
        return Room(here.total, here.available, f"the {device} can have all of this machine's memory")
    if discrete(device, ask):
        return Room(told, told, f"nothing else is in the {device}'s memory")
    return Room(min(here.total, told), min(here.available, told))


def discrete(device: str, ask: Ask = ask) -> bool:
    """Whether the device has memory of its own."""
    return "discrete" in str(ask(device, "DEVICE_TYPE")).lower()


def _memory(device: str, which: str, ask: Ask) -> int | None:
    """Bytes of a GPU's or NPU's memory, in all (TOTAL) or taken (ALLOC); None where it is not told."""
    value = ask(device, f"{device.partition('.')[0]}_DEVICE_{which}_MEM_SIZE")
    return None if value is None else int(value)


def has(present: Sequence[str], name: str) -> bool:
    """Whether a device is among those that OpenVINO listed."""
    return any(found == name or (found.split(".")[0] == name and "." not in name) for found in present) or (
        name == "GPU.0" and "GPU" in present  # a single GPU is listed without a number
    )


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


def illegal(device: str, manifest: Manifest, folder: Path | None = None) -> str | None:
    """Why an exported model may not run on a device, before anything is compiled; None where it may.

    Args:
        folder: where the model lies; given, the IR's own notes are read, too.

    Raises:
        ModelError: the IR cannot be read.
    """
    if "NPU" not in members(device):
        return None
    if manifest.target != "npu":
        return f"the model was exported for {manifest.target}, and the NPU's compiler does not take that"
    if folder is None:
        return None
    return npu.refusal(npu.recipe_notes(readable(folder)))


def readable(folder: Path) -> Any:
    """The IR of an exported model, an `ov.Model`, whose weights are only mapped.

    Raises:
        ModelError: its files are damaged.
    """
    from edge.infer import core

    try:
        return core().read_model(folder / MODEL_FILE)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        said = [line for line in lines if line and not line.startswith(("Exception from", "Check "))]
        raise ModelError(
            f"{folder / MODEL_FILE} is damaged ({said[-1] if said else 'OpenVINO cannot read it'})",
            hint="Export the model again.",
        ) from error


def identity(device: str, ask: Ask = ask) -> str:
    """The device's own name and its driver's version: what is known of one device holds for no other."""
    found = []
    for member in members(device):
        name, driver = ask(member, "FULL_DEVICE_NAME") or member, _driver(member, ask)
        found.append(f"{name}, driver {driver}" if driver else str(name))
    return " + ".join(found)


@dataclass(frozen=True)
class DeviceFacts:
    """A device, and what it can do with a model. What is not known is None."""

    device: str
    name: str | None
    driver: str | None
    memory_bytes: int | None
    free_bytes: int | None
    precisions: tuple[str, ...]
    absent: str | None
    """Why OpenVINO does not see it."""
    why_not: str | None = None
    """Why the model may not run there."""
    needs_bytes: int | None = None
    """The memory that the model takes there for a short conversation (`plan.SHORTEST` tokens)."""
    remark: str | None = None


def describe(
    folder: Path | None = None, present: Callable[[], Sequence[str]] = available, ask: Ask = ask
) -> list[DeviceFacts]:
    """Every device that OpenVINO sees, and of GPU and NPU that are not there, why.

    Args:
        folder: an exported model; given, what it may do on each of them.

    Raises:
        ModelError: the folder holds no exported model.
    """
    manifest = Manifest.read(folder) if folder is not None else None
    found = list(present())
    facts = [_facts(device, ask, None) for device in found]
    for device in ("GPU", "NPU"):
        if not has(found, device):
            facts.append(_facts(device, lambda *_: None, _absence(device)))
    if folder is None or manifest is None:
        return facts
    shape = plans.Shape.read(folder)
    return [_with_model(each, manifest, shape, folder) for each in facts]


def _facts(device: str, ask: Ask, absent: str | None) -> DeviceFacts:
    total = free = None
    if device == "CPU":
        total, free, _ = room(device)
    else:
        total, used = (_memory(device, which, ask) for which in ("TOTAL", "ALLOC"))
        if total is not None and used is not None:
            free = total - used
    return DeviceFacts(
        device, ask(device, "FULL_DEVICE_NAME"), _driver(device, ask), total, free,
        tuple(item for item in map(str, ask(device, "OPTIMIZATION_CAPABILITIES") or ()) if _PRECISION.fullmatch(item)),
        absent,
    )  # fmt: skip


def _with_model(facts: DeviceFacts, manifest: Manifest, shape: plans.Shape, folder: Path) -> DeviceFacts:
    total, device = facts.memory_bytes or 0, facts.device
    context = min(plans.SHORTEST, shape.context_length)
    kv_precision = plans.kv_default(device)
    needs = plans.plan(
        shape, context, device=device, kv_precision=kv_precision, available=total, total=total
    ).needed_bytes
    why = facts.absent or illegal(facts.device, manifest, folder)
    remark = None
    if why is None and facts.memory_bytes is not None and needs > facts.memory_bytes:
        why = f"it needs {needs / 1e9:.1f} GB of memory, of {facts.memory_bytes / 1e9:.1f} GB"
    elif why is None and facts.free_bytes is not None and needs > facts.free_bytes:
        remark = f"needs {needs / 1e9:.1f} GB of memory, where {facts.free_bytes / 1e9:.1f} GB are free"
    return DeviceFacts(**{**vars(facts), "why_not": why, "needs_bytes": needs, "remark": remark})


def _driver(device: str, ask: Ask) -> str | None:
    place = device.partition(".")[0]
    told = ask(device, f"{place}_DRIVER_VERSION") if place != "CPU" else None
    return None if told is None else str(told)


def _absence(device: str) -> str:
    """What `doctor` finds, or OpenVINO's plugin said when it was asked for a device that it does not list."""
    from edge.runtime import probes_devices
    from edge.runtime.finding import Patient

    if sight().fault is not None:
        return str(sight().fault)
    found = (probes_devices.gpu if device == "GPU" else probes_devices.npu)(Patient(Machine()))[0]
    if found.state != "ok":
        return found.what
    told = sight().reasons.get(device)
    if told is None:
        return "OpenVINO does not list it"
    lines = [line.strip() for line in told.splitlines()]
    return next((line for line in lines if line and not line.startswith("Exception from")), "OpenVINO gives no reason")
