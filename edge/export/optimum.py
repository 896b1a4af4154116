"""The other exporter: optimum-intel traces the checkpoint, and what it traced is compressed by the same recipes.

It is there to hold ours against: another program's reading of the same checkpoint. It needs PyTorch, writes a whole
uncompressed copy on the way, and takes several times as long. It does not have what `fp16.guard` and `precise.mark` do
for devices that compute in f16 (but writes ACTIVATIONS_SCALE_FACTOR), nor golden logits, which are read by our names.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import psutil

import edge
from edge.errors import MissingExtraError, ResourceError, VerificationError
from edge.export.compress import compress
from edge.export.recipe import Recipe
from edge.files import check_room
from edge.infer import core
from edge.messages import Progress
from edge.model.checkpoint import Checkpoint
from edge.model.spec import GlmSpec

PACKAGES = ("torch", "optimum", "optimum-intel")
"""What it needs beside what glm4-edge does."""
# The package's folder is the one this very process uses, whatever the user's own folder holds; Ctrl-C is for the parent
# alone; and a torchvision that is not built like this PyTorch, which transformers would trip over, is not looked at.
_BEGIN = (
    "import sys; sys.path[0] = sys.argv[1]; import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "sys.modules['torchvision'] = None; from edge.export.tracing import main; main()"
)
_PROGRAM_BYTES = 1_500_000_000  # PyTorch and the rest
# Anonymous memory for each parameter; at 9.4B from the weights alone optimum-intel's export was measured at 6.8 GB.
_PARAMETER_BYTES = 0.75
_CALIBRATED_BYTES = 6.0  # the whole model runs in f32
_TEXT = 32  # tokens of a calibration text: NNCF keeps one vector of each
_LAST_LINES = 4


def require() -> None:
    """Refuse where a package is missing.

    Raises:
        MissingExtraError: it is.
    """
    for name in PACKAGES:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError as error:
            raise MissingExtraError(name, "optimum") from error


def check_machine(spec: GlmSpec, recipe: Recipe, out: Path) -> None:
    """Refuse an export for which this machine has too little disk or memory.

    Raises:
        OutputError: the disk is too full.
        ResourceError: it would not fit this machine's memory.
    """
    parameters = spec.parameter_count()
    room = 2 * parameters + int(1.1 * recipe.estimated_bytes(spec)) + 20_000_000
    check_room(out, room, f"the export to {out} by optimum-intel")
    each = _CALIBRATED_BYTES if recipe.needs_calibration else _PARAMETER_BYTES
    needed, there = _PROGRAM_BYTES + int(each * parameters), psutil.virtual_memory().total
    if needed > there:
        raise ResourceError(
            f"this export by optimum-intel holds about {needed / 1e9:.1f} GB in memory, and this machine has "
            f"{there / 1e9:.1f} GB",
            hint="Leave --exporter optimum out: our own exporter needs a part of that.",
        )


def write_model(
    checkpoint: Checkpoint, recipe: Recipe, model_file: Path, progress: Progress, *, samples: list[list[int]] | None
) -> None:
    """Trace, compress and write `model_file` and its .bin.

    Args:
        samples: token ids of calibration texts, for a recipe that needs them.

    Raises:
        VerificationError: optimum-intel did not come to an end.
        RecipeError: a weight does not fit into fp16.
    """
    traced = model_file.parent / "traced"
    try:
        _trace(checkpoint.folder, traced, progress)
        model = core().read_model(traced / "openvino_model.xml")
        if recipe.weights in ("int4", "int8"):
            # NNCF would leave optimum-intel's advice for models that are not compressed.
            advice = model.get_rt_info(["runtime_options"]).astype(dict) if model.has_rt_info("runtime_options") else {}
            kept = {name: value.value for name, value in advice.items() if name != "KV_CACHE_PRECISION"}
            model.set_rt_info(kept, ["runtime_options"])
        progress("compressing", 0, 0)
        feeds = None if samples is None else _feeds(samples)
        model = compress(model, recipe, calibration=None, progress=progress, feeds=feeds)
        progress("writing the model", 0, 0)
        ov.save_model(model, model_file, compress_to_fp16=False)
        del model
        gc.collect()  # the traced weights are mapped, and Windows deletes no mapped file
    finally:
        shutil.rmtree(traced, ignore_errors=True)


def versions() -> dict[str, str]:
    """Of the packages that only this exporter uses."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def _feeds(samples: list[list[int]]) -> list[dict[str, Any]]:
    """The calibration texts as inputs of the whole model."""
    texts = [sample[begin : begin + _TEXT] for sample in samples for begin in range(0, len(sample), _TEXT)]
    return [
        {
            "input_ids": np.array([text], np.int64), "attention_mask": np.ones((1, len(text)), np.int64),
            "position_ids": np.arange(len(text), dtype=np.int64)[None], "beam_idx": np.zeros(1, np.int32),
        }
        for text in texts
    ]  # fmt: skip


def _said(line: str) -> dict[str, Any]:
    """A line of the process's; what PyTorch or a library of its printed while it was imported says nothing."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _trace(folder: Path, out: Path, progress: Progress) -> None:
    """Have it traced in a process of its own: its memory is free again then, and Ctrl-C ends it at once."""
    command = [sys.executable, "-c", _BEGIN, str(Path(edge.__file__).parents[1]), str(folder.absolute()), str(out)]
    out.mkdir()
    log = out / "log"
    told: dict[str, Any] = {}
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8",
            errors="replace",
        )  # fmt: skip
        try:
            assert process.stdout is not None
            for line in process.stdout:
                told |= _said(line)
                if stage := told.pop("stage", None):
                    progress(stage, 0, 0)
            process.wait()
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    assert pipe is not None
                    pipe.close()
    if process.returncode or not told.get("done"):
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-_LAST_LINES:]
        reason = told.get("error") or f"it ended with {process.returncode}: " + " | ".join(last)
        raise VerificationError(
            f"optimum-intel did not export {folder} ({reason})",
            hint="Leave --exporter optimum out, or install the versions of the extra: pip install "
            '"glm4-edge[optimum]".',
        )
    log.unlink()
