"""A reader of the grammars that `edge.tools.schema` writes: which texts they hold, and one of them at random."""

from __future__ import annotations

import random
import re
import sys
from functools import lru_cache
from typing import Any

sys.setrecursionlimit(20_000)
_TOKEN = re.compile(r'\s+|"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|\{\d+(?:,\d*)?\}|[A-Za-z_]\w*|[()|*+?]')
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


class Grammar:
    def __init__(self, source: str) -> None:
        self.rules: dict[str, Any] = {}
        for line in source.splitlines():
            name, _, body = line.partition(" ::= ")
            assert name not in self.rules, f"{name} twice"
            tokens, at = [], 0
            while at < len(body):
                match = _TOKEN.match(body, at)
                assert match, f"cannot read {body[at:]!r}"
                tokens += [match.group()] if match.group().strip() else []
                at = match.end()
            self._tokens = tokens
            self.rules[name] = self._choice()
            assert not self._tokens, self._tokens

    def _choice(self) -> Any:
        choices = [self._sequence()]
        while self._tokens[:1] == ["|"]:
            self._tokens.pop(0)
            choices.append(self._sequence())
        return ("or", choices)

    def _sequence(self) -> Any:
        parts = []
        while self._tokens and self._tokens[0] not in "|)":
            token = self._tokens.pop(0)
            if token == "(":
                part = self._choice()
                assert self._tokens.pop(0) == ")"
            elif token[0] == '"':
                part = ("text", re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[1]), token[1:-1]))
            elif token[0] == "[":
                part = ("class", re.compile(token, re.DOTALL))
            else:
                part = ("rule", token)
            if self._tokens and (again := self._tokens[0])[0] in "*+?{":
                self._tokens.pop(0)
                least, _, most = {"*": "0,", "+": "1,", "?": "0,1"}.get(again, again[1:-1]).partition(",")
                bounded = "," in {"*": "0,", "+": "1,", "?": "0,1"}.get(again, again)
                part = ("times", part, int(least), int(most) if most else None if bounded else int(least))
            parts.append(part)
        return ("and", parts)

    def alike(self) -> list[str]:
        """Signs with which two choices between texts both begin."""
        found: list[str] = []

        def first(node: Any) -> set[str] | None:
            """What it begins with, "" for nothing; None: that a rule says."""
            match node:
                case ("or", choices):
                    heads = [first(choice) for choice in choices]
                    known = [sign for head in heads if head is not None for sign in head]
                    found.extend(sign for sign in set(known) if known.count(sign) > 1)
                    return None if None in heads else set(known)
                case ("and", parts):
                    begin: set[str] = {""}
                    for part in parts:
                        head = first(part)
                        if "" in begin:
                            begin = {"rule"} if head is None else begin - {""} | head
                    return None if "rule" in begin else begin
                case ("text", literal):
                    return {literal[:1]}
                case ("class", signs):
                    return set(_members(signs))
                case ("times", part, least, _):
                    head = first(part)
                    return head if head is None or least else head | {""}
            return None

        for rule in self.rules.values():
            first(rule)
        return found

    def holds(self, text: str) -> bool:
        @lru_cache(None)
        def rule(name: str, at: int) -> frozenset[int]:
            return frozenset(ends(self.rules[name], at))

        def ends(node: Any, at: int) -> set[int]:
            match node:
                case ("or", choices):
                    return set().union(*(ends(choice, at) for choice in choices))
                case ("and", parts):
                    here = {at}
                    for part in parts:
                        here = set().union(*(ends(part, one) for one in here))
                    return here
                case ("text", literal):
                    return {at + len(literal)} if text.startswith(literal, at) else set()
                case ("class", signs):
                    return {at + 1} if at < len(text) and signs.fullmatch(text[at]) else set()
                case ("rule", name):
                    return set(rule(name, at))
                case ("times", part, least, most):
                    here, found, seen = {at}, {at} if not least else set(), {at}
                    count = 0
                    while here and (most is None or count < most):
                        here = set().union(*(ends(part, one) for one in here))
                        count += 1
                        if count >= least:
                            here -= seen if count > least else set()
                            found |= here
                            seen |= here
                    return found
            raise AssertionError(node)

        return len(text) in rule("root", 0)

    def sample(self, rng: random.Random) -> str:
        def draw(node: Any, depth: int) -> str:
            match node:
                case ("or", choices):
                    # deep inside, what ends soonest stands last in a grammar of values
                    return draw(rng.choice(choices) if depth < 40 else choices[-1], depth)
                case ("and", parts):
                    return "".join(draw(part, depth) for part in parts)
                case ("text", literal):
                    return str(literal)
                case ("class", signs):
                    return rng.choice(_members(signs))
                case ("rule", name):
                    return draw(self.rules[name], depth + 1)
                case ("times", part, least, most):
                    more = 0 if depth > 40 else rng.choice([0, 0, 1, 2, 3, 20])
                    count = min(least + more, most) if most is not None else least + more
                    return "".join(draw(part, depth) for _ in range(count))
            raise AssertionError(node)

        return draw(self.rules["root"], 0)


@lru_cache(None)
def _members(signs: re.Pattern[str]) -> list[str]:
    pool = [*map(chr, range(128)), "é", "你", "\u2028", "😀"]
    return [sign for sign in pool if signs.fullmatch(sign)]
