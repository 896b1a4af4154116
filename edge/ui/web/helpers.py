"""The tools that a conversation may be given: a calculator and a clock. They touch nothing but their arguments."""

from __future__ import annotations

import ast
import json
import math
import operator
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

_LONGEST = 400
_BIGGEST_EXPONENT, _BIGGEST_BASE = 1000, 1e6
_BINARY: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "sqrt": math.sqrt, "sin": math.sin, "cos": math.cos, "tan": math.tan, "log": math.log, "log10": math.log10,
    "exp": math.exp, "abs": abs, "round": round, "floor": math.floor, "ceil": math.ceil, "min": min, "max": max,
}  # fmt: skip
_NAMES = {"pi": math.pi, "e": math.e}

TOOLS: tuple[dict[str, Any], ...] = (
    {
        "type": "function",
        "function": {
            "name": "calculate",
            "description": "Compute an arithmetic expression exactly. Use it for any sum instead of guessing.",
            "parameters": {
                "type": "object",
                "properties": {"expression": {"type": "string", "description": "For example (3 + 4) * sqrt(2) / 7"}},
                "required": ["expression"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "current_time",
            "description": "The date, the time and the weekday now.",
            "parameters": {
                "type": "object",
                "properties": {
                    "time_zone": {"type": "string", "description": "An IANA name such as Asia/Shanghai; else local."}
                },
            },
        },
    },
)
"""As OpenAI's API describes them."""


def call(name: str, arguments: str) -> tuple[str, bool]:
    """What the tool gives for these arguments, as JSON text for the model, and whether it failed.

    A fault of the model's is a result, too: it is told what was wrong, and may try again.
    """
    try:
        given = json.loads(arguments or "{}")
        if not isinstance(given, dict):
            raise ValueError("the arguments are no JSON object")
        if name == "calculate":
            value = calculate(str(given.get("expression", "")))
            return json.dumps({"result": value}), False
        if name == "current_time":
            return json.dumps(current_time(given.get("time_zone") or None)), False
        raise ValueError(f"there is no tool {name}")
    except (ValueError, ArithmeticError, TypeError, SyntaxError, RecursionError) as error:
        return json.dumps({"error": str(error)}, ensure_ascii=False), True


def current_time(zone: str | None, now: datetime | None = None) -> dict[str, str]:
    """The time in a zone, or here.

    Raises:
        ValueError: no such zone is known.
    """
    now = now or datetime.now(timezone.utc)
    try:
        local = now.astimezone(ZoneInfo(zone)) if zone else now.astimezone()
    except (KeyError, OSError, ValueError) as error:  # Windows brings no zones of its own
        raise ValueError(f"no time zone {zone!r} is known here") from error
    return {"time": local.isoformat(timespec="seconds"), "weekday": local.strftime("%A"),
            "utc_offset": str(local.utcoffset() or timedelta())}  # fmt: skip


def calculate(expression: str) -> float | int:
    """The value of an arithmetic expression; nothing else is evaluated.

    Raises:
        ValueError: it is none, or too much work.
        ArithmeticError: it has no value.
    """
    text = expression.strip().replace("^", "**").replace("×", "*").replace("÷", "/").replace("−", "-")
    if not text or len(text) > _LONGEST:
        raise ValueError(f"an expression has 1 to {_LONGEST} characters, this one {len(text)}")
    value: float | int = _value(ast.parse(text, mode="eval").body)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    if isinstance(node, ast.Name) and node.id in _NAMES:
        return _NAMES[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        value = _value(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow):
            if abs(right) > _BIGGEST_EXPONENT or abs(left) > _BIGGEST_BASE:
                raise ValueError("the power is too big")
            value = left**right
            if isinstance(value, complex):
                raise ValueError("the result is no real number")
            return value
        if (operation := _BINARY.get(type(node.op))) is not None:
            return operation(left, right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        function = _FUNCTIONS.get(node.func.id)
        if function is not None:
            return function(*(_value(each) for each in node.args))
    raise ValueError(f"{ast.unparse(node)} is no arithmetic")
