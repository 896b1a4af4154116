"""What adapters take of memory, from their ranks. Pure; measured on the pocket model, see docs/lora.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edge.lora.adapter import Adapter
from edge.lora.asked import Loras
from edge.model.spec import GlmSpec

_F32 = 4
_NODES_BYTES = 250_000  # what the plugin makes of the nodes that an adapted matrix gets
_QKV = ("q_proj", "k_proj", "v_proj")


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
    matrices: int
    """That are adapted."""
    numbers: int
    """That go into these and come out of them, for each token. The plugin keeps them all until its next step, where it
    would else use their memory again from layer to layer."""

    @classmethod
    def of(cls, adapters: Sequence[Adapter], loras: Loras, spec: GlmSpec) -> Sizes:
        """Of adapters that were held against the model."""
        shapes, factors, outputs = spec.tensor_shapes(), 0, 0
        inputs: dict[tuple[str, str], int] = {}
        adapted = ranks({each.asked.name: each for each in adapters}, loras)
        for target, rank in adapted.items():
            rows, columns = shapes[target + ".weight"]
            factors += rank * (rows + columns)
            outputs += rows
            place, _, kind = target.rpartition(".")
            inputs[place, "qkv" if kind in _QKV else kind] = columns  # those three have one
        choices = sum(bool(choice) for choice in loras.choices)
        return cls(_F32 * factors, choices, len(adapted), outputs + sum(inputs.values()))

    @property
    def files_bytes(self) -> int:
        """What GenAI reads an adapter from when it is turned on: kept for every choice, from the beginning."""
        return self.choices * self.choice_bytes

    def bytes(self, step_tokens: int) -> int:
        """What a model takes more with them, once they have been on.

        Args:
            step_tokens: of a prompt that are read at once.
        """
        nodes, states = _NODES_BYTES * self.matrices, self.choice_bytes  # of the adapter that is on
        return nodes + states + self.files_bytes + _F32 * self.numbers * step_tokens
