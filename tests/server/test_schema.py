"""What the server says of itself in its OpenAPI document holds: schemathesis asks what the document allows, and not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import checks

from edge.errors import UsageError
from edge.messages import Conversation, Tokens
from edge.runtime.echo import EchoEngine
from edge.server.app import build
from edge.server.desk import Desk
from edge.server.options import Options
from edge.server.replies import ChatChunk
from tests.server.engines import Live, serving

KEY = "a-key-of-more-than-16"


class Echo(EchoEngine):
    """Knows, as a real engine does, that not every number is a token."""

    def count_tokens(self, conversation: Conversation) -> int:
        if isinstance(conversation, Tokens) and max(conversation.ids) > 0xFFF:
            raise UsageError("there is no such token", hint="Send others.")
        return super().count_tokens(conversation)


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with serving(Echo(), keys=(KEY.encode(),), queue=100) as server:
        server.http.headers["authorization"] = f"Bearer {KEY}"
        yield server
        for path in ("/v1/chat/completions", "/v1/completions"):  # not all was refused
            assert server.number(f'glm4_edge_requests_total{{path="{path}",status="200"}}') > 5


def _document() -> dict[str, Any]:
    return build(Desk(Options(keys=(KEY.encode(),)))).openapi()


def _narrow() -> dict[str, Any]:
    """The same for chats that echo can answer; else nearly all are refused, as a result without a call is."""
    document = _document()
    fields = document["components"]["schemas"]["ChatRequest"]["properties"]
    fields["model"] = {"enum": ["echo", None]}
    asked = {"role": {"const": "user"}, "content": {"type": "string", "minLength": 1, "maxLength": 100}}
    message = {"type": "object", "properties": asked, "required": list(asked), "additionalProperties": False}
    fields["messages"] = {"type": "array", "items": message, "minItems": 1, "maxItems": 9}
    for name in ("functions", "function_call", "tool_choice", "parallel_tool_calls", "response_format", "logprobs",
                 "top_logprobs", "max_completion_tokens", "stream_options"):  # fmt: skip
        fields[name] = {"type": "null"}
    document["paths"] = {path: how for path, how in document["paths"].items() if path == "/v1/chat/completions"}
    return document


def check(case: Any, live: Live, *others: Any) -> None:
    """Not that all that is allowed is answered: fields may fit and make no sense together."""
    case.call_and_validate(
        base_url=live.address,
        headers={"Authorization": f"Bearer {KEY}"},
        excluded_checks=[checks.positive_data_acceptance, *others],
    )


bounded = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
schema = schemathesis.openapi.from_dict(_document())
narrow = schemathesis.openapi.from_dict(_narrow())


@schema.parametrize()
@bounded
def test_it_holds(case: Any, live: Live) -> None:
    check(case, live)


@narrow.parametrize()
@bounded
def test_it_holds_of_answers(case: Any, live: Live) -> None:
    check(case, live, checks.negative_data_rejection)  # what was narrowed here is allowed


def test_the_document_names_only_what_there_is() -> None:
    document = _document()
    text = str(document)
    assert "HTTPValidationError" not in text and "'422'" not in text
    refs = {part.split("'")[0] for part in text.split("#/components/schemas/")[1:]}
    assert refs - document["components"]["schemas"].keys() == set()
    assert ChatChunk.__name__ in refs
    for path, methods in document["paths"].items():
        for route in methods.values():
            assert route["responses"].keys() >= {"200"} or path == "/v1/embeddings"
            assert ("security" in route) and bool(route["security"]) is (path != "/health")
