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

NOWHERE = -2
FRAMES = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
"""Two of them are painted."""
CONTROLS = """
const start = document.createElement("span");
start.tabIndex = -1;
document.body.prepend(start);
start.focus();
start.remove();
const kinds = "a[href], button, input, select, textarea, summary, [tabindex]";
const chosen = (radio) => radio.closest("fieldset").querySelector("[type=radio]:checked");
const isOff = (each) =>
  each.disabled || each.tabIndex < 0 || !each.checkVisibility({ visibilityProperty: true })
  || (each.type === "radio" && !each.checked && chosen(each));
window.controls = [...document.querySelectorAll(kinds)].filter((each) => !isOff(each));
"""
"""All that the tab key must reach; of a group of radio buttons the one that is chosen."""
FOCUSED = """
() => {
  const has = document.activeElement;
  if (has === document.body) return [-2, ""];
  const { left, right, top, bottom } = has.getBoundingClientRect();
  const shown = [(left + right) / 2, (Math.max(top, 0) + Math.min(bottom, innerHeight)) / 2];
  const above = document.elementFromPoint(...shown);
  const isOf = (box) => box?.contains(above) || above?.contains(box);
  const isFree = above && (isOf(has) || isOf(has.closest("label")));
  const isMarked = [has, has.parentElement, has.nextElementSibling].some((each) => {
    const { outlineStyle, outlineWidth } = each ? getComputedStyle(each) : {};
    return outlineStyle !== undefined && outlineStyle !== "none" && parseFloat(outlineWidth) > 0;
  });
  const why = !isMarked ? "not marked: " : !isFree ? "covered: " : "";
  return [window.controls.indexOf(has), why && why + has.outerHTML.slice(0, 200)];
}
"""
"""Which of them has the focus, -1: another, -2: none; and why nobody sees that it has."""


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

    async def assert_keyboard(self, page: Page) -> None:
        """The tab key reaches every control, in the order of the page, and each shows it."""
        await page.evaluate(FRAMES)  # what has autofocus gets it with the next one
        await page.evaluate(CONTROLS)
        number: int = await page.evaluate("window.controls.length")
        assert number > 0
        reached: list[int] = []
        while len(reached) < number:
            await page.keyboard.press("Tab")
            place, unseen = await page.evaluate(FOCUSED)
            assert not unseen, unseen
            if place >= 0:
                assert place not in reached, f"trapped at control {place} of {number}"
                reached.append(place)
            elif place == NOWHERE:
                break
        assert reached == [*range(number)], f"{reached} of {number} controls"

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
