"""No model yet, in a real browser; and what axe-core says of every view."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.runtime.echo import EchoEngine
from edge.ui.web.desk import Desk
from edge.ui.web.talk import Settings
from tests.ui.browser import Browser
from tests.ui.test_browser import FIELD, RICH, finished, send, until
from tests.ui.test_web_answering import Scripted

MakeDesk, Serve = Callable[..., Desk], Callable[[Desk], str]
_AXE = "axe-core@4.10.2"


@pytest.fixture(autouse=True)
def quiet(browser: Browser, serve: Serve) -> Any:
    yield
    browser.close()
    faults, browser.faults = browser.faults, []
    assert browser.outside == [] and faults == []


def test_choose_see_the_cost_export_stop_go_on_and_chat(browser: Browser, make_desk: MakeDesk, serve: Serve) -> None:
    desk = make_desk(model=None, step_seconds=0.4)
    page = browser.open(serve(desk))
    page.get_by_role("heading", name="Choose a model").wait_for()
    assert not page.locator(FIELD).is_visible()
    chosen = page.get_by_role("radio", name="Pocket")
    chosen.check()
    border = "(radio) => getComputedStyle(radio).borderTopColor + getComputedStyle(radio).borderTopWidth"
    assert chosen.evaluate(border) == "rgb(11, 107, 97)5px"  # gradio would make it transparent under the pointer
    browser.shoot(page, "first-choose")
    page.get_by_role("button", name="See what it takes").click()
    page.get_by_text("about 75 s").wait_for()
    browser.shoot(page, "first-cost")
    page.get_by_role("button", name="Make it ready").click()
    bar = page.get_by_role("progressbar")
    until(lambda: int(bar.get_attribute("aria-valuenow") or 0) >= 20)
    browser.shoot(page, "first-export")
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped. What was done").wait_for()
    browser.shoot(page, "first-stopped")
    other = browser.open(page.url)  # another tab sees the same
    other.get_by_role("button", name="Go on").click()
    page.locator(FIELD).wait_for()
    send(page, "hello")
    finished(page)
    other.locator(FIELD).wait_for()


def test_what_cannot_be_is_a_sentence_and_another_may_be_chosen(
    browser: Browser, make_desk: MakeDesk, serve: Serve
) -> None:
    desk = make_desk(model=None)
    page = browser.open(serve(desk))
    page.get_by_role("radio", name="A folder").check()
    page.get_by_label("The folder's path").fill("broken")
    page.keyboard.press("Enter")
    page.get_by_role("alert").get_by_text("There is no folder broken. Name a folder that is there.").wait_for()
    browser.shoot(page, "first-error")
    page.get_by_role("radio", name="A name on the Hugging Face Hub").check()
    page.get_by_label("The repository's name").fill("huge")
    page.keyboard.press("Enter")
    page.get_by_text("It needs 90 GB of memory. Take a bigger machine.").wait_for()
    assert page.get_by_role("button", name="Make it ready").count() == 0
    browser.shoot(page, "first-impossible")
    page.get_by_role("button", name="Choose another").click()
    page.get_by_role("radio", name="echo").check()
    page.get_by_role("button", name="Load").click()
    page.locator(FIELD).wait_for()


def test_the_model_is_changed_while_a_conversation_is_open(browser: Browser, make_desk: MakeDesk, serve: Serve) -> None:
    desk = make_desk()
    page = browser.open(serve(desk))
    send(page, "hello")
    finished(page)
    page.get_by_role("button", name="Change the model").click()
    page.get_by_role("radio", name="Pocket").check()
    page.get_by_role("button", name="See what it takes").click()
    page.get_by_role("button", name="Choose another").click()
    page.get_by_role("button", name="Cancel").click()
    page.locator(FIELD).wait_for()
    page.get_by_role("button", name="Change the model").click()
    page.get_by_role("radio", name="other").check()
    page.get_by_role("button", name="Load").click()
    until(lambda: len(desk.host.backend.opened) == 2)  # type: ignore[attr-defined]
    page.locator(FIELD).wait_for()
    page.locator("#edge-chat").get_by_text("hello").first.wait_for()


def test_a_program_started_again_finds_the_tab_and_the_tab_it(
    browser: Browser, make_desk: MakeDesk, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = make_desk()
    page = browser.open(serve(desk))
    send(page, "hello")
    finished(page)
    page.fill(FIELD, "half a thou")
    from edge.ui.web import pulse

    with page.expect_event("load"):
        monkeypatch.setattr(pulse, "_BORN", "another program")
    page.locator("body[data-edge-view=chat]").wait_for()
    until(lambda: page.input_value(FIELD) == "half a thou")
    page.locator("#edge-chat").get_by_text("hello").first.wait_for()


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """axe-core's script, from npm."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("there is no npm to fetch axe-core with")
    folder = tmp_path_factory.mktemp("axe")
    done = subprocess.run([npm, "pack", _AXE], cwd=folder, capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.skip(f"npm could not fetch axe-core: {done.stderr.strip()[-200:]}")
    with tarfile.open(next(folder.glob("*.tgz"))) as packed:
        script = packed.extractfile("package/axe.min.js")
        assert script is not None
        return script.read().decode("utf-8")


def serious(page: Any, axe: str) -> list[str]:
    """What axe finds serious or critical on the page as it is."""
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{each['impact']} {each['id']}: {each['help']}: "
        + " | ".join(f"{node['target']} {node['html'][:160]} {node['failureSummary'][:200]}" for node in each["nodes"])
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_serious(
    browser: Browser, make_desk: MakeDesk, serve: Serve, axe: str, dark: bool, tmp_path: Path
) -> None:
    desk = make_desk(
        lambda: Scripted(RICH, 'Hm.\ncalculate\n{"expression": "1+1"}', "2"), settings=Settings(tools=True)
    )
    page = browser.open(serve(desk), dark=dark, height=1000)
    found = {"empty": serious(page, axe)}
    send(page, "Show me everything")
    finished(page)
    send(page, "What is 1 + 1?")
    finished(page)
    (tmp_path / "note.txt").write_text("seven", encoding="utf-8")
    page.locator(".edge-chips input[type=file]").set_input_files(tmp_path / "note.txt")
    page.get_by_text("5 of 4,096 tokens").wait_for()
    page.locator(".edge-rail .row .more").click()
    time.sleep(0.5)
    found["chat"] = serious(page, axe)
    page.get_by_role("button", name="Compare").click()
    page.get_by_text("The same question, two ways").wait_for()
    time.sleep(1)
    found["compare"] = serious(page, axe)
    page.get_by_role("button", name="Change the model").click()
    page.get_by_role("heading", name="Choose a model").wait_for()
    found["first"] = serious(page, axe)
    page.set_viewport_size({"width": 390, "height": 780})
    time.sleep(0.5)
    found["phone"] = serious(page, axe)
    told = "\n\n".join(f"{view}: {line}" for view, lines in found.items() for line in lines)
    assert not told, told


def test_the_forecast_of_the_time_is_shown_in_chinese(browser: Browser, make_desk: MakeDesk, serve: Serve) -> None:
    page = browser.open(serve(make_desk(EchoEngine, model=None)), locale="zh-CN")
    page.get_by_role("heading", name="选择模型").wait_for()
    page.get_by_role("radio", name="口袋模型").check()
    page.get_by_role("button", name="查看所需资源").click()
    page.get_by_text("约 75 s").wait_for()
