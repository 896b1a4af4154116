"""The page in the browser, without a browser: what it serves, to whom, and what the command does before."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.cli import _run
from edge.errors import MissingExtraError, UsageError
from edge.ui.web import serving
from edge.ui.web.desk import Desk

pytest.importorskip("gradio")
MakeDesk = Callable[..., Desk]


@pytest.fixture
def page(make_desk: MakeDesk) -> Iterator[tuple[Any, str, Desk]]:
    from edge.ui.web import page as pages

    desk = make_desk()
    built = pages.build(desk)
    address = serving.serve(built, port=None)
    yield built, address, desk
    built.close()


def test_it_is_served_on_this_machine_alone_and_has_all_with_it(page: tuple[Any, str, Desk]) -> None:
    built, address, _ = page
    assert address.startswith("http://127.0.0.1:") and built.share_url is None
    with urllib.request.urlopen(address, timeout=20) as answer:
        html = answer.read().decode()
    assert "fonts.googleapis.com" not in html and "--edge-ground" in html and "mount_rail" in html


def test_the_program_asks_nobody_outside_either(tmp_path: Path) -> None:
    """Gradio would report to its makers and look for newer versions of itself."""
    script = (
        "import socket, sys, time\nfrom pathlib import Path\nseen = []\nask = socket.getaddrinfo\n"
        "def listen(host, *more, **options):\n    seen.append(host)\n    return ask(host, *more, **options)\n"
        "socket.getaddrinfo = listen\n"
        "from edge.ui.web import page, serving\nfrom edge.ui.web.desk import Desk\n"
        "from edge.ui.web.talk import Settings\n"
        "built = page.build(Desk(None, Path(sys.argv[1]), Settings()))\nserving.serve(built, port=None)\n"
        "time.sleep(2)\nbuilt.close(verbose=False)\n"
        "print([host for host in seen if host not in ('127.0.0.1', 'localhost', b'127.0.0.1')])\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_uploaded_file_is_read_and_then_gone(page: tuple[Any, str, Desk]) -> None:
    import gradio

    from edge.ui.web import page as pages

    folder = Path(gradio.utils.get_upload_folder()) / "edge-test"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "note.txt").write_text("seven apples", encoding="utf-8")
    read = pages._Page(page[2])._read({"path": str(folder / "note.txt"), "name": "note.txt"})
    assert read["tokens"] == 12 and not (folder / "note.txt").exists()


def test_others_need_a_password(make_desk: MakeDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    from edge.ui.web import page as pages

    assert serving.is_loopback("127.0.0.1") and serving.is_loopback("::1") and serving.is_loopback("localhost")
    assert not serving.is_loopback("0.0.0.0") and not serving.is_loopback("laptop.lan")
    built = pages.build(make_desk())
    with pytest.raises(UsageError, match="can be reached by others"):
        serving.serve(built, port=None, host="0.0.0.0")
    address = serving.serve(built, port=None, password="secret")
    try:
        body = json.dumps({"data": {}, "component_id": 4, "fn_name": "pulse", "session_hash": "x"}).encode()
        asked = urllib.request.Request(
            f"{address}gradio_api/component_server/", body, {"Content-Type": "application/json"}
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(asked, timeout=20)
        assert refused.value.code == 401
    finally:
        built.close(verbose=False)


def texts(shown: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(turn["role"], "".join(part["text"] for part in turn["content"])) for turn in shown]


def test_an_answer_streams_into_the_page_and_onto_disk(page: tuple[Any, str, Desk]) -> None:
    from gradio_client import Client

    job = Client(page[1], verbose=False).submit("hello there 你好", [], api_name="/chat")
    shown, *_ = job.result(timeout=30)
    assert texts(shown) == [("user", "hello there 你好"), ("assistant", "hello there 你好")]
    assert len(job.outputs()) > 1
    (entry,) = page[2].store.entries()
    assert entry.title == "hello there 你好"


def test_only_what_was_uploaded_is_read(page: tuple[Any, str, Desk]) -> None:
    from edge.ui.web import page as pages

    whole = pages._Page(page[2])
    for path in ("/etc/passwd", "../setup.cfg", "", None):
        assert "was not uploaded" in whole._read({"path": path, "name": "x"})["error"]
    assert "was not uploaded" in whole._read(None)["error"]


def test_nothing_offers_to_share_what_was_said(page: tuple[Any, str, Desk]) -> None:
    (buttons,) = (each["props"]["buttons"] for each in page[0].config["components"] if each["type"] == "chatbot")
    assert "share" not in buttons


def test_a_port_that_is_taken(page: tuple[Any, str, Desk], capsys: pytest.CaptureFixture[str]) -> None:
    from edge.ui.web import page as pages

    port = int(page[1].rstrip("/").rsplit(":", 1)[1])
    with pytest.raises(UsageError, match=f"port {port} is taken"):
        serving.serve(pages.build(page[2]), port=port)
    assert _run(["ui", "no-such-model", "--port", str(port)]) != 0  # before a model is looked for
    assert f"port {port} is taken" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.7", "300.1.1.1"])
def test_an_address_that_is_not_this_machines(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["ui", "--host", host]) == 2
    assert f"{host} is no address of this machine" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["no-such-model"], "there is no folder no-such-model"),
        (["--device", "TPU"], "TPU"),
        (["pocket", "--temperature", "9"], "temperature"),
        (["--rehearse"], "is not rehearsed"),
        (["--context", "500", "--evict-beyond", "900"], "no effect"),
    ],
)
def test_what_cannot_be_ends_before_a_page_is_served(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(["ui", *arguments]) in (1, 2)
    assert told in capsys.readouterr().err


def test_without_gradio_the_install_line_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingExtraError):
        serving.require()
    assert _run(["ui", "pocket"]) == 1
    assert 'pip install "glm4-edge[ui]"' in capsys.readouterr().err
