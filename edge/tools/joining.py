"""Schemas laid together: allOf, what stands beside a $ref, and whether choices exclude each other.

A schema of two kilobytes can ask for steps without an end, as allOf of the same $ref twice does at every level. So each
$ref is read once, and the work of a request is counted and has a limit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from edge.tools.scalars import BOUNDS, refusal, shown

DEEPEST, MOST_RULES, MOST_REPEATS, MOST_SIGNS, MOST_STEPS = 32, 4_000, 10_000, 400_000, 200_000
"""How deep a schema nests; then of all schemas of a request: rules of their grammars, repetitions in them, their signs,
and the steps that reading takes. That is less than a second; xgrammar was seen to take one to three for what reaches
one of the limits."""

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
OF_TYPE = {
    "properties": "object", "required": "object", "additionalProperties": "object",
    "items": "array", "prefixItems": "array", "minItems": "array", "maxItems": "array",
    "minLength": "string", "maxLength": "string", "format": "string",
    **dict.fromkeys(BOUNDS, "number"),
}  # fmt: skip
_KEPT = {*OF_TYPE, "$ref", "anyOf", "oneOf", "allOf", "type", "enum", "const"}
_REFUSED = {
    "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies", "patternProperties",
    "propertyNames", "minProperties", "maxProperties", "unevaluatedProperties", "unevaluatedItems", "additionalItems",
    "contains", "minContains", "maxContains", "uniqueItems", "multipleOf", "pattern", "$dynamicRef", "$recursiveRef",
}  # fmt: skip
_NO_EFFECT: dict[str, Any] = {"uniqueItems": False, "minProperties": 0, "unevaluatedProperties": True}
_FORMS: dict[str, tuple[type, str]] = {
    "properties": (dict, "object"), "required": (list, "list of names"), "format": (str, "text"),
    "prefixItems": (list, "list of schemas"), "enum": (list, "list of values"),
    **dict.fromkeys(("allOf", "anyOf", "oneOf"), (list, "list of schemas")),
}  # fmt: skip


class Work:
    """What one request may still cost: all its schemas together."""

    def __init__(self) -> None:
        self.rules = self.repeats = self.signs = self.steps = 0

    def rule(self) -> None:
        """One more rule of a grammar.

        Raises:
            UsageError: that is too many.
        """
        self.rules += 1
        if self.rules > MOST_RULES:
            raise refusal(f"the schema needs more than {MOST_RULES:,} rules", "Take fewer properties and choices.")

    def repeat(self, least: int, most: int | None) -> None:
        """One more thing that comes so many times.

        Raises:
            UsageError: that is too many.
        """
        self.repeats += least if most is None else most
        if self.repeats > MOST_REPEATS:
            raise refusal(f"the lengths in the schema add up to more than {MOST_REPEATS:,}", "Take smaller ones.")

    def grammar(self, signs: int) -> None:
        """One more grammar, of so many signs.

        Raises:
            UsageError: that is too many.
        """
        self.signs += signs
        if self.signs > MOST_SIGNS:
            raise refusal(f"the grammar comes to more than {MOST_SIGNS:,} signs", "Take fewer and shorter values.")

    def step(self, count: int = 1) -> None:
        """More steps of reading.

        Raises:
            UsageError: those are too many.
        """
        self.steps += count
        if self.steps > MOST_STEPS:
            raise refusal(f"the schema takes more than {MOST_STEPS:,} steps to read", "Take fewer choices and parts.")


class Joiner:
    """Lays the parts of a schema's places together."""

    def __init__(self, document: Any, work: Work) -> None:
        self._document = document
        self._work = work
        self._by_ref: dict[str, Mapping[str, Any]] = {}
        self._open: set[str] = set()  # refs on the way here

    def joined(self, schema: Any, at: str, depth: int) -> Mapping[str, Any]:
        """One schema that says what `schema` says, its allOf and what stands beside a $ref laid together.

        Raises:
            UsageError: it is no schema, has a keyword that cannot be kept, or parts that meet.
        """
        if schema is True:
            return {}
        if not isinstance(schema, Mapping):
            raise refusal(f"{at} is {shown(schema)}, which no document fits", "Put a schema there.")
        if depth > DEEPEST:
            raise refusal(f"the schema nests deeper than {DEEPEST} at {at}", "Flatten it.")
        self._work.step(1 + len(schema))
        _check(schema, at)
        says = {word: value for word, value in schema.items() if word in _KEPT}
        parts = says.pop("allOf", [])
        if "$ref" in says and (parts or len(says) > 1):
            parts = [*parts, {"$ref": says.pop("$ref")}]
        if len(parts) == 1 and not says:
            return self.joined(parts[0], f"{at}/allOf/0", depth + 1)
        for i, part in enumerate(parts):
            said = self.flat(part, f"{at}/allOf/{i}", depth + 1)
            self._work.step(_size(says) + _size(said))
            says = both(says, said, at)
        return says

    def flat(self, schema: Any, at: str, depth: int) -> Mapping[str, Any]:
        """The same, with what a $ref leads to in its place."""
        says = self.joined(schema, at, depth)
        return self._read(says["$ref"], at, depth) if "$ref" in says else says

    def _read(self, ref: Any, at: str, depth: int) -> Mapping[str, Any]:
        target = self.target(ref, at)
        if ref in self._open:
            raise refusal(f"the $ref {ref!r} leads to itself", "Let it lead to a type.")
        if len(self._open) > DEEPEST:
            raise refusal(f"more than {DEEPEST} $refs lead to each other at {at}", "Flatten it.")
        if ref not in self._by_ref:
            self._open.add(ref)
            self._by_ref[ref] = self.flat(target, ref, depth)
            self._open.remove(ref)
        return self._by_ref[ref]

    def target(self, ref: Any, at: str) -> Any:
        """What a $ref leads to.

        Raises:
            UsageError: that is not in the document.
        """
        if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
            raise refusal(f"the $ref {shown(ref)} at {at} leads out of the schema", "Take $defs inside it.")
        place = self._document
        for step in ref.split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(place, Mapping) and step in place:
                place = place[step]
            elif isinstance(place, list) and step.isdecimal() and len(step) < 7 and int(step) < len(place):
                place = place[int(step)]
            else:
                raise refusal(f"the $ref {shown(ref)} at {at} leads nowhere", "Define it under $defs.")
        return place

    def disjoint(self, choices: Sequence[Any], at: str, depth: int) -> bool:
        """Whether no document fits two of them, as types or a required property that tells them apart show."""
        flat = [self.flat(choice, f"{at}/oneOf/{i}", depth + 1) for i, choice in enumerate(choices)]
        return all(self._apart(a, b, at) for i, a in enumerate(flat) for b in flat[i + 1 :])

    def _apart(self, one: Mapping[str, Any], other: Mapping[str, Any], at: str) -> bool:
        self._work.step(4 + _size(one) + _size(other))
        values = [values_of(schema, at) for schema in (one, other)]
        if values[0] is not None and values[1] is not None:
            return not {key(v) for v in values[0]} & {key(v) for v in values[1]}
        kinds = [
            {"number" if kind == "integer" else kind for kind in _of_values(given)} if given is not None
            else {"number" if kind == "integer" else kind for kind in types(schema, at)}
            for schema, given in zip((one, other), values, strict=True)
        ]  # fmt: skip
        if not kinds[0] & kinds[1]:
            return True
        if kinds[0] & kinds[1] != {"object"}:
            return False
        shared = set(one.get("required", ())) & set(other.get("required", ()))
        ones, others = one.get("properties", {}), other.get("properties", {})
        return any(self._tagged(ones.get(name), others.get(name), at) for name in shared)

    def _tagged(self, one: Any, other: Any, at: str) -> bool:
        """Whether two schemas of a property leave no value to both."""
        if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
            return False
        u, v = values_of(one, at), values_of(other, at)
        if u is None or v is None:
            return False
        self._work.step(len(u) + len(v))
        return not {key(x) for x in u} & {key(y) for y in v}


