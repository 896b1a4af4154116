"""The page as a person has it, in a real browser: talking, stopping, coming back, two tabs, files, tools."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.runtime.echo import EchoEngine
from edge.ui.web.desk import Desk
from edge.ui.web.talk import Settings
from tests.ui.browser import Browser
from tests.ui.test_web_answering import Scripted

MakeDesk, Serve = Callable[..., Desk], Callable[[Desk], str]
FIELD = "#edge-field textarea"
RICH = """## Roots

The **roots** of `x**2 - 2` are $\\pm\\sqrt{2}$, for $5 or $6:

```python
def root(x: float) -> float:
    return x ** 0.5 if x < 3 else 0  # <b>no</b> bold
```

| x | root |
|---|------|
| 2 | 1.41 |

$$\\int_0^1 x^2\\,dx = \\frac{1}{3}$$

and <b>this is no HTML</b>."""


def slow(seconds: float = 0.03) -> Callable[[], EchoEngine]:
    return lambda: EchoEngine(seconds_per_token=seconds)


def send(page: Any, text: str) -> None:
    page.fill(FIELD, text)
    page.press(FIELD, "Enter")
    page.wait_for_function("() => document.querySelector('#edge-field textarea').value === ''")  # it was taken


def answer(page: Any) -> Any:
    return page.locator("#edge-chat .bot .message-content").last


def said(page: Any) -> str:
    """The last answer, as far as there is one."""
    return str(answer(page).inner_text()) if answer(page).count() else ""


def finished(page: Any) -> None:
    page.locator("#edge-field .submit-button").wait_for()


def until(what: Callable[[], bool], seconds: float = 45) -> None:
    """Wait for something that no locator waits for."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_an_answer_is_seen_before_it_ends_and_nothing_is_asked_of_others(
    browser: Browser, make_desk: MakeDesk, serve: Serve
) -> None:
    desk = make_desk(slow())
    page = browser.open(serve(desk))
    assert page.locator("html").get_attribute("lang") == "en"
    browser.shoot(page, "empty")
    text = "tell me something long, and take your time about it, please " * 2
    send(page, text)
    page.locator("#edge-field .stop-button").wait_for()
    until(lambda: len(said(page)) > 8)
    seen = answer(page).inner_text()
    assert len(seen) < len(text) - 20 and page.input_value(FIELD) == ""
    until(lambda: "tokens/s" in page.locator(".edge-bar .doing").inner_text())
    browser.shoot(page, "streaming")
    finished(page)
    assert answer(page).inner_text().strip() == text.strip()
    until(lambda: page.locator(".edge-panel figure svg rect").count() == 1)
    assert re.search(r"\?c=\d{8}-", page.url)
    assert browser.outside == [] and browser.faults == []


def test_markdown_code_tables_and_formulas_are_drawn_without_a_network(
    browser: Browser, make_desk: MakeDesk, serve: Serve
) -> None:
    page = browser.open(serve(make_desk(lambda: Scripted(RICH))), height=1000)
    send(page, "Show me everything")
    finished(page)
    shown = page.locator("#edge-chat .bot .message-content")
    shown.locator(".katex-display").wait_for()
    assert shown.locator(".katex").count() == 2
    assert shown.locator("pre code .token.keyword").count() >= 2
    assert shown.locator("table td").first.inner_text() == "2"
    assert "<b>this is no HTML</b>" in shown.inner_text() and "$5 or $6" in shown.inner_text()
    fonts = page.evaluate("[...document.fonts].filter(f => f.status === 'loaded').map(f => f.family)")
    assert any("KaTeX" in font for font in fonts)
    browser.shoot(page, "rich")
    assert browser.outside == [] and browser.faults == []


def test_stop_keeps_what_came(browser: Browser, make_desk: MakeDesk, serve: Serve) -> None:
    page = browser.open(serve(make_desk(slow(0.05))))
    send(page, "word " * 60)
    until(lambda: "word word" in said(page))
    page.keyboard.press("Escape")
    finished(page)
    assert "(stopped)" in answer(page).inner_text() and len(answer(page).inner_text()) < 250
    browser.shoot(page, "stopped")


