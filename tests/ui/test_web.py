"""The page in the browser, without a browser: what it serves and what it streams."""

from __future__ import annotations

import sys
import threading
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


def test_an_answer_streams(page: tuple[Any, str]) -> None:
    from gradio_client import Client

    job = Client(page[1], verbose=False).submit("hello there 你好", api_name="/chat")
    assert job.result(timeout=30) == "hello there 你好"
    assert len(job.outputs()) > 1


def test_a_port_that_is_taken(page: tuple[Any, str]) -> None:
    port = int(page[1].rstrip("/").rsplit(":", 1)[1])
    with pytest.raises(UsageError, match=f"port {port} is taken"):
        web.serve(web.build(EchoEngine(), Sampling(), None), port=port)


def test_a_fault_is_a_sentence(page: tuple[Any, str]) -> None:
    from gradio_client import Client

    with pytest.raises(Exception, match=r"has .* tokens, but the model reads at most 63"):
        Client(page[1], verbose=False).predict("word " * 100, api_name="/chat")


def test_without_gradio_the_install_line_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingExtraError):
        web.require()
    assert _run(["ui", "pocket"]) == 1
    assert 'pip install "glm4-edge[ui]"' in capsys.readouterr().err
