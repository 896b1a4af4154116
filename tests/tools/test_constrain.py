"""What a request demands, as a grammar; and the pocket model held to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from edge.errors import UsageError
from edge.grammar import Amid, InTurn, JsonOf, Literally, Matching, OneOf, Several
from edge.messages import Message, Sampling
from edge.tools.constrain import MOST_TOOLS, demand
from edge.tools.parse import parse
from edge.tools.render import conversation

CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"]}
DAYS = {
    "type": "object",
    "properties": {"days": {"type": "integer", "minimum": 1, "maximum": 14}},
    "required": ["days"],
}


def function(name: str, parameters: Any = None, **more: Any) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {"name": name, **({"parameters": parameters} if parameters else {}), **more},
    }


WEATHER, FORECAST, NOTHING = function("weather", CITY), function("forecast", DAYS), function("nothing")
PYTHON = {"type": "python"}
BY_NAME = {"type": "function", "function": {"name": "forecast"}}


def called(name: str, schema: Any) -> InTurn:
    return InTurn((Literally(f"{name}\n"), JsonOf(json.dumps(schema))))


def test_nothing_is_demanded_of_what_is_left_to_the_model() -> None:
    for choice in (None, "auto"):
        found = demand([WEATHER], choice)
        assert (found.tools, found.grammar, found.parallel) == ((WEATHER,), None, True)
    assert demand().grammar is None
    assert demand(response_format={"type": "text"}).grammar is None


def test_none_hides_the_tools() -> None:
    assert demand([WEATHER], "none").tools == ()
    assert demand([WEATHER], "none", response_format={"type": "json_object"}).grammar == JsonOf('{"type": "object"}')


def test_required_is_one_call_or_several() -> None:
    both = (called("weather", CITY), called("forecast", DAYS))
    assert demand([WEATHER, FORECAST], "required").grammar == Several(both, "<|assistant|>")
    assert demand([WEATHER, FORECAST], "required", parallel=False).grammar == OneOf(both)
    assert demand([WEATHER], "required", parallel=False).grammar == both[0]


def test_a_named_function_is_called_once() -> None:
    found = demand([WEATHER, FORECAST], BY_NAME)
    assert found.grammar == called("forecast", DAYS)
    assert found.tools == (WEATHER, FORECAST)


def test_a_function_without_parameters_takes_an_empty_object() -> None:
    empty = {"properties": {}, "additionalProperties": False, "type": "object"}
    assert demand([NOTHING], "required", parallel=False).grammar == called("nothing", empty)


def test_a_built_in_tool_takes_any_text_that_is_not_blank() -> None:
    grammar = demand([PYTHON], {"type": "python"}).grammar
    assert isinstance(grammar, InTurn) and grammar.parts[0] == Literally("python\n")
    assert isinstance(grammar.parts[1], Matching)
    assert isinstance(demand([WEATHER, PYTHON], "required").grammar, OneOf)


def test_a_thought_stands_before_what_is_demanded() -> None:
    grammar = demand([FORECAST], BY_NAME, opened=True).grammar
    assert isinstance(grammar, InTurn) and isinstance(grammar.parts[0], Matching)
    assert grammar.parts[1] == called("forecast", DAYS)
    assert demand([FORECAST], opened=True).grammar is None


def test_strict_functions_are_held_wherever_they_are_called() -> None:
    strict = function("weather", CITY, strict=True)
    assert demand([strict, FORECAST]).grammar == Amid((("weather\n", JsonOf(json.dumps(CITY))),))
    with pytest.raises(UsageError, match="the end of 'get_weather'"):
        demand([strict, function("get_weather")])


def test_a_response_format_is_the_answer_or_else_a_call() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "days", "schema": DAYS}}
    assert demand(response_format=form).grammar == JsonOf(json.dumps(DAYS))
    assert demand([WEATHER], response_format=form).grammar == OneOf((called("weather", CITY), JsonOf(json.dumps(DAYS))))
    assert demand([WEATHER], "required", parallel=False, response_format=form).grammar == called("weather", CITY)
    told = [demand(tools, choice, response_format=form).formatted for tools, choice in (
        ([], None), ([WEATHER], "none"), ([WEATHER], "auto"), ([WEATHER], "required"), ([FORECAST], BY_NAME),
    )]  # fmt: skip
    assert told == [True, True, True, False, False]
    assert not demand([WEATHER], response_format={"type": "text"}).formatted


@pytest.mark.parametrize(
    ("tools", "how", "said"),
    [
        ([], {"tool_choice": "required"}, "there are no tools"),
        ([WEATHER], {"tool_choice": "always"}, "'always' is not known"),
        ([WEATHER], {"tool_choice": BY_NAME}, "names 'forecast'"),
        ([WEATHER], {"tool_choice": {"type": "allowed_tools"}}, "type 'allowed_tools'"),
        ([WEATHER], {"response_format": {"type": "xml"}}, "'xml' is not known"),
        ([WEATHER], {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "has no schema"),
        ([function(f"f{i}") for i in range(MOST_TOOLS + 1)], {}, "there are 129 tools"),
        ([function("f", {"type": "array"})], {"tool_choice": "required"}, "parameters of f have the type 'array'"),
        ([function("f", ["a"])], {"tool_choice": "required"}, "parameters of f have the type 'list'"),
        ([function("f", {"not": {}})], {"tool_choice": "required"}, "in the schema of f, the keyword 'not'"),
        ([function("f", {"not": {}}, strict=True)], {}, "in the schema of f, the keyword 'not'"),
    ],
)
def test_what_cannot_be_demanded_is_refused_by_name(tools: Any, how: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        demand(tools, **how)


def test_schemas_that_cost_too_much_together_are_refused_by_name() -> None:
    wide = {"properties": {f"p{i}": {"type": "integer", "minimum": 1} for i in range(60)}}
    many = [function(f"f{i}", wide) for i in range(20)]
    assert demand(many[:1], "required").grammar is not None
    with pytest.raises(UsageError, match=r"in the schema of f\d+, .* more than 4,000 rules"):
        demand(many, "required")
    assert demand(many).grammar is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800"])
def test_values_that_are_no_json_are_refused(value: Any) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": value}}}
    with pytest.raises(UsageError, match="in the schema of x"):
        demand(response_format=form)


def test_values_without_an_end_are_refused() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(UsageError, match=r"in the schema of x, .* nest"):
        demand(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": value}}})
    while value:  # taken apart by itself, it would go as deep
        value = value[0]


def test_schemas_that_nobody_enforces_may_say_anything() -> None:
    assert demand([function("f", {"not": {}})]).grammar is None


@pytest.mark.model
def test_the_pocket_model_keeps_to_it(pocket_dir: Path) -> None:
    """Drawn at a high temperature: what it writes is no sense, and fits."""
    from edge.runtime.engine import Engine
    from edge.runtime.settings import Settings

    numbers = {
        "type": "object",
        "properties": {
            "p": {"type": "number", "minimum": 0.25, "exclusiveMaximum": 1},
            "n": {"type": "integer", "minimum": -7, "maximum": 1000},
            "unit": {"enum": ["cel", "celsius", "c"]},
            "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
        },
        "required": ["p", "n", "unit", "tags"],
    }
    schemas = {"get": numbers, "get_forecast": DAYS, "get_weather": CITY}
    tools = [function(name, schema) for name, schema in schemas.items()]
    turns = conversation([{"role": "user", "content": "Call a tool."}], tools)
    engine = Engine.load(pocket_dir, Settings("CPU"))
    try:

        def answer(seed: int, grammar: Any, turns: Any = turns) -> str:
            how = Sampling(temperature=1.5, top_p=1, seed=seed, max_new_tokens=200, grammar=grammar, keep_special=True)
            return "".join(chunk.text for chunk in engine.stream(turns, how))

        for seed in range(4):
            for choice in ("required", *({"type": "function", "function": {"name": name}} for name in schemas)):
                wanted = demand(tools, choice, parallel=False)
                parsed = parse(answer(seed, wanted.grammar), wanted.tools)
                (call,) = parsed.calls
                assert call.valid and not parsed.content
                assert isinstance(choice, str) or call.name == choice["function"]["name"]
                jsonschema.validate(json.loads(call.arguments), schemas[call.name])
        form = {"type": "json_schema", "json_schema": {"name": "n", "schema": numbers}}
        text = answer(0, demand(response_format=form).grammar, [Message("user", "JSON, please.")])
        jsonschema.validate(json.loads(text), numbers)
        note = {"type": "string", "minLength": 129, "maxLength": 150}
        form = {"type": "json_schema", "json_schema": {"name": "n", "schema": note}}
        jsonschema.validate(json.loads(answer(0, demand(response_format=form).grammar)), note)
    finally:
        engine.close()
