"""Every error a user of glm4-edge can meet, in one tree.

::

    EdgeError                      what was wrong, with its value, and the way out
    ├── UsageError                 an option that makes no sense here          (exit code 2)
    ├── CheckpointError            a folder or file that is no usable checkpoint
    │   └── UnsupportedModelError  a real checkpoint, of a kind this program does not run
    ├── DownloadError              weights that could not be fetched or that came damaged
    ├── RecipeError                a compression recipe the model or device cannot take
    ├── OutputError                a folder that cannot be written: not ours, no room
    ├── ResourceError              a machine with too little memory for the job
    ├── VerificationError          an export whose proof failed; nothing was kept
    ├── ModelError                 a folder that holds no exported model, or a damaged one
    ├── DeviceError                a device that is not there or cannot run the model
    ├── DocumentError              a file whose text cannot be read
    ├── ContextError               a prompt longer than the model can read
    └── MissingExtraError          an optional package that is not installed

Raised where the fault is known, caught once: in `edge.cli` (or a server's handler), which prints
``Error: <message>`` and the hint. No traceback of another library ever stands for an answer.
"""

from __future__ import annotations


class EdgeError(Exception):
    """A fault a user can do something about.

    Args:
        message: one sentence, without a full stop, that names the value that was wrong.
        hint: one sentence that says what to do next.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}. {self.hint}"


class UsageError(EdgeError):
    """An option that makes no sense here."""

    exit_code = 2


class CheckpointError(EdgeError):
    """A folder or file that is no usable checkpoint."""


class UnsupportedModelError(CheckpointError):
    """A real checkpoint, of a kind this program does not run."""


class DownloadError(EdgeError):
    """Weights that could not be fetched or that came damaged."""


class RecipeError(EdgeError):
    """A compression recipe the model or the device cannot take."""

    exit_code = 2


class OutputError(EdgeError):
    """A folder that cannot be written."""


class ResourceError(EdgeError):
    """A machine with too little memory for the job."""


class VerificationError(EdgeError):
    """An export whose proof failed; nothing was kept."""


class ModelError(EdgeError):
    """A folder that holds no exported model, or a damaged one."""


class DeviceError(EdgeError):
    """A device that is not there or cannot run the model."""


class ContextError(EdgeError):
    """A prompt longer than the model can read."""


class DocumentError(EdgeError):
    """A file whose text cannot be read."""


class MissingExtraError(EdgeError):
    """An optional package that is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"this needs the package '{package}', which is not installed",
            hint=f'Install it with: pip install "glm4-edge[{extra}]"',
        )
