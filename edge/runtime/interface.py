"""What everything above the runtime may ask of an engine, real or not."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from edge.messages import Chunk, Conversation, Sampling
from edge.runtime.settings import Settings

if TYPE_CHECKING:
    from edge.manifest import Manifest


class ChatEngine(Protocol):
    """One loaded model on one device; `Engine` is the real one, `Guarded` minds it, `EchoEngine` needs no model.

    Several may be asked at once; whether they are answered at once or one after the other is the device's matter.
    """

    @property
    def name(self) -> str:
        """What the model was made from, in the user's words."""

    @property
    def device(self) -> str:
        """The device it runs on: CPU, GPU, GPU.n or NPU."""

    @property
    def context_length(self) -> int:
        """Longest prompt plus answer, in tokens."""

    @property
    def max_prompt(self) -> int | None:
        """Longest prompt, in tokens, where that is less than the context leaves room for; else None."""

    @property
    def opens_thought(self) -> bool:
        """Whether every answer begins in the middle of a thought, the prompt having written `<think>` (GLM-Z1)."""

    @property
    def cache_share(self) -> float | None:
        """How much of the KV cache the answers under way take, 0 to 1: 0 while there are none. None where that is not
        told. What the prefix cache keeps does not count: whoever needs its room has it."""

    @property
    def together(self) -> int:
        """Answers that are made at once; one more waits."""

    @property
    def adapters(self) -> tuple[str, ...]:
        """LoRA adapters of which each answer may have one; those that all answers have are not among them."""

    @property
    def always_on(self) -> tuple[str, ...]:
        """LoRA adapters that all answers have, in words: the name, and the scale where that is not 1."""

    def stream(
        self, conversation: Conversation, sampling: Sampling, cancelled: threading.Event | None = None
    ) -> Generator[Chunk, None, None]:
        """Answer a conversation, or go on with a text, piece by piece; the last chunk carries the usage.

        Nothing is done before the first piece is asked for. Closing the iterator early ends the generation, as do
        `cancel` and setting `cancelled`, which may be done from any thread, also while the prompt is still being read.

        Raises:
            ContextError: the conversation leaves no room for an answer.
            UsageError: a sampling value out of its range.
            DeviceError: the device failed on the way.
        """

    def cancel(self) -> None:
        """End every generation asked for until now; their last chunks say "cancelled". Safe from any thread."""

    def count_tokens(self, conversation: Conversation) -> int:
        """Tokens of the conversation as the model would read it, the opening of the answer included."""

    def token_bytes(self, token_ids: Sequence[int]) -> list[bytes]:
        """What each token writes; a character may take several of them."""

    def warm_up(self) -> None:
        """Pay now for what the first inference costs once. Returns when it is paid."""

    def close(self) -> None:
        """End what runs, wait for it, and give the memory back."""


@dataclass(frozen=True)
class Probe:
    """What a loaded model said of known tokens."""

    token: int
    """The likeliest token after the last one."""
    log_probs: tuple[float, ...] | None
    """Of each token but the first, given those before it, in nats: one less than there are tokens. None where the
    device's pipeline does not give them (the NPU's)."""


class Probing(Protocol):
    """An engine whose numbers can be looked at; `Engine` is one."""

    def probe(self, token_ids: Sequence[int]) -> Probe:
        """Read `token_ids` afresh, without the prefix cache, greedily, on the very pipeline that answers.

        Raises:
            ContextError: there are more than the pipeline reads.
            DeviceError: the device failed.
        """


class LoadedEngine(ChatEngine, Probing, Protocol):
    """An exported model, loaded; `Engine` is one in this process, `RemoteEngine` one in a process of its own."""

    @property
    def settings(self) -> Settings:
        """How it is loaded."""

    @property
    def manifest(self) -> Manifest:
        """What the model says of itself."""

    @property
    def tuned(self) -> str:
        """See `Engine.tuned`."""

    def encode(self, conversation: Conversation) -> list[int]:
        """See `Engine.encode`."""
