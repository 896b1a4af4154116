"""What goes wrong, in OpenAI's form: which status, which code. Pure."""

from __future__ import annotations

import contextlib
import logging
import re
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn, TypeVar

from pydantic import ValidationError
from pydantic_core import from_json

from edge.errors import ContextError, DeviceError, EdgeError, ModelError, ResourceError, UsageError
from edge.server.parts import UNSUPPORTED, Model
from edge.server.replies import Fault, Faulty

_TAGS = {"string", "array", "tokens", "token_arrays", "mode", "named", "builtin"}
_FIRST = ("json_invalid", "union_tag_invalid", "union_tag_not_found", "none_required", "literal_error", "too_long")
_SHOWN = 80
log = logging.getLogger("edge.server")
Asked = TypeVar("Asked", bound=Model)


class RefusedError(UsageError):
    """A request that is refused, with the field that was wrong and OpenAI's code for it."""

    def __init__(
        self, message: str, *, hint: str, param: str | None = None, code: str | None = None, status: int = 400,
        retry_seconds: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message, hint=hint)
        self.param, self.code, self.status, self.retry_seconds = param, code, status, retry_seconds


class CutShortError(EdgeError):
    """An answer that was ended before its end."""

    def __init__(self) -> None:
        super().__init__("the answer was ended before its end", hint="Ask again.")


class ReplacedError(DeviceError):
    """The device was replaced when a part of the answer had been sent already."""

    def __init__(self) -> None:
        super().__init__(
            "the device failed in the middle of the answer, and the model went on another one", hint="Ask again."
        )


def read(kind: type[Asked], body: bytes | str) -> Asked:
    """A request from its JSON.

    Raises:
        RefusedError: it is no JSON, or a field is not known, not supported, or wrong; which one, and why.
    """
    with shallow():
        try:
            return kind.model_validate_json(body)
        except ValidationError as error:
            _explain(error, body)


@contextlib.contextmanager
def shallow() -> Iterator[None]:
    """Refuse what nests so deeply that Python gives up on it.

    Raises:
        RefusedError: it does, somewhere: in a schema, in the arguments of a call.
    """
    try:
        yield
    except RecursionError:
        raise RefusedError(
            "something in the request nests too deeply to be read", hint="Flatten its schemas, and the arguments of "
            "its calls.", code="invalid_value",
        ) from None  # fmt: skip


def describe(error: BaseException, log: str = "The server's log") -> tuple[int, Faulty, int | None]:
    """HTTP status, body, and seconds after which to try again, of what was raised.

    Of a fault nobody foresaw only the kind is told, and that `log` has more.
    """
    if not isinstance(error, EdgeError):
        fault = Fault(message=f"This should not have happened ({type(error).__name__}). {log} says where.",
                      type="server_error", param=None, code="internal_error")  # fmt: skip
        return 500, Faulty(error=fault), None
    status, kind, param, retry = 500, "server_error", None, None
    code: str | None = "model_error"
    if isinstance(error, RefusedError):
        status, code, param, retry = error.status, error.code, error.param, error.retry_seconds
        kind = {429: "rate_limit_error", 401: "authentication_error", 403: "permission_error"}.get(
            status, "server_error" if status >= 500 else "invalid_request_error"
        )
    elif isinstance(error, ContextError):
        status, kind, code = 400, "invalid_request_error", "context_length_exceeded"
    elif isinstance(error, UsageError):
        status, kind, code = 400, "invalid_request_error", "invalid_value"
    elif isinstance(error, CutShortError):
        status, code = 503, "cancelled"
    elif isinstance(error, (DeviceError, ResourceError)):
        status, code = 503, "device_error"
    elif isinstance(error, ModelError):
        status, code = 503, "model_error"
    said = error.message
    if param is None or not said.startswith(param):  # a field is written as it is
        said = said[:1].upper() + said[1:]
    message = f"{said}. {error.hint}".rstrip()
    return status, Faulty(error=Fault(message=message, type=kind, param=param, code=code)), retry


def log_fault(error: BaseException, *, with_message: bool) -> None:
    """Where something went wrong that should not have; its message, which may have a prompt in it, only if asked."""
    where = "".join(traceback.format_tb(error.__traceback__))
    log.error("%s%s\n%s", type(error).__name__, f": {error}" if with_message else "", where)


def _explain(error: ValidationError, body: bytes | str) -> NoReturn:
    found = error.errors(include_url=False)
    each = min(found, key=lambda one: _FIRST.index(one["type"]) if one["type"] in _FIRST else len(_FIRST))
    kind, context = each["type"], each.get("ctx", {})
    if kind == "json_invalid":
        raise RefusedError(f"the body is no JSON ({context.get('error', each['msg'])})", code="invalid_json",
                      hint="Send an object.")  # fmt: skip
    data = from_json(body, allow_inf_nan=True)
    path = _path(each["loc"], data)
    field = path.rpartition(".")[2].partition("[")[0]
    value = _shown(each["input"])
    if kind == "extra_forbidden":
        raise RefusedError(f"{path} is not known here", param=path, code="unknown_parameter",
                      hint="The page /docs has all parameters.")  # fmt: skip
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        path = f"{path}.{context['discriminator']}".replace("'", "")
        if "tag" not in context:
            kind = "missing"
        else:
            known = context["expected_tags"].replace("'", "")
            raise RefusedError(f"{path} is {context['tag']!r}", param=path, code="invalid_value",
                               hint=f"It can be {known}.")  # fmt: skip
    if field == "type" and path.startswith("messages[") and kind == "literal_error":
        raise RefusedError(f"{path} is {value}: this model reads text alone", param=path, code="unsupported_value",
                      hint="Send parts of the type text.")  # fmt: skip
    if field in UNSUPPORTED and kind != "missing":
        raise RefusedError(f"{path} cannot be {value}: {UNSUPPORTED[field]}", param=path, code="unsupported_value",
                      hint="Leave it out.")  # fmt: skip
    if kind == "missing":
        raise RefusedError(f"{path} is missing", param=path, code="missing_parameter", hint="It is needed.")
    if kind == "model_type":
        raise RefusedError(f"{path or 'the body'} is {value}", param=path or None, code="invalid_value",
                      hint="Send an object.")  # fmt: skip
    if not each["loc"]:  # of several fields together; the kind is the field
        message, _, hint = each["msg"].partition("; ")
        raise RefusedError(message, param=kind, code="invalid_value",
                      hint=f"{hint[:1].upper()}{hint[1:] or 'Leave it out'}.")  # fmt: skip
    if kind == "list_type" and each["loc"][-1] == "array":
        rule = "It should be a string or an array"
    else:
        rule = each["msg"].replace("a valid ", "a ").replace("Input should", "It should")
        rule = re.sub(r"\ba(?= [aeio])", "an", rule)  # as in "a valid integer"
    raise RefusedError(f"{path} cannot be {value}", param=path, code="invalid_value", hint=f"{rule}.")


def _path(place: tuple[int | str, ...], data: Any) -> str:
    """Where in the request, as OpenAI writes it: `messages[0].content`. What pydantic adds for its unions is left out.

    Args:
        place: pydantic's.
        data: the request.
    """
    path = ""
    for number, step in enumerate(place):
        last = number == len(place) - 1
        if isinstance(data, dict) and step in data:
            path, data = f"{path}.{step}", data[step]
        elif isinstance(data, list) and isinstance(step, int):
            path, data = f"{path}[{step}]", data[step]
        elif last and step not in _TAGS:
            path = f"{path}.{step}"
    return path.removeprefix(".")


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 2]} …"
