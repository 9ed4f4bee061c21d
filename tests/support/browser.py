"""The console in a real browser, which complains of what a user would meet."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.async_api import Browser, BrowserContext, Page, async_playwright

CONSOLE = Path(__file__).parents[2] / "services" / "gateway" / "console"
AXE = CONSOLE / "node_modules" / "axe-core" / "axe.min.js"
NAMES = ("chromium", "chromium-browser", "google-chrome")
SERIOUS = {"serious", "critical"}
ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage"]
"""Tests may run as root, which its sandbox refuses, and with little shared memory."""


@asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    """The system's Chromium."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    assert program, "make servers installs chromium"
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        try:
            yield chromium
        finally:
            await chromium.close()


class Visit:
    """One browser window on the console of one gateway, and all that went wrong in it."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.context = context
        self.url = url
        self.problems: list[str] = []
        self.expected: tuple[str, ...] = ()
        """Words of console errors that the test brings about."""

    async def page(self, screen: str = "/") -> Page:
        """A new tab."""
        page = await self.context.new_page()
        page.on("console", lambda message: self._note(message.type, message.text))
        page.on("pageerror", lambda error: self._note("error", str(error)))
        page.on("request", lambda request: self._look_at(request.url))
        await page.goto(f"{self.url}/#{screen}")
        return page

    def _note(self, kind: str, text: str) -> None:
        if kind in {"error", "warning"} and not any(words in text for words in self.expected):
            self.problems.append(text)

    def _look_at(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"blob", "data"} and not url.startswith(self.url):
            self.problems.append(f"a request to another host: {url}")

    async def assert_accessible(self, page: Page) -> None:
        """Axe finds nothing serious on the screen as it is."""
        await page.evaluate(AXE.read_text(encoding="utf-8"))
        found: dict[str, Any] = await page.evaluate("axe.run()")
        serious = [
            (each["id"], [node["html"] for node in each["nodes"]])
            for each in found["violations"]
            if each["impact"] in SERIOUS
        ]
        assert serious == []

    def assert_clean(self) -> None:
        """Nothing was said in the browser's console, and no other host was asked."""
        assert self.problems == [], self.problems


@asynccontextmanager
async def visit(chromium: Browser, url: str, **options: Any) -> AsyncIterator[Visit]:
    """A browser profile of its own: cookies are not shared."""
    context = await chromium.new_context(accept_downloads=True, locale="en-GB", **options)
    try:
        one = Visit(context, url)
        yield one
        one.assert_clean()
    finally:
        await context.close()


async def sign_in(page: Page, key: str, *, heading: str = "Jobs") -> None:
    await page.get_by_label("API key").fill(key)
    await page.get_by_role("button", name="Sign in").click()
    await page.get_by_role("heading", name=heading).wait_for()
