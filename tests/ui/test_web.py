"""The page in the browser, without a browser: what it serves and what it streams."""

from __future__ import annotations

import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from edge.cli import _run
from edge.errors import DeviceError, EdgeError, MissingExtraError, UsageError
from edge.messages import Sampling
from edge.runtime.echo import EchoEngine
from edge.ui import web

pytest.importorskip("gradio")


@pytest.fixture(scope="module")
def page() -> Iterator[tuple[Any, str]]:
    built = web.build(EchoEngine(context_length=64), Sampling(), None)
    address = web.serve(built, port=None)
    yield built, address
    built.close()


def test_it_is_served_on_this_machine_alone(page: tuple[Any, str]) -> None:
    built, address = page
    assert address.startswith("http://127.0.0.1:") and built.share_url is None
    with urllib.request.urlopen(address, timeout=20) as answer:
        html = answer.read().decode()
    assert "fonts.googleapis.com" not in html
    assert "echo on CPU" in html


@pytest.mark.parametrize("fault", [None, DeviceError("GPU failed", hint="Update the driver.")])
def test_the_device_warms_up_while_the_visitor_types(fault: EdgeError | None) -> None:
    warmed = threading.Event()

    class Cold(EchoEngine):
        def warm_up(self) -> None:
            warmed.set()
            if fault is not None:
                raise fault

    web.build(Cold(), Sampling(), None)
    assert warmed.wait(20)


def texts(shown: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(turn["role"], "".join(part["text"] for part in turn["content"])) for turn in shown]


def test_an_answer_streams(page: tuple[Any, str]) -> None:
    from gradio_client import Client

    job = Client(page[1], verbose=False).submit("hello there 你好", api_name="/chat")
    shown, field = job.result(timeout=30)
    assert texts(shown) == [("user", "hello there 你好"), ("assistant", "hello there 你好")]
    assert field["value"] == "" and field["interactive"]
    assert len(job.outputs()) > 1


def test_a_refused_message_goes_back_and_the_conversation_goes_on(page: tuple[Any, str]) -> None:
    from gradio_client import Client

    client = Client(page[1], verbose=False)
    client.predict("one", api_name="/chat")
    shown, field = client.predict("word " * 100, api_name="/chat")
    assert texts(shown) == [("user", "one"), ("assistant", "one")]
    assert field["value"] == "word " * 100 and field["interactive"]
    assert field["submit_btn"] is True and field["stop_btn"] is False
    shown, field = client.predict("two", api_name="/chat")
    assert [text for _, text in texts(shown)] == ["one", "one", "two", "two"] and field["value"] == ""


def stopped_after(engine: EchoEngine, seconds: float) -> tuple[Any, Any]:
    """What the page shows when Stop is pressed so long after a message."""
    from gradio_client import Client

    built = web.build(engine, Sampling(), None)
    address = web.serve(built, port=None)
    try:
        client = Client(address, verbose=False)
        job = client.submit("a long answer " * 20, api_name="/chat")
        while not job.outputs():
            time.sleep(0.01)
        time.sleep(seconds)
        client.predict(api_name="/stop")
        started = time.monotonic()
        result = job.result(timeout=30)
        assert time.monotonic() - started < 5
        return result  # type: ignore[no-any-return]
    finally:
        built.close()


def test_a_stopped_answer_bears_a_mark() -> None:
    shown, field = stopped_after(EchoEngine(seconds_per_token=0.05), 1)
    (_, _), (_, answer) = texts(shown)
    assert answer.startswith("a long") and answer.endswith("\n\n*(stopped)*") and len(answer) < 200
    assert field["value"] == ""


def test_stopped_before_the_answer_began_the_message_goes_back() -> None:
    shown, field = stopped_after(EchoEngine(prefill_seconds=10), 0.5)
    assert shown == [] and field["value"].startswith("a long answer")


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("<b>bold</b> & more", "&lt;b>bold&lt;/b> &amp; more"),
        ("a `<i>` tag", "a `<i>` tag"),
        ("<p>\n```html\n<p>x</p>\n```\n<p>", "&lt;p>\n```html\n<p>x</p>\n```\n&lt;p>"),
        ("```\n<p> not closed yet", "```\n<p> not closed yet"),
        ("so:\n\n    <p>code</p>\n\n<p>", "so:\n\n    <p>code</p>\n\n&lt;p>"),
        ("two ``a ` <b>`` and <b>", "two ``a ` <b>`` and &lt;b>"),
        ("one ` alone <b>", "one ` alone &lt;b>"),
    ],
)
def test_html_is_shown_as_it_was_typed(typed: str, shown: str) -> None:
    assert web._shown_text(typed) == shown


def test_the_page_says_why_another_device_was_taken() -> None:
    built = web.build(EchoEngine(), Sampling(), None, "GPU → CPU: this machine has no GPU")
    values = [component["props"].get("value") for component in built.config["components"]]
    assert "GPU → CPU: this machine has no GPU" in values


def test_nothing_offers_to_share_what_was_said(page: tuple[Any, str]) -> None:
    (buttons,) = (each["props"]["buttons"] for each in page[0].config["components"] if each["type"] == "chatbot")
    assert "share" not in buttons


def test_a_port_that_is_taken(page: tuple[Any, str], capsys: pytest.CaptureFixture[str]) -> None:
    port = int(page[1].rstrip("/").rsplit(":", 1)[1])
    with pytest.raises(UsageError, match=f"port {port} is taken"):
        web.serve(web.build(EchoEngine(), Sampling(), None), port=port)
    assert _run(["ui", "no-such-model", "--port", str(port)]) != 0  # before a model is looked for
    assert f"port {port} is taken" in capsys.readouterr().err


def test_without_gradio_the_install_line_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingExtraError):
        web.require()
    assert _run(["ui", "pocket"]) == 1
    assert 'pip install "glm4-edge[ui]"' in capsys.readouterr().err
