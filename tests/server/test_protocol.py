"""Every parameter of the API is known, and honoured or refused by its name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edge.errors import EdgeError, UsageError
from edge.messages import Tokens
from edge.runtime.echo import EchoEngine
from edge.server import asking
from edge.server.faults import RefusedError, describe, read
from edge.server.protocol import DEEPEST_JSON, MOST_MESSAGES, ChatRequest, CompletionRequest

HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def chat(**fields: Any) -> ChatRequest:
    return read(ChatRequest, json.dumps({**HELLO, **fields}))


def refused(kind: Any, text: str) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        read(kind, text)
    return caught.value


def test_all_that_openais_own_client_can_send_is_known() -> None:
    chats = pytest.importorskip("openai.types.chat.completion_create_params").CompletionCreateParamsBase
    texts = pytest.importorskip("openai.types.completion_create_params").CompletionCreateParamsBase
    assert set(chats.__annotations__) - set(ChatRequest.model_fields) == set()
    assert set(texts.__annotations__) - set(CompletionRequest.model_fields) == set()


HONOURED = [
    ({"temperature": 0.5}, {"temperature": 0.5}),
    ({"temperature": 1}, {"temperature": 1.0}),
    ({"top_p": 0.9, "top_k": 5}, {"top_p": 0.9, "top_k": 5}),
    ({"repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
    ({"presence_penalty": -1, "frequency_penalty": 2}, {"presence_penalty": -1.0, "frequency_penalty": 2.0}),
    ({"seed": 7}, {"seed": 7}),
    ({"seed": -1}, {"seed": 2**32 - 1}),
    ({"seed": 2**63 - 1}, {"seed": 2**32 - 1}),
    ({"stop": "x"}, {"stop": ("x",)}),
    ({"stop": ["x", "yz"]}, {"stop": ("x", "yz")}),
    ({"max_tokens": 5}, {"max_new_tokens": 5}),
    ({"max_tokens": 5.0, "top_k": 3.0}, {"max_new_tokens": 5, "top_k": 3}),
]


@pytest.mark.parametrize(("sent", "sampling"), HONOURED)
def test_it_is_honoured(sent: dict[str, Any], sampling: dict[str, Any]) -> None:
    for asked in (
        asking.chat(EchoEngine(), chat(**sent)),
        asking.completion(EchoEngine(), read(CompletionRequest, json.dumps({"prompt": "hello", **sent}))),
    ):
        for name, value in sampling.items():
            assert getattr(asked.parts[0].sampling, name) == value


def test_what_is_left_out_is_left_to_the_model_but_for_the_length_of_a_completion() -> None:
    sampling = asking.chat(EchoEngine(), chat()).parts[0].sampling
    assert sampling == type(sampling)()
    asked = asking.completion(EchoEngine(), CompletionRequest(prompt="hello"))
    assert asked.parts[0].sampling == type(sampling)(max_new_tokens=16)


def test_the_newer_name_of_max_tokens() -> None:
    assert asking.chat(EchoEngine(), chat(max_completion_tokens=5)).parts[0].sampling.max_new_tokens == 5
    assert asking.chat(EchoEngine(), chat(max_tokens=5, max_completion_tokens=5)).parts[0].sampling.max_new_tokens == 5


def test_n_answers_have_seeds_of_their_own() -> None:
    asked = asking.chat(EchoEngine(), chat(n=3, seed=2**32 - 2))
    assert [part.sampling.seed for part in asked.parts] == [2**32 - 2, 2**32 - 1, 0]
    assert [part.sampling.seed for part in asking.chat(EchoEngine(), chat(n=2)).parts] == [None, None]


NEUTRAL: list[dict[str, Any]] = [
    {"logit_bias": {}}, {"logit_bias": None}, {"store": False}, {"store": None}, {"service_tier": "auto"},
    {"service_tier": "default"}, {"modalities": ["text"]}, {"audio": None}, {"prediction": None},
    {"reasoning_effort": None}, {"verbosity": "medium"}, {"web_search_options": None}, {"top_logprobs": None},
    {"metadata": {"a": "b"}}, {"user": "me"}, {"safety_identifier": "me"}, {"prompt_cache_key": "k"},
    {"prompt_cache_retention": "in_memory"}, {"prompt_cache_options": None}, {"moderation": None}, {"n": None},
    {"stop": None}, {"stop": []}, {"tools": []}, {"tools": None, "tool_choice": None}, {"response_format": None},
    {"response_format": {"type": "text"}}, {"logprobs": False}, {"stream": False}, {"tool_choice": "none"},
    {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}}, {"functions": []},
]  # fmt: skip


@pytest.mark.parametrize("sent", NEUTRAL, ids=json.dumps)
def test_what_asks_for_nothing_is_taken(sent: dict[str, Any]) -> None:
    assert len(asking.chat(EchoEngine(), chat(**sent)).parts) == 1


UNSUPPORTED: list[tuple[dict[str, Any], str]] = [
    ({"logit_bias": {"50256": -100}}, "logit_bias"), ({"store": True}, "store"), ({"store": 0}, "store"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"modalities": ["text", "audio"]}, "modalities[1]"), ({"audio": {"voice": "x"}}, "audio"),
    ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"verbosity": "low"}, "verbosity"), ({"web_search_options": {}}, "web_search_options"),
    ({"logprobs": True, "top_logprobs": 2}, "top_logprobs"),
    ({"prompt_cache_retention": "24h"}, "prompt_cache_retention"),
    ({"prompt_cache_options": {"mode": "x"}}, "prompt_cache_options"), ({"moderation": {}}, "moderation"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
     "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
     "messages[0].content[0].type"),
    ({"messages": [{"role": "assistant", "refusal": "no"}]}, "messages[0].refusal"),
    ({"messages": [{"role": "assistant", "audio": {"id": "x"}}]}, "messages[0].audio"),
]  # fmt: skip


@pytest.mark.parametrize(("sent", "field"), UNSUPPORTED, ids=lambda value: json.dumps(value))
def test_what_cannot_be_done_is_refused_by_its_name(sent: dict[str, Any], field: str) -> None:
    error = refused(ChatRequest, json.dumps({**HELLO, **sent}))
    assert (error.param, error.code) == (field, "unsupported_value")
    assert field in error.message


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"foo": 1}, "foo", "unknown_parameter"), ({"temprature": 1}, "temprature", "unknown_parameter"),
    ({"messages": [{"role": "user", "content": "x", "foo": 1}]}, "messages[0].foo", "unknown_parameter"),
    ({"temperature": "1"}, "temperature", "invalid_value"), ({"temperature": 2.1}, "temperature", "invalid_value"),
    ({"temperature": True}, "temperature", "invalid_value"), ({"top_p": 0}, "top_p", "invalid_value"),
    ({"top_k": -1}, "top_k", "invalid_value"), ({"n": 0}, "n", "invalid_value"), ({"n": 33}, "n", "invalid_value"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"), ({"max_tokens": 1.5}, "max_tokens", "invalid_value"),
    ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "invalid_value"),
    ({"presence_penalty": 3}, "presence_penalty", "invalid_value"), ({"seed": 2**63}, "seed", "invalid_value"),
    ({"stop": ""}, "stop", "invalid_value"), ({"stop": ["a", ""]}, "stop[1]", "invalid_value"),
    ({"stop": ["a"] * 17}, "stop", "invalid_value"), ({"stop": 5}, "stop", "invalid_value"),
    ({"stop": {"a": 1}}, "stop", "invalid_value"),
    ({"messages": [{"role": "user", "content": {}}]}, "messages[0].content", "invalid_value"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ({"stream": "yes"}, "stream", "invalid_value"), ({"messages": []}, "messages", "invalid_value"),
    ({"messages": "hi"}, "messages", "invalid_value"), ({"messages": ["hi"]}, "messages[0]", "invalid_value"),
    ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_parameter"),
    ({"messages": [{"role": "bot", "content": "x"}]}, "messages[0].role", "invalid_value"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_parameter"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "invalid_value"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", "missing_parameter"),
    ({"messages": HELLO["messages"] * (MOST_MESSAGES + 1)}, "messages", "invalid_value"),
    ({"tools": [TOOL] * 129}, "tools", "invalid_value"),
    ({"tools": [{"type": "custom"}]}, "tools[0].type", "invalid_value"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "invalid_value"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", "missing_parameter"),
    ({"tool_choice": "auto", "tools": [TOOL], "functions": []}, "functions", "invalid_value"),
    ({"tool_choice": {"type": {}}}, "tool_choice.type", "invalid_value"),
    ({"tool_choice": {"type": "function"}}, "tool_choice.function", "missing_parameter"),
    ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
    ({"tool_choice": "maybe"}, "tool_choice", "invalid_value"),
    ({"parallel_tool_calls": True}, "parallel_tool_calls", "invalid_value"),
    ({"function_call": "auto"}, "function_call", "invalid_value"),
    ({"top_logprobs": 0}, "top_logprobs", "invalid_value"),
    ({"response_format": {"type": "yaml"}}, "response_format.type", "invalid_value"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format.json_schema.schema",
     "missing_parameter"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
     "response_format.json_schema.name", "invalid_value"),
    ({"metadata": {"a": 1}}, "metadata.a", "invalid_value"),
]  # fmt: skip


@pytest.mark.parametrize(("sent", "field", "code"), WRONG, ids=lambda value: json.dumps(value)[:60])
def test_what_is_wrong_is_refused_by_its_name(sent: dict[str, Any], field: str, code: str) -> None:
    error = refused(ChatRequest, json.dumps({**HELLO, **sent}))
    assert (error.param, error.code) == (field, code)
    assert field in error.message and error.hint


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ({"seed": "1"}, "It should be an integer."), ({"tools": 1}, "It should be an array."),
        ({"user": 1}, "It should be a string."), ({"metadata": 1}, "It should be an object."),
    ],
)  # fmt: skip
def test_the_way_out_is_a_sentence(sent: dict[str, Any], said: str) -> None:
    assert refused(ChatRequest, json.dumps({**HELLO, **sent})).hint == said


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("", "no JSON"), ("{", "no JSON"), ("[" * 3000, "no JSON"), ("[]", "the body is []"), ("5", "the body is 5"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "no JSON"), ("null", "the body is null"),
        ('{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "temperature"),
        (b"\xff\xfe", "no JSON"), ("{}", "messages"),
    ],
)  # fmt: skip
def test_what_is_no_request_at_all(body: str | bytes, said: str) -> None:
    assert said in refused(ChatRequest, body).message  # type: ignore[arg-type]


def test_a_tool_may_nest_only_so_deep_and_holds_only_json() -> None:
    deep: Any = {}
    for _ in range(DEEPEST_JSON):
        deep = {"properties": deep}
    for field, value in (
        ("tools", [{"type": "function", "function": {"name": "f", "parameters": deep}}]),
        ("functions", [{"name": "f", "parameters": deep}]),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "f", "schema": deep}}),
    ):
        error = refused(ChatRequest, json.dumps({**HELLO, field: value}))
        assert error.param == field and "nests deeper than 64" in error.message
    nan = json.dumps(
        {**HELLO, "tools": [{"type": "function", "function": {"name": "f", "parameters": {"minimum": 0}}}]}
    )
    assert refused(ChatRequest, nan.replace('"minimum": 0', '"minimum": NaN')).param == "tools"


PROMPTS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": [1, "a"]}, "prompt[1]"), ({"prompt": [[1], []]}, "prompt[1]"), ({"prompt": ""}, "prompt"),
    ({"prompt": [-1]}, "prompt[0]"), ({"prompt": [[1], "a"]}, "prompt[1]"), ({"prompt": [True]}, "prompt[0]"),
    ({"prompt": [[1, 2.5]]}, "prompt[0][1]"), ({"prompt": [[1]] * 33}, "prompt"), ({"prompt": ["a", 1]}, "prompt[1]"),
    ({"prompt": [2**31]}, "prompt[0]"), ({"prompt": [[1]] * 9, "n": 4}, "n"), ({"prompt": [None]}, "prompt[0]"),
    ({"prompt": []}, "prompt"), ({"prompt": ["a", ""]}, "prompt[1]"), ({}, "prompt"), ({"prompt": 5}, "prompt"),
    ({"prompt": "x", "suffix": "y"}, "suffix"), ({"prompt": "x", "best_of": 2}, "best_of"),
    ({"prompt": "x", "logprobs": 3}, "logprobs"), ({"prompt": "x", "echo": True, "logprobs": 0}, "echo"),
    ({"prompt": ["x"] * 9, "n": 4}, "n"), ({"prompt": "x", "logit_bias": {"1": 1}}, "logit_bias"),
    ({"prompt": "x", "messages": []}, "messages"),
]  # fmt: skip


@pytest.mark.parametrize(("sent", "field"), PROMPTS, ids=lambda value: json.dumps(value))
def test_completions_that_cannot_be_had(sent: dict[str, Any], field: str) -> None:
    error = refused(CompletionRequest, json.dumps(sent))
    assert error.param == field and field.partition("[")[0] in error.message


@pytest.mark.parametrize(
    ("prompt", "read"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([97], [Tokens((97,))]), ([97, 98], [Tokens((97, 98))]),
     ([[97], [98, 99]], [Tokens((97,)), Tokens((98, 99))])],
)  # fmt: skip
def test_prompts_are_texts_or_tokens(prompt: Any, read: list[Any]) -> None:
    asked = asking.completion(EchoEngine(), CompletionRequest(prompt=prompt, n=2, echo=True))
    assert [part.conversation for part in asked.parts] == [each for each in read for _ in range(2)]
    assert "".join(asked.echo) == "abc"[: len("".join(asked.echo))] and len(asked.echo) == len(read)


def test_names_of_who_speaks_are_taken_and_not_told() -> None:
    roles = ("system", "developer", "user", "assistant")
    named = [{"role": role, "content": "x", "name": "Me & you"} for role in roles]
    plain = [{"role": role, "content": "x"} for role in roles]
    engine = EchoEngine()
    assert asking.chat(engine, chat(messages=named)) == asking.chat(engine, chat(messages=plain))
    assert refused(ChatRequest, json.dumps({"messages": [{**named[0], "name": 5}]})).param == "messages[0].name"


def test_what_nests_too_deeply_for_python_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def deep(*_: Any, **__: Any) -> Any:
        return json.loads("[" * 200_000)

    monkeypatch.setattr(asking, "conversation", deep)
    with pytest.raises(RefusedError, match="nests too deeply") as caught:
        asking.chat(EchoEngine(), chat())
    assert caught.value.status == 400
    assert refused(ChatRequest, "[" * 200_000).status == 400


def test_the_roles_and_their_turns() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    asked = asking.chat(
        EchoEngine(),
        chat(messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "annotations": []},
            {"role": "tool", "tool_call_id": "c1", "name": "f", "content": "23"},
            {"role": "assistant", "content": "It is 23.", "reasoning_content": "Hm."},
        ]),
    )  # fmt: skip
    turns = [(turn.role, turn.content, turn.metadata) for turn in asked.parts[0].conversation]  # type: ignore[union-attr]
    assert turns == [
        ("system", "Be brief.", ""), ("user", "a\nb", ""), ("assistant", "{}", "f"), ("observation", "23", ""),
        ("assistant", "It is 23.", ""),
    ]  # fmt: skip


def test_a_result_names_the_function_that_was_called() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "name": "g", "content": ""},
    ]
    with pytest.raises(RefusedError, match="is named 'g'") as caught:
        asking.chat(EchoEngine(), chat(messages=messages))
    assert caught.value.param == "messages[1].name"


@pytest.mark.parametrize(
    ("sent", "said", "field"),
    [
        ({"messages": [{"role": "tool", "tool_call_id": "1", "content": "x"}]}, "belongs to no call", "messages"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice names 'g'",
         "tool_choice"),
        ({"tools": [TOOL, TOOL]}, "Two tools are called 'f'", "tools"),
        ({"functions": [TOOL["function"], TOOL["function"]]}, "Two tools are called 'f'", "functions"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}}, "'not'",
         "response_format"),
        ({"logprobs": True}, "logprobs are not to be had", "logprobs"),
    ],
    ids=lambda value: json.dumps(value)[:50],
)  # fmt: skip
def test_what_makes_no_sense_together(sent: dict[str, Any], said: str, field: str) -> None:
    with pytest.raises(UsageError) as caught:
        asking.chat(EchoEngine(), chat(**sent))
    status, told, _ = describe(caught.value)
    assert (status, told.error.param) == (400, field) and said in told.error.message


def test_too_long_is_known_before_anything_is_made() -> None:
    with pytest.raises(EdgeError) as caught:
        asking.chat(EchoEngine(context_length=5), chat())
    status, body, _ = describe(caught.value)
    assert (status, body.error.code) == (400, "context_length_exceeded")
    engine = EchoEngine()
    engine.max_prompt = 3
    with pytest.raises(EdgeError):
        asking.chat(engine, chat())


def test_another_model_is_not_found() -> None:
    asking.check_model(None, "echo")
    asking.check_model("echo", "echo")
    with pytest.raises(RefusedError) as caught:
        asking.check_model("gpt-4o", "echo")
    assert describe(caught.value)[0] == 404 and "'echo'" in caught.value.hint


def test_a_fault_nobody_foresaw_tells_its_kind_alone() -> None:
    status, body, _ = describe(KeyError("the user's secret"))
    assert status == 500 and "KeyError" in body.error.message and "secret" not in body.error.message
