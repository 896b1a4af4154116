"""Is this device computing right? What it says of a known text is held against the golden logits.

The golden logits (`edge.golden`) are those of the exported model's own bits in exact arithmetic. A healthy device
differs from them a little: it rounds to bf16 or f16, keeps its cache in 8 bits and quantises activations. A faulty
one, a broken driver, an overflow or a damaged file differ wildly, at all lengths or at some.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge import golden as goldens
from edge.errors import ContextError, DeviceError, ModelError
from edge.golden import Golden
from edge.manifest import MODEL_FILE, Manifest
from edge.messages import Progress
from edge.runtime import devices
from edge.runtime.interface import Probing
from edge.runtime.ladder import label
from edge.runtime.settings import Settings

if TYPE_CHECKING:
    from numpy.typing import NDArray

QUICK = (1, 15, 33)
"""Lengths of the prompts that are tried at a load. None fills a block of the prefix cache (16 tokens on GPU, 32 on CPU)
that a longer one begins with, so that all are really read; the last goes beyond two blocks."""

# Thresholds, in nats, between what was measured on the pocket model in int4: largest KL over the lengths; its mean; the
# mean error of known tokens' log-probabilities; how far below the right one a next token lies.
#   sound CPU in every precision, cache in 8 or 16 bits, dynamic quantisation:  0.09  0.02  0.31  0.17
#   the same with the cache in 4 bits:                                          0.81  0.24  0.44  0.42
#   bits flipped in v, o, gate_up or down of a middle layer, the least of them: 1.7   0.59  1.1   1.2
#   in its q, which `thorough` alone sees:                                      0.89  0.19  0.42  1.0
#   in the last layer's q, which is not seen: it costs less than 4-bit caches:  0.38  0.09  0.30  1.1
MAX_KL = 0.75
MEAN_KL = 0.15
MEAN_ERROR = 0.8
MAX_GAP = 3.0
_STEPS = 129
"""Tokens that are read one after the other, at most: each costs the NPU a step."""


@dataclass(frozen=True)
class Finding:
    """What came out."""

    ok: bool
    reason: str | None
    """What is wrong, a sentence without a full stop."""
    figures: dict[str, Any]


@dataclass(frozen=True)
class Reading:
    """One prompt on the device, against its golden logits. Not-a-numbers are None."""

    length: int
    """Tokens of the prompt."""
    kl: float | None
    """KL(golden ‖ device) of the next token, in nats."""
    same_token: bool
    max_error: float | None
    """Largest difference of a logit."""
    mean_error: float | None
    """Mean difference of the log-probabilities of the prompt's own tokens, in nats; None for one token, too."""


def quick(engine: Probing, golden: Golden, lengths: Sequence[int] = QUICK) -> Finding:
    """Look at a loaded pipeline through its own eyes: log-probabilities of a known text, and its next token.

    Costs as much as reading `sum(lengths)` tokens, and warms up on the way; other answers go on meanwhile. Ends at the
    first length that is wrong; prompts that the engine has no room for are left out. A NaN among the log-probabilities
    stands for logits that are none. Figures, by length: `token_gap`, how far the golden logits put its next token below
    their own choice, and `mean_error` of the log-probabilities, in nats.

    Raises:
        ContextError: not even the shortest prompt fits.
        DeviceError: the device failed.
    """
    rows: list[dict[str, Any]] = []
    reason = None
    for length in (length for length in golden.lengths if length in lengths):
        try:
            row, reason = _probed(engine, golden, length)
        except ContextError as error:
            if rows:
                break
            raise ContextError(
                f"the context has no room for the {length} {'token' if length == 1 else 'tokens'} of a golden prompt",
                hint="Load the model with a longer context.",
            ) from error
        rows.append(row)
        if reason is not None:
            break
    return Finding(reason is None, reason, {"by_length": rows})


