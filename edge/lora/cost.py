"""What adapters take of memory, from their ranks. Pure; measured on the pocket model, see docs/lora.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edge.lora.adapter import Adapter
from edge.lora.asked import Loras
from edge.model.spec import GlmSpec

_F32 = 4
_GRAPH_BYTES = 30_000_000  # what the plugin makes of the nodes that adapters put into the graph
_STATES = 2.0  # the adapter that is on, in the pipeline's states, and the copy that they are set from
_OUTPUTS = 1.35  # an adapted matrix is fused with nothing any more: its outputs are kept, and what is added to them


def ranks(adapters: Mapping[str, Adapter], loras: Loras) -> dict[str, int]:
    """The rank of each adapted matrix: the largest of what may be on together, to which all else is filled up."""

    def rank(target: str, choice: tuple[str, ...]) -> int:
        deltas = (adapters[name].deltas.get(target) for name in choice)
        return sum(len(delta.a) for delta in deltas if delta is not None)

    targets = sorted({target for adapter in adapters.values() for target in adapter.deltas})
    return {target: max(rank(target, choice) for choice in loras.choices) for target in targets}


@dataclass(frozen=True)
class Sizes:
    """The numbers that the memory of adapters is made of."""

    choice_bytes: int
    """A and B matrices of what may be on together, in f32 and filled up to one rank."""
    choices: int
    """How many such there are to choose from; none, which is kept nowhere, not counted."""
    outputs: int
    """Numbers that the adapted matrices give for each token."""

    @classmethod
    def of(cls, adapters: Sequence[Adapter], loras: Loras, spec: GlmSpec) -> Sizes:
        """Of adapters that were held against the model."""
        shapes, numbers, outputs = spec.tensor_shapes(), 0, 0
        for target, rank in ranks({each.asked.name: each for each in adapters}, loras).items():
            rows, columns = shapes[target + ".weight"]
            numbers += rank * (rows + columns)
            outputs += rows
        return cls(_F32 * numbers, sum(bool(choice) for choice in loras.choices), outputs)

    @property
    def files_bytes(self) -> int:
        """What GenAI reads an adapter from when it is turned on: kept for every choice, from the beginning."""
        return self.choices * self.choice_bytes

    def bytes(self, step_tokens: int) -> int:
        """What a model takes more with them, once they have been on.

        Args:
            step_tokens: of a prompt that are read at once.
        """
        activations = _OUTPUTS * _F32 * self.outputs * step_tokens
        return int(_GRAPH_BYTES + self.files_bytes + _STATES * self.choice_bytes + activations)
