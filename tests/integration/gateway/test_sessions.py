"""A browser's session: the test signs in as a page does, and forges as another site would."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from services.gateway.endpoints.browser.console import ConsoleRoutes
from tests.support.gateway_world import API_KEY, OTHER_KEY, REQUEST, World, world

RUN, JOBS = "/v1/everydream-v1/run", "/v1/everydream-v1/jobs"
OURS = {"X-Requested-With": "console"}


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as one:
        yield one


@asynccontextmanager
async def browser(here: World) -> AsyncIterator[aiohttp.ClientSession]:
    """Keeps cookies, as browsers do; the server is a bare address here."""
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(here.url("/"), cookie_jar=jar) as session:
        yield session


async def sign_in(session: aiohttp.ClientSession, key: str = API_KEY) -> dict[str, Any]:
    async with session.post("/session", headers={"Authorization": f"Bearer {key}"}) as answer:
        assert answer.status == 200
        body: dict[str, Any] = await answer.json()
        return body


async def test_a_session_stands_for_the_key_until_it_is_ended(here: World) -> None:
    async with browser(here) as page:
        assert (await page.get(JOBS)).status == 401
        assert await sign_in(page) == {"scopes": ["read", "submit", "admin", "operate"]}

        async with page.post(RUN, json=REQUEST, headers=OURS) as answer:
            job = (await answer.json())["id"]
        async with page.get(JOBS) as answer:
            assert [each["id"] for each in (await answer.json())["jobs"]] == [job]
        assert (await here.status(job))["id"] == job, "the key and its session own the same jobs"

        async with page.get("/session") as answer:
            assert await answer.json() == {"scopes": ["read", "submit", "admin", "operate"]}

        assert (await page.delete("/session", headers=OURS)).status == 204
        assert (await page.get(JOBS)).status == 401
        async with page.get("/session") as answer:
            assert (answer.status, await answer.json()) == (200, {"scopes": []})


async def test_a_page_cannot_read_the_cookie_nor_another_site_send_it(here: World) -> None:
    async with browser(here) as page:
        bearer = {"Authorization": f"Bearer {API_KEY}"}
        async with page.post("/session", headers=bearer) as answer:
            cookie = answer.headers["Set-Cookie"]

    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    assert API_KEY not in cookie


async def test_nothing_is_changed_by_a_session_without_the_header(here: World) -> None:
    async with browser(here) as page:
        await sign_in(page)
        async with page.post(RUN, json=REQUEST) as answer:
            assert answer.status == 403
            assert "X-Requested-With" in (await answer.json())["error"]

        assert (await page.post("/session")).status == 403
        async with page.get(JOBS) as answer:
            assert (await answer.json())["jobs"] == []


@pytest.mark.parametrize("change", ["", "x", "cut"])
async def test_a_cookie_that_is_not_ours_is_nobody(here: World, change: str) -> None:
    async with browser(here) as page:
        await sign_in(page)
        (cookie,) = page.cookie_jar
        value = {"": "", "x": f"A{cookie.value[1:]}", "cut": cookie.value[:-8]}[change]

    async with aiohttp.ClientSession(here.url("/")) as other:
        assert value != cookie.value
        async with other.get(JOBS, headers={"Cookie": f"{cookie.key}={value}"}) as answer:
            assert answer.status == 401


async def test_a_key_that_is_sent_counts_more_than_the_session(here: World) -> None:
    job = await here.run()
    async with browser(here) as page:
        await sign_in(page)
        other = {"Authorization": f"Bearer {OTHER_KEY}"}
        assert (await page.get(f"/v1/everydream-v1/status/{job}", headers=other)).status == 404
        wrong = {"Authorization": "Bearer no-key"}
        assert (await page.get(JOBS, headers=wrong)).status == 401


async def test_a_session_ends_after_a_month_and_with_its_key(tmp_path: Path) -> None:
    async with world(tmp_path) as here, browser(here) as page:
        await sign_in(page)
        here.clock.ahead = 29 * 86_400
        assert (await page.get(JOBS)).status == 200
        here.clock.ahead = 31 * 86_400
        assert (await page.get(JOBS)).status == 401


async def test_a_browser_gets_the_console_and_a_program_the_links(here: World) -> None:
    links = (await here.ask("GET", "/", headers={"Accept": "*/*"})).body
    assert (links["docs"], links["console"]) == ("/docs", "/")

    async with browser(here) as page, page.get("/", headers={"Accept": "text/html,*/*"}) as answer:
        assert answer.content_type == "text/html"
        policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert not any(wide in policy for wide in ("unsafe", "*", "data:"))


async def test_where_the_console_is_not_built_the_page_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ConsoleRoutes.__init__, "__defaults__", (tmp_path / "nothing",))
    async with world(tmp_path) as here, browser(here) as page:
        answer = await page.get("/", headers={"Accept": "text/html"})
        assert "make console" in await answer.text()
        assert (await page.get("/readyz")).status == 200


async def test_an_asset_that_is_not_there_is_an_error_in_json(here: World) -> None:
    for name in ("none.js", "..%2findex.html", ".hidden"):
        assert (await here.ask("GET", f"/assets/{name}")).status == 404
