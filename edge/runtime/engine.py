"""A model on a device, answering. The only importer of openvino_genai."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from edge.errors import DeviceError, EdgeError, ModelError, UsageError
from edge.manifest import Manifest
from edge.messages import Chunk, Message, Sampling
from edge.runtime import devices
from edge.runtime import sampling as samplings
from edge.runtime.context import room_for_answer
from edge.runtime.stream import Running, Write, stream_tokens


class Engine:
    """An exported model, loaded. A `ChatEngine`, and a context manager that closes itself.

    The paged-attention backend of OpenVINO GenAI keeps what it has read, so that a further turn of a
    conversation reads only what is new.
    """

    def __init__(self, pipeline: Any, manifest: Manifest, device: str) -> None:
        self._pipeline = pipeline
        self._tokenizer = pipeline.get_tokenizer()
        self._stop_ids = frozenset(manifest.stop_ids)
        self._lock = threading.Lock()
        self._running = Running()
        self.manifest = manifest
        self.name = manifest.source.model
        self.device = device
        self.context_length = manifest.architecture.context_length

    @classmethod
    def load(cls, folder: Path, device: str = "CPU", properties: dict[str, Any] | None = None) -> Engine:
        """Load an exported model.

        Args:
            folder: what `glm4-edge export` made.
            device: CPU, GPU, GPU.n, NPU or AUTO.
            properties: of the OpenVINO plugin, over those chosen for the device; None leaves one to the plugin.

        Raises:
            ModelError: the folder holds no exported model, or a damaged one.
            DeviceError: the device is not here or does not take the model.
        """
        manifest = Manifest.read(folder)
        resolved = devices.resolve(device)
        if resolved == "NPU" and manifest.target != "npu":
            # Its compiler does not refuse other recipes, it ends the process.
            raise DeviceError(
                f"{folder} was exported for {manifest.target}, and the NPU cannot run that",
                hint="Export the model again with --for npu, or choose another device.",
            )
        chosen = {**devices.default_properties(resolved, manifest), **(properties or {})}
        chosen = {name: value for name, value in chosen.items() if value is not None}

        import openvino_genai

        try:
            pipeline = openvino_genai.LLMPipeline(str(folder), resolved, **chosen)
        except Exception as error:
            if "Unsupported property" in str(error):
                raise UsageError(
                    f"{resolved} does not take these properties: {_reason(error)}", hint="Leave out what it names."
                ) from error
            if resolved == "CPU":
                raise ModelError(
                    f"{folder} cannot be loaded: {_reason(error)}",
                    hint="Export the model again; if memory is short, close other programs.",
                ) from error
            raise DeviceError(
                f"{resolved} cannot load {folder}: {_reason(error)}",
                hint="Update the device's driver, or use the CPU.",
            ) from error
        return cls(pipeline, manifest, resolved)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Generator[Chunk, None, None]:
        """Answer a conversation piece by piece; see `ChatEngine.stream`.

        `Usage.completion_tokens` counts what the model computed: the stop token too, where it ended so.
        """
        started = time.perf_counter()
        samplings.check(sampling)
        prompt = self._encode(messages)
        prompt_tokens = int(prompt.input_ids.shape[-1])
        config = self._config(sampling, room_for_answer(prompt_tokens, self.context_length, sampling.max_new_tokens))
        with self._running.begin() as cancelled:
            yield from stream_tokens(
                lambda write: self._generate(prompt, config, write),
                decode=self._decode,
                prompt_tokens=prompt_tokens,
                stop_ids=self._stop_ids,
                stop=sampling.stop,
                lock=self._lock,
                cancelled=cancelled,
                started=started,
            )

    def cancel(self) -> None:
        """See `ChatEngine.cancel`."""
        self._running.cancel()

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of the conversation as the model would read it; see `ChatEngine.count_tokens`."""
        return int(self._encode(messages).input_ids.shape[-1])

    def warm_up(self) -> None:
        """Run one token: the plugin repacks the weights at its first inference, the longest wait of all.

        Raises:
            DeviceError: the device failed.
        """
        with self._lock:
            # One token fills no block of the cache, so that later answers do not depend on this.
            prompt = self._open_tokenizer().encode("a", add_special_tokens=False)
            self._generate(prompt, self._config(Sampling(temperature=0), 1), lambda ids: True)

    def close(self) -> None:
        """End what runs, wait for it, and give the memory back."""
        self.cancel()
        with self._lock:
            self._pipeline = self._tokenizer = None

    def _open_tokenizer(self) -> Any:
        if self._tokenizer is None:
            raise ModelError("the model has been closed", hint="Load it again.")
        return self._tokenizer

    def _encode(self, messages: Sequence[Message]) -> Any:
        """The conversation as tokens; the answer's opening included.

        The chat template writes GLM-4's `[gMASK]<sop>` itself. Encoding with special tokens would put it
        there twice.
        """
        import openvino_genai

        tokenizer = self._open_tokenizer()
        try:
            history = openvino_genai.ChatHistory([{"role": m.role, "content": m.content} for m in messages])
            prompt = tokenizer.apply_chat_template(history, add_generation_prompt=True)
            return tokenizer.encode(prompt, add_special_tokens=False)
        except Exception as error:
            raise ModelError(
                f"the chat template of {self.name} cannot write this conversation: {_reason(error)}",
                hint="Look at chat_template.jinja in the model's folder.",
            ) from error

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._open_tokenizer().decode(list(ids), skip_special_tokens=True))

    def _config(self, sampling: Sampling, max_new_tokens: int) -> Any:
        """The checkpoint's own generation defaults, with what the user asked for."""
        config = self._pipeline.get_generation_config()
        config.max_new_tokens = max_new_tokens
        config.stop_token_ids = set(self._stop_ids)
        config.eos_token_id = min(self._stop_ids, default=-1)
        config.do_sample = samplings.draws(sampling, config.do_sample)
        if config.do_sample:
            if sampling.temperature is not None:
                config.temperature = sampling.temperature
            if sampling.top_p is not None:
                config.top_p = sampling.top_p
            if sampling.top_k is not None:
                config.top_k = sampling.top_k or 2**31 - 1
        if sampling.repetition_penalty is not None:
            config.repetition_penalty = sampling.repetition_penalty
        # Left alone, GenAI seeds every generation with 0: each sampled answer would be the same one.
        config.rng_seed = secrets.randbits(32) if sampling.seed is None else sampling.seed
        return config

    def _generate(self, prompt: Any, config: Any, write: Write) -> None:
        try:
            self._pipeline.generate(prompt, config, _streamer(write))
        except EdgeError:
            raise
        except Exception as error:
            raise DeviceError(
                f"{self.device} failed while answering: {_reason(error)}",
                hint="Close other programs if memory is short, or choose another device.",
            ) from error


def _streamer(write: Write) -> Any:
    """GenAI's streamer that hands ids to `write`, without GenAI's own detokenisation."""
    import openvino_genai

    class Streamer(openvino_genai.StreamerBase):  # type: ignore[misc]
        def write(self, token: int | Sequence[int]) -> Any:
            going_on = write(token if isinstance(token, Sequence) else [token])
            return openvino_genai.StreamingStatus.RUNNING if going_on else openvino_genai.StreamingStatus.CANCEL

        def end(self) -> None:
            """Nothing is kept back here."""

    return Streamer()


def _reason(error: Exception) -> str:
    """The sentence in an OpenVINO message, without where in its sources it was raised."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith("Exception from")]
    return (said[0] if said else type(error).__name__).rstrip(".")
