"""Who may ask: keys, and the names and pages a request comes under."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edge.runtime.echo import EchoEngine
from tests.server.engines import Live, question, serving

KEY = "a-key-of-more-than-16"


@pytest.fixture(scope="module")
def echo() -> Iterator[Live]:
    with serving(EchoEngine()) as live:
        yield live


def test_a_key_is_asked_for() -> None:
    with serving(EchoEngine(), keys=(KEY.encode(), "schlüssel-der-passt".encode())) as live:
        for headers, status in (
            ({}, 401), ({"authorization": "Bearer wrong"}, 401), ({"authorization": KEY}, 401),
            ({"authorization": f"Basic {KEY}"}, 401), ({"authorization": "Bearer"}, 401),
            ({"authorization": "Bearer ключ".encode()}, 401),
            ({"authorization": b"Bearer \xff\xfe"}, 401), ({"authorization": f"Bearer {KEY}"}, 200),
            ({"authorization": f"bearer {KEY}"}, 200), ({"authorization": "Bearer schlüssel-der-passt".encode()}, 200),
        ):  # fmt: skip
            answer = live.http.post("/v1/chat/completions", json=question(), headers=headers)  # type: ignore[arg-type]
            assert answer.status_code == status, headers
            if status == 401:
                assert answer.json()["error"]["type"] == "authentication_error"
                assert answer.headers["www-authenticate"] == "Bearer"
        for path, status in (("/health", 200), ("/", 200), ("/metrics", 401), ("/v1/models", 401), ("/nowhere", 401)):
            assert live.http.get(path).status_code == status
        foreign = live.http.get("/v1/models", headers={"host": "example.org", "authorization": f"Bearer {KEY}"})
        assert foreign.status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("localhost:1", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("evil.example", 403),
     ("evil.example:8000", 403), ("127.0.0.1.evil.example", 403), ("localhost@evil.example", 403), ("[", 403),
     ("", 403)],
)  # fmt: skip
def test_without_a_key_a_page_cannot_lead_its_own_name_here(host: str, status: int, echo: Live) -> None:
    answer = echo.http.get("/v1/models", headers={"host": host})
    assert answer.status_code == status
    if status == 403:
        assert answer.json()["error"]["code"] == "wrong_host"


@pytest.mark.parametrize(
    ("origin", "status"), [("http://evil.example", 403), ("null", 403), ("https://[", 403), ("", 200)]
)
def test_without_a_key_foreign_pages_may_not_ask(origin: str, status: int, echo: Live) -> None:
    assert echo.http.get("/v1/models", headers={"origin": origin}).status_code == status
    assert echo.http.get("/v1/models", headers={"origin": echo.address}).status_code == 200


def test_cors_is_off_unless_asked_for(echo: Live) -> None:
    preflight = {"origin": "http://localhost:3000", "access-control-request-method": "POST",
                 "access-control-request-headers": "authorization, content-type"}  # fmt: skip
    assert echo.http.options("/v1/chat/completions", headers=preflight).status_code == 403
    with serving(EchoEngine(), cors_origins=("http://localhost:3000",), keys=(KEY.encode(),)) as live:
        answer = live.http.options("/v1/chat/completions", headers=preflight)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
        refused = live.http.get("/v1/models", headers={"origin": "http://localhost:3000"})
        assert refused.status_code == 401 and "access-control-allow-origin" in refused.headers
        assert refused.headers["access-control-expose-headers"] == "retry-after"  # without it a page cannot read that
        other = live.http.options("/v1/chat/completions", headers={**preflight, "origin": "http://evil.example"})
        assert "access-control-allow-origin" not in other.headers
    with serving(EchoEngine(), cors_origins=("http://localhost:3000",)) as live:
        assert live.http.get("/v1/models", headers={"origin": "http://localhost:3000"}).status_code == 200
        assert live.http.get("/v1/models", headers={"origin": "http://evil.example"}).status_code == 403
