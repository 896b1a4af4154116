"""What is measured, and what one measurement gave. Pure."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from edge.errors import UsageError
from edge.messages import Message

PROMPTS = (32, 1024, 4096)
NEW_TOKENS = 128
LATER_TOKENS = 32
"""Of the question in a later turn."""
_ORDINARY = 1000, 0.9
"""Random prompts take tokens from this one on, up to that share of the vocabulary: special ones lie at its ends."""


@dataclass(frozen=True)
class Case:
    """One thing to measure."""

    prompt_tokens: int
    """Of a first turn; in a later turn, what came before it is added."""
    new_tokens: int = NEW_TOKENS
    together: int = 1
    """Requests at the same time."""
    later: bool = False
    """A further turn of the conversation that the same measurement without `later` began."""

    @property
    def name(self) -> str:
        """In a few words, the same in every run."""
        turn = ", later turn" if self.later else ""
        many = f", {self.together} at once" if self.together > 1 else ""
        return f"{self.prompt_tokens:,} in, {self.new_tokens:,} out{many}{turn}"


@dataclass(frozen=True)
class Sample:
    """One answer to one random prompt."""

    round: int
    """Which repetition; samples of two runs in the same round had the same prompt."""
    prompt_tokens: int
    """That the model was given, all turns together."""
    read_tokens: int | None
    """Of these, what it had to read: without what the prefix cache should have had; None where that is not known."""
    token_seconds: tuple[float, ...]
    """When each token came, in seconds after the request."""
    seconds: float
    """Of the whole round: until the last of the answers made at once was there."""
    busy_elsewhere: float | None = None
    """Share of the machine's processors that others had meanwhile, 0 to 1."""

    @property
    def ttft_seconds(self) -> float:
        """From the request to the first token."""
        return self.token_seconds[0]

    @property
    def tpot_seconds(self) -> float | None:
        """Mean time for each token after those that came first; None if none did."""
        first, last = self.token_seconds[0], self.token_seconds[-1]
        later = len(self.token_seconds) - self.token_seconds.count(first)
        return (last - first) / later if later else None

    @property
    def steps(self) -> list[float]:
        """Seconds from each token to the next that came later, spread over those that came together."""
        groups = [(at, len(list(same))) for at, same in itertools.groupby(self.token_seconds)]
        found: list[float] = []
        for (before, _), (at, count) in itertools.pairwise(groups):
            found += [(at - before) / count] * count
        return found


@dataclass(frozen=True)
class Load:
    """What it took until a process could answer; seconds and bytes."""

    load_seconds: float
    """Reading and compiling the model; imports are not in it."""
    first_token_seconds: float
    """The first token after that, of a prompt of one: the device repacks the weights."""
    import_seconds: float


@dataclass
class Measured:
    """What one model on one device gave."""

    name: str
    device: str
    model: dict[str, Any]
    settings: dict[str, Any]
    loads: list[Load] = field(default_factory=list)
    samples: list[tuple[Case, Sample]] = field(default_factory=list)
    memory: dict[str, int | None] = field(default_factory=dict)
    sensors: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, Any] | None = None
    """See `roofline.Limits`."""
    counts: dict[str, Any] | None = None
    """See `counts.Counts`."""

    def cases(self) -> list[Case]:
        """In the order in which they were first measured."""
        return list(dict.fromkeys(case for case, _ in self.samples))

    def of(self, case: Case) -> list[Sample]:
        """Its samples."""
        return [sample for each, sample in self.samples if each == case]

    def to_json(self) -> dict[str, Any]:
        """For a file; raw samples included."""
        told = asdict(self)
        told["samples"] = [{"case": asdict(case), **asdict(sample)} for case, sample in self.samples]
        return told

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Measured:
        """The same again.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        facts = dict(told)
        facts["loads"] = [Load(**each) for each in facts["loads"]]
        facts["samples"] = [_sample(dict(each)) for each in facts["samples"]]
        return cls(**facts)


def _sample(told: dict[str, Any]) -> tuple[Case, Sample]:
    case = Case(**told.pop("case"))
    times = tuple(float(each) for each in told.pop("token_seconds"))
    if not times or not all(math.isfinite(each) and each >= 0 for each in times):
        raise ValueError("a sample without times")
    return case, Sample(token_seconds=times, **told)


def cases(
    prompts: Sequence[int], new_tokens: Sequence[int], together: Sequence[int], *, later: bool, context: int
) -> tuple[list[Case], list[str]]:
    """The cases of all combinations, and a sentence for each that does not fit the context.

    Raises:
        UsageError: none fits.
    """
    found, left_out = [], []
    for prompt in prompts:
        for new in new_tokens:
            for many in together:
                first = Case(prompt, new, many)
                further = Case(prompt, new, many, later=True)
                if prompt + new > context:
                    left_out.append(f"{first.name}: the context has {context:,} tokens")
                    continue
                found.append(first)
                if later and prompt + 2 * new + LATER_TOKENS > context:
                    left_out.append(f"{further.name}: the context has {context:,} tokens")
                elif later:
                    found.append(further)
    if not found:
        raise UsageError(
            f"no prompt and answer fit into the context of {context:,} tokens",
            hint="Ask for a longer --context, or for shorter ones.",
        )
    return found, left_out


class Prompts:
    """Random prompts as GLM-4's own stress test makes them: random tokens between the template's opening and close.

    No cache knows them. The same seed gives the same ones.

    Args:
        encode: a conversation as the model reads it.
        vocab_size: of the model.
    """

    def __init__(self, encode: Callable[[Sequence[Message]], Sequence[int]], vocab_size: int) -> None:
        one, other = encode([Message("user", "A")]), encode([Message("user", "B")])
        same = next((place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), len(one))
        self._opening, self._close = tuple(one[:same]), tuple(one[same + 1 :])
        self._range = _ORDINARY[0] if vocab_size > 2 * _ORDINARY[0] else 0, int(vocab_size * _ORDINARY[1])

    @property
    def shortest(self) -> int:
        """Tokens of a prompt with one random token."""
        return len(self._opening) + 1 + len(self._close)

    def first(self, length: int, seed: str) -> tuple[int, ...]:
        """A first turn of so many tokens.

        Raises:
            UsageError: the template alone has more.
        """
        if length < self.shortest:
            raise UsageError(
                f"a prompt of {length} tokens has no room for the chat template's {self.shortest - 1}",
                hint=f"Ask for prompts of at least {self.shortest} tokens.",
            )
        middle = length - len(self._opening) - len(self._close)
        return (*self._opening, *self._random(middle, seed), *self._close)

    def later(self, before: Sequence[int], seed: str) -> tuple[int, ...]:
        """A further turn behind a prompt and its answer."""
        room = max(LATER_TOKENS - len(self._close), 1)
        return (*before, *self._random(room, seed), *self._close)

    def _random(self, count: int, seed: str) -> Iterator[int]:
        draw = random.Random(seed)
        return (draw.randrange(*self._range) for _ in range(count))
