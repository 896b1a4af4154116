"""`edge.json`: what an exported model says of itself. Export writes it, everything else reads it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge.errors import ModelError
from edge.files import check_readable, write_text

FILE_NAME = "edge.json"
FORMAT = 1
OURS, OPTIMUM = "glm4-edge", "optimum"
EXPORTERS = (OURS, OPTIMUM)
MERGED = "lora: "
"""How the names of adapters begin among the digests of what a model was made from."""
MODEL_FILE = "openvino_model.xml"
TOKENIZER_FILES = tuple(f"openvino_{name}tokenizer.{kind}" for name in ("", "de") for kind in ("xml", "bin"))
"""What OpenVINO reads without looking whether it is whole: damaged, they end the process. They are small."""

Count = Annotated[int, Field(gt=0, lt=2**31)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Section):
    """What the model was made from."""

    model: str
    """The name or folder the user gave."""
    description: str | None
    revision: str | None
    sha256: dict[str, str]
    """Digest of each file of the checkpoint that was read, of a calibration text that the user gave, and of adapters
    that were merged into it."""

    @property
    def merged(self) -> list[str]:
        """Adapters that are part of the weights, with their scales where those are not 1."""
        names = [name.removeprefix(MERGED) for name in self.sha256 if name.startswith(MERGED)]
        return [name for name in names if not name.endswith(", adapter_config.json")]


class Architecture(_Section):
    """The facts a runtime plans with."""

    model_type: str
    parameters: Annotated[int, Field(gt=0, lt=2**63)]
    num_layers: Count
    num_kv_heads: Count
    head_dim: Count
    vocab_size: Count
    context_length: Count
    """Longest prompt plus answer, in tokens."""


class Check(_Section):
    """One thing that was proved about the result, with its figures."""

    name: str
    passed: bool
    figures: dict[str, Any]
    message: str | None = None
    """What is wrong or, where the check passed, worth a warning."""
    hint: str | None = None
    """What to do about it."""


class Manifest(_Section):
    """The whole of `edge.json`."""

    format: int
    created: str
    """UTC, ISO 8601."""
    source: Source
    architecture: Architecture
    target: str
    """The device the recipe was chosen for: cpu, igpu or npu."""
    recipe: dict[str, Any]
    stop_ids: list[TokenId]
    stop_tokens: list[str]
    versions: dict[str, str]
    bytes: dict[str, Annotated[int, Field(ge=0, lt=2**63)]]
    """Size of each file written."""
    checks: list[Check]
    exporter: str = OURS
    """Whose graph it is: ours or, traced, optimum-intel's."""
    sha256: dict[str, str] = {}
    """Of those of `TOKENIZER_FILES` that were written; older exports have none."""

    def write(self, folder: Path) -> None:
        """Put `edge.json` into `folder`."""
        write_text(folder / FILE_NAME, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read `edge.json` from an exported model's folder.

        Raises:
            ModelError: there is none, it is damaged, or a newer version wrote it.
        """
        path = folder / FILE_NAME
        if not path.is_file():
            raise no_model(folder, FILE_NAME)
        check_readable(path)
        try:
            manifest = cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            why = f" ({_first_fault(error)})" if isinstance(error, ValidationError) else ""
            raise ModelError(
                f"{path} is damaged or from another version{why}", hint="Export the model again."
            ) from error
        if manifest.format != FORMAT:
            raise ModelError(
                f"{path} has format {manifest.format}; this version reads format {FORMAT}",
                hint="Export the model again, or update glm4-edge.",
            )
        for name, size in manifest.bytes.items():
            # What a user may edit (generation_config.json) or nothing reads here (chat_template.jinja: what counts is
            # in openvino_tokenizer.xml) is not held to its size.
            if name.startswith("openvino_") and not _has_size(folder / name, size):
                raise ModelError(
                    f"{folder} is damaged: {name} is missing or does not have its {size:,} bytes",
                    hint="Export the model again.",
                )
            if name.startswith("openvino_"):
                check_readable(folder / name)
        for name, digest in digests(folder, manifest.sha256).items():
            if digest != manifest.sha256[name]:
                raise ModelError(
                    f"{folder} is damaged: {name} is not what the export wrote", hint="Export the model again."
                )
        return manifest


def digests(folder: Path, names: Iterable[str] = TOKENIZER_FILES) -> dict[str, str]:
    """SHA-256 of those files that are there."""
    there = [folder / name for name in names if (folder / name).is_file()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in there}


def no_model(folder: Path, lacking: str) -> ModelError:
    """What is wrong with a folder that was named as an exported model's and lacks one of its files."""
    name_one = "Name a folder that `glm4-edge export` made, or a name it was exported by, such as pocket."
    if folder.is_file():
        return ModelError(f"{folder} is a file, not the folder of an exported model", hint=name_one)
    if not folder.exists():
        return ModelError(f"there is no folder {folder}", hint=name_one)
    return ModelError(
        f"{folder} holds no exported model: it has no {lacking}", hint="Make one with: glm4-edge export MODEL OUT"
    )


def files_of(folder: Path) -> set[str]:
    """Names of the files that an export wrote into `folder`; empty where there was none."""
    try:
        return {FILE_NAME, *Manifest.model_validate_json((folder / FILE_NAME).read_bytes()).bytes}
    except (OSError, ValidationError):
        return set()


def _first_fault(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return ": ".join(part for part in (".".join(map(str, first["loc"])), first["msg"]) if part)


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