def test_a_reload_in_the_middle_finds_the_answer_and_its_end(
    browser: Browser, make_desk: MakeDesk, serve: Serve
) -> None:
    desk = make_desk(slow(0.04))
    page = browser.open(serve(desk))
    text = "a long way to go " * 24
    send(page, text)
    until(lambda: "?c=" in page.url and "a long" in said(page))
    browser.reload(page)
    page.locator("#edge-field .stop-button").wait_for()
    assert page.locator("#edge-chat .user .message-content").inner_text().strip() == text.strip()
    finished(page)
    assert answer(page).inner_text().strip() == text.strip()


def test_after_a_crash_what_came_is_there(browser: Browser, make_desk: MakeDesk, serve: Serve) -> None:
    before = make_desk(slow(0.04))
    job = before.answers.begin(before.store.new(), "an answer that is never finished " * 10)
    until(lambda: bool(before.store.get(job.talk.id).turns[1].content))
    after = make_desk(EchoEngine)  # a new program finds what the first had written when it died
    page = browser.open(f"{serve(after)}?c={job.talk.id}")
    answer(page).wait_for()
    assert "cut off" in answer(page).inner_text() and answer(page).inner_text().startswith("an answer")
    job.stop()


def test_two_tabs_show_the_same_and_lose_nothing(browser: Browser, make_desk: MakeDesk, serve: Serve) -> None:
    desk = make_desk(slow(0.02))
    address = serve(desk)
    first = browser.open(address)
    send(first, "from the first tab")
    finished(first)
    second = browser.open(first.url)
    until(lambda: second.locator("#edge-chat .bot").count() > 0)
    send(second, "and one from the second, which is longer")
    finished(second)
    first.get_by_text("and one from the second, which is longer").nth(1).wait_for()
    send(first, "first again")
    finished(first)
    (entry,) = desk.store.entries()
    asked = [turn.content for turn in desk.store.get(entry.id).turns if turn.role == "user"]
    assert asked == ["from the first tab", "and one from the second, which is longer", "first again"]
    second.get_by_text("first again").nth(1).wait_for()


def test_an_old_view_takes_nothing_back(browser: Browser, make_desk: MakeDesk, serve: Serve) -> None:
    desk = make_desk()
    page = browser.open(serve(desk))
    send(page, "one")
    finished(page)
    page.evaluate("edge.ask = async () => {}")  # this tab hears of nothing any more
    page.wait_for_timeout(2000)  # but of what it had asked before
    (entry,) = desk.store.entries()
    desk.answers.begin(desk.store.get(entry.id), "two").over.wait(10)
    page.locator("#edge-chat button[title='Undo']").last.click()
    page.get_by_text("changed in another tab").wait_for()
    page.get_by_text("two").nth(1).wait_for()
    assert len(desk.store.get(entry.id).turns) == 4


def test_retry_edit_and_undo(browser: Browser, make_desk: MakeDesk, serve: Serve) -> None:
    desk = make_desk(lambda: Scripted("first", "second", "third"))
    page = browser.open(serve(desk))
    send(page, "a question")
    finished(page)
    page.locator("#edge-chat button[title='Retry']").click()
    page.get_by_text("second", exact=True).wait_for()
    page.locator("#edge-chat button[title='Edit']").first.click()
    page.locator("#edge-chat textarea").fill("a better question")
    browser.shoot(page, "editing")
    page.locator("#edge-chat button[title='Submit']").click()
    page.get_by_text("third", exact=True).wait_for()
    finished(page)
    (entry,) = desk.store.entries()
    assert [turn.content for turn in desk.store.get(entry.id).turns] == ["a better question", "third"]
    page.locator("#edge-chat button[title='Undo']").click()
    page.wait_for_function("() => document.querySelector('#edge-field textarea').value === 'a better question'")
    assert desk.store.get(entry.id).turns == []


