"""What a request comes to: the answers to make, and how. Knows no HTTP."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edge.errors import UsageError
from edge.messages import Conversation, Sampling, Tokens
from edge.npu import check_prompt
from edge.runtime import sampling as samplings
from edge.runtime.context import room_for_answer
from edge.runtime.interface import ChatEngine
from edge.server.faults import RefusedError, shallow
from edge.server.protocol import COMPLETION_TOKENS, ChatRequest, CompletionRequest
from edge.tools.constrain import Demand, demand
from edge.tools.render import conversation, legacy

_SEEDS = 2**32


@dataclass(frozen=True)
class Part:
    """One answer to make."""

    conversation: Conversation
    sampling: Sampling


@dataclass(frozen=True)
class Asked:
    """A request, understood and found to fit into the context."""

    parts: tuple[Part, ...]
    """Those of one prompt side by side."""
    n: int
    """Answers to each prompt."""
    demand: Demand | None
    """Of a chat; None: text that is gone on with."""
    opened: bool = False
    """Every answer begins inside a thought."""
    functions: bool = False
    """Calls are told as they were before tools."""
    echo: tuple[str, ...] = ()
    """What stands before each prompt's answers."""


def check_model(asked: str | None, loaded: str, adapters: Sequence[str] = ()) -> None:
    """Refuse another model than the one that is loaded, by itself or with one of its adapters.

    Raises:
        RefusedError: with status 404.
    """
    if asked is not None and asked != loaded and asked not in adapters:
        raise no_model(asked, (loaded, *adapters))


def no_model(asked: str, models: Sequence[str]) -> RefusedError:
    """That there is no such model among these."""
    there = f"The model is {models[0]!r}." if len(models) == 1 else f"The models are {', '.join(map(repr, models))}."
    return RefusedError(
        f"there is no model {asked[:80]!r} here", hint=there, param="model", code="model_not_found", status=404
    )


@shallow()
def chat(engine: ChatEngine, request: ChatRequest) -> Asked:
    """Understand a chat.

    Raises:
        EdgeError: it makes no sense, or does not fit into the context.
    """
    messages = [message.model_dump(exclude_none=True) for message in request.messages]
    _check_names(messages)
    tools = [tool.model_dump(exclude_none=True) for tool in request.tools or ()]
    choice: Any = _plain(request.tool_choice)
    if request.functions is not None:
        tools = legacy([function.model_dump(exclude_none=True) for function in request.functions])
        choice = _plain(request.function_call)
        choice = {"type": "function", "function": choice} if isinstance(choice, Mapping) else choice
    form = _plain(request.response_format)
    asking_for = [name for name in ("tools", "functions", "response_format") if getattr(request, name)]
    chosen = "tool_choice" if request.functions is None else "function_call"
    with _of(asking_for[0] if len(asking_for) == 1 else None, chosen):
        wanted = demand(
            tools, choice, parallel=request.parallel_tool_calls is not False and request.functions is None,
            response_format=form, opened=engine.opens_thought,
        )  # fmt: skip
    with _of("messages"):
        turns = conversation(messages, wanted.tools)
    sampling = replace(
        _sampling(engine, request, request.max_completion_tokens or request.max_tokens, bool(request.logprobs)),
        grammar=wanted.grammar,
        keep_special=bool(wanted.tools) or engine.opens_thought,
    )
    _check(engine, turns, sampling)
    n = request.n or 1
    parts = tuple(Part(turns, each) for each in _several(sampling, n))
    return Asked(parts, n, wanted, engine.opens_thought, request.functions is not None)


@contextlib.contextmanager
def _of(field: str | None, choice: str = "tool_choice") -> Iterator[None]:
    """Tell with what is wrong which field it was in; None: that is not certain.

    Args:
        choice: the field that said which tool is to be called.

    Raises:
        RefusedError: see there.
    """
    try:
        yield
    except UsageError as error:
        field = choice if error.message.startswith("tool_choice") else field
        raise RefusedError(error.message, hint=error.hint, param=field, code="invalid_value") from error


@shallow()
def completion(engine: ChatEngine, request: CompletionRequest) -> Asked:
    """Understand text to be gone on with.

    Raises:
        EdgeError: it makes no sense, or does not fit into the context.
    """
    sampling = _sampling(engine, request, request.max_tokens or COMPLETION_TOKENS, request.logprobs is not None)
    for prompt in request.prompts:
        _check(engine, prompt, sampling)
    n = request.n or 1
    parts = tuple(Part(prompt, each) for prompt in request.prompts for each in _several(sampling, n))
    return Asked(parts, n, None, echo=tuple(_text(engine, each) for each in request.prompts) if request.echo else ())


def _text(engine: ChatEngine, prompt: str | Tokens) -> str:
    if isinstance(prompt, str):
        return prompt
    return b"".join(engine.token_bytes(prompt.ids)).decode(errors="replace")


def _sampling(
    engine: ChatEngine, request: ChatRequest | CompletionRequest, max_new_tokens: int | None, log_probs: bool
) -> Sampling:
    stop, model = request.stop, request.model
    return Sampling(
        temperature=request.temperature, top_p=request.top_p, top_k=request.top_k,
        repetition_penalty=request.repetition_penalty, presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty, log_probs=log_probs, max_new_tokens=max_new_tokens,
        seed=None if request.seed is None else request.seed % _SEEDS,
        stop=(stop,) if isinstance(stop, str) else tuple(stop or ()),
        adapters=(model,) if model is not None and model in engine.adapters else None,
    )  # fmt: skip


def _several(sampling: Sampling, n: int) -> list[Sampling]:
    """One for each answer: the same seed would make them the same."""
    if sampling.seed is None:
        return [sampling] * n
    return [replace(sampling, seed=(sampling.seed + i) % _SEEDS) for i in range(n)]


def _check(engine: ChatEngine, asked: Conversation, sampling: Sampling) -> None:
    """What the engine would refuse later, when an answer has begun."""
    samplings.check(sampling)
    if sampling.log_probs and engine.together == 1:
        raise RefusedError(
            f"logprobs are not to be had on {engine.device}", hint="Ask without them.", param="logprobs",
            code="unsupported_value",
        )  # fmt: skip
    tokens = engine.count_tokens(asked)
    if not tokens:
        raise RefusedError("there is nothing to read", hint="Write something.", code="invalid_value")
    if engine.max_prompt is not None:
        check_prompt(tokens, engine.max_prompt)
    room_for_answer(tokens, engine.context_length, sampling.max_new_tokens)


def _check_names(messages: Sequence[Mapping[str, Any]]) -> None:
    """A result that names a function names the one that was called."""
    called = {
        call["id"]: call["function"]["name"] for message in messages for call in message.get("tool_calls", ())
    }  # fmt: skip
    for number, message in enumerate(messages):
        if message["role"] == "tool" and "name" in message:
            name = called.get(message["tool_call_id"], message["name"])
            if name != message["name"]:
                raise RefusedError(
                    f"the result of the call {message['tool_call_id']!r} is named {message['name']!r}",
                    hint=f"The function that was called is {name!r}.", param=f"messages[{number}].name",
                    code="invalid_value",
                )  # fmt: skip


def _plain(value: Any) -> Any:
    """A model as plain values; what is none stays."""
    return value.model_dump(exclude_none=True, by_alias=True) if hasattr(value, "model_dump") else value
