"""A model's name or folder, as `chat` takes it → the folder of the exported model."""

from __future__ import annotations

from pathlib import Path

from edge.commands.export import default_folder, is_exported
from edge.errors import ModelError
from edge.report import say

TARGETS = {"CPU": "cpu", "GPU": "igpu", "NPU": "npu"}
"""Device → what a model is exported for."""


def target_for(device: str) -> str:
    """What a model is exported for that is to run on `device`: CPU, GPU, GPU.n, NPU."""
    return TARGETS.get(device.strip().upper().partition(".")[0], "cpu")


def exported(model: str, device: str = "CPU") -> Path:
    """The folder of the exported `model`; of several exports of one name, that for `device` first.

    A name that was resolved is told, once, on standard error. What is no name is taken as a folder, whatever is in it.

    Raises:
        ModelError: the name, or the checkpoint in a folder, was not exported yet.
    """
    given = Path(model).expanduser()
    if not is_name(model):
        return given
    if device.strip().upper() == "AUTO":  # as `chat` does
        from edge.runtime import devices

        device = devices.automatic(None, devices.available())[0]
    first = target_for(device)
    for target in (first, *(other for other in TARGETS.values() if other != first)):
        folder = default_folder(model, target)
        if is_exported(folder):
            say(f"{model} is in {folder}")
            return folder
    option = "" if first == "cpu" else f" --for {first}"
    raise ModelError(f"{model} is not exported yet", hint=f"Run: glm4-edge export {model}{option}")


def is_name(model: str) -> bool:
    """Whether `model` is something that can be exported, rather than the folder of an exported model."""
    from edge.model import hub, pocket

    given = Path(model).expanduser()
    if is_exported(given):
        return False
    if model == pocket.NAME:
        return not given.is_dir() or not any(given.glob("openvino_*"))
    return hub.is_repository(model) or is_checkpoint(given)


def is_checkpoint(folder: Path) -> bool:
    """Whether `folder` holds what can be exported: config.json and no OpenVINO model."""
    from edge.manifest import MODEL_FILE

    return (folder / "config.json").is_file() and not (folder / MODEL_FILE).is_file()
