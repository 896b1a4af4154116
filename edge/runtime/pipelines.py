"""A model on a device, as GenAI's pipelines have it. The only importer of openvino_genai."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge import precise
from edge.errors import DeviceError, UsageError
from edge.files import home
from edge.grammar import Amid, Anything, Grammar, InTurn, JsonOf, Literally, Matching, OneOf, Several
from edge.lora.asked import Loras
from edge.lora.cost import Sizes
from edge.manifest import Manifest
from edge.messages import Progress
from edge.npu import npu_properties
from edge.runtime import devices, tuned
from edge.runtime.batching import Batching
from edge.runtime.compiled import compiled_folder
from edge.runtime.plan import BLOCK
from edge.runtime.prefix import Reading
from edge.runtime.scheduling import npu_schedule, schedule
from edge.runtime.settings import Settings
from edge.runtime.stream import Write
from edge.runtime.tuned import Tuned
from edge.tools.schema import ebnf

GUESSED, ALIKE = 5, 3
"""Of prompt lookup: tokens guessed at each step, and the longest run that has to have come before in the same way."""
TOGETHER = 8
"""Answers at once; one more waits. Decode on two cores gains little above."""


_NONE = Loras()


class Backend(Protocol):
    """What turns a prompt into tokens: a pipeline of GenAI's, and how it is asked."""

    def generate(
        self, token_ids: Sequence[int], config: Any, write: Write, reading: Reading, adapters: tuple[str, ...] = ()
    ) -> tuple[list[int], list[float]]:
        """Answer with these adapters on; the answer's tokens, and log-probabilities where the config asks for them."""

    def close(self) -> None:
        """Let go of the pipeline."""

    @property
    def cache_share(self) -> float | None:
        """How much of the KV cache the answers under way take, 0 to 1; None where that is not told."""


@dataclass(frozen=True)
class Opened:
    """A pipeline, and what is known of how it was opened."""

    pipeline: Any
    backend: Backend
    context: int
    """Tokens of prompt and answer together."""
    defaults: Callable[[], Any]
    """A fresh `GenerationConfig` as the checkpoint has it."""
    max_prompt: int | None = None
    """Tokens a prompt may have, where that is less than the context (the NPU's fixed shapes)."""
    together: int = 1
    """Answers that it makes at once."""
    step_tokens: int = 0
    """Of a prompt that are read between two looks at whether to go on; 0: that is not known, nor what is kept of it."""
    guesses: tuple[int, int] = (0, 0)
    """`num_assistant_tokens` and `max_ngram_size` that every request has to have."""
    log_probs: bool = False
    """Whether it tells log-probabilities, the prompt's too."""
    tuned: str = ""
    """What of that `glm4-edge tune` found, in words."""


def import_all() -> None:
    """Import what a pipeline needs, before there is one to be opened."""
    import openvino_genai  # noqa: F401

    from edge.runtime import engine  # noqa: F401


def open_pipeline(folder: Path, settings: Settings, manifest: Manifest, loras: Loras = _NONE) -> Opened:
    """Load the model; what goes wrong is raised as OpenVINO says it."""
    if settings.runtime == "itrex":
        return open_itrex(folder, settings, manifest)
    import openvino_genai

    if loras.per_request:
        settings = dataclasses.replace(settings, prefix_cache=False)  # it knows tokens, not what had read them

    found = tuned.read(folder, settings.device) if settings.tuned and not settings.rehearse else None
    if found is not None and settings.step_tokens is None:
        settings = dataclasses.replace(settings, step_tokens=found.step_tokens)
    properties = _properties(folder, settings, manifest, found)
    context = min(manifest.architecture.context_length, settings.context or 2**31)
    max_prompt = None
    source = folder
    if settings.precision == "guilty nodes":
        source = precise.variant(folder, home() / "variants")
    if settings.device == "NPU":
        max_prompt, response = npu_schedule(folder, settings)
        context = max_prompt + response
    if settings.prompt_lookup:
        check_lookup(settings)
    chosen = _adapted(folder, settings, loras) if loras.asked else None
    if chosen is not None:
        properties["adapters"] = chosen.registered()
    if not devices.together(settings.device) or properties.get("ATTENTION_BACKEND") == "SDPA":
        pipeline = openvino_genai.LLMPipeline(str(source), settings.device, **properties)
        return Opened(pipeline, OneByOne(pipeline, chosen), context, pipeline.get_generation_config, max_prompt)
    properties = {name: value for name, value in properties.items() if name != "ATTENTION_BACKEND"}  # it has one
    context, values = schedule(folder, settings, adapters=None if chosen is None else chosen.sizes)
    guesses = (GUESSED, ALIKE) if settings.prompt_lookup else (0, 0)
    if settings.prompt_lookup:
        properties["prompt_lookup"] = True
    pipeline = openvino_genai.ContinuousBatchingPipeline(str(source), _scheduler(values), settings.device, properties)
    defaults = pipeline.get_config
    own = source / "generation_config.json"
    if settings.prompt_lookup and own.is_file():  # which GenAI (2026.4.1) then forgets, the penalty in it, too
        defaults = functools.partial(openvino_genai.GenerationConfig, str(own))
    # Of an answer's end, another part is found again where it was guessed: how much is then not said.
    told = values["enable_prefix_caching"] and not settings.prompt_lookup
    step = values["max_num_batched_tokens"] if told else 0
    block = BLOCK.get(settings.device.partition(".")[0], 32)
    room = values["num_kv_blocks"] * block
    switch = None
    if chosen is not None:
        # Where the prefix cache stays, what this reads is not to be found again: a block of it begins no real prompt.
        strange = [manifest.architecture.vocab_size - 1] * (block + 1 if values["enable_prefix_caching"] else 1)
        switch = functools.partial(_switch, pipeline, chosen, _tensor(strange))
    backend = Batching(
        pipeline, _tensor, _outcome, settings.device, room=room, block=block, guessed=guesses[0], switch=switch
    )
    said = "" if found is None else found.said
    return Opened(pipeline, backend, context, defaults, None, TOGETHER, step, guesses, log_probs=True, tuned=said)


