"""OpenAI's messages as turns, and the turns through templates built as GLM-4's are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edge.errors import UsageError
from edge.messages import Message
from edge.runtime.template import Template
from edge.tools.parse import Parser, parse
from edge.tools.render import conversation, legacy

WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "description": "天气", "parameters": {"type": "object"}},
}
PYTHON = {"type": "python"}

# Templates are read with trim_blocks, which takes a line break behind each block.
# Ours, with the structure of GLM-4-9B-Chat's: tools in a message, metadata in front of each content.
OF_2024 = (
    "[gMASK]<sop>{% for m in messages %}{% if m['tools'] is defined %}<|system|>\nTools:"
    "{% set tools = m['tools'] %}{% for tool in tools %}"
    "{% if tool['type'] == 'function' %}\n\n## {{ tool['function']['name'] }}\n\n"
    "{{ tool['function'] | tojson(indent=4) }}\nJSON, please.{% elif tool['type'] == 'python' %}\n\n## python\n\nRaw."
    "{% endif %}{% endfor %}{% endif %}{% if m['content'] %}<|{{ m['role'] }}|>{{ m['metadata'] }}\n{{ m['content'] }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# With that of GLM-4-0414's: tools beside the messages, system turns first.
OF_0414 = (
    "[gMASK]<sop>{% if tools %}<|system|>\nTools:{% for tool in tools %}{% set f = tool['function'] %}"
    "\n\n## {{ f.name }}\n\n{{ f | tojson(indent=4, ensure_ascii=False) }}\nJSON, please.{% endfor %}{% endif %}"
    "{% for m in messages if m.role == 'system' %}<|system|>\n{{ m.content }}{% endfor %}"
    "{% for m in messages if m.role != 'system' %}<|{{ m.role }}|>{{ m.metadata or '' }}\n"
    "{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
OF_Z1 = OF_0414.replace("<|assistant|>{% endif %}", "<|assistant|>\n<think>{% endif %}")


def call(one: str, name: str = "get_weather", arguments: str = '{"city": "SF"}') -> dict[str, Any]:
    return {"id": one, "type": "function", "function": {"name": name, "arguments": arguments}}


def result(one: str, content: Any = "23") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": one, "content": content}


USER = {"role": "user", "content": "?"}
ROUND = [
    {"role": "system", "content": "Be brief."},
    USER,
    {"role": "assistant", "content": None, "tool_calls": [call("a"), call("b", arguments='{"city": "上海"}')]},
    result("b", "9"),
    result("a", "23"),
]


def test_tools_stand_beside_the_callers_system_prompt() -> None:
    assert conversation(ROUND, [WEATHER])[0] == Message("system", "Be brief.", tools=(WEATHER,))
    assert conversation([USER], [WEATHER]) == [Message("system", "", tools=(WEATHER,)), Message("user", "?")]
    assert conversation([USER]) == [Message("user", "?")]


def test_every_call_is_a_turn_and_results_follow_in_the_order_of_the_calls() -> None:
    assert conversation(ROUND)[2:] == [
        Message("assistant", '{"city": "SF"}', metadata="get_weather"),
        Message("assistant", '{"city": "上海"}', metadata="get_weather"),
        Message("observation", "23"),
        Message("observation", "9"),
    ]


def test_text_before_a_call_is_a_turn_before_it() -> None:
    told = [USER, {"role": "assistant", "content": "Wait.", "tool_calls": [call("a", arguments="")]}, result("a", "")]
    assert conversation(told)[1:] == [
        Message("assistant", "Wait."),
        Message("assistant", "{}", metadata="get_weather"),
        Message("observation", '""'),
    ]


def test_developers_parts_and_what_came_before_tools() -> None:
    told = [
        {"role": "developer", "content": [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]},
        {"role": "assistant", "function_call": {"name": "f", "arguments": '{"a": 1}'}},
        {"role": "function", "name": "f", "content": "done"},
    ]
    assert conversation(told) == [
        Message("system", "A\nB"), Message("assistant", '{"a": 1}', metadata="f"), Message("observation", "done")
    ]  # fmt: skip
    assert legacy([{"name": "f"}]) == [{"type": "function", "function": {"name": "f"}}]


CALLED = {"role": "assistant", "tool_calls": [call("a")]}


@pytest.mark.parametrize(
    ("messages", "tools", "said"),
    [
        ([USER, result("x")], [], "'x' belongs to no call"),
        ([CALLED, result("x")], [], "'x' belongs to no call"),
        ([CALLED, result("a"), result("a")], [], "'a' belongs to no call"),
        ([CALLED, {"role": "tool", "content": ""}], [], "'' belongs to no call"),
        ([CALLED, USER], [], "'a' of get_weather has no result"),
        ([CALLED], [], "'a' of get_weather has no result"),
        ([{"role": "assistant", "tool_calls": [call("a"), call("a")]}], [], "'a' is no id"),
        ([{"role": "assistant", "tool_calls": [call("")]}], [], "'' is no id"),
        ([{"role": "assistant", "tool_calls": [call("a", "no name")]}], [], "'no name' is no name"),
        ([{"role": "assistant", "tool_calls": [{"id": "a", "type": "custom"}]}], [], "type 'custom'"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], [], "type 'image_url'"),
        ([{"role": "critic", "content": "?"}], [], "role 'critic'"),
        ([USER], [WEATHER, WEATHER], "two tools are called 'get_weather'"),
        ([USER], [{"type": "retrieval"}], "type 'retrieval'"),
        ([USER], [{"type": "function", "function": {"name": "a\nb"}}], "no name for a function"),
        ([USER], [{"type": "function"}], "None is no name"),
    ],
)
def test_what_cannot_be_told_is_refused_by_name(messages: Any, tools: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        conversation(messages, tools)


def test_the_template_of_2024_writes_it_all() -> None:
    shown = json.dumps(WEATHER["function"], indent=4, ensure_ascii=False)
    assert Template(OF_2024).render(conversation(ROUND, [WEATHER])) == (
        f"[gMASK]<sop><|system|>\nTools:\n## get_weather\n\n{shown}\nJSON, please.<|system|>\nBe brief.<|user|>\n?"
        '<|assistant|>get_weather\n{"city": "SF"}<|assistant|>get_weather\n{"city": "上海"}'
        "<|observation|>\n23<|observation|>\n9<|assistant|>"
    )


def test_the_template_of_0414_and_of_z1_write_it_all() -> None:
    turns = conversation(ROUND, [WEATHER])
    text = Template(OF_0414).render(turns)
    assert text.startswith("[gMASK]<sop><|system|>\nTools:\n## get_weather\n\n{\n    ")
    assert '"天气"' in text and "<|system|>\nBe brief.<|user|>\n?<|assistant|>get_weather\n" in text
    assert text.endswith("<|observation|>\n23<|observation|>\n9<|assistant|>")
    thinking = Template(OF_Z1)
    assert thinking.render(turns) == text + "\n<think>"
    assert thinking.opens_thought
    assert not Template(OF_0414).opens_thought


def test_a_built_in_tools_text_comes_back_as_the_model_wrote_it() -> None:
    code = 'print("a")\n\n  # ü'
    heard = parse(f"python\n{code}", [PYTHON], new_id=lambda: "a")
    told = {"role": "assistant", "tool_calls": [call("a", "python", heard.calls[0].arguments)]}
    turns = conversation([USER, told, result("a")], [PYTHON])
    assert turns[2] == Message("assistant", code, metadata="python")
    assert Template(OF_2024).render(turns).endswith(f"## python\n\nRaw.<|user|>\n?<|assistant|>python\n{code}"
                                                    "<|observation|>\n23<|assistant|>")  # fmt: skip
    other = conversation([{"role": "assistant", "tool_calls": [call("a", "python", "1 + 1")]}, result("a")])
    assert other[0].content == "1 + 1"


@pytest.mark.parametrize("arguments", ["[" * 200_000, '{"code":' * 100_000, "{", "5"])
def test_what_is_not_wrapped_stays_as_it_is(arguments: str) -> None:
    told = {"role": "assistant", "tool_calls": [call("a", "python", arguments)]}
    assert conversation([USER, told, result("a")], [PYTHON])[2].content == arguments


@pytest.mark.parametrize("source", [OF_2024, OF_0414])
def test_what_the_template_writes_the_parser_reads(source: str) -> None:
    text = Template(source).render(conversation(ROUND, [WEATHER]))
    answer = text.partition("<|user|>\n?<|assistant|>")[2].partition("<|observation|>")[0]
    parser = Parser([WEATHER])
    parser.push(answer)
    parser.finish()
    assert [(c.name, c.arguments, c.valid) for c in parser.parsed.calls] == [
        ("get_weather", '{"city": "SF"}', True), ("get_weather", '{"city": "上海"}', True)
    ]  # fmt: skip
