"""OpenAI's own package and LangChain against a real server, with the pocket model where answers matter."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jsonschema
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field

from edge.errors import DeviceError
from edge.messages import Chunk
from edge.runtime.echo import EchoEngine
from tests.server.engines import Counting, Live, Told, says, serving, until

KEY = "a-key-of-more-than-16"
CAPITAL: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather", "description": "The weather in a city.",
        "parameters": {
            "type": "object", "additionalProperties": False, "required": ["city", "unit"],
            "properties": {"city": {"enum": ["Paris", "Rome", "北京"]}, "unit": {"enum": ["C", "F"]},
                           "days": {"type": "integer", "minimum": 1, "maximum": 7}},
        },
    },
}  # fmt: skip
TIME: dict[str, Any] = {
    "type": "function",
    "function": {"name": "get_time", "parameters": {"type": "object", "properties": {"zone": {"enum": ["UTC", "CET"]}},
                                                    "required": ["zone"], "additionalProperties": False}},
}  # fmt: skip


class City(BaseModel):
    """A structured answer, whose length is bounded: the pocket model would fill a free text without end."""

    name: Literal["Paris", "Rome", "London"]
    is_capital: bool
    million_people: int = Field(ge=0, le=20)


@pytest.fixture(scope="module")
def pocket(pocket_dir: Path) -> Iterator[Live]:
    from edge.runtime.engine import Engine
    from edge.runtime.settings import Settings

    with serving(Engine.load(pocket_dir, Settings("CPU", context=2048))) as live:
        yield live


def client(live: Live, **options: Any) -> OpenAI:
    return OpenAI(base_url=f"{live.address}/v1", **{"api_key": "none", "max_retries": 0, "timeout": 120, **options})


def fits(call: Any) -> dict[str, Any]:
    """The arguments of a call, which fit its schema."""
    arguments = json.loads(call.function.arguments)
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in (WEATHER, TIME)}
    jsonschema.validate(arguments, schemas[call.function.name])
    return dict(arguments)


@pytest.mark.model
class TestOpenAI:
    def test_whole(self, pocket: Live) -> None:
        with client(pocket) as asking:
            assert [card.id for card in asking.models.list()] == ["pocket"]
            answer = asking.chat.completions.create(model="pocket", messages=CAPITAL, temperature=0)
            assert "Paris" in (answer.choices[0].message.content or "") and answer.choices[0].finish_reason == "stop"
            assert answer.usage is not None and answer.usage.prompt_tokens > 30
            again = asking.chat.completions.create(model="pocket", messages=CAPITAL, temperature=0)
            assert again.choices == answer.choices and again.usage is not None
            assert again.usage.prompt_tokens_details is not None
            assert (again.usage.prompt_tokens_details.cached_tokens or 0) > 0
            short = asking.chat.completions.create(model="pocket", messages=CAPITAL, max_completion_tokens=2, n=2)
            assert [choice.finish_reason for choice in short.choices] == ["length", "length"]

    def test_streamed(self, pocket: Live) -> None:
        with client(pocket) as asking:
            whole = asking.chat.completions.create(model="pocket", messages=CAPITAL, temperature=0)
            chunks = list(asking.chat.completions.create(
                model="pocket", messages=CAPITAL, temperature=0, stream=True, stream_options={"include_usage": True}
            ))  # fmt: skip
        said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert said == whole.choices[0].message.content and len(chunks) > 5
        assert chunks[-1].usage is not None and whole.usage is not None
        assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens

    def test_seeds(self, pocket: Live) -> None:
        with client(pocket) as asking:
            first, same, other = (
                asking.chat.completions.create(
                    model="pocket", messages=CAPITAL, temperature=1.5, seed=seed, max_tokens=24
                )
                .choices[0]
                .message.content
                for seed in (5, 5, 6)
            )
        assert first == same != other

    def test_several_at_once(self, pocket: Live) -> None:
        async def ask() -> list[str]:
            async with AsyncOpenAI(base_url=f"{pocket.address}/v1", api_key="none", timeout=120) as asking:

                async def one(word: str) -> str:
                    stream = await asking.chat.completions.create(
                        model="pocket", temperature=0, max_tokens=12, stream=True,
                        messages=[{"role": "user", "content": f"What is the capital of {word}?"}],
                    )  # fmt: skip
                    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

                return await asyncio.gather(*map(one, ("France", "Italy", "Spain", "Japan")))

        for answer, word in zip(asyncio.run(ask()), ("Paris", "Rome", "Madrid", "Tokyo"), strict=True):
            assert word in answer

    def test_texts(self, pocket: Live) -> None:
        with client(pocket) as asking:
            answer = asking.completions.create(
                model="pocket", temperature=0, logprobs=0,
                prompt=["The capital of France is", "The capital of Italy is"],
            )  # fmt: skip
        assert " Paris" in answer.choices[0].text and " Rome" in answer.choices[1].text
        assert answer.usage is not None and answer.usage.completion_tokens == 32
        found = answer.choices[0].logprobs
        assert found is not None and "".join(found.tokens or []) == answer.choices[0].text

    def test_logprobs(self, pocket: Live) -> None:
        with client(pocket) as asking:
            answer = asking.chat.completions.create(
                model="pocket", temperature=0, logprobs=True, max_tokens=20,
                messages=[{"role": "user", "content": "Repeat after me: 你好"}],
            )  # fmt: skip
        log_probs = answer.choices[0].logprobs
        assert log_probs is not None and log_probs.content
        written = b"".join(bytes(token.bytes or []) for token in log_probs.content)
        assert written.decode(errors="ignore").strip() == (answer.choices[0].message.content or "").strip()
        assert all(token.logprob <= 0 for token in log_probs.content)

    @pytest.mark.parametrize("stream", [False, True])
    def test_calls_that_are_required(self, stream: bool, pocket: Live) -> None:
        asked: dict[str, Any] = {
            "model": "pocket", "tools": [WEATHER, TIME], "tool_choice": "required", "max_tokens": 400,
            "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
        }  # fmt: skip
        with client(pocket) as asking:
            if stream:
                with asking.chat.completions.stream(**asked) as pieces:
                    choice = pieces.until_done().get_final_completion().choices[0]
            else:
                choice = asking.chat.completions.create(**asked).choices[0]
        calls = choice.message.tool_calls
        assert calls and len({call.id for call in calls}) == len(calls)
        for call in calls[: None if choice.finish_reason == "tool_calls" else -1]:  # but one that was cut off
            fits(call)

    def test_a_named_call_and_its_result_go_round(self, pocket: Live) -> None:
        messages: list[Any] = [{"role": "user", "content": "What is the weather in Rome?"}]
        with client(pocket) as asking:
            named: Any = {"type": "function", "function": {"name": "get_weather"}}
            first = asking.chat.completions.create(
                model="pocket", messages=messages, tools=[WEATHER, TIME], tool_choice=named  # type: ignore[list-item]
            )  # fmt: skip
            (call,) = first.choices[0].message.tool_calls or []
            assert first.choices[0].finish_reason == "tool_calls"
            assert fits(call)["city"] in ("Paris", "Rome", "北京")
            messages += [
                first.choices[0].message,
                {"role": "tool", "tool_call_id": call.id, "content": '{"temperature": 23, "sky": "clear"}'},
            ]
            second = asking.chat.completions.create(
                model="pocket", messages=messages, tools=[WEATHER, TIME], temperature=0, max_tokens=60,  # type: ignore[list-item]
            )  # fmt: skip
        assert second.choices[0].message.content or second.choices[0].message.tool_calls
        assert second.usage is not None and first.usage is not None
        assert second.usage.prompt_tokens > first.usage.prompt_tokens

    def test_a_call_that_was_streamed_and_its_result_go_round(self, pocket: Live) -> None:
        messages: list[Any] = [{"role": "user", "content": "What is the weather in Rome?"}]
        asked: dict[str, Any] = {"model": "pocket", "tools": [WEATHER], "max_tokens": 200}
        with client(pocket) as asking:
            with asking.chat.completions.stream(messages=messages, tool_choice="required", **asked) as pieces:
                message = pieces.get_final_completion().choices[0].message
            assert message.tool_calls and message.tool_calls[0].model_dump()["index"] == 0
            results = [{"role": "tool", "tool_call_id": call.id, "content": "23"} for call in message.tool_calls]
            answer = asking.chat.completions.create(messages=[*messages, message, *results], **asked)
        assert answer.choices[0].message.content or answer.choices[0].message.tool_calls

    def test_tokens_are_gone_on_with(self, pocket: Live) -> None:
        engine: Any = pocket.desk.engine()
        ids = engine.encode("The capital of France is")
        with client(pocket) as asking:
            text, tokens = (
                asking.completions.create(model="pocket", prompt=prompt, temperature=0, max_tokens=8, echo=True)
                for prompt in ("The capital of France is", [ids, ids])
            )
            assert [each.text.removeprefix("[gMASK]<sop>") for each in tokens.choices] == [text.choices[0].text] * 2
            with pytest.raises(openai.BadRequestError, match="is no token of"):
                asking.completions.create(model="pocket", prompt=[10**8])

    def test_structured_outputs(self, pocket: Live) -> None:
        with client(pocket) as asking:
            answer = asking.chat.completions.parse(
                model="pocket", messages=CAPITAL, response_format=City, max_tokens=200
            )
            assert isinstance(answer.choices[0].message.parsed, City)
            with asking.chat.completions.stream(model="pocket", messages=CAPITAL, response_format=City) as pieces:
                assert isinstance(pieces.get_final_completion().choices[0].message.parsed, City)
            tool = openai.pydantic_function_tool(City)
            called = asking.chat.completions.parse(
                model="pocket", messages=CAPITAL, tools=[tool], tool_choice="required", parallel_tool_calls=False
            )  # fmt: skip
            (call,) = called.choices[0].message.tool_calls or []
            assert isinstance(call.function.parsed_arguments, City)
            told = asking.chat.completions.create(  # the parsed message goes back as it is
                model="pocket", max_tokens=5, messages=[*CAPITAL, called.choices[0].message,  # type: ignore[list-item]
                                                        {"role": "tool", "tool_call_id": call.id, "content": "noted"}],
            )  # fmt: skip
            assert told.choices[0].finish_reason == "length"

    def test_a_stream_that_is_closed_ends_the_answer(self, pocket: Live) -> None:
        with client(pocket) as asking:
            stream = asking.chat.completions.create(
                model="pocket", messages=[{"role": "user", "content": "Count to a thousand."}], stream=True
            )  # fmt: skip
            next(iter(stream))
            stream.close()
            until(lambda: pocket.desk.gate.running == 0, 5)

    def test_who_goes_while_a_long_prompt_is_read_ends_the_reading(self, pocket: Live) -> None:
        long: list[Any] = [{"role": "user", "content": "alpha beta gamma " * 600}]
        with client(pocket, timeout=0.3) as asking, pytest.raises(openai.APITimeoutError):
            asking.chat.completions.create(model="pocket", messages=long)
        before = pocket.number("glm4_edge_completion_tokens_total")
        until(lambda: pocket.desk.gate.running == 0, 60)
        assert pocket.number("glm4_edge_completion_tokens_total") == before


@pytest.mark.model
class TestLangChain:
    def model(self, live: Live, **options: Any) -> Any:
        from langchain_openai import ChatOpenAI

        return ChatOpenAI(base_url=f"{live.address}/v1", api_key="none", model="pocket", temperature=0, **options)  # type: ignore[arg-type]

    def test_whole_and_streamed(self, pocket: Live) -> None:
        asking = self.model(pocket)
        answer = asking.invoke("What is the capital of France?")
        assert "Paris" in answer.content and answer.usage_metadata["input_tokens"] > 30
        assert answer.response_metadata["finish_reason"] == "stop"
        chunks = list(asking.stream("What is the capital of France?"))
        assert "".join(chunk.content for chunk in chunks) == answer.content and len(chunks) > 5

    def test_tools_and_their_results(self, pocket: Live) -> None:
        from langchain_core.messages import HumanMessage, ToolMessage

        for choice in ("any", "get_weather"):
            asking = self.model(pocket, max_tokens=200).bind_tools(
                [WEATHER], tool_choice=choice, parallel_tool_calls=False
            )  # fmt: skip
            question = HumanMessage("What is the weather in Rome?")
            called = asking.invoke([question])
            assert called.tool_calls and not called.invalid_tool_calls
            (call,) = called.tool_calls
            jsonschema.validate(call["args"], WEATHER["function"]["parameters"])
        result = ToolMessage('{"temperature": 23}', tool_call_id=call["id"])
        answer = self.model(pocket, max_tokens=20).invoke([question, called, result])
        assert answer.content

    @pytest.mark.parametrize("method", ["json_schema", "function_calling"])
    def test_structured_output(self, method: str, pocket: Live) -> None:
        asking = self.model(pocket, max_tokens=200).with_structured_output(City, method=method)
        assert isinstance(asking.invoke("What is the capital of France?"), City)


def test_a_streamed_call_goes_back_as_openais_package_has_it() -> None:
    with serving(Told(*says('get_weather\n{"city": "Rome", "unit": "C"}'))) as live, client(live) as asking:
        asked: dict[str, Any] = {"model": "echo", "tools": [WEATHER]}
        with asking.chat.completions.stream(messages=CAPITAL, **asked) as pieces:
            message: Any = pieces.get_final_completion().choices[0].message
        (call,) = message.tool_calls
        assert call.model_dump()["index"] == 0
        result = {"role": "tool", "tool_call_id": call.id, "content": "23"}
        asking.chat.completions.create(messages=[*CAPITAL, message, result], **asked)


def test_langchain_may_name_who_speaks() -> None:
    from langchain_core.messages import HumanMessage
    from langchain_openai import ChatOpenAI

    with serving(EchoEngine()) as live:
        asking: Any = ChatOpenAI(base_url=f"{live.address}/v1", api_key="none", model="echo")
        assert asking.invoke([HumanMessage("hello", name="Ann")]).content == "hello"


def test_faults_are_openais_exceptions() -> None:
    with (
        serving(EchoEngine(seconds_per_token=0.01), keys=(KEY.encode(),), queue=0) as live,
        client(live, api_key=KEY) as asking,
    ):
        ask = asking.chat.completions.create
        with pytest.raises(openai.BadRequestError) as refused:
            ask(model="echo", messages=[{"role": "user", "content": "x" * 5000}])
        assert refused.value.code == "context_length_exceeded"
        with pytest.raises(openai.BadRequestError) as refused:
            ask(model="echo", messages=CAPITAL, logit_bias={"5": 1})
        assert (refused.value.param, refused.value.code) == ("logit_bias", "unsupported_value")
        with pytest.raises(openai.NotFoundError):
            ask(model="gpt-4o", messages=CAPITAL)
        with pytest.raises(openai.AuthenticationError):
            client(live, api_key="another-key").models.list()
        with pytest.raises(openai.BadRequestError, match="makes no embeddings"):
            asking.embeddings.create(model="echo", input="x")
        stream = ask(model="echo", messages=CAPITAL, stream=True)
        next(iter(stream))
        with pytest.raises(openai.RateLimitError):
            ask(model="echo", messages=CAPITAL)
        stream.close()
    with serving(None) as live, pytest.raises(openai.InternalServerError) as loading:
        client(live).models.list()
    assert loading.value.code == "model_loading"


def test_a_refused_client_comes_again_by_itself() -> None:
    with serving(EchoEngine(seconds_per_token=0.02), queue=0) as live, client(live, max_retries=5) as asking:
        stream = asking.chat.completions.create(model="echo", messages=CAPITAL, stream=True)
        next(iter(stream))
        assert asking.chat.completions.create(model="echo", messages=CAPITAL).choices[0].finish_reason == "stop"
        assert live.number('glm4_edge_requests_total{path="/v1/chat/completions",status="429"}') >= 1
        stream.close()


def test_a_fault_in_the_middle_of_a_stream_is_raised() -> None:
    lost = DeviceError("GPU failed while answering: device lost", hint="Ask again.")
    with serving(Told(Chunk("a", token_ids=(97,)), lost)) as live, client(live) as asking:
        said = ""
        with pytest.raises(openai.APIError, match="device lost"):
            for chunk in asking.chat.completions.create(model="echo", messages=CAPITAL, stream=True):
                said += chunk.choices[0].delta.content or ""
        assert said == "a"


def test_heartbeats_do_not_disturb() -> None:
    with serving(EchoEngine(prefill_seconds=0.5), first_seconds=0.1, beat_seconds=0.1) as live, client(live) as asking:
        chunks = asking.chat.completions.create(model="echo", messages=CAPITAL, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == CAPITAL[0]["content"]


def test_an_async_client_that_is_cancelled_ends_the_answer() -> None:
    engine = Counting()
    with serving(engine) as live:

        async def ask_and_leave() -> None:
            async with AsyncOpenAI(base_url=f"{live.address}/v1", api_key="none") as asking:
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(asking.chat.completions.create(model="echo", messages=CAPITAL), 0.5)

        asyncio.run(ask_and_leave())
        until(lambda: not engine.under_way, 5)
        assert 0 < engine.made < 500
