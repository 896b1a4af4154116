"""Requests and an engine → their answers, several at once, as they come."""

from __future__ import annotations

import json
import queue
import threading
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edge.batch.lines import CHAT, BadLineError, Line, Request, request
from edge.errors import EdgeError
from edge.runtime.interface import ChatEngine
from edge.runtime.stream import POLL_SECONDS
from edge.server import asking, whole
from edge.server.answering import Ended, Notice, happenings
from edge.server.asking import Asked
from edge.server.faults import CutShortError, describe, log_fault, read, shallow
from edge.server.protocol import ChatRequest, CompletionRequest

GIVE_UP = 8
"""Answers in a row that the device failed at, or that we could not read: then it is not the request's fault."""
_OURS = ("device_error", "internal_error")


@dataclass(frozen=True)
class Given:
    """What lines leave to the command."""

    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a body."""
    system: str | None = None


@dataclass(frozen=True)
class Answered:
    """A line has its answer, or the reason why there is none."""

    line: Line
    record: dict[str, Any]


def run(
    engine: ChatEngine, lines: Sequence[Line], given: Given, say: Callable[[str], None] = lambda line: None
) -> Generator[Answered, None, None]:
    """Answer lines, as many at once as the engine makes; each is yielded when its answer is there.

    A line that is at fault, that could not be read, or that the device failed at, has a record that says so. Closing
    the iterator ends the answers under way.

    Args:
        say: told what is worth knowing on the way, such as that another device was taken.

    Raises:
        EdgeError: the device fails at everything. Lines that were not yielded have no answer.
    """
    came: queue.SimpleQueue[Answered | EdgeError | BaseException] = queue.SimpleQueue()
    waiting, turn, ended = iter(lines), threading.Lock(), threading.Event()

    def work() -> None:
        try:
            while not ended.is_set():
                with turn:
                    line = next(waiting, None)
                if line is None:
                    return
                came.put(Answered(line, answer(engine, line, given, ended, say)))
        except CutShortError as error:
            if not ended.is_set():
                came.put(error)
        except BaseException as error:  # raised again by who waits
            came.put(error)

    workers = [threading.Thread(target=work, name="batch") for _ in range(min(engine.together, len(lines)))]
    for worker in workers:
        worker.start()
    held: list[Answered] = []
    try:
        for _ in lines:
            one = _next(came)
            if isinstance(one, BaseException):
                raise one
            held.append(one)
            if not _we_failed(one.record):
                yield from held
                held.clear()
            elif len(held) == GIVE_UP:
                fault = one.record["response"]["body"]["error"]["message"]
                raise _Lost(fault)
        yield from held
    finally:
        ended.set()
        for worker in workers:
            worker.join()


class _Lost(EdgeError):  # noqa: N818 - it is told as the fault that it was
    def __init__(self, fault: str) -> None:
        super().__init__(
            f"{GIVE_UP} answers in a row failed, the last one so: {fault.rstrip('.')}",
            hint="Mend what it says, or name another --device with another output; the same command goes on.",
        )


def _next(came: queue.SimpleQueue[Any]) -> Any:
    while True:
        try:  # in pieces: Windows does not interrupt a long wait
            return came.get(timeout=POLL_SECONDS)
        except queue.Empty:
            continue


def answer(
    engine: ChatEngine, line: Line, given: Given, ended: threading.Event, say: Callable[[str], None]
) -> dict[str, Any]:
    """The record of one line, as OpenAI's batches have it.

    Raises:
        CutShortError: `ended` was set before the answer was there.
    """
    try:
        wanted = request(line, given.defaults, given.system)
        asked = _understood(engine, wanted)
    except BadLineError as error:
        fault = {"code": error.code, "message": f"{error.message[:1].upper()}{error.message[1:]}. {error.hint}"}
        return _record(line, None, fault)
    except EdgeError as error:
        return _failed(line, error)
    except Exception as error:  # one line, whatever is in it, is no reason to leave the others without an answer
        log_fault(error, with_message=True)
        return _failed(line, error)
    try:
        body = _body(engine, asked, wanted.url == CHAT, ended, say)
    except CutShortError:
        raise
    except EdgeError as error:
        return _failed(line, error)
    return _record(line, _response(200, body), None)


def _failed(line: Line, error: Exception) -> dict[str, Any]:
    status, faulty, _ = describe(error, "Standard error")
    return _record(line, _response(status, faulty.model_dump()), None)


def _understood(engine: ChatEngine, wanted: Request) -> Asked:
    with shallow():
        text = json.dumps({name: value for name, value in wanted.body.items() if name != "model"})
    if wanted.url == CHAT:
        return asking.chat(engine, read(ChatRequest, text))
    return asking.completion(engine, read(CompletionRequest, text))


def _body(
    engine: ChatEngine, asked: Asked, chats: bool, ended: threading.Event, say: Callable[[str], None]
) -> dict[str, Any]:  # fmt: skip
    answers: list[Ended] = []
    for event in happenings(engine, asked, ended):
        if isinstance(event, Notice):
            say(event.text)
        elif isinstance(event, Ended):
            answers.append(event)
    if chats:
        reply = whole.chat(whole.Head.of(engine, "chatcmpl"), asked, answers).json_text()
    else:
        reply = whole.completion(whole.Head.of(engine, "cmpl"), asked, answers).json_text()
    body: dict[str, Any] = json.loads(reply)
    return body


def _record(line: Line, response: dict[str, Any] | None, error: dict[str, str] | None) -> dict[str, Any]:
    made = f"batch_req_{uuid.uuid4().hex}"
    return {"id": made, "custom_id": line.custom_id, "response": response, "error": error}


def _response(status: int, body: dict[str, Any]) -> dict[str, Any]:
    return {"status_code": status, "request_id": f"req_{uuid.uuid4().hex}", "body": body}


def fault_of(record: Mapping[str, Any]) -> str | None:
    """Why a record has no answer; None where it has one."""
    if record["error"] is not None:
        return str(record["error"]["message"])
    response = record["response"]
    return None if response["status_code"] == 200 else str(response["body"]["error"]["message"])


def _we_failed(record: Mapping[str, Any]) -> bool:
    response = record["response"]
    return response is not None and response["body"].get("error", {}).get("code") in _OURS