def open_itrex(
    folder: Path, settings: Settings, manifest: Manifest, progress: Progress = lambda stage, done, total: None
) -> Opened:
    """The same model run by ITREX; of GenAI there are only the tokenizer and the defaults.

    Raises:
        EdgeError: ITREX is not set up, does not run this model, or failed.
    """
    import openvino_genai

    from edge.runtime import itrex

    tokenizer = openvino_genai.Tokenizer(str(folder))
    own = folder / "generation_config.json"
    defaults = functools.partial(openvino_genai.GenerationConfig, *([str(own)] if own.is_file() else []))
    context = min(manifest.architecture.context_length, settings.context or 2**31)
    backend = itrex.ItrexBackend(itrex.load(folder, manifest, progress))
    return Opened(_Words(tokenizer), backend, context, defaults, log_probs=True)


@dataclass(frozen=True)
class _Words:
    """Of a pipeline what is left where another runtime computes."""

    tokenizer: Any

    def get_tokenizer(self) -> Any:
        return self.tokenizer


class Chosen:
    """GenAI's form of the adapters that may be on together.

    Args:
        made: the file of each choice, by the names that are on; see `lora.fitted.Fitted.file`.
        sizes: what memory they take.
    """

    def __init__(self, made: Mapping[tuple[str, ...], NDArray[np.uint8]], sizes: Sizes) -> None:
        import openvino
        import openvino_genai

        self.sizes = sizes
        self._files = dict(made)  # which GenAI goes on reading
        self._adapters = {
            choice: openvino_genai.Adapter(openvino.Tensor(data, shared_memory=True))
            for choice, data in self._files.items()
        }

    def adapter(self, choice: tuple[str, ...]) -> Any:
        """The one adapter that stands for the choice."""
        return self._adapters[choice]

    def config(self, choice: tuple[str, ...]) -> Any:
        """For a `GenerationConfig`."""
        import openvino_genai

        return openvino_genai.AdapterConfig(self.adapter(choice), 1.0)

    def registered(self) -> Any:
        """For the pipeline: which matrices are adapted, at which rank."""
        import openvino_genai

        modes = openvino_genai.AdapterConfig.Mode
        return openvino_genai.AdapterConfig(self.adapter(()), 1.0, modes.MODE_STATIC_RANK)


def _adapted(folder: Path, settings: Settings, loras: Loras) -> Chosen:
    from edge.lora.fitted import Fitted

    if settings.device == "NPU":
        raise DeviceError(
            "adapters cannot be switched on the NPU, whose model is compiled whole",
            hint="Merge the adapter: glm4-edge export MODEL OUT --for npu --merge-lora PATH. Or choose another device.",
        )
    fitted = Fitted(folder, loras)
    return Chosen({choice: fitted.file(choice) for choice in loras.choices}, fitted.sizes)


def _switch(pipeline: Any, chosen: Chosen, prompt: Any, choice: tuple[str, ...]) -> None:
    """Turn these adapters on: a pipeline that batches looks at them only where it is asked for a whole answer."""
    import openvino_genai

    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.do_sample, config.adapters = 1, False, chosen.config(choice)
    pipeline.generate([prompt], [config])