def both(one: Mapping[str, Any], other: Mapping[str, Any], at: str) -> dict[str, Any]:
    """What two schemas say of one document.

    Raises:
        UsageError: they meet in a keyword.
    """
    joined = dict(one)
    for word, value in other.items():
        if word == "required" and word in joined:
            joined[word] = [*dict.fromkeys([*joined[word], *value])]
        elif word == "properties" and word in joined and not joined[word].keys() & value.keys():
            joined[word] = {**joined[word], **value}
        elif word == "type" and word in joined:
            allowed = types(other, at)
            joined[word] = [
                kind for kind in types(one, at) if kind in allowed or (kind == "integer" and "number" in allowed)
            ]
        elif word in joined and joined[word] != value:
            raise refusal(f"two parts of the schema at {at} both say {word!r}", "Say it once.")
        else:
            joined[word] = value
    closed = [schema for schema in (one, other) if schema.get("additionalProperties", True) is not True]
    if closed and any("properties" in schema for schema in (one, other) if schema is not closed[0]):
        raise refusal(f"'additionalProperties' at {at} meets properties of another part", "Say both in one part.")
    return joined


def _check(schema: Mapping[str, Any], at: str) -> None:
    for word in sorted(_REFUSED & schema.keys()):
        if word not in _NO_EFFECT or schema[word] != _NO_EFFECT[word]:
            raise refusal(f"the keyword {word!r} at {at} cannot be enforced", "Leave it out of the schema.")
    for word in _FORMS.keys() & schema.keys():
        form, called = _FORMS[word]
        value = schema[word]
        fits = isinstance(value, form) and (bool(value) or word not in ("anyOf", "oneOf"))
        if word == "required":
            fits = fits and all(isinstance(name, str) for name in schema["required"])
        if not fits:
            raise refusal(f"{word} at {at} is {shown(value)}, no {called}", "Write it as JSON Schema 2020-12 does.")
    if "type" in schema:
        types(schema, at)


