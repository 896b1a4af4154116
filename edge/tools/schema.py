"""JSON Schema → a grammar of the JSON documents that fit it, in the EBNF of xgrammar, which constrains OpenVINO GenAI.

xgrammar reads schemas itself, but what OpenVINO GenAI 2026.4 carries of it was seen to let blanks run on without an
end, to write numbers between bounds that are no JSON (`0D75`), and to pass over multipleOf, uniqueItems, oneOf, allOf,
not, if, dependentRequired, propertyNames, required names without a property, and what stands beside $ref or anyOf. Here
a keyword is kept, or refused by name. What is kept:

type, enum, const; properties, required, additionalProperties; items, prefixItems, minItems, maxItems; minLength,
maxLength, format (date, time, date-time, uuid, ipv4, email; others say nothing, as in JSON Schema itself); minimum,
maximum, exclusiveMinimum, exclusiveMaximum; anyOf, oneOf where its choices exclude each other, allOf where its parts do
not overlap, $ref inside the document.

Documents come in a form that every schema allows: properties in the schema's order, none that is not declared unless
the schema declares none, blanks of at most one space or one line break and its indentation, numbers of at most 15
digits before and behind the point. A keyword that JSON Schema does not know says nothing there and says nothing here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import groupby, takewhile
from typing import Any

from edge.tools import numbers
from edge.tools.scalars import BOUNDS, lengths, number, refusal, shown, string, times

MOST_BYTES, DEEPEST, MOST_RULES = 100_000, 32, 4_000
"""Of a schema: its size in UTF-8, how deep it nests, the rules of its grammar."""

_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_OF_TYPE = {
    "properties": "object", "required": "object", "additionalProperties": "object",
    "items": "array", "prefixItems": "array", "minItems": "array", "maxItems": "array",
    "minLength": "string", "maxLength": "string", "format": "string",
    **dict.fromkeys(BOUNDS, "number"),
}  # fmt: skip
_JOINING = ("$ref", "anyOf", "oneOf", "allOf")
_KEPT = {*_OF_TYPE, *_JOINING, "type", "enum", "const"}
_REFUSED = {
    "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies", "patternProperties",
    "propertyNames", "minProperties", "maxProperties", "unevaluatedProperties", "unevaluatedItems", "additionalItems",
    "contains", "minContains", "maxContains", "uniqueItems", "multipleOf", "pattern", "$dynamicRef", "$recursiveRef",
}  # fmt: skip
_NO_EFFECT: dict[str, Any] = {"uniqueItems": False, "minProperties": 0, "unevaluatedProperties": True}

_COMMA = ' "," ws '
_SHARED = {
    "ws": '(" " | "\\n" [ ]{0,32})?',
    "hex": "[0-9A-Fa-f]",
    # no half of a surrogate pair: it is no character
    "char": r'[^"\\\x00-\x1f] | "\\" (["\\/bfnrt] | "u" ([0-9A-Ca-cEFef] hex hex hex | [Dd] [0-7] hex hex))',
    "string": r'"\"" char* "\""',
    "integer": f'"-"? ("0" | [1-9] [0-9]{{0,{numbers.DIGITS - 1}}})',
    "number": f'integer ("." [0-9]{{1,{numbers.DIGITS}}})? ([eE] [+-]? [0-9]{{1,2}})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "value": "object | array | string | number | boolean | null",
    "pair": 'string ":" ws value',
    "object": '"{" ws (pair ("," ws pair)* ws)? "}"',
    "array": '"[" ws (value ("," ws value)* ws)? "]"',
}


def ebnf(schema: str) -> str:
    """The grammar, whose first rule is `root`.

    Args:
        schema: JSON Schema, as JSON.

    Raises:
        UsageError: it is no schema, has a keyword that cannot be kept, contradicts itself, or is too large.
    """
    if len(schema.encode()) > MOST_BYTES:
        raise refusal(f"the schema has {len(schema.encode()):,} bytes", f"Keep it below {MOST_BYTES:,}.")
    try:
        document = json.loads(schema, parse_float=Decimal)
    except (ValueError, RecursionError) as error:
        raise refusal(f"the schema is no JSON ({error})", "Send a JSON Schema.") from error
    return _Writer(document).text()


class _Writer:
    def __init__(self, document: Any) -> None:
        self._document = document
        self._rules: dict[str, str] = {}
        self._by_ref: dict[str, str] = {}
        self._bare: tuple[str, ...] = ()  # refs on the way here with nothing around them: no text comes before

    def text(self) -> str:
        root = self._of(self._document, "#", 0)
        return "\n".join(
            f"{name} ::= {body}" for name, body in [("root", root), *self._rules.items(), *_SHARED.items()]
        )

    def _rule(self, body: str) -> str:
        """Keep a rule and give its name.

        Of choices that are texts and begin alike, xgrammar was seen to take what none of them is: of cel and celsius,
        celelel. So such choices are told apart by their first sign, or are rules with rules inside.
        """
        if len(self._rules) >= MOST_RULES:
            raise refusal(f"the schema needs more than {MOST_RULES:,} rules", "Take fewer properties and choices.")
        name = f"r{len(self._rules)}"
        self._rules[name] = body
        return name

    def _of(self, schema: Any, at: str, depth: int) -> str:
        """An expression for the documents that fit `schema`, which stands at `at`."""
        if depth > DEEPEST:
            raise refusal(f"the schema nests deeper than {DEEPEST} at {at}", "Flatten it.")
        if schema is True:
            return "value"
        if not isinstance(schema, Mapping):
            raise refusal(f"{at} is {shown(schema)}, which no document fits", "Put a schema there.")
        schema = self._joined(schema, at, depth)
        if "$ref" in schema:
            return self._at_ref(schema["$ref"], at, depth)
        for word in ("anyOf", "oneOf"):
            if word in schema:
                return self._choice(schema, word, at, depth)
        if "enum" in schema or "const" in schema:
            return self._literals(schema, at)
        kinds = self._kinds(schema, at)
        written = {"object": self._object, "array": self._array}
        parts = []
        for kind in kinds:
            if kind in written:
                outside, self._bare = self._bare, ()
                parts.append(written[kind](schema, at, depth))
                self._bare = outside
            elif kind == "string":
                parts.append(string(schema, at))
            elif kind in ("number", "integer"):
                parts.append(number(schema, kind, at, self._rule))
            else:
                parts.append(kind)
        return parts[0] if len(parts) == 1 else f"({' | '.join(parts)})"

    def _joined(self, schema: Mapping[str, Any], at: str, depth: int) -> Mapping[str, Any]:
        """One schema that says what `schema` says, its allOf and what stands beside a $ref laid together."""
        for word in sorted(_REFUSED & schema.keys()):
            if word not in _NO_EFFECT or schema[word] != _NO_EFFECT[word]:
                raise refusal(f"the keyword {word!r} at {at} cannot be enforced", "Leave it out of the schema.")
        says = {word: value for word, value in schema.items() if word in _KEPT}
        parts = says.pop("allOf", [])
        if not isinstance(parts, list):
            raise refusal(f"allOf at {at} is no list", "Put a list of schemas there.")
        if "$ref" in says and (parts or len(says) > 1):
            parts = [*parts, {"$ref": says.pop("$ref")}]
        if parts and len(parts) == 1 and not says and isinstance(parts[0], Mapping) and "$ref" in parts[0]:
            return self._joined(parts[0], at, depth + 1)
        for part in parts:
            for _ in range(DEEPEST):
                if not (isinstance(part, Mapping) and "$ref" in part):
                    break
                part = {**self._target(part["$ref"], at), **{k: v for k, v in part.items() if k in _KEPT - {"$ref"}}}
            if not isinstance(part, Mapping) or depth > DEEPEST:
                raise refusal(f"a part of allOf at {at} is {shown(part)}", "Put a schema there.")
            says = _both(says, self._joined(part, at, depth + 1), at)
        return says

    def _target(self, ref: Any, at: str) -> Any:
        if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
            raise refusal(f"the $ref {shown(ref)} at {at} leads out of the schema", "Take $defs inside it.")
        place = self._document
        for step in ref.split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(place, Mapping) and step in place:
                place = place[step]
            elif isinstance(place, list) and step.isdecimal() and int(step) < len(place):
                place = place[int(step)]
            else:
                raise refusal(f"the $ref {ref!r} at {at} leads nowhere", "Define it under $defs.")
        return place

    def _at_ref(self, ref: Any, at: str, depth: int) -> str:
        target = self._target(ref, at)
        if ref in self._bare:
            raise refusal(f"the $ref {ref!r} leads to itself", "Let it lead to a type.")
        if ref not in self._by_ref:
            self._by_ref[ref] = name = self._rule("")
            outside, self._bare = self._bare, (*self._bare, ref)
            self._rules[name] = self._of(target, ref, depth + 1)
            self._bare = outside
        return self._by_ref[ref]

    def _choice(self, schema: Mapping[str, Any], word: str, at: str, depth: int) -> str:
        choices = schema[word]
        if not isinstance(choices, list) or not choices:
            raise refusal(f"{word} at {at} is no list of schemas", "Put some there.")
        beside = {key: value for key, value in schema.items() if key != word}
        resolved = [
            _both(beside, self._joined(choice, f"{at}/{word}", depth), at) if beside else choice for choice in choices
        ]
        if word == "oneOf" and not self._disjoint(resolved, at, depth):
            raise refusal(f"the choices of oneOf at {at} may fit together", "Take anyOf.")
        parts = [self._rule(self._of(choice, f"{at}/{word}/{i}", depth + 1)) for i, choice in enumerate(resolved)]
        return f"({' | '.join(parts)})"

    def _disjoint(self, choices: Sequence[Any], at: str, depth: int) -> bool:
        """Whether no document fits two of them, as types or a required property that tells them apart show."""
        flat = [self._joined({"allOf": [choice]}, at, depth) for choice in choices]
        return all(self._apart(a, b, at) for i, a in enumerate(flat) for b in flat[i + 1 :])

    def _apart(self, one: Mapping[str, Any], other: Mapping[str, Any], at: str) -> bool:
        values = [_values(schema) for schema in (one, other)]
        if values[0] is not None and values[1] is not None:
            return not {_key(v) for v in values[0]} & {_key(v) for v in values[1]}
        kinds = [
            {"number" if kind == "integer" else kind for kind in _of_values(given)} if given is not None
            else {"number" if kind == "integer" else kind for kind in _types(schema, at)}
            for schema, given in zip((one, other), values, strict=True)
        ]  # fmt: skip
        if not kinds[0] & kinds[1]:
            return True
        if kinds[0] & kinds[1] != {"object"}:
            return False
        shared = set(one.get("required", ())) & set(other.get("required", ()))
        tags = [(one.get("properties", {}).get(n), other.get("properties", {}).get(n)) for n in shared]
        return any(
            isinstance(a, Mapping) and isinstance(b, Mapping) and (u := _values(a)) is not None
            and (v := _values(b)) is not None and not {_key(x) for x in u} & {_key(y) for y in v}
            for a, b in tags
        )  # fmt: skip

    def _literals(self, schema: Mapping[str, Any], at: str) -> str:
        if beside := sorted(schema.keys() - {"enum", "const", "type"}):
            raise refusal(f"the keyword {beside[0]!r} at {at} stands beside enum or const", "Leave it out there.")
        kinds = _types(schema, at)
        values = [value for value in _values(schema) or () if _is_a(value, kinds)]
        if not values:
            raise refusal(f"nothing in the enum at {at} fits", "Put values there that do.")
        return self._one_of(sorted({_json(value) for value in values}))

    def _one_of(self, texts: Sequence[str]) -> str:
        """An expression for sorted texts. No two of its choices begin alike: see `_rule`."""
        same = takewhile(lambda pair: pair[0] == pair[1], zip(texts[0], texts[-1], strict=False))
        head = "".join(sign for sign, _ in same)
        rests = [text[len(head) :] for text in texts]
        groups = [list(group) for _, group in groupby(rests, lambda rest: rest[:1])]
        if len(groups) == 1:
            return _literal(head)
        tails = [_literal(group[0]) if len(group) == 1 else self._one_of(group) for group in groups]
        choices = self._rule(" | ".join(tails))
        return f"{_literal(head)} {choices}" if head else choices

    def _kinds(self, schema: Mapping[str, Any], at: str) -> list[str]:
        kinds = _types(schema, at)
        if "type" not in schema:
            told = [kind for kind in _TYPES if kind in {_OF_TYPE[word] for word in schema}]
            return told or ["value"]
        return [kind for kind in kinds if kind != "integer" or "number" not in kinds]

    def _object(self, schema: Mapping[str, Any], at: str, depth: int) -> str:
        properties, more = schema.get("properties", {}), schema.get("additionalProperties", True)
        required = schema.get("required", [])
        if not isinstance(properties, Mapping) or not isinstance(required, list):
            raise refusal(f"properties or required at {at} are no object and list", "Write them as JSON Schema does.")
        undeclared = [name for name in required if name not in properties]
        if undeclared and more is False:
            raise refusal(f"{undeclared[0]!r} at {at} is required and not allowed", "Declare it in properties.")
        properties = {**properties, **dict.fromkeys(undeclared, more)}
        if not properties:
            if more is False:
                return '("{" ws "}")'
            pair = self._rule(f'string ":" ws {self._of(more, f"{at}/additionalProperties", depth + 1)}')
            return f'("{{" ws ({pair} ("," ws {pair})* ws)? "}}")'
        first, later = '""', '""'  # what may follow where none, or one, stands already
        for name, inner in reversed(list(properties.items())):
            if inner is False and name not in required:
                continue
            pair = f'{_literal(_json(name))} ":" ws {self._of(inner, f"{at}/properties/{name}", depth + 1)}'
            pair = self._rule(pair)
            choose = (lambda this, rest: this) if name in required else (lambda this, rest: f"{this} | {rest}")
            first, later = (
                self._rule(choose(f"{pair} {later}", first)),
                self._rule(choose(f'"," ws {pair} {later}', later)),
            )
        return f'("{{" ws {first} ws "}}")'

    def _array(self, schema: Mapping[str, Any], at: str, depth: int) -> str:
        least, most = lengths(schema, "minItems", "maxItems", at)
        prefix, items = schema.get("prefixItems", []), schema.get("items", True)
        if not isinstance(prefix, list) or isinstance(items, list):
            raise refusal(f"items at {at} is a list, or prefixItems none", "Write them as JSON Schema 2020-12 does.")
        heads = [self._of(one, f"{at}/prefixItems/{i}", depth + 1) for i, one in enumerate(prefix)]
        heads = heads if most is None else heads[:most]
        least = max(0, least - len(heads))
        most = 0 if items is False else None if most is None else most - len(heads)
        if most is not None and least > most:
            raise refusal(f"minItems at {at} asks for more than there may be", "Lower it.")
        if most != 0:
            item = self._rule(self._of(items, f"{at}/items", depth + 1))
        if heads:
            tail = "" if most == 0 else f' ("," ws {item}){times(least, most)}'
            return f'("[" ws {_COMMA.join(heads)}{tail} ws "]")'
        if most == 0:
            return '("[" ws "]")'
        some = f'{item} ("," ws {item}){times(max(0, least - 1), None if most is None else most - 1)} ws'
        return f'("[" ws {some if least else f"({some})?"} "]")'


def _both(one: Mapping[str, Any], other: Mapping[str, Any], at: str) -> dict[str, Any]:
    """What two schemas say of one document, where they do not meet in a keyword."""
    joined = dict(one)
    for word, value in other.items():
        if word == "required" and word in joined:
            joined[word] = [*joined[word], *(name for name in value if name not in joined[word])]
        elif word == "properties" and word in joined and not joined[word].keys() & value.keys():
            joined[word] = {**joined[word], **value}
        elif word == "type" and word in joined:
            allowed = _types(other, at)
            joined[word] = [
                kind for kind in _types(one, at) if kind in allowed or (kind == "integer" and "number" in allowed)
            ]
        elif word in joined and joined[word] != value:
            raise refusal(f"two parts of the schema at {at} both say {word!r}", "Say it once.")
        else:
            joined[word] = value
    closed = [schema for schema in (one, other) if schema.get("additionalProperties", True) is not True]
    if closed and any("properties" in schema for schema in (one, other) if schema is not closed[0]):
        raise refusal(f"'additionalProperties' at {at} meets properties of another part", "Say both in one part.")
    return joined


def _types(schema: Mapping[str, Any], at: str) -> Sequence[str]:
    given = schema.get("type", list(_TYPES))
    kinds = given if isinstance(given, list) else [given]
    for kind in kinds:
        if kind not in _TYPES:
            raise refusal(f"the type {shown(kind)} at {at} is not known", f"Known are {', '.join(_TYPES)}.")
    if not kinds:
        raise refusal(f"no type fits at {at}", "Put one there.")
    return kinds


def _values(schema: Mapping[str, Any]) -> list[Any] | None:
    """What enum and const leave."""
    if "enum" not in schema and "const" not in schema:
        return None
    values = schema.get("enum", [schema.get("const")])
    if not isinstance(values, list):
        raise refusal("an enum is no list", "Put the values in one.")
    return [value for value in values if "const" not in schema or _key(value) == _key(schema["const"])]


def _of_values(values: Iterable[Any]) -> set[str]:
    return {kind for value in values for kind in _TYPES if _is_a(value, [kind])}


def _is_a(value: Any, kinds: Sequence[str]) -> bool:
    if isinstance(value, bool):
        return "boolean" in kinds
    if isinstance(value, (int, Decimal)):
        return "number" in kinds or ("integer" in kinds and value == int(value))
    python = {str: "string", list: "array", dict: "object", type(None): "null"}
    return python[type(value)] in kinds


def _key(value: Any) -> str:
    """Equal for equal JSON values, 1 and 1.0 included, and for no others."""
    if isinstance(value, Decimal) and value == int(value):
        value = int(value)
    return json.dumps(value, sort_keys=True, default=str)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=float)


def _literal(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