def check_lookup(settings: Settings) -> None:
    """Refuse what prompt lookup does not go with.

    Raises:
        UsageError: says what that is.
    """
    if not devices.together(settings.device) or settings.properties.get("ATTENTION_BACKEND") == "SDPA":
        where = settings.device if not devices.together(settings.device) else "the SDPA attention backend"
        raise UsageError(
            f"{where} has no --prompt-lookup", hint="Leave it out, or use the CPU or one GPU with paged attention."
        )
    if settings.sparse or settings.evict_beyond:
        name = "--sparse" if settings.sparse else "--evict-beyond"
        raise UsageError(f"--prompt-lookup does not go with {name}", hint="Leave one of them out.")


def constrained(grammar: Grammar) -> Any:
    """GenAI's `StructuredOutputConfig` of a grammar."""
    import openvino_genai

    return openvino_genai.StructuredOutputConfig(structural_tags_config=_written(grammar))


def _written(grammar: Grammar) -> Any:
    from openvino_genai import StructuredOutputConfig as Config

    match grammar:
        case Literally(text):
            return Config.ConstString(text)
        case JsonOf(schema):
            return Config.EBNF(ebnf(schema))  # its own reading of schemas is not sound; see there
        case Matching(pattern):
            return Config.Regex(pattern)
        case Anything():
            return Config.AnyText()
        case InTurn(parts):
            return Config.Concat([_written(part) for part in parts])
        case OneOf(choices):
            return Config.Union([_written(choice) for choice in choices])
        case Several(choices, between):
            tags = [Config.Tag("", _written(choice), "") for choice in choices]
            return Config.TagsWithSeparator(tags, between, at_least_one=True)
        case Amid(beginnings):
            tags = [Config.Tag(begin, _written(then), "") for begin, then in beginnings]
            return Config.TriggeredTags([begin for begin, _ in beginnings], tags)


def _tensor(token_ids: Sequence[int]) -> Any:
    import openvino

    return openvino.Tensor(np.array([token_ids], np.int64))


class OneByOne:
    """GenAI's plain pipeline, one prompt after the other: what the NPU has."""

    cache_share: float | None = None

    def __init__(self, pipeline: Any, chosen: Chosen | None = None) -> None:
        self._pipeline = pipeline
        self._chosen = chosen

    def generate(
        self, token_ids: Sequence[int], config: Any, write: Write, reading: Reading, adapters: tuple[str, ...] = ()
    ) -> tuple[list[int], list[float]]:
        """See `Backend.generate`; log-probabilities are not to be had."""
        tokens: list[int] = []

        def both(ids: Sequence[int], log_probs: Sequence[float] = (), /) -> bool:
            tokens.extend(ids)
            return write(ids)

        if self._chosen is not None:
            config.adapters = self._chosen.config(adapters)
        self._pipeline.generate(_tensor(token_ids), config, _streamer(both))
        return tokens, []

    def close(self) -> None:
        """See `Backend.close`."""
        self._pipeline = None


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


def _properties(folder: Path, settings: Settings, manifest: Manifest, found: Tuned | None) -> dict[str, Any]:
    """Of the plugin: its better defaults, what was found best here, the precision and the device's shapes, and over
    them what was asked for."""
    properties = devices.default_properties(settings.device, manifest)
    if found is not None:
        properties |= found.properties
    if settings.precision == "f32":
        properties["INFERENCE_PRECISION_HINT"] = "f32"
    if settings.device == "NPU":
        properties |= npu_properties(*npu_schedule(folder, settings), rehearse=settings.rehearse)
    kept = compiled_folder(folder, settings)
    if kept is not None:
        properties["CACHE_DIR"] = str(kept)
    properties |= settings.properties
    return {name: value for name, value in properties.items() if value is not None}


def _scheduler(values: Mapping[str, Any]) -> Any:
    """GenAI's `SchedulerConfig` of plain values; see `plan.scheduler`."""
    import openvino_genai

    kinds = {
        "sparse_attention_config": openvino_genai.SparseAttentionConfig,
        "cache_eviction_config": openvino_genai.CacheEvictionConfig,
    }
    scheduler = openvino_genai.SchedulerConfig()
    for name, value in values.items():
        if name in kinds:
            value = dict(value)
            for key, members in (
                ("mode", openvino_genai.SparseAttentionMode),
                ("aggregation_mode", openvino_genai.AggregationMode),
            ):
                if key in value:
                    value[key] = getattr(members, value[key])
            value = kinds[name](**value)
        setattr(scheduler, name, value)
    scheduler.max_num_seqs = TOGETHER
    return scheduler


def _outcome(status: Any) -> tuple[bool, bool]:
    """Whether an answer is over, and whether the pipeline refused it, which it does where the cache has no room."""
    import openvino_genai

    statuses = openvino_genai.GenerationStatus
    return status != statuses.RUNNING, status == statuses.IGNORED
