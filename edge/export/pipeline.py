"""The export from end to end: check, build, compress, write, prove, and only then take the name."""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edge import manifest, precise
from edge.errors import ModelError, OutputError, RecipeError, VerificationError
from edge.export import companions, optimum, streaming, verify, verify_ir, verify_parts, verify_text
from edge.export.calibration import UserText, calibration_samples
from edge.export.digests import Digests
from edge.export.forecast import check_memory
from edge.export.golden import keep_golden
from edge.export.layerwise import Layerwise
from edge.export.recipe import SMALL, Recipe
from edge.export.rehearse import rehearse
from edge.export.store import Store
from edge.export.tokenize import export_tokenizer
from edge.files import PARTIAL_KEY, check_place, check_room, new_folder
from edge.lora.adapter import Adapter
from edge.lora.asked import Asked
from edge.lora.merged import Merged
from edge.messages import Progress
from edge.model import tokenizer as tokenizers
from edge.model.checkpoint import Checkpoint
from edge.model.hub import Located
from edge.model.spec import GlmSpec

_PARTS, _SPENT = "parts", "parts-spent"
_FULL_BYTES = 64_000_000  # a write of OpenVINO's that fails with less than this left failed for want of it
_WORTH_KEEPING = 1_000_000_000  # parameters; about half a minute of work
_PACKAGES = ("openvino", "openvino-tokenizers", "nncf", "transformers", "numpy")


@dataclass(frozen=True)
class Job:
    """An export that was found possible: nothing has been written yet."""

    located: Located
    checkpoint: Checkpoint
    recipe: Recipe
    target: str
    out: Path
    stop_ids: list[int]
    calibration_text: UserText | None
    """None: the text shipped, where the recipe needs one."""
    exporter: str = manifest.OURS
    """One of `manifest.EXPORTERS`."""


def plan(
    located: Located, out: Path, *, target: str, make_recipe: Callable[[Any], Recipe],
    calibration_text: Path | None = None, merge: Sequence[Asked] = (),
) -> Job:  # fmt: skip
    """Check everything that can be checked before time is spent.

    Raises:
        CheckpointError: the folder is no complete GLM-4 checkpoint.
        RecipeError: the recipe does not fit the model or the device.
        OutputError: `out` is somebody else's folder, or the disk is too full.
        ResourceError: it would not fit this machine's memory.
    """
    job = prepare(located, out, target=target, make_recipe=make_recipe, calibration_text=calibration_text, merge=merge)
    check_machine(job.checkpoint.spec, job.recipe, out)
    return job


def prepare(
    located: Located, out: Path, *, target: str, make_recipe: Callable[[Any], Recipe],
    calibration_text: Path | None = None, merge: Sequence[Asked] = (), exporter: str = manifest.OURS,
) -> Job:  # fmt: skip
    """`plan` without a look at the machine.

    Args:
        merge: adapters that become part of the weights.
    """
    check_output(out)
    checkpoint = Checkpoint(located.folder)
    recipe = make_recipe(checkpoint.spec)
    recipe.check(checkpoint.spec, target)
    if merge:
        adapters = [Adapter.read(asked, checkpoint.spec) for asked in merge]
        checkpoint = Merged(located.folder, adapters, as_bf16=recipe.weights == "bf16")
    text = user_text(recipe, calibration_text)
    check_dtype(recipe, checkpoint.weight("model.embed_tokens.weight").dtype)
    stop_ids = tokenizers.stop_ids(located.folder, checkpoint.spec)
    tokenizers.require(located.folder)
    return Job(located, checkpoint, recipe, target, out, stop_ids, text, exporter)


def user_text(recipe: Recipe, path: Path | None) -> UserText | None:
    """The calibration text that the user named, if any.

    Raises:
        RecipeError: it cannot be read, or the recipe has no use for it.
    """
    if path is not None and not recipe.needs_calibration:
        raise RecipeError(
            f"nothing is calibrated, so that {path} would not be read",
            hint="Add --calibrate, or leave --calibration-text out.",
        )
    return None if path is None else UserText.read(path)