def thorough(
    folder: Path, settings: Settings, golden: Golden, progress: Progress = lambda stage, done, total: None
) -> Finding:
    """Load the model as it answers, and compare at all golden lengths, each read afresh.

    On CPU and GPU that is GenAI's pipeline with its paged attention, which reads the longest prompt in several steps on
    a CPU; figures, besides the device, are those of `quick`. The NPU's pipeline tells too little: there the IR is
    compiled with the very properties, whole logits are compared, and the shorter prompts are read one token after the
    other, too. Figures are `at_once` and `one_by_one`, a `Reading` for each length.

    Raises:
        ModelError: the folder holds no exported model, or another model's golden logits.
        ContextError: not even the shortest prompt fits.
        DeviceError: the device does not take it, or failed.
    """
    known = {"device": settings.device, "precision": settings.precision, "rehearsal": settings.rehearse}
    if settings.device == "NPU":
        return _through_the_plugin(folder, settings, golden, known, progress)
    return _through_the_pipeline(folder, settings, golden, known, progress)


def _through_the_pipeline(
    folder: Path, settings: Settings, golden: Golden, known: dict[str, Any], progress: Progress
) -> Finding:
    from edge.runtime.engine import Engine

    progress(f"loading for {label(settings)}", 0, 0)
    room = min(Manifest.read(folder).architecture.context_length, golden.lengths[-1] + 1)
    alone = dataclasses.replace(settings, context=settings.context or room, prefix_cache=False)
    rows, reasons = [], []
    with Engine.load(folder, alone) as engine:
        lengths = [length for length in golden.lengths if length < engine.context_length]
        if not lengths:
            raise ContextError("no golden prompt fits into the context", hint="Take a longer context.")
        for number, length in enumerate(lengths):
            progress("reading prompts at once", number, len(lengths))
            row, reason = _probed(engine, golden, length)
            rows.append(row)
            reasons.append(reason)
    reason = next((reason for reason in reasons if reason is not None), None)
    agreement = float(np.mean([row["same_token"] for row in rows]))
    return Finding(reason is None, reason, {**known, "top1_agreement": agreement, "by_length": rows})


def _probed(engine: Probing, golden: Golden, length: int) -> tuple[dict[str, Any], str | None]:
    """Figures of one prompt, and what is wrong with them. What is not known to be small counts as large."""
    probe = engine.probe(golden.prompt(length).tolist())
    last = golden.last(length)
    gap = float(last.max() - last[probe.token]) if 0 <= probe.token < len(last) else math.inf
    told = np.array(probe.log_probs or (), np.float64)
    known = len(told) == length - 1 > 0
    error = float(np.abs(told - golden.log_probs[: length - 1]).mean()) if known else None
    reason = None
    if not np.isfinite(told).all():
        reason = f"at {length} tokens the logits are not numbers"
    elif error is not None and not error <= MEAN_ERROR:
        reason = _far(length, error)
    elif not gap <= MAX_GAP:
        reason = f"at {length} tokens it goes on with a token that lies {gap:.1f} nats below the right one"
    row = {"length": length, "same_token": gap == 0, "token_gap": _number(gap), "mean_error": _number(error)}
    return row, reason


def _through_the_plugin(
    folder: Path, settings: Settings, golden: Golden, known: dict[str, Any], progress: Progress
) -> Finding:
    progress(f"compiling for {label(settings)}", 0, 0)
    defaults = devices.default_properties(settings.device, Manifest.read(folder))
    properties = {name: value for name, value in {**defaults, **settings.properties}.items() if value is not None}
    if settings.precision == "f32":
        properties["INFERENCE_PRECISION_HINT"] = "f32"
    properties = _npu(properties, settings)
    golden = golden.upto(properties["NPUW_LLM_MAX_PROMPT_LEN"])
    try:
        request = _compiled(folder, settings, properties)
        readings = _at_once(request, golden, progress)
        steps = _one_by_one(request, golden.upto(_STEPS), progress)
    except RuntimeError as error:
        said = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), "no reason given")
        raise DeviceError(
            f"{label(settings)} failed on the golden prompts ({said})",
            hint="See whether glm4-edge verify finds the model damaged."
            if settings.rehearse
            else "Update the device's driver, or choose another device.",
        ) from error
    both = readings + steps
    numbers = [reading.kl for reading in both if reading.kl is not None]
    whole = len(numbers) == len(both)
    kl_mean = float(np.mean(numbers)) if whole else None
    figures = {
        **known, "kl_mean": kl_mean, "kl_max": max(numbers) if whole else None,
        "top1_agreement": float(np.mean([reading.same_token for reading in both])),
        "at_once": [asdict(reading) for reading in readings], "one_by_one": [asdict(reading) for reading in steps],
    }  # fmt: skip
    reason = _wrong(readings, "") or _wrong(steps, ", read one by one,")
    if reason is None and kl_mean is not None and not kl_mean <= MEAN_KL:
        reason = f"its next tokens lie {kl_mean:.2g} nats (KL) from the right ones on average"
    return Finding(reason is None, reason, figures)


