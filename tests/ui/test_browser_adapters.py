"""Which LoRA adapters are on, as the page says it."""

from __future__ import annotations

from collections.abc import Callable

from edge.runtime.echo import EchoEngine
from edge.ui.web.desk import Desk
from tests.ui.browser import Browser

MakeDesk, Serve = Callable[..., Desk], Callable[[Desk], str]


def test_the_panel_says_which_adapters_are_on(browser: Browser, make_desk: MakeDesk, serve: Serve) -> None:
    def adapted() -> EchoEngine:
        engine = EchoEngine()
        engine.always_on = ("juniper", "<b>poetry</b> at 0.5")
        return engine

    address = serve(make_desk(adapted))
    for locale, label in (("en-US", "LoRA adapters"), ("zh-CN", "LoRA 适配器")):
        page = browser.open(address, locale=locale)
        row = page.locator(".edge-panel dt", has_text=label)
        row.wait_for()
        assert row.locator("xpath=following-sibling::dd[1]").inner_text() == "juniper, <b>poetry</b> at 0.5"
        browser.shoot(page, f"adapters-{locale[:2]}")
    assert browser.faults == []


def test_without_adapters_the_panel_says_nothing_of_them(browser: Browser, make_desk: MakeDesk, serve: Serve) -> None:
    page = browser.open(serve(make_desk()))
    page.locator(".edge-panel dt", has_text="Device").wait_for()
    assert page.locator(".edge-panel dt", has_text="LoRA").count() == 0
