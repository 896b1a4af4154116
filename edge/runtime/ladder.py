"""Which ways to load a model are tried, one after the other. Pure.

A device that computes wrongly is given more precision before it is given up; one that does not load the model at all
is given up at once. NPU, GPU, CPU: the next device is always one that can do more.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from edge.errors import DeviceError
from edge.manifest import Manifest
from edge.runtime import devices
from edge.runtime.settings import Precision, Settings

_HINT = "INFERENCE_PRECISION_HINT"
_OWN = {
    "CPU": re.compile(r"CPU_.*"),
    "GPU": re.compile(r"GPU_.*"),
    "NPU": re.compile(r"NPUW?_.*|MAX_PROMPT_LEN|MIN_RESPONSE_LEN|PREFILL_HINT|GENERATE_HINT"),
}
"""Properties that mean something to one kind of device only."""
WORDS: dict[Precision, str] = {
    "chosen": "",
    "guilty nodes": " with what overflows f16 in f32",
    "f32": " with all in f32",
}
"""What a precision adds to a device's name."""


class Candidate(NamedTuple):
    """One way to load a model, and why not another that would have come before it ("" where nothing did)."""

    settings: Settings
    why: str


class Failure(NamedTuple):
    """What an earlier attempt came to."""

    why: str
    """A sentence without a full stop."""
    loaded: bool
    """The model loaded, and its numbers were wrong: more precision may mend that."""


Known = Callable[[Settings], "Failure | None"]
"""How an earlier attempt with these settings failed; None where it is not known to have failed."""


def candidates(
    wanted: Settings,
    manifest: Manifest,
    present: Sequence[str],
    *,
    fallback: bool = True,
    kept: Known = lambda settings: None,
    illegal: Callable[[str], str | None] = lambda device: None,
) -> list[Candidate]:
    """The ways to load a model, the wanted one first, but without those that are known to fail.

    Where all are known to fail, all are there: something may have changed.

    Args:
        wanted: its device may be AUTO, or one that is not here.
        present: devices that OpenVINO lists.
        fallback: take another device where the wanted one cannot be used. Without it, what is known of a device
            that was named counts for nothing, either: who insists has a reason.
        kept: what an earlier attempt found.
        illegal: why a device may not be given the model at all (`devices.illegal`).

    Raises:
        DeviceError: the wanted device is not here, or does not take the model, and there is to be no fallback.
    """
    first, chain = _devices(wanted, manifest, present, illegal, fallback)
    trusting = fallback or wanted.device == devices.AUTO
    every: list[Candidate] = []
    known: list[Candidate] = []
    why = first
    for device in chain:
        given_up = False
        for precision in _precisions(wanted, device, manifest):
            settings = _for(wanted, device, precision)
            every.append(Candidate(settings, "" if every else first))
            failed = kept(settings) if trusting else None
            if failed is not None:
                why = why or failed.why
                given_up = given_up or gives_up(settings, loaded=failed.loaded)
            elif not given_up:
                known.append(Candidate(settings, why))
                why = ""
    chosen = known or every
    return chosen if fallback else [each for each in chosen if each.settings.device == chosen[0].settings.device]


def gives_up(settings: Settings, *, loaded: bool) -> bool:
    """Whether a failure says that the device's other precisions need not be tried: they help no model to load."""
    return not loaded and settings.precision == "chosen"


def label(settings: Settings) -> str:
    """The way in a few words, such as "GPU with all in f32"."""
    place = "NPU's shapes on the CPU" if settings.rehearse else settings.device
    return place + (" by ITREX" if settings.runtime == "itrex" else "") + WORDS[settings.precision]


def _devices(
    wanted: Settings, manifest: Manifest, present: Sequence[str], illegal: Callable[[str], str | None], fallback: bool
) -> tuple[str, list[str]]:
    """Why the wanted device is not the first, and the devices in order."""

    def legal(names: Sequence[str]) -> list[str]:
        return [name for name in names if illegal(name) is None]

    if wanted.device == devices.AUTO:
        return "", legal(devices.automatic(manifest, present))
    after = [] if wanted.rehearse else _after(wanted.device)
    later = [name for kind in after for name in present if name.split(".")[0] == kind]
    refused = illegal(wanted.device)
    try:
        if not wanted.rehearse:  # that runs on the CPU
            devices.require(wanted.device, present)
    except DeviceError as error:
        if not fallback or not later:
            raise
        return error.message, legal(later)
    if refused is not None:
        if not fallback or wanted.rehearse:
            raise DeviceError(
                f"{wanted.device}: {refused}", hint="Export the model again with --for npu, or choose another device."
            )
        return refused, legal(later)
    return "", [wanted.device, *(legal(later) if fallback else [])]


def _after(device: str) -> list[str]:
    if device == "NPU":
        return ["GPU", "CPU"]
    return [] if device == "CPU" else ["CPU"]


def _precisions(wanted: Settings, device: str, manifest: Manifest) -> list[Precision]:
    """The wanted precision, and the safer ones that make a difference on the device."""
    order: list[Precision] = ["chosen"]
    hint = {**devices.default_properties(device, manifest), **_neutral(wanted, device)}.get(_HINT)
    if device != "CPU":  # the marks are about f16, which the CPU does not choose by itself
        order.append("guilty nodes")
    if "NPU" not in devices.members(device):  # it has no f32
        order.append("f32")
    asked = wanted.precision if device == wanted.device else "chosen"
    if hint == "f32":
        return [asked]
    return order[order.index(asked) :] if asked in order else [asked]


def _for(wanted: Settings, device: str, precision: Precision) -> Settings:
    properties = dict(_neutral(wanted, device))
    if precision == "f32":
        properties.pop(_HINT, None)
    return dataclasses.replace(wanted, device=device, precision=precision, properties=properties)


def _neutral(wanted: Settings, device: str) -> Mapping[str, Any]:
    """The wanted properties, as far as they mean something on the device."""
    if device == wanted.device:  # a mistake in them is the user's to hear of
        return wanted.properties
    places = {member.partition(".")[0] for member in devices.members(device)}
    others = [own for place, own in _OWN.items() if place not in places]
    return {key: value for key, value in wanted.properties.items() if not any(own.fullmatch(key) for own in others)}
