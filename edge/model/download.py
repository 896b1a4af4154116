"""A repository of the Hugging Face Hub → its snapshot in Hugging Face's own cache.

Small files come through `huggingface_hub`. The weights come by plain HTTP, one shard after the other:
`huggingface_hub` begins a file anew whenever its process ended before the file did, and a shard of
GLM-4 has two gigabytes. What has arrived of one lies where older versions of it kept such pieces.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edge.errors import CheckpointError, DownloadError
from edge.files import alone, check_room
from edge.messages import Progress
from edge.model.checkpoint import shard_names

CONFIGS = ["config.json", "tokenizer_config.json", "added_tokens.json"]  # enough to refuse a model
SMALL = ["*.json", "*.jinja", "tokenizer.model"]
_SUBFOLDERS = ["*/*"]  # copies for other programs: onnx/, original/, ...
_CHUNK = 1 << 20
_ATTEMPTS = 5  # in a row that bring nothing
_PAUSE = 1.0  # seconds before the second attempt, twice as long before each further one
_TIMEOUT = 30.0  # seconds without a byte


def snapshot(name: str, revision: str | None, progress: Progress, check: Callable[[Path], None]) -> Path:
    """Fetch what an export needs of the repository `name`; returns the folder, named by its commit.

    What is on this machine already is not fetched, and when all of it is, no network is needed.

    Args:
        check: called with a folder that holds the configs, before anything large is fetched.

    Raises:
        CheckpointError: it holds no safetensors weights, or is no model.
        DownloadError: no such repository or revision, no network, or a file that came damaged.
        OutputError: the disk is too full, or another process is fetching the same file.
    """
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import OfflineModeIsEnabled

    progress(f"looking up {name}", 0, 0)
    with told(name, revision):
        chosen: dict[str, Any] = {"ignore_patterns": _SUBFOLDERS, "tqdm_class": _silent()}
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=CONFIGS, **chosen))
        if not (folder / "config.json").is_file():
            raise CheckpointError(
                f"{name} is no checkpoint: it has no config.json",
                hint="Name a repository with config.json and *.safetensors files; GGUF is not read.",
            )
        check(folder)
        try:  # by the commit just seen: a branch may move on in between
            snapshot_download(name, revision=folder.name, allow_patterns=SMALL, **chosen)
        except (httpx.ConnectError, OfflineModeIsEnabled):  # older versions of it kept no list of the files
            if not any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model")):
                raise
        missing = [shard for shard in shard_names(folder) if not (folder / shard).is_file()]
        if missing:
            _fetch(name, folder, missing, progress)
    return folder


def _fetch(name: str, folder: Path, shards: list[str], progress: Progress) -> None:
    from huggingface_hub import HfApi, RepoFile, constants, hf_hub_download, hf_hub_url

    commit = folder.name
    found = HfApi().get_paths_info(name, shards, revision=commit)
    files = [info for info in found if isinstance(info, RepoFile)]
    absent = set(shards) - {info.path for info in files}
    if absent:
        raise CheckpointError(
            f"{name} has no {min(absent)}",
            hint="Name a repository that holds all of its weights as *.safetensors; .bin and GGUF are not read.",
        )
    blobs = folder.parents[1] / "blobs"
    blobs.mkdir(exist_ok=True)
    total = sum(info.size for info in files)
    partials = [blobs / f"{info.lfs.sha256 if info.lfs else info.blob_id}.incomplete" for info in files]
    kept = sum(path.stat().st_size for path in partials if path.exists())
    check_room(Path(constants.HF_HUB_CACHE), total - kept, f"fetching {name}", "HF_HOME")
    stage, done = f"fetching {name} ({total / 1e9:.2f} GB)", 0

    def report(have: int) -> None:
        progress(stage, done + have, total)

    report(0)
    for info, partial in zip(files, partials, strict=True):
        blob = partial.with_suffix("")
        with alone(blob):
            if not blob.exists():
                _fetch_file(hf_hub_url(name, info.path, revision=commit), partial, info.size, report)
                if info.lfs and _sha256(partial) != info.lfs.sha256:
                    partial.unlink()
                    raise DownloadError(
                        f"{info.path} of {name} came damaged: its sha256 is not {info.lfs.sha256[:16]}…",
                        hint="The file was deleted. Run the same command again; the other files are kept.",
                    )
                partial.replace(blob)
        hf_hub_download(name, info.path, revision=commit, tqdm_class=_silent())  # finds the blob, and links to it
        done += info.size
    report(0)


def _silent() -> Any:
    """What `huggingface_hub` is given for a tqdm: a small file is over before a bar would be read."""
    from tqdm import tqdm

    return functools.partial(tqdm, disable=True)


def _fetch_file(url: str, partial: Path, size: int, report: Callable[[int], None]) -> None:
    """Append to `partial` until it has `size` bytes; a broken connection is taken up again."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    failures = 0
    while True:
        before = partial.stat().st_size if partial.exists() else 0
        if before > size:  # not a piece of this file
            partial.unlink()
            continue
        if before == size and partial.exists():
            return
        try:
            _append(url, partial, report)
            error: Exception = DownloadError(
                f"{url} ended {size - partial.stat().st_size:,} bytes early", hint="Run the same command again."
            )
        except (httpx.TransportError, HfHubHTTPError) as caught:
            if isinstance(caught, HfHubHTTPError) and caught.response.status_code not in (408, 429, 500, 502, 503, 504):
                raise
            error = caught
        have = partial.stat().st_size if partial.exists() else 0
        if have == size:
            continue
        failures = 1 if before < have < size else failures + 1  # more than there should be is no progress
        if failures == _ATTEMPTS:
            raise error
        time.sleep(_PAUSE * 2 ** (failures - 1))


def _append(url: str, partial: Path, report: Callable[[int], None]) -> None:
    from huggingface_hub import get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    with partial.open("ab") as file:
        have = file.tell()
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=_TIMEOUT) as response:
            hf_raise_for_status(response)
            if have and response.status_code != 206:  # the server sends all of it again
                file.truncate(0)
                have = 0
            told = have
            report(have)
            for chunk in response.iter_bytes():  # of no given size: what a broken connection brought last counts
                file.write(chunk)
                have += len(chunk)
                if have - told >= _CHUNK:
                    told = have
                    report(have)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def told(name: str, revision: str | None) -> Iterator[None]:
    """The Hub's and the network's exceptions as sentences of ours; its warnings would break our progress."""
    import httpx
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    except HFValidationError as error:
        raise CheckpointError(
            f"{name} is no name of a repository", hint="They look like zai-org/glm-4-9b-chat-hf."
        ) from error
    except GatedRepoError as error:
        raise DownloadError(
            f"{name} is only given to those who accepted its terms",
            hint=f"Accept them at https://huggingface.co/{name}, then log in with: hf auth login",
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        what = f"revision {revision!r} of {name}" if isinstance(error, RevisionNotFoundError) else name
        raise DownloadError(
            f"the Hugging Face Hub has no {what}, or it is private",
            hint="Check the spelling; for a private repository, log in with: hf auth login",
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.ConnectError) as error:
        raise DownloadError(
            f"the Hugging Face Hub cannot be reached, and {name} is not on this machine, or not all of it",
            hint="Check the network and run the same command again; what has arrived is kept. "
            "A folder downloaded by other means works too.",
        ) from error
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DownloadError(
            f"{name} could not be fetched from the Hugging Face Hub ({reason.rstrip('.')})",
            hint="Check the network and run the same command again; what has arrived is kept. "
            "A folder downloaded by other means works too.",
        ) from error
    finally:
        logger.setLevel(level)
