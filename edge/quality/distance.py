"""Perplexity of texts and, with a reference of the checkpoint, how far a model is from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge.messages import Progress
from edge.quality.record import Distance, Figures
from edge.quality.scoring import Asked, Scorer
from edge.quality.texts import digest
from edge.runtime import parity
from edge.runtime.likeness import perplexity
from edge.runtime.prompts import Prompt
from edge.runtime.refstore import Reference


def _silent(stage: str, done: int, total: int) -> None:
    """Progress nobody looks at."""


def from_reference(
    folder: Path,
    reference: Reference,
    device: str,
    *,
    exact: bool = False,
    extra: Mapping[str, Any] | None = None,
    progress: Progress = _silent,
) -> Distance:
    """Of the reference's prompts and answers; see `parity.compare`, which is what runs.

    Raises:
        EdgeError: those of `parity.compare`.
    """
    found = parity.compare(folder, reference, device, progress, exact=exact, extra=extra)
    languages = list(dict.fromkeys(one.language for one in found.prompts))
    names = ["all", *languages] if len(languages) > 1 else languages
    about = reference.about
    return Distance(
        digest=digest([positions.tokens.tolist() for positions in reference.positions]),
        reference=f"{about.checkpoint.model} in {about.dtype} on {about.device}, top {about.top_k}",
        exact=exact,
        properties=found.properties,
        figures={name: _figures(found.groups["all" if len(names) == 1 else name]) for name in names},
        losses=_rounded(-np.concatenate([one.log_probs for one in found.prompts])),
        losses_reference=_rounded(-np.concatenate([one.reference_log_probs for one in found.prompts])),
        kl=_rounded(np.concatenate([one.kl for one in found.prompts])),
    )


def from_text(
    folder: Path,
    windows: Sequence[Prompt],
    device: str,
    *,
    exact: bool = False,
    extra: Mapping[str, Any] | None = None,
    progress: Progress = _silent,
) -> Distance:
    """Of texts alone: perplexity, and what it is made of.

    Raises:
        ModelError: the folder holds no model.
        DeviceError: the device does not take it, or is the NPU.
        VerificationError: the model's numbers are not finite.
    """
    place = parity.place(folder, device, progress)
    progress(f"loading on {place}", 0, 0)
    scorer = Scorer(folder, place, exact=exact, extra=extra)
    asked = [Asked(tuple(each.token_ids[:1]), tuple(each.token_ids[1:])) for each in windows]
    found = [np.array(each.log_probs) for each in scorer.score(asked, progress, f"reading the text on {place}")]
    by_name = {
        name: np.concatenate([own for own, each in zip(found, windows, strict=True) if each.language == name])
        for name in dict.fromkeys(each.language for each in windows)
    }
    if len(by_name) > 1:
        by_name = {"all": np.concatenate(found), **by_name}
    return Distance(
        digest=digest([each.token_ids for each in windows]),
        reference=None,
        exact=exact,
        properties=scorer.properties,
        figures={name: Figures(tokens=len(own), perplexity=perplexity(own)) for name, own in by_name.items()},
        losses=_rounded(-np.concatenate(found)),
        kl=[],
    )


def _figures(found: parity.Figures) -> Figures:
    return Figures(
        tokens=found.positions, perplexity=found.perplexity, perplexity_reference=found.perplexity_reference,
        kl_mean=found.kl_mean, kl_p99=found.kl_p99, kl_worst=found.kl_worst, top1=found.top1, top5=found.top5,
    )  # fmt: skip


def _rounded(values: np.ndarray) -> list[float]:  # type: ignore[type-arg]
    return [round(float(each), 6) for each in values]
