"""An engine without a model, for tests of everything above: it says again what it was told."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Generator, Sequence

from edge.errors import UsageError
from edge.messages import Chunk, Conversation, Sampling, Tokens
from edge.runtime import sampling as samplings
from edge.runtime.context import room_for_answer
from edge.runtime.prefix import Reading
from edge.runtime.stream import Running, Write, stream_tokens

STOP_ID = 0


class EchoEngine:
    """Streams the last user message back. One character is one token; the times are real.

    Args:
        context_length: longest prompt plus answer, in characters.
        seconds_per_token: how long each character takes.
        prefill_seconds: how long the prompt takes.
    """

    def __init__(
        self, *, context_length: int = 4096, seconds_per_token: float = 0.0, prefill_seconds: float = 0.0
    ) -> None:
        self.name = "echo"
        self.device = "CPU"
        self.context_length = context_length
        self.max_prompt: int | None = None
        self.opens_thought = False
        self.adapters: tuple[str, ...] = ()
        self.always_on: tuple[str, ...] = ()
        self.together = 1
        self.cache_share: float | None = None
        self._seconds_per_token = seconds_per_token
        self._prefill_seconds = prefill_seconds
        self._lock = threading.Lock()
        self._running = Running()

    def stream(
        self, conversation: Conversation, sampling: Sampling, cancelled: threading.Event | None = None
    ) -> Generator[Chunk, None, None]:
        """See `ChatEngine.stream`."""
        return self._stream(conversation, sampling, cancelled, self._running.asked())

    def _stream(
        self, conversation: Conversation, sampling: Sampling, cancelled: threading.Event | None, asked: object
    ) -> Generator[Chunk, None, None]:
        started = time.perf_counter()
        samplings.check(sampling)
        prompt_tokens = self.count_tokens(conversation)
        room = room_for_answer(prompt_tokens, self.context_length, sampling.max_new_tokens)
        if sampling.grammar is not None or sampling.log_probs:
            raise UsageError("echo has no model to constrain, and no log-probabilities", hint="Load a model.")
        if isinstance(conversation, Tokens):
            said = ["".join(map(chr, conversation.ids))]
        elif isinstance(conversation, str):
            said = [conversation]
        else:
            said = [message.content for message in conversation if message.role == "user"]
        tokens = [*map(ord, said[-1] if said else ""), STOP_ID]
        if sampling.ignore_eos:
            tokens = list(itertools.islice(itertools.cycle(tokens), room))
        del tokens[room:]

        def produce(write: Write) -> None:
            time.sleep(self._prefill_seconds)
            for token in tokens:
                time.sleep(self._seconds_per_token)
                if not write([token]):
                    return

        with self._running.begin(cancelled, asked=asked) as ended:
            yield from stream_tokens(
                produce,
                decode=lambda ids: "".join(map(chr, ids)),
                reading=Reading(prompt_tokens),
                stop_ids=frozenset() if sampling.ignore_eos else frozenset({STOP_ID}),
                stop=sampling.stop,
                lock=self._lock,
                cancelled=ended,
                started=started,
            )

    def cancel(self) -> None:
        """See `ChatEngine.cancel`."""
        self._running.cancel()

    def count_tokens(self, conversation: Conversation) -> int:
        """Characters of the text, or of all messages."""
        if isinstance(conversation, Tokens):
            return len(conversation.ids)
        if isinstance(conversation, str):
            return len(conversation)
        return sum(len(message.content) for message in conversation)

    def token_bytes(self, token_ids: Sequence[int]) -> list[bytes]:
        """Of each character."""
        return [chr(token).encode() for token in token_ids]

    def warm_up(self) -> None:
        """Nothing to warm."""

    def close(self) -> None:
        """Wait for what runs."""
        self.cancel()
        with self._lock:
            pass
