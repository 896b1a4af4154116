"""Every proof about a finished model in its folder, ours or optimum-intel's, with or without its checkpoint."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edge import golden, manifest
from edge.errors import EdgeError, ModelError
from edge.export import ir, verify, verify_ir, verify_parts, verify_text
from edge.export.calibration import calibration_samples
from edge.export.golden import check_golden
from edge.export.recipe import SMALL, Recipe
from edge.export.rehearse import rehearse
from edge.files import check_readable
from edge.infer import core
from edge.manifest import Check, Manifest
from edge.messages import Progress
from edge.model import forward
from edge.model import tokenizer as tokenizers
from edge.model.checkpoint import Checkpoint
from edge.model.spec import GlmSpec


@dataclass(frozen=True)
class Verified:
    """What was found out about a folder."""

    checks: list[Check]
    left_out: list[str]
    """What could not be checked, a sentence each."""


@dataclass(frozen=True)
class _Subject:
    folder: Path
    spec: GlmSpec
    made: Manifest | None
    checkpoint: Checkpoint | None

    @property
    def model_file(self) -> Path:
        return self.folder / manifest.MODEL_FILE

    @property
    def ours(self) -> bool:
        """Whether the graph is: exported by this program, and not traced by optimum-intel for it."""
        return self.made is not None and self.made.exporter == manifest.OURS


def require_model(folder: Path) -> None:
    """Refuse a folder without an exported model.

    Raises:
        ModelError: it has no openvino_model.xml.
    """
    if not (folder / manifest.MODEL_FILE).is_file():
        raise manifest.no_model(folder, manifest.MODEL_FILE)
    for path in sorted(folder.iterdir()):
        check_readable(path)


def verify_folder(folder: Path, against: Path | None, progress: Progress) -> Verified:
    """Check the model in `folder`, against the checkpoint in `against` where one is given.

    A check that fails keeps none of the others from running, except that nothing is run on damaged files.

    Raises:
        ModelError: the folder holds no stateful OpenVINO model of a language model.
        CheckpointError: `against` is no complete GLM-4 checkpoint, or the folder has no config.json of one.
    """
    require_model(folder)
    checkpoint = Checkpoint(against) if against else None
    made = _manifest(folder)
    spec = GlmSpec.from_folder(folder) if (folder / "config.json").is_file() or checkpoint is None else checkpoint.spec
    subject = _Subject(folder, spec, made, checkpoint)
    progress("checking the files", 0, 0)
    checks = [_files(subject)]
    left_out = []
    if checks[0].passed:
        if not ir.num_layers(core().read_model(subject.model_file)):
            raise ModelError(
                f"{subject.model_file} keeps no cache (it is not stateful)",
                hint="Export it again with glm4-edge, or with optimum-cli and --task text-generation-with-past.",
            )
    else:
        left_out.append("the model was not run, because its files are damaged")
    steps = [*_text_steps(subject), *(_model_steps(subject) if checks[0].passed else ())]
    for name, stage, step in steps:
        progress(stage, 0, 0)
        checks.append(_told(name, step))
    if checkpoint is None:
        left_out.append("the weights were not compared with a checkpoint (give one with --against)")
    return Verified(checks, left_out)


def _told(name: str, step: Callable[[], Check]) -> Check:
    """The check's result; a fault that keeps it from coming to one is a failure."""
    try:
        return step()
    except EdgeError as error:
        return Check(name=name, passed=False, figures={}, message=error.message, hint=error.hint)
    except RuntimeError as error:  # OpenVINO's way to say that a file is not what it should be
        reason = str(error).strip().splitlines()[-1]
        return Check(
            name=name, passed=False, figures={}, message=f"OpenVINO cannot run it ({reason})",
            hint="Export the model again.",
        )  # fmt: skip


Step = tuple[str, str, Callable[[], Check]]


def _text_steps(subject: _Subject) -> Iterator[Step]:
    folder, checkpoint = subject.folder, subject.checkpoint
    loaded: list[Any] = []

    def reference() -> Any:
        if not loaded:
            source = checkpoint.folder if checkpoint else folder
            loaded.append(tokenizers.load(source))
        return loaded[0]

    def stop_ids() -> Check:
        expected = None
        if checkpoint is not None:
            expected = tokenizers.stop_ids(checkpoint.folder, checkpoint.spec)
        elif subject.made is not None:
            expected = subject.made.stop_ids
        return verify_text.check_stop_ids(folder, reference(), expected, subject.spec.stop_ids)

    yield "tokenizer", "checking the tokenizer", lambda: verify_text.check_tokenizer(folder, reference())
    yield "template", "checking the chat template", lambda: verify_text.check_template(folder, reference())
    yield "stop ids", "checking the stop ids", stop_ids