def test_conversations_are_found_renamed_saved_and_deleted(
    browser: Browser, make_desk: MakeDesk, serve: Serve, tmp_path: Path
) -> None:
    desk = make_desk()
    for text in ("Why is the sky blue?", "A recipe for bread", "为什么天空是蓝色的"):
        desk.answers.begin(desk.store.new(), text).over.wait(10)
    page = browser.open(serve(desk))
    rail = page.locator(".edge-rail")
    rail.get_by_text("A recipe for bread").wait_for()
    page.keyboard.press("Control+k")
    page.keyboard.type("SKY")
    until(lambda: rail.locator("li").count() == 1)
    browser.shoot(page, "search")
    rail.get_by_role("searchbox").fill("")
    rail.get_by_text("A recipe for bread").click()
    page.locator("#edge-chat .user").wait_for()
    rail.get_by_role("button", name="More about “A recipe for bread”").click()
    rail.get_by_text("Delete").wait_for()
    browser.shoot(page, "menu")
    with page.expect_download() as saved:
        rail.get_by_role("button", name="Save as Markdown").click()
    saved.value.save_as(tmp_path / "x.md")
    assert saved.value.suggested_filename == "A recipe for bread.md"
    assert "## Answer\n\nA recipe for bread" in (tmp_path / "x.md").read_text(encoding="utf-8")
    rail.get_by_role("button", name="More about “A recipe for bread”").click()
    rail.get_by_role("button", name="Rename").click()
    until(lambda: page.evaluate("document.activeElement.tagName") == "INPUT")
    page.keyboard.type("Bread")
    page.keyboard.press("Enter")
    rail.get_by_role("button", name="More about “Bread”").click()
    rail.get_by_role("button", name="Delete").click()
    rail.get_by_role("button", name="Delete").click()
    until(lambda: rail.locator("li").count() == 2)
    assert len(desk.store.entries()) == 2 and "?c=" not in page.url


def test_settings_stay_with_their_conversation(browser: Browser, make_desk: MakeDesk, serve: Serve) -> None:
    desk = make_desk()
    page = browser.open(serve(desk), height=1100)
    side = page.locator("#edge-side")
    side.get_by_label("System prompt").fill("Answer like a pirate.")
    side.get_by_text("Exact").click()
    side.get_by_label("Longest answer, in tokens").fill("50")
    page.keyboard.press("Tab")
    time.sleep(1)
    send(page, "hello")
    finished(page)
    (entry,) = desk.store.entries()
    kept = desk.store.get(entry.id).settings
    assert (kept.system, kept.temperature, kept.max_new_tokens) == ("Answer like a pirate.", 0, 50)
    page.get_by_role("button", name="New conversation").click()
    until(lambda: side.get_by_label("System prompt").input_value() == "")
    browser.reload(page)
    page.locator(".edge-rail").get_by_text("hello").click()
    until(lambda: side.get_by_label("System prompt").input_value() == "Answer like a pirate.")
    assert side.get_by_label("Exact").is_checked()


def test_a_file_is_dropped_counted_and_asked_about(
    browser: Browser, make_desk: MakeDesk, serve: Serve, tmp_path: Path
) -> None:
    desk = make_desk()
    page = browser.open(serve(desk))
    page.evaluate(
        """() => { const data = new DataTransfer();
        data.items.add(new File(["The box holds seven apples."], "note.txt", {type: "text/plain"}));
        window.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true})); }"""
    )
    chips = page.locator(".edge-chips li")
    chips.get_by_text("27 of 4,096 tokens").wait_for()
    (tmp_path / "bad.bin").write_bytes(b"\x00\x01" * 99)
    page.locator(".edge-chips input[type=file]").set_input_files(tmp_path / "bad.bin")
    page.locator(".edge-chips li.bad").wait_for()
    browser.shoot(page, "files")
    page.get_by_role("button", name="Remove bad.bin").click()
    send(page, "How many apples?")
    finished(page)
    assert "seven apples" in answer(page).inner_text()  # echo: the prompt had it
    page.locator("#edge-chat").get_by_text("note.txt").first.wait_for()
    until(lambda: chips.count() == 0)
    (entry,) = desk.store.entries()
    assert desk.store.get(entry.id).turns[0].documents[0].text == "The box holds seven apples."
    browser.shoot(page, "file-question")


def test_a_tools_call_is_folded_in_the_conversation(browser: Browser, make_desk: MakeDesk, serve: Serve) -> None:
    desk = make_desk(
        lambda: Scripted('I compute it.\ncalculate\n{"expression": "17 * 23"}', "It is **391**."),
        settings=Settings(tools=True),
    )
    page = browser.open(serve(desk))
    send(page, "What is 17 * 23?")
    finished(page)
    call = page.get_by_text("calculate · done")
    call.wait_for()
    browser.shoot(page, "tools-folded")
    call.click()
    page.get_by_text("391}").first.wait_for()
    browser.shoot(page, "tools")
    assert page.locator("#edge-side").get_by_label("Tools: calculator and clock").is_checked()


