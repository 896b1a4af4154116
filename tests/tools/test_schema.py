"""The grammars of schemas: every text in one is a document that fits, and keywords are kept or refused by name."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import UsageError
from edge.tools.joining import DEEPEST, MOST_RULES, Work
from edge.tools.schema import MOST_BYTES, ebnf
from tests.tools.ebnf import Grammar

A_B = {"a": {"type": "boolean"}, "b": {"type": "boolean"}}
NODE = {
    "type": "object",
    "properties": {"v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
    "required": ["v", "next"],
}


def tagged(kind: str) -> dict[str, Any]:
    return {"type": "object", "properties": {"kind": {"const": kind}, "n": {"type": "integer"}}, "required": ["kind"]}


# schema, documents in its grammar, documents that are not
KEPT: dict[str, tuple[Any, list[str], list[str]]] = {
    "anything": ({}, ["1", '{"a": [null, {}]}', '""'], ["", "{", "nul", "01", '"\n"', "{}  "]),
    "true": (True, ["[]"], ["]"]),
    "string": ({"type": "string"}, ['""', '"上\\n\\u00e9😀\\\\"'], ['"', '"\\x"', '"\\ud800"', '"a"b"']),
    "lengths": ({"type": "string", "minLength": 2, "maxLength": 3}, ['"ab"', '"a\\n上"'], ['"a"', '"abcd"']),
    "date": ({"format": "date"}, ['"2026-11-24"'], ['"2026-13-01"', '"2026-04-31"', '"26-1-1"', "1"]),
    "date-time": ({"format": "date-time"}, ['"2026-11-24T23:59:00.5+08:00"'], ['"2026-11-24 23:59"', '"x"']),
    "uuid": ({"format": "uuid"}, ['"01234567-89ab-cdef-0123-456789abcdef"'], ['"01234567"']),
    "ipv4": ({"format": "ipv4"}, ['"192.168.0.255"'], ['"192.168.0.256"', '"1.2.3"']),
    "email": ({"format": "email"}, ['"a.b@c.de"', '"a@b-c.d"'], ['"a.b"', '"@c.de"', '"a..b@c.de"', '"a@c"', '"a@c."']),
    "another format": ({"type": "string", "format": "uri"}, ['"x"'], ["1"]),
    "integer": ({"type": "integer"}, ["0", "-12", "1" * 15], ["01", "1.0", "1" * 16, "+1"]),
    "number": ({"type": "number"}, ["0", "-1.50", "2e-9"], ["1.", ".5", "1e999", "0x1"]),
    "boolean and null": ({"type": ["boolean", "null"]}, ["true", "null"], ["0", '"null"']),
    "enum": ({"enum": ["a", 1, None, {"x": [1.5]}]}, ['"a"', "1", "null", '{"x": [1.5]}'], ['"b"', "2"]),
    "enum of a type": ({"type": "integer", "enum": ["a", 1, 2.0]}, ["1", "2.0"], ['"a"']),
    "const": ({"const": 'a"\\上'}, ['"a\\"\\\\上"'], ['"a"']),
    "required": (
        {"type": "object", "properties": A_B, "required": ["b"]},
        ['{"b": true}', '{"a":true,"b":false}', '{\n  "a": true,\n  "b": true\n}'],
        ["{}", '{"a": true}', '{"b": true, "a": true}', '{"b": true,}', '{"b": true, "c": 1}', '{  "b": true}'],
    ),
    "optional": (
        {"type": "object", "properties": A_B},
        ["{}", '{"a": true}', '{"b": true}', '{"a": true, "b": true}'], ['{, "b": true}', '{"a": 1}'],
    ),
    "required and undeclared": ({"properties": {"a": {}}, "required": ["z"]}, ['{"z": 1}'], ['{"a": 1}', "{}"]),
    "a property that may not be": ({"properties": {"a": False, "b": {"type": "null"}}}, ['{"b": null}'], ['{"a": 1}']),
    "a map": (
        {"type": "object", "additionalProperties": {"type": "integer"}},
        ["{}", '{"x": 1, "y": 2}'], ['{"x": "1"}', '{"x": 1,}'],
    ),
    "any object": ({"type": "object"}, ["{}", '{"a": {"b": [1]}}'], ["[]", "1"]),
    "no properties": ({"type": "object", "additionalProperties": False}, ["{}", "{ }"], ['{"a": 1}']),
    "list": ({"type": "array", "items": {"type": "boolean"}}, ["[]", "[true, false]"], ["[1]", "[true,]", "[true"]),
    "some items": (
        {"items": {"type": "boolean"}, "minItems": 2, "maxItems": 3}, ["[true,true]", "[true, true, true]"],
        ["[true]", "[true, true, true, true]", "[]"],
    ),
    "a tuple": (
        {"prefixItems": [{"type": "integer"}, {"type": "boolean"}], "items": False},
        ["[1, true]"], ["[true, 1]", "[1]"],
    ),
    "a tuple and more": (
        {"prefixItems": [{"type": "integer"}], "items": {"type": "null"}, "maxItems": 2}, ["[1]", "[1, null]"],
        ["[1, null, null]", "[null]"],
    ),
    "no items": ({"type": "array", "maxItems": 0}, ["[]"], ["[1]"]),
    "anyOf": ({"anyOf": [{"type": "integer"}, {"type": "null"}], "title": "N"}, ["1", "null"], ['"1"']),
    "anyOf beside": (
        {"type": "integer", "anyOf": [{"minimum": 1000}, {"maximum": -1000}]},
        ["1000", "-1000"], ["999", "0", "1" * 16],
    ),
    "oneOf by type": ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, ["1", '"1"'], ["null"]),
    "oneOf by a tag": (
        {"oneOf": [tagged("a"), tagged("b")], "discriminator": {"propertyName": "kind"}},
        ['{"kind": "a"}', '{"kind": "b", "n": 1}'], ['{"kind": "c"}'],
    ),
    "allOf": (
        {"allOf": [{"properties": {"a": {}}, "required": ["a"]}, {"properties": {"b": {}}, "required": ["b"]}]},
        ['{"a": 1, "b": 2}'], ['{"a": 1}'],
    ),
    "allOf of bounds": ({"allOf": [{"type": "integer"}, {"type": "number", "minimum": 5}]}, ["5"], ["4", "5.5"]),
    "$ref": ({"$ref": "#/$defs/node", "$defs": {"node": NODE}}, ['{"v": 1, "next": {"v": 2, "next": null}}'], ["{}"]),
    "$ref and beside": (
        {"properties": {"a": {"$ref": "#/$defs/n", "description": "?", "minimum": 5}}, "required": ["a"],
         "$defs": {"n": {"type": "integer"}}}, ['{"a": 5}'], ['{"a": 4}', '{"a": 5.5}'],
    ),
    "a pointer": ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"const": 1}}}, ["1"], ["2"]),
    "itself": (
        {"properties": {"more": {"type": "array", "items": {"$ref": "#"}}}}, ['{"more": [{}, {"more": []}]}'], ["[]"],
    ),
    "words of no effect": (
        {"type": "array", "uniqueItems": False, "title": "T", "default": [], "x-order": 3, "items": {"const": 1}},
        ["[1, 1]"], ["[2]"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_a_keyword_is_kept(name: str) -> None:
    schema, inside, outside = KEPT[name]
    grammar = Grammar(ebnf(json.dumps(schema)))
    checker = jsonschema.Draft202012Validator(schema)
    for text in inside:
        assert grammar.holds(text), text
        checker.validate(json.loads(text))
    assert [text for text in outside if grammar.holds(text)] == []


@pytest.mark.parametrize("name", KEPT)
def test_every_text_of_a_grammar_fits_the_schema(name: str) -> None:
    schema = KEPT[name][0]
    grammar, rng = Grammar(ebnf(json.dumps(schema))), random.Random(0)
    checker = jsonschema.Draft202012Validator(schema)
    for _ in range(100):
        text = grammar.sample(rng)
        checker.validate(json.loads(text))
        text.encode()


VALUES = (
    st.integers(-3000, 3000)
    | st.decimals(-20, 20, places=2)
    | st.sampled_from([0, 1, -1, 10, 99, 100, Decimal("-0.0")])
)
BOUNDS = st.dictionaries(st.sampled_from(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]), VALUES)


@given(st.sampled_from(["integer", "number"]), BOUNDS, st.lists(VALUES, max_size=20), st.randoms(use_true_random=False))
def test_bounds_hold_what_lies_between_and_nothing_else(kind: str, bounds: Any, values: Any, rng: Any) -> None:
    def fits(value: Any) -> bool:
        return (
            value >= bounds.get("minimum", value) and value <= bounds.get("maximum", value)
            and not ("exclusiveMinimum" in bounds and value <= bounds["exclusiveMinimum"])
            and not ("exclusiveMaximum" in bounds and value >= bounds["exclusiveMaximum"])
        )  # fmt: skip

    written = ", ".join(f'"{word}": {value}' for word, value in bounds.items())
    try:
        grammar = Grammar(ebnf(f'{{"type": "{kind}"{", " if written else ""}{written}}}'))
    except UsageError as error:
        assert "lies between" in error.message
        assert not any(fits(value) for value in values if kind == "number" or value == int(value))
        return
    for _ in range(10):
        text = grammar.sample(rng)
        assert fits(Decimal(text)), text
        assert isinstance(json.loads(text), int if kind == "integer" else (int, float))
    for value in values:
        text = str(int(value)) if value == int(value) else str(value)
        assert grammar.holds(text) == (fits(value) and (kind == "number" or value == int(value))), text


@pytest.mark.parametrize(
    "schema",
    [
        *(schema for schema, _, _ in KEPT.values()),
        {"type": "integer", "minimum": -7, "maximum": 1000},
        {"type": "number", "minimum": -0.25, "exclusiveMaximum": 12.5},
        {"enum": ["cel", "celsius", "c", "k", 1, 12, 125, -1, {"a": 1}, {"a": 2}]},
    ],
)
def test_no_choices_between_texts_begin_alike(schema: Any) -> None:
    """Of such, xgrammar takes what is none of them: of cel and celsius, celelel."""
    assert Grammar(ebnf(json.dumps(schema))).alike() == []


def test_the_reader_sees_choices_that_begin_alike() -> None:
    assert Grammar('root ::= "cel" | "celsius"').alike() == ["c"]
    assert Grammar('root ::= [0-9] "a" | "-"? [5-6]').alike()


@given(st.lists(st.text("ab1") | st.integers(0, 120), min_size=1))
def test_an_enum_holds_its_values(values: Any) -> None:
    grammar = Grammar(ebnf(json.dumps({"enum": values})))
    assert grammar.alike() == []
    for value in [*values, "a", "ab", "b1", 1, 12, 120]:
        assert grammar.holds(json.dumps(value)) == (value in values)


REFUSED: list[tuple[Any, str]] = [
    *(({"type": "object", word: value}, f"'{word}'") for word, value in {
        "not": {}, "if": {}, "dependentRequired": {}, "patternProperties": {}, "propertyNames": {}, "minProperties": 1,
        "maxProperties": 2, "contains": {}, "uniqueItems": True, "multipleOf": 3, "pattern": "a", "$dynamicRef": "#x",
        "unevaluatedProperties": False,
    }.items()),
    ({"properties": {"x": {"items": {"pattern": "a"}}}}, "'pattern' at #/properties/x/items"),
    ({"type": "dict"}, 'type "dict"'),
    ({"type": []}, "no type"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "may fit together"),
    ({"oneOf": [{"type": "object"}, {"type": "object"}]}, "may fit together"),
    ({"allOf": [{"minimum": 1}, {"minimum": 2}]}, "both say 'minimum'"),
    ({"allOf": [{"properties": {"a": {}}, "additionalProperties": False}, {"properties": {"b": {}}}]}, "another part"),
    ({"enum": []}, "nothing in the enum"),
    ({"type": "string", "enum": [1]}, "nothing in the enum"),
    ({"enum": ["a"], "maxLength": 1}, "'maxLength' at # stands beside"),
    ({"type": "integer", "minimum": 5, "maximum": 4}, "no integer lies between"),
    ({"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 2}, "no integer lies between"),
    ({"type": "number", "exclusiveMinimum": True}, "no number"),
    ({"type": "number", "minimum": "1"}, "no number"),
    ({"type": "string", "maxLength": 100_000}, "maxLength at # is 100000"),
    ({"type": "string", "minLength": -1}, "minLength at # is -1"),
    ({"type": "string", "minLength": "x"}, 'minLength at # is "x"'),
    ({"type": "string", "minLength": None, "maxLength": 2}, "minLength at # is null"),
    ({"items": {}, "maxItems": None}, "maxItems at # is null"),
    ({"type": "string", "format": "date", "maxLength": 3}, "format and a length"),
    ({"items": {}, "minItems": 3, "maxItems": 2}, "above maxItems"),
    ({"items": [{}]}, "items at # is a list"),
    ({"required": ["a"], "additionalProperties": False}, "'a' at # is required and not allowed"),
    ({"required": "a"}, "required at # is \"a\", no list of names"),
    ({"$ref": "https://example.com/a.json"}, "leads out"),
    ({"$ref": "#/$defs/a"}, "leads nowhere"),
    ({"$ref": "#"}, "leads to itself"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "leads to itself"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]}}}, "leads to itself"),
    ({"properties": {"a": False}, "required": ["a"]}, "which no document fits"),
    ({"properties": {"a": 1}}, "#/properties/a is 1"),
    (False, "which no document fits"),
    ([], "which no document fits"),
    ({"anyOf": []}, "no list of schemas"),
    ({"anyOf": {}}, "no list of schemas"),
    ({"allOf": 1}, "allOf at # is 1, no list of schemas"),
    ({"enum": 1}, "no list"),
    *(({"properties": {"x": {"type": kind, "format": form}}}, "format at #/properties/x is")
      for form in (["date"], {}, [], 5) for kind in ("string", "integer")),
    ({"required": [[1]]}, "required at # is [[1]], no list of names"),
    ({"required": [{}]}, "required at # is [{}], no list of names"),
    ({"oneOf": [{"type": "object", "required": [[]]}, {"type": "object", "required": ["a"]}]}, "required at #/oneOf/0"),
    ({"oneOf": [{"required": 5}, {"type": "object"}]}, "required at #/oneOf/0 is 5"),
    ({"oneOf": [{"type": "object"}, {"properties": 5}]}, "properties at #/oneOf/1 is 5"),
    ({"allOf": [{"required": ["a"]}, {"required": 5}]}, "required at #/allOf/1 is 5"),
    ({"allOf": [{"properties": {"a": {}}}, {"properties": 5}]}, "properties at #/allOf/1 is 5"),
    ({"allOf": [{"required": ["a"]}, {"required": [1]}]}, "required at #/allOf/1 is [1]"),
    ({"allOf": [{"properties": {"a": {}}}, {"properties": [1]}]}, "properties at #/allOf/1 is [1]"),
    ({"allOf": [{"type": "object"}, 5]}, "#/allOf/1 is 5"),
    ({"type": "integer", "anyOf": [5]}, "#/anyOf/0 is 5"),
    ({"type": "integer", "anyOf": [{"type": {}}]}, "type {} at #/anyOf/0"),
    ({"$ref": "#/a", "minimum": 1, "a": 5}, "#/a is 5"),
    ({"$ref": "#/a/" + "9" * 5000, "a": []}, "leads nowhere"),
    ({"allOf": [{"$ref": "#/$defs/n", "minimum": 1}], "$defs": {"n": {"minimum": 2}}}, "both say 'minimum'"),
    ({"const": float("nan")}, "no JSON"),
    ({"type": "number", "minimum": float("inf")}, "no JSON"),
    ({"const": "\ud800"}, "no JSON"),
    ({"allOf": [{"$ref": "#"}, {"type": "object"}]}, "leads to itself"),
    ({"description": "x" * MOST_BYTES}, "bytes"),
    ({"properties": {str(i): {"enum": [1]} for i in range(3000)}}, "rules"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "said"), REFUSED)
def test_what_cannot_be_kept_is_refused_by_name(schema: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        ebnf(json.dumps(schema))
    assert said in caught.value.message


def levels(count: int, bottom: Any, of: Callable[[dict[str, str]], Any]) -> dict[str, Any]:
    """Definitions of which each asks for the next as `of` says."""
    defs = {f"a{i}": of({"$ref": f"#/$defs/a{i + 1}"}) for i in range(count)}
    return {"$defs": {**defs, f"a{count}": bottom}, "$ref": "#/$defs/a0"}


def test_what_is_asked_for_twice_at_every_level_is_read_once() -> None:
    schema = levels(30, {"type": "object", "properties": A_B}, lambda next_: {"allOf": [next_, next_]})
    begin = time.process_time()
    grammar = Grammar(ebnf(json.dumps(schema)))
    assert time.process_time() - begin < 2
    assert grammar.holds('{"a": true}') and not grammar.holds('{"a": 1}')


@pytest.mark.parametrize(
    "schema",
    [
        levels(500, {}, lambda n: {**n, "title": "x", "minItems": 0}),
        {"allOf": [levels(500, {}, lambda n: n), {"minItems": 0}], **levels(500, {}, lambda n: n)},
        levels(31, {}, lambda n: {"prefixItems": [{**n, "minItems": 0}, {**n, "minItems": 0}]}),
        levels(31, {}, lambda n: {"properties": {"a": {**n, "items": {}}, "b": {**n, "items": {}}}}),
        levels(31, {"type": "null"}, lambda n: {"anyOf": [{"allOf": [n, {}]}, {"allOf": [n, {}]}]}),
        {"oneOf": [{"const": i} for i in range(5_000)]},
        {"oneOf": [{"enum": list(range(i * 100, i * 100 + 100))} for i in range(150)]},
        {"anyOf": [{"type": "null"}] * 3_000, "enum": list(range(5_000))},
        {"anyOf": [{}] * 10_000, "required": [str(i) for i in range(5_000)]},
    ],
    ids=range(9),
)
def test_a_schema_that_costs_too_much_is_refused_soon(schema: Any) -> None:
    begin = time.process_time()
    with pytest.raises(UsageError, match=r"more than|nests deeper"):
        ebnf(json.dumps(schema))
    assert time.process_time() - begin < 5


def test_the_work_of_a_request_is_counted_together() -> None:
    schema = json.dumps({"properties": {f"p{i}": {"type": "integer"} for i in range(300)}})
    work = Work()
    with pytest.raises(UsageError, match="rules"):
        for _ in range(MOST_RULES):
            ebnf(schema, work)
    ebnf(schema)
    for part, said in (
        ({"const": "x" * 90_000}, "more than 400,000 signs"),
        ({"maxItems": 128}, "add up to more than 10,000"),
        ({"maxLength": 128}, "add up to more than 10,000"),
        ({"oneOf": [{"const": i} for i in range(200)]}, "more than 200,000 steps"),
    ):
        work = Work()
        with pytest.raises(UsageError, match=said):
            for _ in range(100):
                ebnf(json.dumps(part), work)
        ebnf(json.dumps(part))


def test_one_form_is_one_rule() -> None:
    """Each costs xgrammar what the first does."""
    for form in ({"format": "email"}, {"maxLength": 128}, {"type": "integer", "minimum": 3}):
        texts = [ebnf(json.dumps({"prefixItems": [form] * count, "items": False})) for count in (1, 40)]
        assert texts[0].count("::=") == texts[1].count("::=")


@pytest.mark.parametrize("bound", ["1e999999999", "-1e-999999999", "1e99999999999999999999"])
def test_a_bound_that_would_fill_the_memory_is_refused(bound: str) -> None:
    with pytest.raises(UsageError, match="no number to reckon with"):
        ebnf(f'{{"type": "number", "minimum": {bound}}}')


@pytest.mark.parametrize(
    ("least", "most"), [(0, 129), (0, 255), (0, 256), (129, None), (128, 192), (200, 200), (63, 320), (0, 1000)]
)
def test_a_long_string_has_its_length(least: int, most: int | None) -> None:
    """It is counted in parts, and each length at a border of one has to be right."""
    schema = {"minLength": least, **({} if most is None else {"maxLength": most})}
    grammar = Grammar(ebnf(json.dumps({"type": "string", **schema})))
    borders = {each + off for each in (0, 64, 128, 192, 256, 320, least, most or 0) for off in (-1, 0, 1)}
    for length in sorted(each for each in borders if each >= 0):
        fits = least <= length and (most is None or length <= most)
        assert grammar.holds(json.dumps("x" * length)) == fits, length


def test_choices_may_be_refs() -> None:
    defs = {"A": tagged("a"), "B": tagged("b")}
    grammar = Grammar(ebnf(json.dumps({"$defs": defs, "oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}]})))
    assert grammar.holds('{"kind": "b"}') and not grammar.holds('{"kind": "c"}')


def test_depth_and_nonsense_are_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(DEEPEST + 1):
        schema = {"type": "array", "items": schema}
    for text, said in (
        (json.dumps(schema), "nests deeper"), ("{", "no JSON"), ("[" * 90_000, "nests deeper"),
        ('{"$ref": "#/a", "a": ' + '{"allOf": [' * 100 + "{}" + "]}" * 100 + "}", "allOf|nests"),
    ):  # fmt: skip
        with pytest.raises(UsageError) as caught:
            ebnf(text)
        assert any(part in caught.value.message for part in said.split("|"))
