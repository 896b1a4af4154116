"""What a request demands of an answer's form: `tool_choice`, `parallel_tool_calls`, `response_format`, `strict`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge.errors import UsageError
from edge.grammar import Amid, Grammar, InTurn, JsonOf, Literally, Matching, OneOf, Several
from edge.tools import names, schema
from edge.tools.joining import Work
from edge.tools.parse import TURN

MOST_TOOLS = 128
"""In one request, as with OpenAI."""
_THOUGHT = Matching(r"([^<]|<+[^/<])*<+/think>\n*")  # the rest of a thought: no other `</` in it
_RAW = Matching(r"[^ \t\r\n\f\v](.|\n)*")  # `\s` has signs beyond ASCII, of which xgrammar warns on stderr


@dataclass(frozen=True)
class Demand:
    """How to ask the model, and how to hear it."""

    tools: tuple[Mapping[str, Any], ...]
    """Those to show to the model and to take calls of; none under tool_choice "none"."""
    grammar: Grammar | None
    """What the answer must look like; None: anything."""
    parallel: bool
    """More than one call may come."""
    formatted: bool = False
    """What does not begin as a call is in the response format: so `edge.tools.parse.Parser` has to take it."""


def demand(
    tools: Sequence[Mapping[str, Any]] = (),
    tool_choice: str | Mapping[str, Any] | None = None,
    *,
    parallel: bool = True,
    response_format: Mapping[str, Any] | None = None,
    opened: bool = False,
) -> Demand:
    """Read a request.

    Required calls stand at the start of the answer; that of a named function is the only one. Left to the model
    ("auto"), a function with `strict` is held to its schema wherever its name and a line break are written; so is none
    without. Where a response format comes with tools, the answer is calls or that format.

    Args:
        tools: as in the request.
        tool_choice: "auto", "none", "required", or a function by name; None is "auto".
        parallel: `parallel_tool_calls`.
        response_format: as in the request: text, json_object or json_schema.
        opened: the prompt has written `<think>`: what is demanded stands behind the thought.

    Raises:
        UsageError: a choice of no tool, a format that is not known, a schema that cannot be enforced.
    """
    named = names.checked(tools)
    if len(named) > MOST_TOOLS:
        raise UsageError(f"there are {len(named):,} tools", hint=f"Send {MOST_TOOLS} at most.")
    work = Work()  # of all schemas together
    form = _format(response_format, work)
    chosen = _chosen(tool_choice, named)
    if chosen is None:
        return Demand((), _behind_thought(form, opened), parallel, form is not None)
    if chosen:
        calls = [_call(name, named[name], work) for name in chosen]
        one = len(calls) == 1 and not isinstance(tool_choice, str)
        # a call of a built-in tool takes what is left of the answer
        several = parallel and not one and not any(names.is_raw(named[name]) for name in chosen)
        grammar: Grammar | None = Several(tuple(calls), TURN) if several else _any_of(calls)
    elif form is not None and named:
        grammar = _any_of([*(_call(name, tool, work) for name, tool in named.items()), form])
    else:
        strict = [name for name, tool in named.items() if (tool.get("function") or {}).get("strict")]
        for name in strict:  # its beginning is looked for anywhere
            if longer := next((other for other in named if other != name and other.endswith(name)), None):
                raise UsageError(
                    f"strict cannot be kept for {name!r}, the end of {longer!r}",
                    hint="Rename one, or leave out strict.",
                )
        held = tuple((f"{name}\n", _arguments(named[name], work)) for name in strict)
        grammar = form or (Amid(held) if held else None)
        if held and grammar is not form:
            return Demand(tuple(tools), grammar, parallel)  # a thought is any text as well
    formatted = form is not None and not chosen
    return Demand(tuple(tools), _behind_thought(grammar, opened), parallel, formatted)


def _chosen(choice: str | Mapping[str, Any] | None, named: Mapping[str, Any]) -> list[str] | None:
    """Names of which one must be called; none: as the model likes; None: no call."""
    if choice in (None, "auto"):
        return [] if named else None
    if choice == "none":
        return None
    if choice == "required":
        if not named:
            raise UsageError("tool_choice is 'required' and there are no tools", hint="Send tools, or leave it out.")
        return list(named)
    if not isinstance(choice, Mapping):
        raise UsageError(f"tool_choice {choice!r} is not known", hint="Take auto, none, required or a function's name.")
    name = names.name_of(choice)
    if name not in named:
        raise UsageError(
            f"tool_choice names {name!r}, which is not among the tools", hint=f"They are {', '.join(named) or 'none'}."
        )
    return [name]


def _call(name: str, tool: Mapping[str, Any], work: Work) -> Grammar:
    return InTurn((Literally(f"{name}\n"), _RAW if names.is_raw(tool) else _arguments(tool, work)))


def _arguments(tool: Mapping[str, Any], work: Work) -> Grammar:
    function = tool["function"]
    parameters = function.get("parameters") or {"properties": {}, "additionalProperties": False}
    kind = parameters.get("type", "object") if isinstance(parameters, Mapping) else type(parameters).__name__
    if kind != "object":
        raise UsageError(f"the parameters of {function['name']} have the type {kind!r}", hint="Make them an object.")
    return _fitting({**parameters, "type": "object"}, function["name"], work)


def _format(form: Mapping[str, Any] | None, work: Work) -> Grammar | None:
    kind = (form or {}).get("type", "text")
    if kind == "text":
        return None
    if kind == "json_object":
        return JsonOf('{"type": "object"}')
    if form is None or kind != "json_schema":
        raise UsageError(f"the response_format {kind!r} is not known", hint="Take text, json_object or json_schema.")
    given = form.get("json_schema") or {}
    if "schema" not in given:
        raise UsageError("the response_format json_schema has no schema", hint="Put it in json_schema.schema.")
    return _fitting(given["schema"], str(given.get("name") or "response_format"), work)


def _fitting(wanted: Any, of: str, work: Work) -> JsonOf:
    """Documents of a schema, once it is known that it can be enforced."""
    try:
        try:
            written = json.dumps(wanted, ensure_ascii=False)
        except (ValueError, RecursionError) as error:
            raise UsageError("values nest too deep", hint="Flatten it.") from error
        schema.ebnf(written, work)
    except UsageError as error:
        raise UsageError(f"in the schema of {of}, {error.message}", hint=error.hint) from error
    return JsonOf(written)


def _any_of(choices: Sequence[Grammar]) -> Grammar:
    return choices[0] if len(choices) == 1 else OneOf(tuple(choices))


def _behind_thought(grammar: Grammar | None, opened: bool) -> Grammar | None:
    return InTurn((_THOUGHT, grammar)) if grammar is not None and opened else grammar
