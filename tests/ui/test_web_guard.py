"""What other pages, names and addresses get of the page: nothing."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from edge.ui.web import serving
from edge.ui.web.desk import Desk
from edge.ui.web.guard import refusal

pytest.importorskip("gradio")
MakeDesk = Callable[..., Desk]
NAMES = ("127.0.0.1", "localhost", "::1")
HERE = {"host": "127.0.0.1:7860"}


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("GET", HERE),
        ("GET", {"host": "localhost"}),
        ("GET", {"host": "[::1]:7860"}),
        ("GET", {"host": "LOCALHOST:7860"}),
        ("POST", {**HERE, "origin": "http://127.0.0.1:7860", "sec-fetch-site": "same-origin"}),
        ("GET", {**HERE, "sec-fetch-site": "none", "sec-fetch-dest": "document"}),
        ("GET", {**HERE, "sec-fetch-site": "cross-site", "sec-fetch-dest": "document"}),  # a link was followed
    ],
)
def test_the_page_itself_is_answered(method: str, headers: dict[str, str]) -> None:
    assert refusal(method, headers, NAMES) is None


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("GET", {"host": "evil.example:7860"}),  # a name that was made to point here
        ("GET", {"host": "127.0.0.1.evil.example"}),
        ("GET", {"host": "evil.example@127.0.0.1.example"}),
        ("GET", {}),
        ("GET", {"host": "[::1"}),  # no address at all
        ("POST", {**HERE, "origin": "http://["}),
        ("POST", {**HERE, "origin": "http://evil.example"}),
        ("POST", {**HERE, "origin": "http://127.0.0.1:3000"}),  # another program of this machine
        ("POST", {**HERE, "origin": "http://localhost:7860"}),
        ("POST", {**HERE, "origin": "null"}),
        ("POST", {**HERE, "sec-fetch-site": "cross-site", "sec-fetch-dest": "document"}),  # a form
        ("GET", {**HERE, "sec-fetch-site": "same-site", "sec-fetch-dest": "image"}),
        ("GET", {**HERE, "sec-fetch-site": "cross-site", "sec-fetch-dest": "iframe"}),
    ],
)
def test_pages_from_elsewhere_are_refused(method: str, headers: dict[str, str]) -> None:
    told = refusal(method, headers, NAMES)
    assert told is not None and "Open the address that the program printed." in told


def test_with_a_password_the_name_may_be_any_but_other_pages_are_refused_still() -> None:
    assert refusal("GET", {"host": "laptop.lan:7860"}, None) is None
    assert refusal("POST", {"host": "laptop.lan:7860", "origin": "http://evil.example"}, None) is not None


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from edge.ui.web import page
    from edge.ui.web.talk import Settings
    from tests.ui.conftest import FakeBackend

    built = page.build(Desk(FakeBackend(), tmp_path_factory.mktemp("kept"), Settings()))
    yield serving.serve(built, port=None)
    built.close(verbose=False)


def status(url: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, named), timeout=20) as answer:
            return answer.status, answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.headers


def test_a_borrowed_name_is_refused(address: str) -> None:
    assert status(address, Host="evil.example")[0] == 403


@pytest.mark.parametrize("path", ["queue/join", "call/chat", "component_server/", "upload", "reset", "cancel"])
def test_no_other_page_can_have_it_act(address: str, path: str) -> None:
    body = json.dumps({"data": ["hello", []], "fn_index": 0, "session_hash": "x"}).encode()
    for kind in ("application/json", "text/plain"):
        assert status(f"{address}gradio_api/{path}", body, Origin="http://evil.example", Content_Type=kind)[0] == 403


@pytest.mark.parametrize(
    "path",
    ["file=/etc/passwd", "file=../../../../etc/passwd", "file=setup.cfg", "file=http://evil.example/x",
     "proxy=http://evil.example/x"],
)  # fmt: skip
def test_no_file_is_given_out_and_nothing_is_fetched(address: str, path: str) -> None:
    assert status(f"{address}gradio_api/{path}")[0] in (400, 403, 404)


def test_the_browser_is_told_to_fetch_nothing_from_elsewhere(address: str) -> None:
    code, headers = status(address)
    policy = headers["content-security-policy"]
    assert code == 200 and "default-src 'self' data: blob:" in policy and "http" not in policy
    assert "frame-ancestors 'none'" in policy and headers["x-content-type-options"] == "nosniff"


def test_gradio_watches_and_keeps_nothing_of_its_own(address: str) -> None:
    assert status(f"{address}monitoring")[0] == 403 and status(f"{address}monitoring/summary")[0] == 403
    assert status(f"{address}gradio_api/runs")[0] == 404
    with urllib.request.urlopen(f"{address}config", timeout=20) as answer:
        assert json.load(answer)["run_history"] is False  # deleting would not reach the browser's own copy
