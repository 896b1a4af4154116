"""What requests of OpenAI's API are made of: messages, tools, formats. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from edge.tools.names import RAW

MOST_STOPS = 16

UNSUPPORTED = {
    "audio": "this model writes text alone",
    "best_of": "all answers are given back; take n",
    "include_obfuscation": "nothing is added to the stream",
    "logit_bias": "the engine cannot weigh single tokens",
    "modalities": "this model writes text alone",
    "moderation": "nothing is moderated here",
    "prediction": "the engine does not speculate",
    "prompt_cache_options": "prompts are kept by themselves as long as there is room",
    "prompt_cache_retention": "prompts are kept by themselves as long as there is room",
    "reasoning_effort": "the model itself decides how long it thinks",
    "refusal": "this model does not mark refusals; put the text into content",
    "annotations": "this model makes none",
    "service_tier": "there is one tier here",
    "store": "nothing is stored here",
    "suffix": "the model writes on from the end alone",
    "top_logprobs": "the engine tells the log-probability of the chosen token alone; take 0",
    "verbosity": "the model itself decides how much it writes; say it in the prompt",
    "web_search_options": "this server searches nothing; send a tool",
}
"""Field → why another value than the neutral one is refused."""


class Model(BaseModel):
    """Strict: a number is no string, and nothing is passed over."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _truth(value: Any) -> Any:
    """0 is no false in JSON."""
    return value if isinstance(value, bool) else str(value)


Off = Annotated[Literal[False], BeforeValidator(_truth)]


def kind(value: Any) -> str:
    """For what may be one string, or several in an array."""
    return "string" if isinstance(value, str) else "array"


def prompt_kind(value: Any) -> str:
    """For what may also be tokens."""
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, list):
        return "token_arrays"
    return "tokens" if isinstance(first, (int, float)) and not isinstance(first, bool) else kind(value)


class TextPart(Model):
    """A piece of content; this model reads text alone."""

    type: Literal["text"]
    text: str


Content = Annotated[
    Annotated[str, Tag("string")] | Annotated[list[TextPart], Tag("array")],
    Discriminator(kind),
]


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class FunctionCall(Model):
    """A call as the model wrote it."""

    name: Name
    arguments: str
    parsed_arguments: Any = Field(None, description="The arguments again, as OpenAI's package sends them back.")


class ToolCall(Model):
    """A call in an assistant's message."""

    id: str = Field(min_length=1)
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = Field(None, description="Taken and used for nothing: OpenAI's package sends it back.")


Nameless = Annotated[str | None, Field(description="Taken; the model is not told it, its prompt has no place for it.")]


class SystemMessage(Model):
    """What the model is to keep to; `developer` is the newer name."""

    role: Literal["system", "developer"]
    content: Content
    name: Nameless = None


class UserMessage(Model):
    """What is asked."""

    role: Literal["user"]
    content: Content
    name: Nameless = None


class AssistantMessage(Model):
    """What the model said. Of a thought (`reasoning_content`) its template writes nothing into later prompts."""

    role: Literal["assistant"]
    content: Content | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: FunctionCall | None = None
    name: Nameless = None
    parsed: Any = Field(None, description="The content again, as OpenAI's package sends it back.")
    refusal: None = None
    audio: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None


class ToolMessage(Model):
    """The result of a call; a `name` must be that of the called function."""

    role: Literal["tool"]
    tool_call_id: str
    content: Content
    name: str | None = None


class FunctionMessage(Model):
    """The same, as it was before tools."""

    role: Literal["function"]
    name: str
    content: Content | None


Message = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage, Field(discriminator="role")
]


class Function(Model):
    """What may be called; `strict` holds the arguments to the schema."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(Model):
    """A function of the caller's."""

    type: Literal["function"]
    function: Function


class BuiltinTool(Model):
    """A tool that GLM-4 brings itself."""

    type: Literal["python", "simple_browser", "cogview"]


Tool = Annotated[FunctionTool | BuiltinTool, Field(discriminator="type")]


class Named(Model):
    """A function's name."""

    name: str


class NamedFunction(Model):
    """A function that must be called."""

    type: Literal["function"]
    function: Named


def _choice_kind(value: Any) -> str:
    if isinstance(value, str):
        return "mode"
    kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    return "builtin" if isinstance(kind, str) and kind in RAW else "named"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("mode")]
    | Annotated[NamedFunction, Tag("named")]
    | Annotated[BuiltinTool, Tag("builtin")],
    Discriminator(_choice_kind),
]
FunctionChoice = Annotated[
    Annotated[Literal["none", "auto"], Tag("mode")] | Annotated[Named, Tag("named")],
    Discriminator(lambda value: "mode" if isinstance(value, str) else "named"),
]


class TextFormat(Model):
    """Any text."""

    type: Literal["text"]


class JsonFormat(Model):
    """A JSON object."""

    type: Literal["json_object"]


class JsonSchema(Model):
    """A schema the answer must fit; it is enforced, with `strict` or without."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class SchemaFormat(Model):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonFormat | SchemaFormat, Field(discriminator="type")]


class StreamOptions(Model):
    """What a stream has besides the answer."""

    include_usage: bool | None = None
    include_obfuscation: Off | None = None


_Ids = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, fail_fast=True)]
MOST_ANSWERS = 32
"""To one request: prompts times n."""
Prompt = Annotated[
    Annotated[str, Field(min_length=1), Tag("string")]
    | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=MOST_ANSWERS), Tag("array")]
    | Annotated[_Ids, Tag("tokens")]
    | Annotated[list[_Ids], Field(min_length=1, max_length=MOST_ANSWERS), Tag("token_arrays")],
    Discriminator(prompt_kind),
]
"""Texts, or tokens as they stand: special ones included, and nothing put before them."""

Stop = Annotated[
    Annotated[str, Field(min_length=1), Tag("string")]
    | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=MOST_STOPS), Tag("array")],
    Discriminator(kind),
]
