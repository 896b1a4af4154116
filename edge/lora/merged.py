"""A checkpoint with adapters merged into it, a matrix at a time: W + b·a, in numpy and f32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edge.lora.adapter import Adapter
from edge.lora.asked import WEIGHTS
from edge.manifest import MERGED
from edge.model.checkpoint import Checkpoint, Weight


class Merged(Checkpoint):
    """As `Checkpoint`; what an adapter changes is made anew each time it is asked for, and kept by nobody.

    Args:
        adapters: held against this checkpoint's own spec.
        as_bf16: round the merged matrices to bf16, as PyTorch does that merges in it; else they stay f32: what an
            adapter changes may be less than bf16 can tell.

    Raises:
        CheckpointError: see `Checkpoint`.
    """

    def __init__(self, folder: Path, adapters: Sequence[Adapter], *, as_bf16: bool = False) -> None:
        super().__init__(folder)
        self.adapters = tuple(adapters)
        self._as_bf16 = as_bf16

    def weight(self, name: str) -> Weight:
        """See `Checkpoint.weight`; a merged one is the caller's."""
        plain = super().weight(name)
        target = name.removesuffix(".weight")
        deltas = [adapter.deltas[target] for adapter in self.adapters if target in adapter.deltas]
        if not deltas:
            return plain
        values = plain.f32()
        for delta in deltas:
            values += delta.b @ delta.a
        return Weight(_rounded(values), "BF16", kept=False) if self._as_bf16 else Weight(values, "F32", kept=False)

    def digests(self) -> dict[str, str]:
        """Of the adapters, as edge.json keeps them beside those of the checkpoint's files."""
        return {
            f"{MERGED}{adapter.label}" + ("" if name == WEIGHTS else f", {name}"): digest
            for adapter in self.adapters
            for name, digest in adapter.sha256.items()
        }


def _rounded(values: np.ndarray) -> np.ndarray:
    """f32 as bf16's bits, to the nearest, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")
