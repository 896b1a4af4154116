"""Requests of OpenAI's API as this server takes them. Pure.

A field that is not declared is refused by its name. What is declared and cannot be done is refused unless it has the
value that asks for nothing; `parts.UNSUPPORTED` says why.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator
from pydantic_core import PydanticCustomError

from edge.messages import Tokens
from edge.server.parts import (
    MOST_ANSWERS,
    Function,
    FunctionChoice,
    Message,
    Model,
    Off,
    Prompt,
    ResponseFormat,
    Stop,
    StreamOptions,
    Tool,
    ToolChoice,
)
from edge.tools.constrain import MOST_TOOLS

MOST_MESSAGES = 2048
DEEPEST_JSON = 64
"""How deep a tool or a response format may nest."""
COMPLETION_TOKENS = 16
"""Of `/v1/completions` where `max_tokens` is left out, as OpenAI has it."""


class _Asked(Model):
    """What both kinds of request have. What is left out of the sampling is the model's own default."""

    model: str | None = Field(None, description="Left out, the model that is loaded.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=MOST_ANSWERS)
    temperature: float | None = Field(None, ge=0, le=2, description="0 always takes the likeliest token.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, lt=2**31, description="Not OpenAI's: draw from so many likeliest tokens.")
    repetition_penalty: float | None = Field(None, gt=0, le=100, description="Not OpenAI's: above 1 repeats less.")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(
        None, ge=-(2**63), lt=2**63,
        description="Answer i of n is drawn with seed + i. Beside other requests a token may come out otherwise, even "
                    "with the same seed: sums are rounded differently.",
    )  # fmt: skip
    stop: Stop | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    user: str | None = Field(None, description="Taken and used for nothing.")

    @model_validator(mode="before")
    @classmethod
    def _integral(cls, data: Any) -> Any:
        """1.0 is an integer in JSON; and an integer is a number."""
        if not isinstance(data, dict):
            return data
        return {name: int(value) if isinstance(value, float) and value.is_integer() else value
                for name, value in data.items()}  # fmt: skip

    @model_validator(mode="after")
    def _fits(self) -> _Asked:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError("stream_options", "stream_options is only for stream: true")
        return self


class CompletionRequest(_Asked):
    """`POST /v1/completions`: text that is gone on with."""

    prompt: Prompt = Field(description="One or several: text, or tokens as they stand, special ones included.")
    max_tokens: int | None = Field(None, ge=1, description=f"Left out, {COMPLETION_TOKENS}.")
    echo: bool | None = Field(None, description="Give the prompt back in front of the answer.")
    logprobs: Annotated[int, Field(ge=0, le=0)] | None = Field(
        None, description="0 gives that of each chosen token; alternatives are not to be had."
    )
    best_of: int | None = Field(None, description="Only the value of n.")
    suffix: None = None

    @model_validator(mode="after")
    def _fits_too(self) -> CompletionRequest:
        if self.best_of not in (None, self.n or 1):
            raise PydanticCustomError("best_of", "best_of is not supported: all answers are given back; take n")
        if self.echo and self.logprobs is not None:
            raise PydanticCustomError(
                "echo", "echo cannot be had with logprobs: those of the prompt are not told; leave one out"
            )
        _few_answers(len(self.prompts) * (self.n or 1))
        return self

    @property
    def prompts(self) -> list[str | Tokens]:
        """One or several."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if all(isinstance(each, int) for each in self.prompt):
            return [Tokens(tuple(self.prompt))]  # type: ignore[arg-type]  # looked at just now
        return [each if isinstance(each, str) else Tokens(tuple(each)) for each in self.prompt]  # type: ignore[arg-type]


class ChatRequest(_Asked):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_tokens: int | None = Field(None, ge=1, description="Left out, what the context has room for.")
    max_completion_tokens: int | None = Field(None, ge=1, description="The newer name of max_tokens.")
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[Function], Field(max_length=MOST_TOOLS)] | None = None
    function_call: FunctionChoice | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0)] | None = None
    metadata: dict[str, str] | None = Field(None, description="Taken and used for nothing.")
    safety_identifier: str | None = Field(None, description="Taken and used for nothing.")
    prompt_cache_key: str | None = Field(None, description="Taken; prompts that begin alike share their cache anyway.")
    audio: None = None
    modalities: list[Literal["text"]] | None = None
    moderation: None = None
    prediction: None = None
    prompt_cache_options: None = None
    prompt_cache_retention: Literal["in_memory"] | None = None
    reasoning_effort: None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Off | None = None
    verbosity: Literal["medium"] | None = None
    web_search_options: None = None

    @model_validator(mode="after")
    def _fits_too(self) -> ChatRequest:
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise PydanticCustomError("max_tokens", "max_tokens and max_completion_tokens differ; send one of them")
        if self.top_logprobs is not None and not self.logprobs:
            raise PydanticCustomError("top_logprobs", "top_logprobs is only for logprobs: true")
        if self.functions is not None and (self.tools is not None or self.tool_choice is not None):
            raise PydanticCustomError("functions", "functions came before tools and cannot be sent with them")
        if self.function_call is not None and self.functions is None:
            raise PydanticCustomError("function_call", "function_call is only for functions")
        for name in ("tool_choice", "parallel_tool_calls"):
            if getattr(self, name) is not None and not self.tools and getattr(self, name) not in ("auto", "none"):
                raise PydanticCustomError(name, f"{name} is only for tools")
        for name in ("tools", "functions", "response_format"):
            parts = [part.model_dump() for part in _parts(getattr(self, name))]
            if _too_deep(parts):
                raise PydanticCustomError(name, f"{name} nests deeper than {DEEPEST_JSON}; flatten it")
            try:
                json.dumps(parts, allow_nan=False, ensure_ascii=False).encode()
            except ValueError as error:
                raise PydanticCustomError(name, f"{name} holds what JSON cannot: NaN, or half a character") from error
        return self


def _few_answers(count: int) -> None:
    if count > MOST_ANSWERS:
        raise PydanticCustomError("n", f"n asks for {count:,} answers in all; ask for {MOST_ANSWERS} at most")


def _parts(value: Any) -> Sequence[BaseModel]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST_JSON):
        inner = [x for each in level for x in (each.values() if isinstance(each, dict) else each)
                 if isinstance(x, (dict, list))]  # fmt: skip
        if not inner:
            return False
        level = inner
    return True