def _model_steps(subject: _Subject) -> Iterator[Step]:
    file, spec, ours, checkpoint = subject.model_file, subject.spec, subject.ours, subject.checkpoint
    recipe = _recipe(subject.made) if subject.made else ir.recipe_of(core().read_model(file))
    strict = subject.made is not None
    yield (
        "weights",
        "reading the weights",
        lambda: verify_ir.check_weights(file, recipe, strict=strict),
    )
    yield "fusions", "compiling for both backends", lambda: verify_ir.check_fusions(file, ours=ours)
    yield (
        "lengths",
        "running prompts of many lengths",
        lambda: verify_ir.check_lengths(file, spec.vocab_size, spec.context_length),
    )
    if ours and (subject.folder / golden.FILE_NAME).is_file():
        yield "golden", "comparing the golden logits", lambda: _golden(subject)
    if subject.made is not None and subject.made.target == "npu" and spec.parameter_count() < SMALL:
        tokenizer = tokenizers.load(subject.folder)
        ids = calibration_samples(tokenizer, count=1, length=128, held_out=True)[0]
        yield "npu rehearsal", "rehearsing the NPU", lambda: rehearse(file, ids)
    if checkpoint is not None:
        yield from against_steps(file, checkpoint, ours=ours)


def against_steps(model_file: Path, checkpoint: Checkpoint, *, ours: bool) -> Iterator[Step]:
    """Name, stage and call of the checks that hold a model against its checkpoint."""
    yield (
        "rows",
        "comparing rows of every matrix",
        lambda: verify_parts.check_rows(model_file, checkpoint, ours=ours),
    )
    if 4 * checkpoint.spec.parameter_count() > verify.WHOLE_BYTES:
        yield "parts", "comparing sampled layers", lambda: verify_parts.check_parts(model_file, checkpoint)
        return

    def compression() -> Check:
        tokenizer = tokenizers.load(checkpoint.folder)
        ids = calibration_samples(tokenizer, count=1, length=128, held_out=True)[0]
        reference = forward.logits(checkpoint.spec, checkpoint.weight, ids)
        return verify.check_compression(model_file, reference, ids)

    yield "compression", "comparing the answers", compression


def _golden(subject: _Subject) -> Check:
    kept = golden.read(subject.folder)
    assert kept is not None
    return check_golden(subject.model_file, kept)


def _recipe(made: Manifest) -> Recipe:
    """What was asked for; fields that other versions knew are left out."""
    known = {field.name for field in dataclasses.fields(Recipe)}
    return Recipe(**{name: value for name, value in made.recipe.items() if name in known})


def _manifest(folder: Path) -> Manifest | None:
    """What edge.json says; sizes are not looked at yet. None where the model is not ours."""
    path = folder / manifest.FILE_NAME
    if not path.is_file():
        return None
    try:
        return Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise ModelError(f"{path} is damaged or from another version", hint="Export the model again.") from error


def _files(subject: _Subject) -> Check:
    """Whether everything is there and as long as it should be."""
    folder, made = subject.folder, subject.made
    wrong = []
    if made is not None:
        for name, size in made.bytes.items():
            path = folder / name
            if not path.is_file():
                wrong.append(f"{name} is missing")
            elif name.startswith("openvino_") and path.stat().st_size != size:
                wrong.append(f"{name} has {path.stat().st_size:,} bytes instead of {size:,}")
    weights = subject.model_file.with_suffix(".bin")
    present = weights.stat().st_size if weights.is_file() else 0
    try:
        needed = _end(subject.model_file)
    except ElementTree.ParseError:
        wrong.append(f"{subject.model_file.name} is no XML")
    else:
        if present < needed and not any(item.startswith(weights.name) for item in wrong):
            wrong.append(f"{weights.name} has {present:,} bytes, where the graph reads {needed:,}")
    hint = "The copy or the disk was cut short: copy the folder again, or export the model again."
    return Check(
        name="files", passed=not wrong, figures={"bytes": present, "wrong": wrong},
        message="; ".join(wrong) or None, hint=hint if wrong else None,
    )  # fmt: skip


def _end(model_file: Path) -> int:
    """How many bytes of the .bin the graph points at."""
    end = 0
    for _, element in ElementTree.iterparse(model_file):
        if element.tag == "data" and element.get("offset") is not None:
            end = max(end, int(str(element.get("offset"))) + int(str(element.get("size"))))
        elif element.tag == "layer":
            element.clear()
    return end