def check_recipe(recipe: Recipe, spec: GlmSpec, target: str, out: Path, exporter: str = manifest.OURS) -> None:
    """What config.json alone can tell: called before a download, too.

    Raises:
        RecipeError: the recipe does not fit the model or the device.
        OutputError: the disk is too full.
        ResourceError: it would not fit this machine's memory.
    """
    recipe.check(spec, target)
    check_machine(spec, recipe, out, exporter)


def check_machine(spec: GlmSpec, recipe: Recipe, out: Path, exporter: str = manifest.OURS) -> None:
    """Refuse an export for which this machine has too little disk or memory."""
    if exporter == manifest.OPTIMUM:
        optimum.check_machine(spec, recipe, out)
        return
    check_room(out, room_bytes(spec, recipe), f"the export to {out}")
    check_memory(spec, recipe)


def room_bytes(spec: GlmSpec, recipe: Recipe) -> int:
    """Of disk, to be on the safe side of `Recipe.estimated_bytes`."""
    return int(1.1 * recipe.estimated_bytes(spec)) + 20_000_000


def check_dtype(recipe: Recipe, source: str) -> None:
    """Refuse bf16 from a checkpoint in `source` (BF16, F16 or F32) that has none."""
    if recipe.weights == "bf16" and source != "BF16":
        raise RecipeError(
            f"bf16 was asked for, but the checkpoint is in {source}", hint="Ask for fp16, int8 or int4 weights."
        )


def check_output(out: Path) -> None:
    """Refuse a place that cannot be written, or holds something other than an earlier export."""
    for path in (out, *out.absolute().parents):
        if path.is_file():
            raise OutputError(f"{path} is a file", hint="Name a folder that does not exist yet.")
    check_place(out)
    check_room(out, 1, f"the export to {out}")
    if not out.is_dir() or not any(out.iterdir()):
        return
    ours = manifest.files_of(out)
    others = sorted(path.name for path in out.iterdir() if path.name not in ours)
    if others:
        raise OutputError(
            f"{out} exists and holds something else ({others[0]})",
            hint="Name a folder that does not exist yet, or an earlier export with no files of yours in it.",
        )


def earlier(job: Job, progress: Progress) -> manifest.Manifest | None:
    """What edge.json says in `job.out` where just this export was made there, by the same versions, and is whole."""
    try:
        made = manifest.Manifest.read(job.out)
    except ModelError:
        return None
    whole = all((job.out / name).is_file() for name in made.bytes)
    theirs = (made.exporter, made.target, made.recipe, made.stop_ids)
    same = theirs == (job.exporter, job.target, job.recipe.to_dict(), job.stop_ids)
    if not (whole and same and all(made.versions.get(name) == now for name, now in _versions(job).items())):
        return None
    progress("comparing the checkpoint with the export that is there", 0, 0)
    with Digests(job.checkpoint.files()) as digests:
        return made if made.source.sha256 == digests.result() | _other_digests(job) else None


def run(job: Job, progress: Progress) -> manifest.Manifest:
    """Make the model and return what its `edge.json` says.

    Raises:
        VerificationError: the result did not prove right; `job.out` is as it was before.
    """
    with Digests(job.checkpoint.files()) as digests:
        return _run(job, digests, progress)


