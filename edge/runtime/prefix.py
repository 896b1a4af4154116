"""How much of a prompt need not be read again, because an earlier one began alike. Pure."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

_REMEMBERED = 64  # sequences; who talks to more at once has little use for a figure


@dataclass
class Reading:
    """What became of one prompt on its way into the model."""

    tokens: int
    """Its length."""
    expected: int | None = None
    """Of these, what should be in the prefix cache still."""
    steps: int | None = None
    """Steps of the pipeline until the first token came; None where others shared them."""
    step_tokens: int = 256
    """Tokens of a prompt that the pipeline reads in one step."""

    @property
    def cached(self) -> int | None:
        """Tokens that came from the prefix cache.

        The pipeline does not tell. This is what it should have found, if it took as many steps as the rest asks
        for; None where it did not (it had to forget), or where that could not be seen.
        """
        if self.expected is None or self.steps is None:
            return None
        return self.expected if self.steps == -(-(self.tokens - self.expected) // self.step_tokens) else None


class PrefixMemory:
    """Mirrors which beginnings a paged-attention pipeline finds again: whole blocks of the KV cache and, behind
    them, the incomplete block in which an earlier sequence ended; of several such, the shortest.

    Args:
        block: tokens in a block: 32 on the CPU, 16 on a GPU.

    Safe from any thread.
    """

    def __init__(self, block: int) -> None:
        self._block = block
        self._read: deque[tuple[int, ...]] = deque(maxlen=_REMEMBERED)
        self._lock = threading.Lock()

    def expected(self, token_ids: Sequence[int]) -> int:
        """Tokens of this prompt that need not be read; its last one always is."""
        prompt = tuple(token_ids)
        with self._lock:
            known = list(self._read)
        alike = [(len(read), _alike(prompt, read)) for read in known]
        whole = max((same // self._block for _, same in alike), default=0)
        ends = [
            length
            for length, same in alike
            if same == length and length // self._block == whole and length % self._block
        ]
        return min(min(ends, default=whole * self._block), len(prompt) - 1)

    def add(self, token_ids: Sequence[int], found: int = 0) -> None:
        """Note a sequence that was read: the prompt and, of the answer, all but its last token.

        `found` of it had been read before. An incomplete block that this sequence filled to the brim is found again
        only as the incomplete one it was.
        """
        if not (found % self._block and len(token_ids) == (found // self._block + 1) * self._block):
            with self._lock:
                self._read.append(tuple(token_ids))


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens with which both begin."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
