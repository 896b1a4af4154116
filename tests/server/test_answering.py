"""A request and an engine → an answer; no HTTP, no model."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from edge.errors import DeviceError
from edge.messages import Chunk, Usage
from edge.runtime.echo import EchoEngine
from edge.server import asking, streaming, whole
from edge.server.answering import Ended, Notice, Piece, Void, answer_chat, answer_completion, happenings
from edge.server.faults import CutShortError, ReplacedError, read
from edge.server.protocol import ChatRequest, CompletionRequest
from tests.server.engines import Counting, Told, question, says, steady, until

WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CALL = 'weather\n{"city": "Rome"}'


def chat(text: str = "hello", **fields: Any) -> ChatRequest:
    return read(ChatRequest, json.dumps(question(text, **fields)))


def text(prompt: Any, **fields: Any) -> CompletionRequest:
    return read(CompletionRequest, json.dumps({"prompt": prompt, **fields}))


def streamed(engine: Any, request: Any) -> list[dict[str, Any]]:
    """The pieces of a streamed reply, as JSON."""
    is_chat = isinstance(request, ChatRequest)
    asked = (asking.chat if is_chat else asking.completion)(engine, request)
    options = request.stream_options
    head = whole.Head.of(engine, "chatcmpl" if is_chat else "cmpl")
    writer = (streaming.ChatWriter if is_chat else streaming.TextWriter)(
        head, asked, usage=bool(options and options.include_usage)
    )
    pieces = writer.begin()
    for event in happenings(engine, asked):
        pieces += writer.write(event)
    return [json.loads(piece.json_text()) for piece in pieces + writer.end()]


def test_an_answer_is_as_openai_has_it() -> None:
    before = int(time.time())
    reply = json.loads(answer_chat(EchoEngine(), chat("你好 hello")).json_text())
    assert reply.pop("id").startswith("chatcmpl-") and before <= reply.pop("created") <= time.time()
    assert reply.pop("system_fingerprint").startswith("fp_")
    assert reply == {
        "object": "chat.completion", "model": "echo",
        "choices": [{"index": 0, "finish_reason": "stop", "logprobs": None,
                     "message": {"role": "assistant", "content": "你好 hello", "refusal": None}}],
        "usage": {"prompt_tokens": 8, "completion_tokens": 9, "total_tokens": 17},
    }  # fmt: skip


def test_the_fingerprint_is_of_what_answers_are_made_with() -> None:
    one, same, other = EchoEngine(), EchoEngine(), EchoEngine()
    other.device = "GPU"
    prints = [answer_chat(engine, chat()).system_fingerprint for engine in (one, same, other)]
    assert prints[0] == prints[1] != prints[2]


def test_length_and_stop() -> None:
    reply = answer_chat(EchoEngine(), chat(max_tokens=3))
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("hel", "length")
    reply = answer_chat(EchoEngine(), chat(stop=["lo", "zz"]))
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("hel", "stop")


def test_n_answers_and_their_usage() -> None:
    reply = answer_chat(EchoEngine(), chat(n=3))
    assert [(choice.index, choice.message.content) for choice in reply.choices] == [(i, "hello") for i in range(3)]
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (5, 18)


def test_of_n_answers_as_many_are_made_at_once_as_the_engine_makes() -> None:
    for together, at_once, most in ((4, None, 4), (4, 2, 2), (1, None, 1)):
        engine = Counting(together=together, seconds_per_token=0.01)
        reply = answer_chat(engine, chat(n=6, max_tokens=5), at_once=at_once)
        assert engine.most == most and len(reply.choices) == 6


def test_cached_tokens_are_told_where_they_are_known() -> None:
    used = answer_chat(Told(*says("a", cached_tokens=5)), chat(n=2)).usage
    assert used.prompt_tokens_details is not None and used.prompt_tokens_details.cached_tokens == 5
    assert answer_chat(EchoEngine(), chat()).usage.prompt_tokens_details is None


def test_a_call() -> None:
    choice = answer_chat(EchoEngine(), chat(CALL, tools=[WEATHER])).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    (call,) = choice.message.tool_calls or []
    assert call.id.startswith("call_") and call.function.name == "weather"
    assert json.loads(call.function.arguments) == {"city": "Rome"}


def test_a_call_in_the_words_of_functions() -> None:
    choice = answer_chat(EchoEngine(), chat(CALL, functions=[WEATHER["function"]])).choices[0]
    assert choice.finish_reason == "function_call" and choice.message.tool_calls is None
    assert choice.message.function_call is not None and choice.message.function_call.name == "weather"


def test_a_call_that_is_cut_off_is_a_matter_of_length() -> None:
    choice = answer_chat(EchoEngine(), chat(CALL, tools=[WEATHER], max_tokens=15)).choices[0]
    assert choice.finish_reason == "length"
    assert choice.message.tool_calls and choice.message.tool_calls[0].function.arguments == '{"city"'


def test_without_tools_the_same_text_is_text() -> None:
    for fields in ({}, {"tools": [WEATHER], "tool_choice": "none"}):
        choice = answer_chat(EchoEngine(), chat(CALL, **fields)).choices[0]
        assert (choice.message.content, choice.finish_reason) == (CALL, "stop")


def test_after_the_one_call_that_may_come_the_engine_is_ended_and_its_tokens_are_counted() -> None:
    engine = EchoEngine(seconds_per_token=0.002)
    asked = f"{CALL}\n{'and so on ' * 200}"
    reply = answer_chat(engine, chat(asked, tools=[WEATHER], parallel_tool_calls=False))
    assert reply.choices[0].finish_reason == "tool_calls"
    assert len(CALL) <= reply.usage.completion_tokens < len(CALL) + 200


def test_a_thought_is_reasoning_content() -> None:
    engine = Told(*says("Rome ", "or Paris?", "</think>", "\nRome."), opens_thought=True)
    message = answer_chat(engine, chat()).choices[0].message
    assert (message.reasoning_content, message.content) == ("Rome or Paris?", "Rome.")
    deltas = [piece["choices"][0]["delta"] for piece in streamed(engine, chat(stream=True))]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Rome or Paris?"
    assert "".join(delta.get("content", "") for delta in deltas) == "Rome."


def test_logprobs_have_the_bytes_of_each_token() -> None:
    reply = answer_chat(Told(*says("a", "你")), chat(logprobs=True))
    assert reply.choices[0].logprobs is not None
    assert [(each.token, each.bytes, each.logprob) for each in reply.choices[0].logprobs.content] == [
        ("a", [97], -0.25), ("你", [0xE4, 0xBD, 0xA0], -0.25)
    ]  # fmt: skip
    assert answer_chat(Told(*says("a")), chat()).choices[0].logprobs is None


@pytest.mark.parametrize(
    ("chunks", "content"),
    [
        ([("ab ", "ab ST"), ("", "OP more")], "ab "),  # what may become a stop string is held back, its tokens are not
        ([("", "\n"), ("ab", "abS"), ("", "TOP")], "ab"),
        ([("ab ", "ab ST"), ("STay", "ay")], "ab STay"),
        ([("", "STOP")], ""),
        ([("你", "你S"), ("", "TOP")], "你"),
    ],
)  # fmt: skip
def test_logprobs_have_nothing_of_a_stop_string(chunks: list[tuple[str, str]], content: str) -> None:
    given = [Chunk(text, token_ids=tuple(map(ord, ids)), log_probs=(-0.25,) * len(ids)) for text, ids in chunks]
    given[-1] = replace(given[-1], usage=Usage(7, 9, 0.1, 0.01, "stop", stop_id=5 if "STay" in content else None))
    engine = Told(*given)
    choice = answer_chat(engine, chat(logprobs=True, stop="STOP")).choices[0]
    assert choice.message.content == content and choice.logprobs is not None
    assert "".join(each.token for each in choice.logprobs.content).removeprefix("\n") == content
    pieces = [piece["choices"][0]["logprobs"] for piece in streamed(engine, chat(logprobs=True, stop="STOP"))]
    told = "".join(each["token"] for piece in pieces if piece for each in piece["content"])
    assert told.removeprefix("\n") == content


def test_logprobs_are_those_of_the_content() -> None:
    engine = Told(*says(*"Hm", "</think>", *"No.\n", *CALL), opens_thought=True)
    choice = answer_chat(engine, chat(logprobs=True, tools=[WEATHER])).choices[0]
    assert choice.message.content == "No." and choice.message.tool_calls and choice.logprobs is not None
    assert "".join(each.token for each in choice.logprobs.content).strip() == "No."


def test_a_logprob_that_is_no_number_is_one_all_the_same() -> None:
    chunk = Chunk("ab", token_ids=(97, 98), log_probs=(float("-inf"), float("nan")))
    reply = answer_chat(Told(chunk, *says("c")), chat(logprobs=True))
    assert [each["logprob"] for each in json.loads(reply.json_text())["choices"][0]["logprobs"]["content"]] == [
        -9999.0, -9999.0, -0.25
    ]  # fmt: skip


def test_texts_are_gone_on_with() -> None:
    reply = json.loads(answer_completion(EchoEngine(), text(["one ", " two"], n=2, max_tokens=9)).json_text())
    assert reply["object"] == "text_completion" and reply["id"].startswith("cmpl-")
    assert [(choice["index"], choice["text"]) for choice in reply["choices"]] == [
        (0, "one "), (1, "one "), (2, " two"), (3, " two")
    ]  # fmt: skip
    assert reply["usage"] == {"prompt_tokens": 8, "completion_tokens": 20, "total_tokens": 28}


def test_echo_puts_the_prompt_in_front() -> None:
    assert answer_completion(EchoEngine(), text("ab", echo=True)).choices[0].text == "abab"
    pieces = streamed(EchoEngine(), text(["ab", "c"], echo=True, stream=True))
    for index, whole_text in enumerate(("abab", "cc")):
        said = [piece["choices"][0] for piece in pieces if piece["choices"][0]["index"] == index]
        assert "".join(choice["text"] for choice in said) == whole_text and said[-1]["finish_reason"] == "stop"


def test_logprobs_of_a_text_in_the_older_form() -> None:
    engine = Told(*says("a", "你", "b"))
    found = answer_completion(engine, text("x", logprobs=0)).choices[0].logprobs
    assert found is not None and found.tokens == ["a", "你", "b"]
    assert found.token_logprobs == [-0.25] * 3 and found.text_offset == [0, 1, 2]
    offsets = [piece["choices"][0]["logprobs"] for piece in streamed(engine, text("x", logprobs=0, stream=True))]
    assert [at for each in offsets if each for at in each["text_offset"]] == [0, 1, 2]


def test_a_streamed_chat_says_the_same_in_pieces() -> None:
    pieces = streamed(EchoEngine(), chat("hello there", stream=True, n=2))
    assert {piece["object"] for piece in pieces} == {"chat.completion.chunk"} and len({p["id"] for p in pieces}) == 1
    assert all("usage" not in piece for piece in pieces)
    for index in range(2):
        choices = [piece["choices"][0] for piece in pieces if piece["choices"][0]["index"] == index]
        assert choices[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(choice["delta"].get("content", "") for choice in choices) == "hello there"
        assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * (len(choices) - 1)
        assert (choices[-1]["delta"], choices[-1]["finish_reason"]) == ({}, "stop")


def test_a_streamed_call() -> None:
    pieces = streamed(EchoEngine(), chat(f"Let me see.\n{CALL}", stream=True, tools=[WEATHER]))
    deltas = [piece["choices"][0]["delta"] for piece in pieces]
    assert "".join(delta.get("content") or "" for delta in deltas) == "Let me see."
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert calls[0]["id"].startswith("call_") and calls[0]["type"] == "function"
    assert calls[0]["function"] == {"name": "weather", "arguments": ""}
    assert all(call.keys() == {"index", "function"} and call["index"] == 0 for call in calls[1:])
    assert json.loads("".join(call["function"]["arguments"] for call in calls)) == {"city": "Rome"}
    assert pieces[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_streamed_call_in_the_words_of_functions() -> None:
    pieces = streamed(EchoEngine(), chat(CALL, stream=True, functions=[WEATHER["function"]]))
    calls = [delta["function_call"] for piece in pieces if "function_call" in (delta := piece["choices"][0]["delta"])]
    assert calls[0] == {"name": "weather", "arguments": ""}
    assert json.loads("".join(call["arguments"] for call in calls)) == {"city": "Rome"}
    assert pieces[-1]["choices"][0]["finish_reason"] == "function_call"


def test_usage_comes_last_where_it_is_asked_for() -> None:
    for request in (
        chat(stream=True, stream_options={"include_usage": True}),
        text("hello", stream=True, stream_options={"include_usage": True}),
    ):
        pieces = streamed(EchoEngine(), request)
        assert all(piece["usage"] is None for piece in pieces[:-1])
        assert pieces[-1]["choices"] == []
        assert pieces[-1]["usage"] == {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}


def test_streamed_logprobs_come_with_the_content() -> None:
    pieces = streamed(Told(*says("a", "b")), chat(stream=True, logprobs=True))
    told = [choice["logprobs"]["content"] for piece in pieces if (choice := piece["choices"][0])["logprobs"]]
    assert [each["token"] for content in told for each in content] == ["a", "b"]


RESTARTED = [Chunk("wrong", token_ids=(1,)), Chunk("", notice="It goes on on CPU.", restart=True), *says("right")]


def test_an_answer_that_begins_again_is_whole_in_the_end() -> None:
    assert answer_chat(Told(*RESTARTED), chat()).choices[0].message.content == "right"
    happened = list(happenings(Told(*RESTARTED), asking.chat(Told(), chat())))
    assert [type(each) for each in happened] == [Piece, Notice, Void, Piece, Ended]


def test_what_was_streamed_cannot_be_taken_back() -> None:
    with pytest.raises(ReplacedError):
        streamed(Told(*RESTARTED), chat(stream=True))
    early = Told(Chunk("", notice="On CPU.", restart=True), *says("right"))
    deltas = [piece["choices"][0]["delta"] for piece in streamed(early, chat(stream=True))]
    assert "".join(delta.get("content", "") for delta in deltas) == "right"


def test_a_cancelled_answer_is_no_answer() -> None:
    engine = Counting()
    gone = threading.Event()
    threading.Timer(0.1, gone.set).start()
    with pytest.raises(CutShortError):
        answer_chat(engine, chat(), gone)
    until(lambda: not engine.under_way)
    threading.Timer(0.1, engine.cancel).start()
    with pytest.raises(CutShortError):
        answer_chat(engine, chat(n=3))
    until(lambda: not engine.under_way)
    assert steady(lambda: engine.made)
    with pytest.raises(CutShortError):
        answer_chat(Told(Chunk("", usage=Usage(1, 0, None, None, "cancelled"))), chat())


def test_closing_the_iterator_ends_all_answers() -> None:
    engine = Counting()
    events = happenings(engine, asking.chat(engine, chat(n=4)))
    next(events)
    events.close()
    until(lambda: not engine.under_way)
    assert steady(lambda: engine.made)


def test_the_first_fault_ends_all_answers() -> None:
    class Failing(Counting):
        def stream(self, *asked: Any) -> Any:
            if self.begun == 2:
                raise DeviceError("CPU failed", hint="None.")
            return super().stream(*asked)

    engine = Failing()
    with pytest.raises(DeviceError):
        answer_chat(engine, chat(n=3))
    until(lambda: not engine.under_way)
    assert steady(lambda: engine.made)
