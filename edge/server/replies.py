"""Answers of OpenAI's API as this server gives them. Pure."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Finish = Literal["stop", "length", "tool_calls", "function_call"]


class Reply(BaseModel):
    """What was not set is not written."""

    model_config = ConfigDict(extra="forbid")

    def json_text(self) -> str:
        """As JSON, in one line."""
        return self.model_dump_json(exclude_unset=True, by_alias=True)


class PromptDetails(Reply):
    """Of a prompt."""

    cached_tokens: int
    """What came from the prefix cache and was not read again."""


class Used(Reply):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails | None = None


class TokenLogprob(Reply):
    """A token and what it weighed."""

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[Any]


class Logprobs(Reply):
    """Of the content."""

    content: list[TokenLogprob]
    refusal: None


class CalledFunction(Reply):
    """A call, or more of one."""

    name: str | None = None
    arguments: str


class Called(Reply):
    """A tool call."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class Answer(Reply):
    """An assistant's message."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | None = None
    tool_calls: list[Called] | None = None
    function_call: CalledFunction | None = None


class Choice(Reply):
    """One of n answers."""

    index: int
    message: Answer
    logprobs: Logprobs | None
    finish_reason: Finish


class ChatCompletion(Reply):
    """A whole answer to a chat."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Used


class CalledDelta(Reply):
    """More of a tool call; the first has its id and name."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: CalledFunction


class Delta(Reply):
    """More of a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CalledDelta] | None = None
    function_call: CalledFunction | None = None


class ChunkChoice(Reply):
    """More of one of n answers."""

    index: int
    delta: Delta
    logprobs: Logprobs | None
    finish_reason: Finish | None


class ChatChunk(Reply):
    """A piece of a streamed answer; the last has the usage and no choices."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Used | None = None


class TextLogprobs(Reply):
    """Of a completion's tokens, in the older form."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: None
    text_offset: list[int]


class TextChoice(Reply):
    """One completion, or more of it."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Finish | None


class Completion(Reply):
    """Whole completions, or a piece of streamed ones."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Used | None = None


class ModelCard(Reply):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    context_length: int
    """Longest prompt plus answer, in tokens. Not OpenAI's."""


class ModelList(Reply):
    """All of them."""

    object: Literal["list"]
    data: list[ModelCard]


class Health(Reply):
    """Whether the server can answer."""

    status: Literal["ready", "loading", "failing", "draining"]


class Fault(Reply):
    """What was wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class Faulty(Reply):
    """OpenAI's form of an error."""

    error: Fault
