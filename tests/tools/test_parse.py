"""Answers → text, thoughts and calls, whole and in pieces of every size."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import UsageError
from edge.tools.answer import ArgumentsDelta, CallStart, Event, Parsed, ReasoningDelta, TextDelta
from edge.tools.parse import Parser, parse


def function(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


TOOLS = [
    *map(function, ("get_weather", "get", "math.gcd")),
    {"type": "function", "function": {"name": "held", "strict": True}},
    *({"type": t} for t in ("python", "simple_browser", "cogview")),
]
ARGUMENTS = '{"city": "SF", "deep": [{"a": "}\\"{\\\\"}], "text": "上海 😀"}'


def ids() -> Any:
    counter = itertools.count()
    return lambda: f"call_{next(counter)}"


def whole(text: str, **how: Any) -> Parsed:
    return parse(text, TOOLS, new_id=ids(), **how)


def pieces(text: str, cuts: list[int], **how: Any) -> tuple[Parsed, Parsed]:
    """What the parser has kept, and what its events add up to."""
    parser = Parser(TOOLS, new_id=ids(), **how)
    ends = [0, *sorted({cut % (len(text) + 1) for cut in cuts}), len(text)]
    events: list[Event] = []
    for begin, end in itertools.pairwise(ends):
        events += parser.push(text[begin:end])
    events += parser.finish()
    told = Parsed(truncated=parser.parsed.truncated)
    arguments: dict[int, str] = {}
    starts = []
    for event in events:
        match event:
            case TextDelta(piece):
                told.content += piece
            case ReasoningDelta(piece):
                told.reasoning += piece
            case CallStart():
                assert event.index == len(starts)
                starts.append(event)
                arguments[event.index] = ""
            case ArgumentsDelta(index, piece):
                assert index == len(starts) - 1
                arguments[index] += piece
    kept = [(c.id, c.name, c.arguments) for c in parser.parsed.calls]
    assert kept == [(s.id, s.name, arguments[s.index]) for s in starts]
    told.calls = parser.parsed.calls
    return parser.parsed, told


# text → content, calls
CASES: dict[str, tuple[str, str, list[tuple[str, str]]]] = {
    "a call": (f"get_weather\n{ARGUMENTS}", "", [("get_weather", ARGUMENTS)]),
    "plain text": ("\nHello.\n\n- one\n- two", "Hello.\n\n- one\n- two", []),
    "a leading line break": (f"\nget_weather\n{ARGUMENTS}", "", [("get_weather", ARGUMENTS)]),
    "blank lines": ("\n\n  \nget\n\n \n{}", "", [("get", "{}")]),
    "spaces behind the name": ("get  \n{}", "", [("get", "{}")]),
    "on one line": ('get {"a": 1}', "", [("get", '{"a": 1}')]),
    "a dotted name": ('math.gcd\n{"a": 1}', "", [("math.gcd", '{"a": 1}')]),
    "text before": ("Let me see.\n\nget\n{}", "Let me see.", [("get", "{}")]),
    "text before, in a turn": ("Let me see.<|assistant|>get\n{}", "Let me see.", [("get", "{}")]),
    "text behind": ("get\n{}\nThere.", "There.", [("get", "{}")]),
    "text around": ("A\nget\n{}\n\nB\nget\n{}", "A\nB", [("get", "{}"), ("get", "{}")]),
    "turns": ('get\n{}<|assistant|>get_weather\n{"a": 1}', "", [("get", "{}"), ("get_weather", '{"a": 1}')]),
    "adjacent": ("get\n{}get_weather\n{}", "", [("get", "{}"), ("get_weather", "{}")]),
    "lines": ("get\n{}\nget_weather\n{}\n", "", [("get", "{}"), ("get_weather", "{}")]),
    "two turns of text": ("One.<|assistant|>\nTwo.", "One.\nTwo.", []),
    "a fence": ('get\n```json\n{"a": 1}\n```', "", [("get", '{"a": 1}')]),
    "a fence, then text": ('get\n```\n{"a": 1}\n```\nDone.', "Done.", [("get", '{"a": 1}')]),
    "a fence, then blanks": ("get\n```\n{}\n``` \tDone.", "Done.", [("get", "{}")]),
    "a fence, then a call": ("get\n```json\n{}\n```\nget\n{}", "", [("get", "{}"), ("get", "{}")]),
    "another fence": ('get\n```json {x}\n{"a": 1}', 'get\n```json {x}\n{"a": 1}', []),
    "spread JSON": ('get\n{\n  "a": 1\n}', "", [("get", '{\n  "a": 1\n}')]),
    "a line break in a string": ('get\n{"a": "x\ny\t"}', "", [("get", '{"a": "x\\ny\\t"}')]),
    "a sentence": ("get_weather is a function that…", "get_weather is a function that…", []),
    "a sentence on two lines": ("get_weather\nis a function", "get_weather\nis a function", []),
    "a name twice": ("get\nget\n{}", "get", [("get", "{}")]),
    "an unknown name": ('get_time\n{"a": 1}', 'get_time\n{"a": 1}', []),
    "a longer name": ('get_weather2\n{"a": 1}', 'get_weather2\n{"a": 1}', []),
    "a name inside a line": ('I call get\n{"a": 1}', 'I call get\n{"a": 1}', []),
    "a list": ("get\n[1, 2]", "get\n[1, 2]", []),
    "a string": ('get\n"SF"', 'get\n"SF"', []),
    "a set": ("get\n{city}", "get\n{city}", []),
    "a name alone": ("get_weather", "get_weather", []),
    "a name and nothing": ("get_weather\n{", "get_weather\n{", []),
    "a call shown in a fence": (
        "To call it write:\n```\nget\n{}\n```\nThat is all.", "To call it write:\n```\nget\n{}\n```\nThat is all.", [],
    ),
    "a fence shown, then a call": ("So:\n~~~ py\nget\n{}\n~~~\nget\n{}", "So:\n~~~ py\nget\n{}\n~~~", [("get", "{}")]),
    "a fence in a fence": ("````\n```\nget\n{}\n```\n````\nget\n{}", "````\n```\nget\n{}\n```\n````", [("get", "{}")]),
    "signs of a fence in a line": ("```x``` is code\nget\n{}", "```x``` is code", [("get", "{}")]),
    "a fence ends with its turn": ("```\nx<|assistant|>get\n{}", "```\nx", [("get", "{}")]),
    "a sentence with an object": ('get {"a": "x"} is how.', 'get {"a": "x"} is how.', []),
    "on one line, then text": ('get {"a": "}"} \t\nThere.', "There.", [("get", '{"a": "}"}')]),
    "on one line, then a turn": ('get {"a": 1}<|assistant|>get {}', "", [("get", '{"a": 1}'), ("get", "{}")]),
    "a turn's sign in a string": (
        'get\n{"a": "<|assistant|>"}<|assistant|>get {"b": "\\"<|assistant|>"}', "",
        [("get", '{"a": "<|assistant|>"}'), ("get", '{"b": "\\"<|assistant|>"}')],
    ),
    "a strict function": ('held\n{"a": 1}', "", [("held", '{"a": 1}')]),
    "a strict function on one line": ('held {"a": 1}', 'held {"a": 1}', []),
    "a strict function behind blanks": ('held \n{"a": 1}', 'held \n{"a": 1}', []),
    "a strict function behind a blank line": ('held\n\n{"a": 1}', 'held\n\n{"a": 1}', []),
    "a strict function indented": ('held\n {"a": 1}', 'held\n {"a": 1}', []),
    "a strict function in a fence": ('held\n```json\n{"a": 1}\n```', 'held\n```json\n{"a": 1}\n```', []),
    "half a sign": ("1 <|assist", "1 <|assist", []),
    "signs": ("a < b << c <| d", "a < b << c <| d", []),
    "python": ("python\n\n  x = '{'\n\nprint(x)\n", "", [("python", '{"code": "  x = \'{\'\\n\\nprint(x)"}')]),
    "a browser": ('simple_browser\nsearch("a")', "", [("simple_browser", '{"call": "search(\\"a\\")"}')]),
    "built-ins in turns": (
        "I see.<|assistant|>cogview\nA cat<|assistant|>python\n1", "I see.",
        [("cogview", '{"prompt": "A cat"}'), ("python", '{"code": "1"}')],
    ),
    "a list of languages": ("Languages:\npython\njava", "Languages:\npython\njava", []),
    "python in a sentence": ("python is nice\n1", "python is nice\n1", []),
    "python alone": ("python\n", "python\n", []),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_an_answer_says(name: str) -> None:
    text, content, calls = CASES[name]
    parsed = whole(text)
    assert parsed.content == content
    assert [(c.name, c.arguments) for c in parsed.calls] == calls
    assert all(c.valid and isinstance(json.loads(c.arguments), dict) for c in parsed.calls)
    assert not parsed.truncated and not parsed.reasoning
    assert [c.id for c in parsed.calls] == [f"call_{i}" for i in range(len(calls))]


@pytest.mark.parametrize("name", CASES)
def test_sign_by_sign_it_says_the_same(name: str) -> None:
    text = CASES[name][0]
    parsed, told = pieces(text, list(range(len(text))))
    assert parsed == told == whole(text)


PARTS = st.sampled_from(
    ["get", "get_weather", "get_", "python", "cogview", "\n", "\n\n", " ", "\u3000", "{", "}", '{"a": ', '"', "\\",
     "[1]", "<|assistant|>", "<|assi", "<", "<think>", "</think>", "```", "```json\n", "~~~",
     "held", " is", '{"a": "<|assistant|>"}', "Hello", "上", "😀", "{}",
     '{"b": {}}', "."]
)  # fmt: skip
TEXTS = st.lists(PARTS | st.text(max_size=3), max_size=14).map("".join)


@given(TEXTS, st.lists(st.integers(0, 200), max_size=12), st.booleans(), st.booleans(), st.booleans())
def test_however_it_is_cut_it_says_the_same(
    text: str, cuts: list[int], opened: bool, parallel: bool, formatted: bool
) -> None:
    how = {"opened": opened, "parallel": parallel, "formatted": formatted}
    parsed, told = pieces(text, cuts, **how)
    assert parsed == told == whole(text, **how)
    assert pieces(text, list(range(len(text))), **how)[0] == parsed


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(
    st.lists(st.tuples(st.sampled_from(["get", "math.gcd"]), st.dictionaries(st.text(), JSON, max_size=3)),
             min_size=1, max_size=3),
    st.sampled_from(["<|assistant|>", "\n", ""]), st.booleans(), st.lists(st.integers(0, 400), max_size=8),
)  # fmt: skip
def test_any_arguments_come_through(calls: Any, between: str, ascii_only: bool, cuts: list[int]) -> None:
    written = [(name, json.dumps(arguments, ensure_ascii=ascii_only)) for name, arguments in calls]
    if any("<|assistant|>" in arguments for _, arguments in written):
        return
    parsed, _ = pieces(between.join(f"{name}\n{arguments}" for name, arguments in written), cuts)
    assert [(c.name, c.arguments) for c in parsed.calls] == written
    assert all(c.valid for c in parsed.calls) and not parsed.content


@given(st.text())
def test_any_code_comes_through(code: str) -> None:
    parsed = whole(f"python\n{code}")
    bare = code.rstrip()
    if bare and "<|assistant|>" not in code and "<think>" not in code:
        first = len(bare) - len(bare.lstrip())
        assert json.loads(parsed.calls[0].arguments) == {"code": bare[bare.rfind("\n", 0, first) + 1 :]}


@pytest.mark.parametrize("cut", range(len("get_weather\n{"), len(f"get_weather\n{ARGUMENTS}")))
def test_arguments_cut_off_are_never_a_call_to_run(cut: int) -> None:
    text = f"get_weather\n{ARGUMENTS}"[:cut]
    parsed = whole(text)
    if cut == len("get_weather\n{"):
        assert parsed.content == text and not parsed.calls
        return
    assert parsed.truncated and parsed.finish_reason("stop") == "length"
    assert [(c.arguments, c.valid) for c in parsed.calls] == [(text.partition("\n")[2], False)]


def test_a_turn_ends_arguments_too() -> None:
    for name in ("get\n", "get "):
        parsed = whole(name + '{"a": [1, <|assistant|>get\n{}')
        assert [(c.arguments, c.valid) for c in parsed.calls] == [('{"a": [1, ', False), ("{}", True)]
        assert parsed.truncated and parsed.finish_reason("stop") == "length"


def test_a_turns_sign_is_text_without_tools_and_in_a_response_format() -> None:
    text = "The mark is <|assistant|> here"
    assert parse(text) == Parsed(content=text)
    for answer in ('{"a": "<|assistant|>"}', '{"a": "\n\nget\n{}"}', '"<|assistant|>get {}"'):
        for parsed in (whole(answer, formatted=True), pieces(answer, list(range(99)), formatted=True)[1]):
            assert (parsed.content, parsed.calls, parsed.truncated) == (answer, [], False)
        thought = whole(f"Hm.</think>\n{answer}", formatted=True, opened=True)
        assert (thought.content, thought.calls) == (answer, [])
    called = whole('get\n{"a": "<|assistant|>"}', formatted=True)
    assert (called.content, [c.arguments for c in called.calls]) == ("", ['{"a": "<|assistant|>"}'])


def test_a_call_on_one_line_is_told_when_the_line_has_ended() -> None:
    parser = Parser(TOOLS, new_id=ids())
    assert parser.push('get {"a": 1') == parser.push("}") == parser.push(" ") == []
    assert parser.push("\n") == [CallStart(0, "call_0", "get"), ArgumentsDelta(0, '{"a": 1}')]
    parser = Parser(TOOLS, new_id=ids())
    assert parser.push('get {"a": 1} ') == []
    assert parser.push("i") == [TextDelta('get {"a": 1} i')]
    assert whole('get {"a": "b').truncated


@pytest.mark.parametrize(
    "arguments", ['{"a": 1,}', '{"a" 1}', '{"a": [1}}', '{"a": TRUE}', '{"a": NaN}', '{"a": -Infinity}', '{"a": 1}']
)
def test_arguments_that_are_no_json_say_so(arguments: str) -> None:
    call = whole(f"get\n{arguments}").calls[0]
    assert call.arguments == arguments
    assert call.valid == (arguments == '{"a": 1}')


def test_finish_reasons() -> None:
    assert whole("get\n{}").finish_reason("stop") == "tool_calls"
    assert whole("get\n{}").finish_reason("length") == "length"
    assert whole("hello").finish_reason("stop") == "stop"
    assert whole("python\n1 +").finish_reason("length") == "length"


@pytest.mark.parametrize(
    ("text", "opened", "reasoning", "content"),
    [
        ("\nHm.\n\nget\n{}\n</think>\n\nHi.", True, "Hm.\n\nget\n{}", "Hi."),
        ("<think>\nHm.\n</think>\nHi.", False, "Hm.", "Hi."),
        ("\n<think></think>Hi.", False, "", "Hi."),
        ("Hm", True, "Hm", ""),
        ("Hm </thin", True, "Hm </thin", ""),
        ("The tag <think> opens.", False, "", "The tag <think> opens."),
    ],
)
def test_thoughts(text: str, opened: bool, reasoning: str, content: str) -> None:
    for parsed in (whole(text, opened=opened), pieces(text, list(range(len(text))), opened=opened)[1]):
        assert (parsed.reasoning, parsed.content, parsed.calls) == (reasoning, content, [])


def test_a_call_behind_a_thought() -> None:
    parsed = whole("Hm.\n</think>\n\npython\n1", opened=True)
    assert (parsed.reasoning, parsed.calls[0].arguments) == ("Hm.", '{"code": "1"}')


def test_without_tools_a_name_is_a_word() -> None:
    assert parse("get\n{}") == Parsed(content="get\n{}")


def test_one_call_is_enough_where_no_second_may_come() -> None:
    parser = Parser(TOOLS, parallel=False)
    parser.push("get\n{}")
    assert parser.done
    assert not parser.push("<|assistant|>get\n{}") and not parser.finish()
    assert len(parser.parsed.calls) == 1


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def test_text_waits_no_longer_than_it_must() -> None:
    parser = Parser(TOOLS)
    assert text_of(parser.push("ge")) == ""  # may become get
    assert text_of(parser.push("o")) == "geo"
    assert text_of(parser.push("graphy get")) == "graphy get"
    assert text_of(parser.push("\n")) == ""
    assert text_of(parser.push("He")) == "\nHe"
    assert text_of(parser.push("llo")) == "llo"
    assert text_of(parser.push("\nget_weather is")) == "\nget_weather is"


def test_a_call_is_told_as_it_comes() -> None:
    parser = Parser(TOOLS, new_id=ids())
    assert parser.push("get\n{") == []
    assert parser.push('"') == [CallStart(0, "call_0", "get"), ArgumentsDelta(0, '{"')]
    assert parser.push('a": "Ber') == [ArgumentsDelta(0, 'a": "Ber')]
    assert parser.push("lin") == [ArgumentsDelta(0, "lin")]
    assert parser.push('"}') == [ArgumentsDelta(0, '"}')]
    parser = Parser(TOOLS, new_id=ids())
    assert parser.push("python\nx") == [CallStart(0, "call_0", "python"), ArgumentsDelta(0, '{"code": "x')]
    assert parser.push('"') == [ArgumentsDelta(0, '\\"')]


def test_ids_are_unlike() -> None:
    made = {c.id for _ in range(50) for c in parse("get\n{}", TOOLS).calls}
    assert len(made) == 50 and all(one.startswith("call_") for one in made)


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="two tools are called 'get'"):
        Parser([function("get"), function("get")])


def test_a_long_answer_takes_its_time_once() -> None:
    text = "word " * 100_000
    assert parse(text, TOOLS).content == text
