"""An exported model read for its logits, whatever runs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import DeviceError
from edge.infer import core, infer
from edge.manifest import MODEL_FILE

Read = Callable[[NDArray[np.int64], int], NDArray[np.float32]]
"""Logits [S, vocab] of S tokens after so many earlier ones of a sequence; 0 begins a new one."""


def request(folder: Path, device: str, properties: dict[str, Any]) -> Any:
    """The model in `folder`, ready to be asked.

    Raises:
        DeviceError: the device does not take it.
    """
    try:
        compiled = core().compile_model(core().read_model(folder / MODEL_FILE), device, properties)
        return compiled.create_infer_request()
    except RuntimeError as error:
        raise DeviceError(
            f"{device} cannot load {folder}: {str(error).strip().splitlines()[-1]}",
            hint="Export the model again, or choose another device.",
        ) from error


def reader(request: Any) -> Read:
    """What reads through such a request."""

    def read(tokens: NDArray[np.int64], past: int) -> NDArray[np.float32]:
        if not past:
            request.reset_state()
        return infer(request, tokens, past)

    return read
