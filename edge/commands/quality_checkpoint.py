"""A checkpoint that is at hand, run by OpenVINO in full precision, as the reference of texts; no PyTorch is needed."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge.errors import ResourceError
from edge.manifest import Manifest
from edge.messages import Progress
from edge.report import say
from edge.runtime.prompts import Prompt

if TYPE_CHECKING:
    from edge.model.hub import Located
    from edge.runtime.refstore import Reference

SMALL = 1_000_000_000
"""Parameters up to which a checkpoint is run here: larger ones take more memory and hours."""
_KEPT, _TOP = 1 << 24, (256, 4096)
"""Logits kept of all positions together, 270 MB of them; and of each position at least and at most. The KL divergence
comes out a hundredth too small with 4,096 of the pocket model's, a twentieth with 1,024."""


def at_hand(manifest: Manifest, named: str | None, progress: Progress) -> Located | None:
    """The checkpoint to compare with: the one named or, if it is small and on this machine, the model's own.

    Raises:
        ResourceError: the one named is too large to be run here.
        EdgeError: it is none, or not to be had.
    """
    from edge.model import hub, pocket
    from edge.model.spec import GlmSpec

    if named is None:
        own = Path(manifest.source.model).expanduser()
        there = pocket.folder().is_dir() if manifest.source.model == pocket.NAME else (own / "config.json").is_file()
        if not there or manifest.architecture.parameters > SMALL:
            say(f"Compared with nothing: {manifest.source.model} is "
                + ("not at hand; --against names a checkpoint." if not there else "too large to be run here; make a "
                   "reference of it with glm4-edge reference, and name that by --reference."))  # fmt: skip
            return None

    def fits(folder: Path) -> None:
        parameters = GlmSpec.from_folder(folder).parameter_count()
        if parameters > SMALL:
            raise ResourceError(
                f"{named} has {parameters / 1e9:.1f} billion parameters, and is not run in full precision here",
                hint=f"Run it once where there is a GPU: glm4-edge reference {named} FILE --prompts TEXT; then name "
                "FILE by --reference.",
            )

    located = hub.locate(named or manifest.source.model, revision=None, progress=progress, check=fits)
    fits(located.folder)  # a folder of the user's, which is not fetched
    return located


def reference_of(checkpoint: Located, windows: Sequence[Prompt], progress: Progress) -> Reference:
    """What a checkpoint says of windows of text, which have no answers.

    Raises:
        CheckpointError: it is damaged, or its numbers are not finite.
    """
    from edge import __version__
    from edge.bench.record import machine, versions
    from edge.errors import CheckpointError
    from edge.export.digests import Digests
    from edge.export.graph import build_model
    from edge.infer import EXACT, core, infer
    from edge.model.checkpoint import Checkpoint
    from edge.runtime import refstore
    from edge.runtime.likeness import log_sum_exp, next_log_probs

    source = Checkpoint(checkpoint.folder)
    spec = source.spec
    progress(f"loading {checkpoint.name} in full precision", 0, 0)
    with Digests(source.files()) as digests:
        compiled = core().compile_model(build_model(spec, source.weight), "CPU", EXACT)
        sha256 = digests.result()
    top = _KEPT // sum(len(window.token_ids) for window in windows)
    top = min(max(top, _TOP[0]), _TOP[1], spec.vocab_size)
    entries, positions = [], []
    for done, window in enumerate(windows):
        progress(f"reading the text with {checkpoint.name}", done, len(windows))
        tokens = np.array(window.token_ids, np.int64)
        logits = infer(compiled.create_infer_request(), tokens[:-1], 0)
        if not np.isfinite(logits).all():
            raise CheckpointError(
                f"the logits of {checkpoint.name} are not finite", hint="Its weights are damaged: download them again."
            )
        ids = np.argpartition(logits, -top, axis=1)[:, -top:]
        likeliest = np.take_along_axis(logits, ids, 1)
        order = np.argsort(-likeliest, axis=1)
        entries.append(
            refstore.Entry(
                id=window.id, language=window.language, prompt_tokens=len(tokens), answer_tokens=0, ttft_s=0,
                decode_s=0, unlike_forced=0,
            )
        )  # fmt: skip
        positions.append(
            refstore.Positions(
                tokens, np.take_along_axis(ids, order, 1), np.take_along_axis(likeliest, order, 1),
                log_sum_exp(logits), next_log_probs(logits, tokens[1:]),
            )
        )  # fmt: skip
    about = refstore.About(
        format=refstore.FORMAT,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        checkpoint=refstore.Checkpoint(
            model=checkpoint.name, revision=checkpoint.revision, sha256=sha256, vocab_size=spec.vocab_size,
            num_layers=spec.num_layers,
        ),
        dtype="f32", device="cpu", top_k=top, decoding={}, machine=machine(),
        versions={"glm4-edge": __version__, **versions("openvino", "numpy")}, entries=entries,
    )  # fmt: skip
    return refstore.Reference(about, positions)