def _run(job: Job, digests: Digests, progress: Progress) -> manifest.Manifest:
    checkpoint, recipe, spec = job.checkpoint, job.recipe, job.checkpoint.spec
    progress("reading the tokenizer", 0, 0)
    tokenizer = tokenizers.load(job.located.folder)
    if len(tokenizer) > spec.vocab_size:
        raise VerificationError(
            f"the tokenizer has {len(tokenizer):,} entries, the model only {spec.vocab_size:,}",
            hint="tokenizer.json and the weights do not belong together.",
        )
    samples = None
    if recipe.needs_calibration:
        text = job.calibration_text
        samples = calibration_samples(tokenizer) if text is None else text.samples(tokenizer)
    proof_ids = calibration_samples(tokenizer, count=1, length=128, held_out=True)[0]
    checks: list[manifest.Check] = []

    def keep(check: manifest.Check) -> None:
        if not check.passed:
            raise VerificationError(str(check.message), hint=f"Nothing was kept. {check.hint}")
        checks.append(check)

    with new_folder(job.out, key=_key(job), may_replace=check_output) as work, _full_disk_is_told(work):
        _keep_only_parts(work)
        progress("converting the tokenizer", 0, 0)
        keep(export_tokenizer(tokenizer, work))
        progress("checking the graph", 0, 0)
        graph, reference = verify.check_graph(checkpoint, proof_ids)
        keep(graph)
        model_file = work / manifest.MODEL_FILE
        if job.exporter == manifest.OPTIMUM:
            optimum.write_model(checkpoint, recipe, model_file, progress, samples=samples)
        else:
            store = Store(work / _PARTS, model_file.with_suffix(".bin"))
            make_layer = None if samples is None else Layerwise(checkpoint, recipe, samples, store, progress).make_layer
            streaming.write_model(
                checkpoint, recipe, store, model_file, progress, make_layer=make_layer, done_with=digests.done_with
            )
            precise.mark(model_file)
        companions.write(job.located.folder, work, tokenizer, spec.model_type, job.stop_ids)
        prove = _prove if job.exporter == manifest.OURS else _prove_traced
        for check in prove(job, work, tokenizer, reference, proof_ids, progress):
            keep(check)
        result = _manifest(job, work, checks, tokenizer, digests.result())
        result.write(work)
        if (work / _PARTS).exists():  # until here an interrupted export could go on from them
            (work / _PARTS).rename(work / _SPENT)  # all of them at once: half of them would not give the same model
        shutil.rmtree(work / _SPENT, ignore_errors=True)
    return result


def _prove(
    job: Job, work: Path, tokenizer: Any, reference: Any, proof_ids: list[int], progress: Progress
) -> Iterator[manifest.Check]:
    """The checks of the finished model, each as soon as it is made."""
    spec, model_file = job.checkpoint.spec, work / manifest.MODEL_FILE
    progress("proving the result", 0, 0)
    yield verify_text.check_template(work, tokenizer)
    yield verify_text.check_stop_ids(work, tokenizer, job.stop_ids)
    yield verify_ir.check_weights(model_file, job.recipe)
    with ThreadPoolExecutor(1) as pool:  # compiling uses one core, and little memory
        fusions = pool.submit(verify_ir.check_fusions, model_file)
        yield verify_ir.check_lengths(model_file, spec.vocab_size, spec.context_length)
        yield verify_parts.check_rows(model_file, job.checkpoint)
        if reference is None:
            yield verify_parts.check_parts(model_file, job.checkpoint)
        else:
            yield verify.check_compression(model_file, reference, proof_ids)
        yield fusions.result()
    yield keep_golden(work, spec, tokenizer, progress)
    if job.target == "npu" and spec.parameter_count() < SMALL:  # it takes the memory of the whole model twice
        progress("rehearsing the NPU", 0, 0)
        yield rehearse(model_file, proof_ids)


