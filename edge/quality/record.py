"""What was found, as a file: figures, raw samples, machine and versions."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from edge.bench.record import machine, versions
from edge.errors import UsageError
from edge.files import write_text

FORMAT = 1
_PACKAGES = ("glm4-edge", "openvino", "openvino-genai", "nncf", "numpy", "lm_eval")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Figures(_Section):
    """Of one text, or of all; nats. What needs the checkpoint is None without it."""

    tokens: int
    """Places that were looked at."""
    perplexity: float
    perplexity_reference: float | None = None
    kl_mean: float | None = None
    kl_p99: float | None = None
    kl_worst: float | None = None
    top1: float | None = None
    top5: float | None = None


class Distance(_Section):
    """What a model thinks of texts, and how far that is from the checkpoint."""

    digest: str
    """Of the tokens: see `texts.digest`."""
    reference: str | None
    """What it was compared with, in words."""
    exact: bool
    properties: dict[str, Any]
    figures: dict[str, Figures]
    """By text; and "all", where there are several."""
    losses: list[float]
    """Of each token given all before it in its window, in nats."""
    losses_reference: list[float] = []
    """The same by the checkpoint."""
    kl: list[float]
    """At each place; empty without a reference."""


class Task(_Section):
    """One score of a task, or of a part of it."""

    task: str
    part: str
    """The task itself, or the name of a subtask."""
    metric: str
    value: float
    stderr: float | None
    samples: int
    few_shot: int | None
    chat: bool
    limit: int | None
    """Questions of each part at most; None: all, as published figures are."""
    seconds: float


class Cell(_Section):
    """Needles at one depth of haystacks of one length."""

    length: int
    """Tokens of the prompt that were asked for."""
    depth: float
    """0: at the beginning, 1: before the question."""
    language: str
    prompt_tokens: list[int]
    """Of each prompt as it was."""
    expected: list[str]
    answers: list[str]
    found: list[bool]


class Needles(_Section):
    """A needle-in-a-haystack run."""

    haystack: str
    cells: list[Cell]

    @property
    def share(self) -> float:
        """Of all needles, those that were found."""
        found = [each for cell in self.cells for each in cell.found]
        return sum(found) / len(found)


class Model(_Section):
    """One model on one device."""

    name: str
    device: str
    model: dict[str, Any]
    """Of its manifest: source, recipe, bytes."""
    distance: Distance | None = None
    tasks: list[Task] = []
    needles: Needles | None = None
    settings: str = ""
    """That `glm4-edge tune` had kept and that were used, in words; "" where it was measured with the defaults."""
    exact: bool = False
    """Whether it was measured in exact arithmetic, all of it."""
    decode_rate: float | None = None
    """Tokens a second, of a bench record."""

    @property
    def weight_bytes(self) -> int:
        """Of the model on disk, its tokenizer left out."""
        return sum(size for name, size in self.model["bytes"].items() if name.startswith("openvino_model"))


class Record(_Section):
    """A run."""

    format: Literal[1] = 1
    made: str
    """When, UTC, ISO 8601."""
    machine: dict[str, Any]
    versions: dict[str, str]
    models: list[Model]

    @classmethod
    def now(cls, models: list[Model]) -> Record:
        """Of what has just been measured here."""
        made = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        return cls(made=made, machine=machine(), versions=versions(*_PACKAGES), models=models)

    def text(self) -> str:
        """As JSON: the samples of a list on one line."""
        lines = json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False)
        return re.sub(r"\[[\s\d.,eE+-]*\]", lambda found: re.sub(r"\s+", "", found[0]).replace(",", ", "), lines)

    def write(self, path: Path) -> None:
        """Put it into a file, whole or not at all."""
        write_text(path, self.text() + "\n")

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read a file that `write` made.

        Raises:
            UsageError: there is none, or it is something else.
        """
        hint = "Name a file that glm4-edge quality --out wrote."
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"{path} cannot be read ({error.strerror})", hint=hint) from error
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "it"
            raise UsageError(f"{path} is no record of quality ({where}: {first['msg']})", hint=hint) from error
        except ValueError as error:
            raise UsageError(f"{path} is no text ({error})", hint=hint) from error