def _size(schema: Mapping[str, Any]) -> int:
    """How many steps it takes to look at what it says once."""
    return sum(len(schema[word]) for word in ("properties", "required", "enum") if word in schema)


def types(schema: Mapping[str, Any], at: str) -> Sequence[str]:
    """Those that a schema allows.

    Raises:
        UsageError: there is none, or one that is not known.
    """
    given = schema.get("type", list(TYPES))
    kinds = given if isinstance(given, list) else [given]
    for kind in kinds:
        if kind not in TYPES:
            raise refusal(f"the type {shown(kind)} at {at} is not known", f"Known are {', '.join(TYPES)}.")
    if not kinds:
        raise refusal(f"no type fits at {at}", "Put one there.")
    return [*dict.fromkeys(kinds)]


def values_of(schema: Mapping[str, Any], at: str) -> list[Any] | None:
    """What enum and const leave; None: there is neither.

    Raises:
        UsageError: the enum is no list.
    """
    if "enum" not in schema and "const" not in schema:
        return None
    values = schema.get("enum", [schema.get("const")])
    if not isinstance(values, list):
        raise refusal(f"an enum at {at} is {shown(values)}, no list of values", "Put the values in a list.")
    return [value for value in values if "const" not in schema or key(value) == key(schema["const"])]


def _of_values(values: Iterable[Any]) -> set[str]:
    return {kind for value in values for kind in TYPES if is_a(value, [kind])}


def is_a(value: Any, kinds: Sequence[str]) -> bool:
    """Whether a value is of one of these types."""
    if isinstance(value, bool):
        return "boolean" in kinds
    if isinstance(value, (int, Decimal)):
        return "number" in kinds or ("integer" in kinds and value == int(value))
    python = {str: "string", list: "array", dict: "object", type(None): "null"}
    return python[type(value)] in kinds


def key(value: Any) -> str:
    """Equal for equal JSON values, 1 and 1.0 included, and for no others."""
    if isinstance(value, Decimal) and value == int(value):
        value = int(value)
    return json.dumps(value, sort_keys=True, default=str)