def test_a_fault_is_a_sentence_in_the_conversation(browser: Browser, make_desk: MakeDesk, serve: Serve) -> None:
    page = browser.open(serve(make_desk(lambda: EchoEngine(context_length=64))))
    send(page, "word " * 40)
    page.get_by_text("a context of 64 has room for").wait_for()
    finished(page)
    browser.shoot(page, "error")
    send(page, "short")
    page.get_by_text("short").nth(1).wait_for()


def test_in_chinese_and_in_the_dark(browser: Browser, make_desk: MakeDesk, serve: Serve) -> None:
    page = browser.open(serve(make_desk()), locale="zh-CN", dark=True, height=1000)
    assert page.locator("html").get_attribute("lang") == "zh-CN"
    assert page.locator(FIELD).get_attribute("placeholder") == "输入消息……"
    send(page, "你好，请介绍一下你自己。")
    finished(page)
    page.get_by_role("button", name="新对话").first.wait_for()
    page.get_by_text("系统提示词").wait_for()
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(int(part) for part in re.findall(r"\d+", ground)[:3]) < 60
    browser.shoot(page, "chinese-dark")


def test_on_a_phone_nothing_is_wider_than_it(browser: Browser, make_desk: MakeDesk, serve: Serve) -> None:
    page = browser.open(serve(make_desk(lambda: Scripted(RICH, RICH))), width=390, height=780)
    send(page, "Show me everything")
    finished(page)
    page.locator("#edge-chat .bot .katex-display").wait_for()
    page.locator(".edge-bar h1").get_by_text("Show me everything").wait_for()
    page.wait_for_function("() => document.fonts.status === 'loaded'")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    browser.shoot(page, "phone")
    page.get_by_role("button", name="Show or hide the conversations").click()
    page.locator(".edge-rail").get_by_text("Show me everything").wait_for()
    browser.shoot(page, "phone-list")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Show or hide the machine").click()
    page.get_by_role("heading", name="This machine").wait_for()
    browser.shoot(page, "phone-machine")


def test_with_the_keyboard_alone(browser: Browser, make_desk: MakeDesk, serve: Serve) -> None:
    desk = make_desk()
    page = browser.open(serve(desk))
    until(lambda: page.evaluate("document.activeElement?.tagName") == "TEXTAREA")  # one may type at once
    page.keyboard.type("typed without a mouse")
    page.keyboard.press("Enter")
    page.get_by_text("typed without a mouse").nth(2).wait_for()
    finished(page)
    reached: list[str] = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(
            "(() => { const e = document.activeElement; return e.getAttribute('aria-label') || e.title ||"
            " e.innerText || e.labels?.[0]?.innerText || e.placeholder || e.tagName; })()"
        ).strip())  # fmt: skip
    told = "\n".join(reached)
    for name in ("New conversation", "Search", "typed without a mouse", "Compare", "Retry", "Undo", "Add a file"):
        assert name in told, (name, reached)
    page.locator(".edge-rail .row .more").focus()
    page.keyboard.press("Enter")
    until(lambda: page.evaluate("document.activeElement.innerText") == "Rename")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.innerText") == "Save as Markdown"
    page.keyboard.press("Escape")
    until(lambda: (page.evaluate("document.activeElement.getAttribute('aria-label')") or "").startswith("More about"))


def test_two_models_answer_side_by_side(browser: Browser, make_desk: MakeDesk, serve: Serve) -> None:
    desk = make_desk(slow(0.01))
    page = browser.open(serve(desk))
    page.get_by_role("button", name="Compare").click()
    page.get_by_text("The same question, two ways").wait_for()
    until(lambda: page.locator("#edge-left-model input").input_value() != "")
    page.locator("#edge-compare textarea").fill("Say it twice")
    page.get_by_role("button", name="Ask both").click()
    until(lambda: page.locator("#edge-right .prose.edge-figures").inner_text().count("tokens") >= 1)
    for side in ("left", "right"):
        assert page.locator(f"#edge-{side} .prose.edge-answer").inner_text().strip() == "Say it twice"
    browser.shoot(page, "compare")
    page.get_by_role("button", name="Chat", exact=True).click()
    page.locator(FIELD).wait_for()
    backend: Any = desk.host.backend
    until(lambda: len(backend.closed) == len(backend.opened) - 1)  # what was opened beside is given back


@pytest.fixture(autouse=True)
def quiet(browser: Browser, serve: Serve) -> Any:
    """Whatever a test does, nothing is asked of others and nothing breaks in the page's script."""
    yield
    browser.close()
    assert browser.outside == []
    faults, browser.faults = browser.faults, []
    assert faults == []
