"""A conversation as the checkpoint's own chat template writes it. Knows jinja2 only.

Rendered as transformers renders it, which is the definition; GenAI's own renderer lacks what the templates of
GLM-4-0414 use, and invents an English preamble for tools.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2 import meta
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edge.errors import ModelError, UsageError
from edge.messages import SPECIAL, Message

SEAM = "\ufdd0"
"""Stands in a rendered prompt where what comes before and what comes after are to be read as tokens apart: so that
`<|user|>` in a message is text, and begins no turn. A noncharacter, which no text has."""
_TOOLS = "# 可用工具"
_FUNCTION = "在调用上述函数时，请使用 Json 格式表示调用的参数。"


class Template:
    """One chat template.

    A template of GLM-4's reads tools, from the message that brings them (2024) or beside the messages (0414, Z1), and
    the name of a called tool as its turn's `metadata`. What a template does not read is written into the content in
    GLM-4's words, so that no tool and no call is lost in silence.

    Args:
        source: in jinja; empty: there is none.

    Raises:
        ModelError: it is not in jinja.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        environment = _environment()
        try:
            self._compiled = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ModelError(f"the model's chat template is none ({error})", hint="Export the model again.") from error
        # `message.tools` and `item['tools']`: GLM-4's of 2024 then sets a variable of that name, which is not the one
        # beside the messages
        self._inside = any(word in source for word in ("['tools']", '["tools"]', ".tools"))
        self._beside = not self._inside and "tools" in meta.find_undeclared_variables(environment.parse(source))
        self._metadata = "metadata" in source
        self.opens_thought = bool(source) and self._thinks()
        """Whether every answer begins in the middle of a thought: the prompt has written `<think>`."""

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt, the answer's opening included; `SEAM` in it is a place to cut it before it becomes tokens.

        Raises:
            UsageError: there is no template.
            jinja2.TemplateError: the template refuses the conversation.
        """
        if not self._source:
            raise UsageError(
                "the model has no chat template, it continues text only",
                hint="Export the chat model for conversations.",
            )
        told = [_plain(dict(tool)) for message in messages for tool in message.tools]
        context: dict[str, Any] = {"messages": [self._turn(message) for message in messages]}
        if self._beside:
            context["messages"] = [turn for turn in context["messages"] if turn["role"] != "system" or turn["content"]]
            context["tools"] = told or None
        return self._compiled.render(**context, add_generation_prompt=True)

    def _thinks(self) -> bool:
        try:
            return self.render([Message("user", "?")]).rstrip().endswith("<think>")
        except jinja2.TemplateError:  # it wants more than a question; what it wants is said when it is asked
            return False

    def _turn(self, message: Message) -> dict[str, Any]:
        content, called = _plain(message.content), _plain(message.metadata)
        tools = [_plain(dict(tool)) for tool in message.tools]
        turn: dict[str, Any] = {"role": message.role, "content": content}
        if called:
            if self._metadata:
                turn["metadata"] = called
            else:
                turn["content"] = f"{called}\n{content}"
        if tools and self._inside:
            turn["tools"] = tools
        elif tools and not self._beside:
            turn["content"] = "\n\n".join(filter(None, (described(tools), content)))
        return turn


def _plain(value: Any) -> Any:
    """A text with a seam within each special token that it spells; of tools, all texts in them."""
    if isinstance(value, str):
        return SPECIAL.sub(lambda found: found[0] + SEAM, value.replace(SEAM, ""))
    if isinstance(value, Mapping):
        return {_plain(name): _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def described(tools: Sequence[Any]) -> str:
    """Tools as GLM-4's own template describes them, its built-in ones by name only."""
    parts = [_TOOLS]
    for tool in tools:
        if tool.get("type") == "function":
            function = tool["function"]
            parts.append(f"## {function['name']}\n\n{_json(function, indent=4)}\n{_FUNCTION}")
        else:
            parts.append(f"## {tool['type']}")
    return "\n\n".join(parts)


def _environment() -> ImmutableSandboxedEnvironment:
    """As transformers sets it up: its options, its extensions, its functions."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


def _json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
