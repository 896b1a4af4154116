"""A page in a real, headless browser that may ask this machine alone; and Chromium, fetched where apt can."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SHOTS_VARIABLE = "GLM4_EDGE_SHOTS"
"""A folder for the screenshots; left out, pytest's own temporary one."""


def chromium() -> str:
    """The browser's path; it is installed where apt works, else the test is skipped."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    if shutil.which("apt-get") is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("there is no Chromium, and no apt-get with the right to install it")
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "chromium"]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=600,
                              env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})  # fmt: skip
        if done.returncode:
            pytest.skip(f"Chromium could not be installed: {done.stderr.strip().splitlines()[-1:]}")
    return shutil.which("chromium") or pytest.skip("apt-get installed no Chromium")


class Browser:
    """Opens pages, counts what they ask of others, and what goes wrong in them."""

    def __init__(self, chrome: Any, shots: Path) -> None:
        self._chrome = chrome
        self._shots = shots
        self._contexts: list[Any] = []
        self.outside: list[str] = []
        self.faults: list[str] = []

    def open(
        self, address: str, *, width: int = 1280, height: int = 800, locale: str = "en-US", dark: bool = False
    ) -> Any:
        """A new visitor's page."""
        context = self._chrome.new_context(
            viewport={"width": width, "height": height}, locale=locale, color_scheme="dark" if dark else "light"
        )
        self._contexts.append(context)
        context.set_default_timeout(45_000)
        context.route(re.compile("."), self._let_through)
        page = context.new_page()
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", self._hear)
        page.goto(address)
        page.locator("body[data-edge-view]").wait_for()
        return page

    def reload(self, page: Any) -> None:
        """Load it again; what it was waiting for ends with a complaint of gradio's script."""
        before = list(self.faults)
        page.reload()
        page.locator("body[data-edge-view]").wait_for()
        self.faults = before + [fault for fault in self.faults[len(before) :]
                                if "AbortError" not in fault and "Connection errored out" not in fault]  # fmt: skip

    def shoot(self, page: Any, name: str) -> Path:
        """Keep what the page looks like."""
        path = self._shots / f"{name}.png"
        page.screenshot(path=path, animations="disabled")
        assert path.stat().st_size > 5000
        return path

    def _let_through(self, route: Any) -> None:
        url = route.request.url
        if url.startswith(("http://127.0.0.1:", "http://localhost:", "data:", "blob:")):
            route.continue_()
        else:
            self.outside.append(url)
            route.abort()

    def _hear(self, message: Any) -> None:
        if message.type == "error" and "ERR_CONNECTION_REFUSED" not in message.text:
            self.faults.append(message.text)

    def close(self) -> None:
        """Close all pages."""
        for context in self._contexts:
            context.close()
        self._contexts.clear()


def run(shots: Path) -> Iterator[Browser]:
    """A browser for one module of tests."""
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    shots.mkdir(parents=True, exist_ok=True)
    with sync.sync_playwright() as play:
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"] if sys.platform == "linux" else []
        chrome = play.chromium.launch(executable_path=chromium(), args=arguments)
        browser = Browser(chrome, shots)
        yield browser
        browser.close()
        chrome.close()