def _prove_traced(
    job: Job, work: Path, tokenizer: Any, reference: Any, proof_ids: list[int], progress: Progress
) -> Iterator[manifest.Check]:
    """What can be proved of optimum-intel's graph: all but norms and biases by name, and golden logits.

    That its rotary embeddings do not fuse is a warning.
    """
    spec, model_file = job.checkpoint.spec, work / manifest.MODEL_FILE
    progress("proving the result", 0, 0)
    yield verify_text.check_template(work, tokenizer)
    yield verify_text.check_stop_ids(work, tokenizer, job.stop_ids)
    yield verify_ir.check_weights(model_file, job.recipe)
    yield verify_ir.check_fusions(model_file, ours=False)
    yield verify_ir.check_lengths(model_file, spec.vocab_size, spec.context_length)
    yield verify_parts.check_rows(model_file, job.checkpoint, ours=False)
    if reference is None:
        yield verify_parts.check_parts(model_file, job.checkpoint)
    else:
        yield verify.check_compression(model_file, reference, proof_ids)
    if job.target == "npu" and spec.parameter_count() < SMALL:
        progress("rehearsing the NPU", 0, 0)
        yield rehearse(model_file, proof_ids)


def _keep_only_parts(work: Path) -> None:
    """Of what an interrupted export left, all is made again except the parts and their weights."""
    weights = Path(manifest.MODEL_FILE).with_suffix(".bin").name
    for path in work.iterdir():
        if path.is_dir() and path.name != _PARTS:
            shutil.rmtree(path)
        elif path.is_file() and path.name not in (PARTIAL_KEY, weights):
            path.unlink()


@contextlib.contextmanager
def _full_disk_is_told(folder: Path) -> Iterator[None]:
    """OpenVINO says of a full disk "basic_ios::clear: iostream error"; say what it is."""
    try:
        yield
    except RuntimeError as error:
        if shutil.disk_usage(folder).free < _FULL_BYTES:
            raise OSError(errno.ENOSPC, "No space left on device") from error
        raise


def _key(job: Job) -> str | None:
    """What an interrupted export must have in common with the next to be gone on with.

    None where starting again costs less than what would be left lying about.
    """
    spec = job.checkpoint.spec
    if spec.parameter_count() < _WORTH_KEEPING or job.exporter == manifest.OPTIMUM:
        return None
    shards = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in job.checkpoint.shards]
    versions = {name: importlib.metadata.version(name) for name in ("glm4-edge", "openvino", "nncf")}
    others = _other_digests(job)
    return json.dumps([str(job.located.folder.absolute()), shards, repr(spec), job.recipe.to_dict(), others, versions])


def _other_digests(job: Job) -> dict[str, str]:
    """Of what the user gave beside the checkpoint."""
    text, checkpoint = job.calibration_text, job.checkpoint
    told = {} if text is None else {f"calibration: {text.name}": text.sha256}
    return told | (checkpoint.digests() if isinstance(checkpoint, Merged) else {})


def _versions(job: Job) -> dict[str, str]:
    more = optimum.versions() if job.exporter == manifest.OPTIMUM else {}
    return {name: importlib.metadata.version(name) for name in ("glm4-edge", *_PACKAGES)} | more


def _manifest(
    job: Job, work: Path, checks: list[manifest.Check], tokenizer: Any, digests: dict[str, str]
) -> manifest.Manifest:
    spec = job.checkpoint.spec
    versions = _versions(job)
    versions["python"] = sys.version.split()[0]
    return manifest.Manifest(
        format=manifest.FORMAT,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        source=manifest.Source(
            model=job.located.name,
            description=job.located.description,
            revision=job.located.revision,
            sha256=digests | _other_digests(job),
        ),
        architecture=manifest.Architecture(
            model_type=spec.model_type,
            parameters=spec.parameter_count(),
            num_layers=spec.num_layers,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            vocab_size=spec.vocab_size,
            context_length=spec.context_length,
        ),
        target=job.target,
        recipe=job.recipe.to_dict(),
        stop_ids=job.stop_ids,
        stop_tokens=[str(tokenizer.convert_ids_to_tokens(item)) for item in job.stop_ids],
        versions=versions,
        bytes={
            path.name: path.stat().st_size
            for path in sorted(work.iterdir())
            if path.is_file() and path.name != PARTIAL_KEY
        },
        checks=checks,
        exporter=job.exporter,
        sha256=manifest.digests(work),
    )
