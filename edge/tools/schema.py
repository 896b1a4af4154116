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
from collections.abc import Mapping, Sequence
from decimal import Decimal
from itertools import groupby, takewhile
from typing import Any

from edge.tools import numbers
from edge.tools.joining import DEEPEST, OF_TYPE, TYPES, Joiner, Work, both, is_a, types, values_of
from edge.tools.scalars import BOUNDS, array_lengths, number, refusal, string, string_lengths, times

MOST_BYTES = 100_000
"""Of a schema, in UTF-8."""
_FURTHEST = 400  # the exponent of a number; written out, 1e999999999 would fill the memory

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


def ebnf(schema: str, work: Work | None = None) -> str:
    """The grammar, whose first rule is `root`.

    Args:
        schema: JSON Schema, as JSON.
        work: what the request has cost so far and may cost; None: this is its only schema.

    Raises:
        UsageError: it is no schema, has a keyword that cannot be kept, contradicts itself, or is too large.
    """
    try:
        size = len(schema.encode())
        if size > MOST_BYTES:
            raise refusal(f"the schema has {size:,} bytes", f"Keep it below {MOST_BYTES:,}.")
        document = json.loads(schema, parse_float=_decimal, parse_constant=_decimal)
        work = work or Work()
        grammar = _Writer(document, work).text()
        work.grammar(len(grammar))
        grammar.encode()  # an escape may be half a surrogate pair
    except RecursionError as error:
        raise refusal(f"the schema nests deeper than {DEEPEST}", "Flatten it.") from error
    except ValueError as error:
        raise refusal(f"the schema is no JSON ({error})", "Send a JSON Schema.") from error
    return grammar


def _decimal(text: str) -> Decimal:
    try:
        value = Decimal(text)
    except ArithmeticError:  # not even an exponent
        value = Decimal("nan")
    if not value.is_finite() or abs(value.adjusted()) > _FURTHEST:
        raise ValueError(f"{text[:40]} is no number to reckon with")
    return value


class _Writer:
    def __init__(self, document: Any, work: Work) -> None:
        self._document = document
        self._work = work
        self._joiner = Joiner(document, work)
        self._rules: dict[str, str] = {}
        self._by_ref: dict[str, str] = {}
        self._shared: dict[str, str] = {}
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
        self._work.rule()
        name = f"r{len(self._rules)}"
        self._rules[name] = body
        return name

    def _of(self, schema: Any, at: str, depth: int) -> str:
        """An expression for the documents that fit `schema`, which stands at `at`."""
        schema = self._joiner.joined(schema, at, depth)
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
                parts.append(self._string(schema, at))
            elif kind in ("number", "integer"):
                parts.append(self._number(schema, kind, at))
            else:
                parts.append(kind)
        return parts[0] if len(parts) == 1 else f"({' | '.join(parts)})"

    # Strings and numbers of one form share their rules: what xgrammar has worked out for a rule holds wherever it
    # stands, and forty e-mail addresses were seen to take it half a minute.

    def _string(self, schema: Mapping[str, Any], at: str) -> str:
        text = string(schema, at)
        if text in _SHARED:
            return text
        if text not in self._shared:
            self._work.repeat(*string_lengths(schema, at))
            self._shared[text] = self._rule(text)
        return self._shared[text]

    def _number(self, schema: Mapping[str, Any], kind: str, at: str) -> str:
        form = f"{kind} {[schema.get(word) for word in BOUNDS]}"
        if form not in self._shared:
            self._shared[form] = number(schema, kind, at, self._rule)
        return self._shared[form]

    def _at_ref(self, ref: Any, at: str, depth: int) -> str:
        target = self._joiner.target(ref, at)
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
        beside = {key: value for key, value in schema.items() if key != word}
        resolved = choices
        if beside:
            self._work.step(len(choices) * sum(len(v) for v in beside.values() if isinstance(v, (list, Mapping))))
            joined = [self._joiner.joined(one, f"{at}/{word}/{i}", depth + 1) for i, one in enumerate(choices)]
            resolved = [both(beside, one, at) for one in joined]
        if word == "oneOf" and not self._joiner.disjoint(resolved, at, depth):
            raise refusal(f"the choices of oneOf at {at} may fit together", "Take anyOf.")
        parts = [self._rule(self._of(choice, f"{at}/{word}/{i}", depth + 1)) for i, choice in enumerate(resolved)]
        return f"({' | '.join(parts)})"

    def _literals(self, schema: Mapping[str, Any], at: str) -> str:
        if beside := sorted(schema.keys() - {"enum", "const", "type"}):
            raise refusal(f"the keyword {beside[0]!r} at {at} stands beside enum or const", "Leave it out there.")
        kinds = types(schema, at)
        values = [value for value in values_of(schema, at) or () if is_a(value, kinds)]
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
        kinds = types(schema, at)
        if "type" not in schema:
            told = [kind for kind in TYPES if kind in {OF_TYPE[word] for word in schema}]
            return told or ["value"]
        return [kind for kind in kinds if kind != "integer" or "number" not in kinds]

    def _object(self, schema: Mapping[str, Any], at: str, depth: int) -> str:
        properties, more = schema.get("properties", {}), schema.get("additionalProperties", True)
        required = dict.fromkeys(schema.get("required", ()))
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
        least, most = array_lengths(schema, at)
        prefix, items = schema.get("prefixItems", []), schema.get("items", True)
        if isinstance(items, list):
            raise refusal(f"items at {at} is a list", "Write it as JSON Schema 2020-12 does, as prefixItems.")
        heads = [self._of(one, f"{at}/prefixItems/{i}", depth + 1) for i, one in enumerate(prefix)]
        heads = heads if most is None else heads[:most]
        least = max(0, least - len(heads))
        most = 0 if items is False else None if most is None else most - len(heads)
        self._work.repeat(least, most)
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


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=float)


def _literal(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
