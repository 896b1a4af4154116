"""Messages of OpenAI's API → the turns that GLM-4's chat template reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from edge.errors import UsageError
from edge.messages import Message
from edge.tools import names

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_NOTHING = '""'  # GLM-4's template leaves out a turn without content, and with it the fact that a tool has answered


class _Call(NamedTuple):
    id: str
    name: str
    arguments: str


def conversation(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> list[Message]:
    """The turns of a request.

    Tools stand at the first system turn, before what the caller says there. Every call of an assistant's turn is a turn
    of its own behind the turn's text; its results follow in the order of the calls, whatever order they came in.
    `developer` is `system`; `function_call` and the role `function`, which came before tools, are read as well.

    Args:
        messages: as in a chat completion's request; what is None may be left out.
        tools: what may be called; see `legacy` for `functions`.

    Raises:
        UsageError: content that is no text, a role or a name that is not known, a result that no call waits for, a call
            without a result.
    """
    names.checked(tools)
    turns: list[Message] = []
    at = 0
    while at < len(messages):
        message = messages[at]
        role = message.get("role")
        at += 1
        if role not in _ROLES:
            raise UsageError(f"the role {role!r} is not known", hint=f"Known are {', '.join(_ROLES)}.")
        if role in ("tool", "function"):
            raise UsageError(
                f"the result {_result_id(message)!r} belongs to no call before it",
                hint="Results follow the assistant's message whose tool_calls asked for them.",
            )
        text = _text(message.get("content"))
        if role == "assistant":
            calls = _calls(message)
            turns += [Message("assistant", text)] if text or not calls else []
            turns += [_called(call) for call in calls]
            if calls:
                results, at = _results(messages, at, calls)
                turns += results
        else:
            turns.append(Message("user" if role == "user" else "system", text))
    return _with_tools(turns, tools)


def legacy(functions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The request's `functions`, which came before `tools`, as tools."""
    return [{"type": "function", "function": function} for function in functions]


def _with_tools(turns: list[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    if not tools:
        return turns
    if turns and turns[0].role == "system":
        return [Message("system", turns[0].content, tools=tuple(tools)), *turns[1:]]
    return [Message("system", "", tools=tuple(tools)), *turns]


def _called(call: _Call) -> Message:
    arguments = call.arguments.strip() or "{}"
    if call.name in names.RAW:
        arguments = names.unwrapped(call.name, arguments)
    return Message("assistant", arguments, metadata=call.name)


def _calls(message: Mapping[str, Any]) -> list[_Call]:
    """Of an assistant's message; a `function_call` has its name for an id."""
    calls = []
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        if call.get("type", "function") != "function" or "name" not in function:
            raise UsageError(
                f"a call of the type {call.get('type')!r} is not known",
                hint="Send calls of functions, with their name.",
            )
        calls.append(_Call(call.get("id") or "", function["name"], function.get("arguments") or ""))
    if legacy_call := message.get("function_call"):
        calls.append(_Call(legacy_call["name"], legacy_call["name"], legacy_call.get("arguments") or ""))
    ids = [call.id for call in calls]
    for one in ids:
        if not one or ids.count(one) > 1:
            raise UsageError(f"{one!r} is no id that names one call", hint="Give every tool call an id of its own.")
    for call in calls:
        names.name_of({"type": "function", "function": {"name": call.name}})
    return calls


def _results(messages: Sequence[Mapping[str, Any]], at: int, calls: list[_Call]) -> tuple[list[Message], int]:
    """The observations, in the order of the calls, and where the messages go on."""
    found: dict[str, str] = {}
    waiting = {call.id for call in calls}
    while at < len(messages) and messages[at].get("role") in ("tool", "function"):
        one = _result_id(messages[at])
        if one not in waiting:
            raise UsageError(
                f"the result {one!r} belongs to no call before it",
                hint=f"The calls that wait for a result are {', '.join(sorted(waiting)) or 'none'}.",
            )
        waiting.remove(one)
        found[one] = _text(messages[at].get("content")) or _NOTHING
        at += 1
    for call in calls:
        if call.id in waiting:
            raise UsageError(
                f"the call {call.id!r} of {call.name} has no result",
                hint="Let a message of the role tool with its tool_call_id follow the calls.",
            )
    return [Message("observation", found[call.id]) for call in calls], at


def _result_id(message: Mapping[str, Any]) -> str:
    return str(message.get("tool_call_id" if message["role"] == "tool" else "name") or "")


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for part in content:
        if part.get("type") != "text":
            raise UsageError(
                f"content of the type {part.get('type')!r} cannot be read", hint="This model reads text alone."
            )
        texts.append(part["text"])
    return "\n".join(texts)
