"""A model on a device, answering."""

from __future__ import annotations

import contextlib
import functools
import secrets
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from edge.errors import DeviceError, EdgeError, ModelError, UsageError
from edge.lora.asked import Loras
from edge.manifest import Manifest
from edge.messages import Chunk, Conversation, Message, Sampling, Tokens
from edge.npu import check_prompt
from edge.runtime import sampling as samplings
from edge.runtime.context import room_for_answer
from edge.runtime.encoding import ids_of_all
from edge.runtime.interface import Probe
from edge.runtime.memory import return_freed_memory
from edge.runtime.pipelines import Backend, Opened, constrained, open_pipeline
from edge.runtime.plan import BLOCK
from edge.runtime.prefix import PrefixMemory, Reading
from edge.runtime.settings import Settings
from edge.runtime.stream import Running, Turn, Write, stream_tokens
from edge.runtime.template import SEAM, Template

_OF_OPENVINO = (RuntimeError, MemoryError)
"""What OpenVINO and GenAI raise. All else is a fault of ours, which says nothing of a model or a device."""


_NO_LORAS = Loras()


class Engine:
    """An exported model, loaded. A `ChatEngine`, a `Probing`, and a context manager that closes itself.

    On CPU and GPU several answers are made at once, and a further turn of a conversation reads only what is new
    (paged attention with its prefix cache). On the NPU they come one after the other.
    """

    def __init__(self, opened: Opened, manifest: Manifest, settings: Settings, loras: Loras = _NO_LORAS) -> None:
        pipeline = opened.pipeline
        self._backend: Backend | None = opened.backend
        self._tokenizer = pipeline.get_tokenizer()
        self._defaults = opened.defaults
        self._stop_ids = frozenset(manifest.stop_ids)
        self._together = opened.together
        self._log_probs = opened.log_probs
        self._turn: Turn = threading.Lock() if opened.together == 1 else threading.Semaphore(opened.together)
        self._running = Running()
        self._written_by: dict[int, bytes] | None = None
        self._closing = threading.Lock()
        self._template = Template(str(self._tokenizer.chat_template))
        self._step_tokens = opened.step_tokens
        self._guesses = opened.guesses
        block = BLOCK.get(settings.device.partition(".")[0], 32)
        self._loras = loras
        self.adapters = tuple(each.name for each in loras.asked) if loras.per_request else ()
        """See `ChatEngine.adapters`."""
        self.always_on = () if loras.per_request else tuple(each.label for each in loras.asked)
        """See `ChatEngine.always_on`."""
        self._prefixes = PrefixMemory(block) if opened.step_tokens else None
        self.manifest = manifest
        self.settings = settings
        self.name = manifest.source.model
        self.device = settings.device
        self.context_length = opened.context
        self.max_prompt = opened.max_prompt
        self.tuned = opened.tuned
        """What of the settings `glm4-edge tune` found best here, in words; "" where nothing was."""

    @classmethod
    def load(cls, folder: Path, settings: Settings, loras: Loras = _NO_LORAS) -> Engine:
        """Load an exported model, with the adapters that its answers may have.

        Raises:
            CheckpointError: an adapter cannot be used, or not with this model.
            ModelError: the folder holds no exported model, or a damaged one.
            DeviceError: the device does not take the model.
            ContextError: the model reads less than the context that was asked for.
            ResourceError: that context does not fit into memory.
            UsageError: the device does not take the properties.
        """
        manifest = Manifest.read(folder)
        return_freed_memory()
        if settings.device == "NPU" and manifest.target != "npu":
            # Its compiler does not refuse other recipes, it ends the process.
            raise DeviceError(
                f"{folder} was exported for {manifest.target}, and the NPU cannot run that",
                hint="Export the model again with --for npu, or choose another device.",
            )
        try:
            return cls(open_pipeline(folder, settings, manifest, loras), manifest, settings, loras)
        except _OF_OPENVINO as error:
            raise _not_loaded(error, folder, settings) from error

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stream(
        self, conversation: Conversation, sampling: Sampling, cancelled: threading.Event | None = None
    ) -> Generator[Chunk, None, None]:
        """Answer a conversation piece by piece; see `ChatEngine.stream`.

        `Usage.completion_tokens` counts what the model computed: the stop token too, where it ended so.
        """
        return self._stream(conversation, sampling, cancelled, self._running.asked())

    def _stream(
        self, conversation: Conversation, sampling: Sampling, cancelled: threading.Event | None, asked: object
    ) -> Generator[Chunk, None, None]:
        started = time.perf_counter()
        samplings.check(sampling)
        with self._running.begin(cancelled, asked=asked) as ended:
            adapters = self._adapters(sampling.adapters)
            prompt = self.encode(conversation)
            reading = Reading(len(prompt), step_tokens=self._step_tokens)
            config = self._config(sampling, self._room(reading.tokens, sampling.max_new_tokens))
            yield from stream_tokens(
                lambda write: self._generate(prompt, config, write, reading, adapters),
                decode=functools.partial(self._decode, special=sampling.keep_special),
                reading=reading,
                stop_ids=frozenset() if sampling.ignore_eos else self._stop_ids,
                stop=sampling.stop,
                lock=self._turn,
                cancelled=ended,
                started=started,
            )

    def cancel(self) -> None:
        """See `ChatEngine.cancel`."""
        self._running.cancel()

    def count_tokens(self, conversation: Conversation) -> int:
        """Tokens of the conversation as the model would read it; see `ChatEngine.count_tokens`."""
        return len(self.encode(conversation))

    def token_bytes(self, token_ids: Sequence[int]) -> list[bytes]:
        """See `ChatEngine.token_bytes`."""
        if self._written_by is None:
            self._written_by = {number: bytes(text) for text, number in self._open_tokenizer().get_vocab().items()}
        return [self._written_by.get(token, b"") for token in token_ids]

    @property
    def together(self) -> int:
        """See `ChatEngine.together`."""
        return self._together

    @property
    def opens_thought(self) -> bool:
        """See `ChatEngine.opens_thought`."""
        return self._template.opens_thought

    @property
    def cache_share(self) -> float | None:
        """See `ChatEngine.cache_share`."""
        return None if self._backend is None else self._backend.cache_share

    def warm_up(self) -> None:
        """Run one token: the plugin repacks the weights at its first inference, the longest wait of all.

        Raises:
            DeviceError: the device failed.
        """
        # One token fills no block of the cache, so that later answers do not depend on this.
        with self._turn_held():
            config = self._config(Sampling(temperature=0), 1)
            self._generate(self._ids("a"), config, _go_on, Reading(1), self._loras.usual)

    def probe(self, token_ids: Sequence[int]) -> Probe:
        """See `Probing.probe`.

        What the prefix cache still has is not computed again; then `log_probs` is None. Adapters are off. Where the
        prefix cache stays in spite of adapters, no block that an answer may begin with is to be read here: more
        than a block is to be asked for, of a text that nobody sends.
        """
        self._open_tokenizer()
        # The checkpoint's own penalty would choose another token than the likeliest.
        config = self._config(Sampling(temperature=0, repetition_penalty=1.0), self._room(len(token_ids), 1))
        if self._log_probs:
            config.echo, config.logprobs = True, 1
        try:
            with self._turn_held():
                tokens, log_probs = self._generate(token_ids, config, _go_on, Reading(len(token_ids)))
        except DeviceError as error:
            if "isnan" not in error.message:
                raise
            return Probe(0, (float("nan"),))  # GenAI gives up where the logits are no numbers, which is an answer, too
        given = tuple(log_probs[1:-1]) if len(log_probs) == len(token_ids) + 1 else None
        return Probe(tokens[-1], given)

    def close(self) -> None:
        """End what runs, wait for it, and give the memory back. What is asked from now on is refused."""
        self._running.shut()
        with self._closing, contextlib.ExitStack() as held:
            if self._backend is None:
                return
            for _ in range(self._together):  # all who answer
                held.enter_context(self._turn_held())
            self._backend.close()
            self._backend = self._tokenizer = None
            self._defaults = _gone  # it may hold the pipeline

    @contextlib.contextmanager
    def _turn_held(self) -> Iterator[None]:
        self._turn.acquire()
        try:
            yield
        finally:
            self._turn.release()

    def _adapters(self, asked: tuple[str, ...] | None) -> tuple[str, ...]:
        """The adapters that an answer has.

        Raises:
            UsageError: the model was not loaded with these to choose from.
        """
        loras = self._loras
        if asked is None or asked == loras.usual:
            return loras.usual
        if not loras.per_request or asked not in loras.choices:
            raise UsageError(
                f"{self.name} was not loaded with {' and '.join(asked) or 'no adapters'} to choose",
                hint=f"It has: {', '.join(self.adapters) or 'nothing to choose'}.",
            )
        return asked

    def _room(self, prompt_tokens: int, max_new_tokens: int | None) -> int:
        """Tokens the answer may have."""
        if self.max_prompt is not None:
            check_prompt(prompt_tokens, self.max_prompt)
        return room_for_answer(prompt_tokens, self.context_length, max_new_tokens)

    def _open_tokenizer(self) -> Any:
        if self._tokenizer is None:
            raise _closed()
        return self._tokenizer

    def _ids(self, text: str, *, special: bool = False) -> list[int]:
        encoded = self._open_tokenizer().encode(text, add_special_tokens=special)
        return [int(item) for item in encoded.input_ids.data[0]]

    def encode(self, conversation: Conversation) -> list[int]:
        """The conversation as tokens, the answer's opening included; or a text, begun as the tokenizer begins one.

        The chat template writes GLM-4's `[gMASK]<sop>` itself. Encoding with special tokens would put it
        there twice. What a message spells like a special token is text, as in GLM-4's own tokenizer.

        Raises:
            ModelError: the model has been closed, or has no chat template, or one that refuses the conversation.
            UsageError: the text is no Unicode, or a token none of the model's.
        """
        self._open_tokenizer()
        if isinstance(conversation, Tokens):
            return self._known(conversation.ids)
        text = conversation if isinstance(conversation, str) else self._written(conversation)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"the text holds half of a character, {text[error.start]!r}", hint="Send it as valid Unicode."
            ) from error
        if isinstance(conversation, str):
            return self._ids(text, special=True)
        return ids_of_all(self._open_tokenizer(), text.split(SEAM))

    def _known(self, ids: Sequence[int]) -> list[int]:
        size = self.manifest.architecture.vocab_size
        strange = next((each for each in ids if not 0 <= each < size), None)
        if strange is not None or not ids:
            raise UsageError(
                "a prompt of no tokens" if strange is None else f"{strange} is no token of {self.name}",
                hint=f"Send tokens from 0 to {size - 1}.",
            )
        return list(ids)

    def _written(self, messages: Sequence[Message]) -> str:
        try:
            return self._template.render(messages)
        except EdgeError:
            raise
        except Exception as error:  # a template is a program
            raise ModelError(
                f"the chat template of {self.name} cannot write this conversation: {_reason(error)}",
                hint="Write it otherwise; or mend the checkpoint's template, and export the model again.",
            ) from error

    def _decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        return str(self._open_tokenizer().decode(list(ids), skip_special_tokens=not special))

    def _config(self, sampling: Sampling, max_new_tokens: int) -> Any:
        """The checkpoint's own generation defaults, with what the user asked for."""
        config = self._defaults()
        config.max_new_tokens = max_new_tokens
        config.stop_token_ids = set(self._stop_ids)
        config.eos_token_id = min(self._stop_ids, default=-1)
        if sampling.ignore_eos:
            config.ignore_eos, config.stop_token_ids = True, set()
        config.do_sample = samplings.draws(sampling, config.do_sample)
        if config.do_sample:
            if sampling.temperature is not None:
                config.temperature = sampling.temperature
            if sampling.top_p is not None:
                config.top_p = sampling.top_p
            if sampling.top_k is not None:
                config.top_k = sampling.top_k or 2**31 - 1
        for name in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
            value = getattr(sampling, name)
            if value is not None:
                setattr(config, name, value)
        if sampling.log_probs:
            if not self._log_probs:
                raise UsageError(
                    f"log-probabilities are not to be had on {self.device}", hint="Ask without them, or use the CPU."
                )
            config.logprobs = 1
        if sampling.grammar is not None:
            config.structured_output_config = constrained(sampling.grammar)
        config.num_assistant_tokens, config.max_ngram_size = self._guesses
        # Left alone, GenAI seeds every generation with 0: each sampled answer would be the same one.
        config.rng_seed = secrets.randbits(32) if sampling.seed is None else sampling.seed
        return config

    def _generate(
        self, token_ids: Sequence[int], config: Any, write: Write, reading: Reading, adapters: tuple[str, ...] = ()
    ) -> tuple[list[int], list[float]]:
        if self._backend is None:
            raise _closed()
        if self._prefixes is not None:
            reading.expected = self._prefixes.expected(token_ids)
        try:
            tokens, log_probs = self._backend.generate(token_ids, config, write, reading, adapters)
        except EdgeError:
            raise
        except Exception as error:
            raise DeviceError(
                f"{self.device} failed while answering: {_reason(error)}",
                hint="Close other programs if memory is short, or choose another device.",
            ) from error
        if config.echo:
            del tokens[: len(token_ids)]
        if self._prefixes is not None:
            self._prefixes.add([*token_ids, *tokens[:-1]], reading.expected or 0)
        return tokens, log_probs


def _not_loaded(error: Exception, folder: Path, settings: Settings) -> EdgeError:
    """What went wrong, in our words."""
    device = settings.device
    if "Unsupported property" in str(error):
        return UsageError(f"{device} does not take these properties: {_reason(error)}", hint="Leave out what it names.")
    if device == "CPU" or settings.rehearse:
        return ModelError(
            f"{folder} cannot be loaded: {_reason(error)}",
            hint="Export the model again; if memory is short, close other programs.",
        )
    return DeviceError(
        f"{device} cannot load {folder}: {_reason(error)}", hint="Update the device's driver, or use the CPU."
    )


def _go_on(ids: Sequence[int], log_probs: Sequence[float] = (), /) -> bool:
    return True


def _gone() -> Any:
    raise _closed()


def _closed() -> ModelError:
    return ModelError("the model has been closed", hint="Load it again.")


def _reason(error: Exception) -> str:
    """The sentence in an OpenVINO message, without where in its sources it was raised."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith("Exception from")]
    return (said[0] if said else type(error).__name__).rstrip(".")