def _wrong(readings: Sequence[Reading], how: str) -> str | None:
    for reading in readings:
        where = f"at {reading.length} tokens{how}"
        if reading.kl is None:
            return f"{where} the logits are not numbers"
        if not reading.kl <= MAX_KL:
            return f"{where} its next token lies {reading.kl:.2g} nats (KL) from the right one"
        if reading.mean_error is not None and not reading.mean_error <= MEAN_ERROR:
            return _far(reading.length, reading.mean_error, how)
    return None


def _far(length: int, error: float, how: str = "") -> str:
    return f"at {length} tokens{how} a known text's probabilities are {error:.2g} nats off on average"


def _at_once(request: Any, golden: Golden, progress: Progress) -> list[Reading]:
    """Each prompt afresh, in one go."""
    from edge.infer import infer

    found = []
    for number, length in enumerate(golden.lengths):
        progress("reading prompts at once", number, len(golden.lengths))
        request.reset_state()
        found.append(_reading(golden, length, infer(request, golden.prompt(length), 0)))
    return found


def _one_by_one(request: Any, golden: Golden, progress: Progress) -> list[Reading]:
    """The whole text, its first token as a prompt and then each as if it had been generated."""
    from edge.infer import infer

    request.reset_state()
    rows: list[NDArray[np.float32]] = []
    found = []
    for past, token in enumerate(golden.token_ids):
        progress("reading one token after the other", past, len(golden.token_ids))
        rows.append(infer(request, np.array([token]), past)[-1])
        if past + 1 in golden.lengths:
            found.append(_reading(golden, past + 1, np.stack(rows)))
    return found


def _reading(golden: Golden, length: int, logits: NDArray[np.float32]) -> Reading:
    """Logits [S, vocabulary] of a prompt, or [1, vocabulary] of its last token, which is all that the NPU gives."""
    from edge.infer import kl_divergence

    last, expected = logits[-1], golden.last(length)
    if last.shape != expected.shape:
        raise ModelError(
            f"{goldens.FILE_NAME} is another model's: of {len(expected):,} entries, not {len(last):,}",
            hint="Export the model again.",
        )
    whole = len(logits) == length and length > 1
    error = None
    if whole:
        found = goldens.known_log_probs(logits[:-1], golden.prompt(length)[1:])
        error = float(np.abs(found - golden.log_probs[: length - 1]).mean())
    if not np.isfinite(last).all() or (error is not None and not math.isfinite(error)):
        return Reading(length, None, False, None, None)
    return Reading(
        length, float(kl_divergence(expected[None], last[None])[0]), bool(expected.argmax() == last.argmax()),
        float(np.abs(last - expected).max()), error,
    )  # fmt: skip


def _compiled(folder: Path, settings: Settings, properties: dict[str, Any]) -> Any:
    """An infer request for the IR, or for its variant with the guilty nodes in f32."""
    from edge import precise
    from edge.infer import core

    if settings.precision == "guilty nodes":
        folder = precise.variant(folder)
    model = core().read_model(folder / MODEL_FILE)
    return core().compile_model(model, settings.device, properties).create_infer_request()


def _npu(properties: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """What GenAI would make of them for the plugin, which has names of its own for the lengths."""
    from edge import npu

    most = int(properties.pop("MAX_PROMPT_LEN", settings.context or npu.MAX_PROMPT_LEN))
    least = int(properties.pop("MIN_RESPONSE_LEN", npu.MIN_RESPONSE_LEN))
    make = npu.rehearsal_properties if settings.rehearse else npu.properties
    return {**make(most, least), **properties}


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
