"""Pages of other sites: the operator names those that may use the gateway from a browser."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.gateway_world import API_KEY, REQUEST, World, world

OURS, OTHER = "https://app.example", "https://evil.example"
ROOT = "/v2/everydream-v1"
KEY = {"Authorization": f"Bearer {API_KEY}"}
ALLOWED = "Access-Control-Allow-Origin"


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path, cors_origins=frozenset({OURS, "http://localhost:3000"})) as one:
        yield one


async def headers_of(
    here: World, method: str, path: str, origin: str, **headers: str
) -> tuple[int, dict[str, str]]:
    asked = {"Origin": origin, **headers}
    async with here.session.request(method, here.url(path), headers=asked) as answer:
        return answer.status, dict(answer.headers)


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", f"{ROOT}/health", KEY, 200),
        ("GET", f"{ROOT}/health", {}, 401),
        ("GET", f"{ROOT}/status/none", KEY, 404),
        ("POST", f"{ROOT}/run", KEY, 400),
        ("GET", "/nothing/here", {}, 404),
        ("OPTIONS", f"{ROOT}/uploads", {}, 204),
        ("GET", "/files/x?expires=1&signature=x", {}, 403),
    ],
)
async def test_a_page_of_a_named_site_can_read_every_answer_and_another_site_none(
    here: World, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    for origin in (OURS, "http://localhost:3000"):
        got, answer = await headers_of(here, method, path, origin, **headers)
        assert (got, answer[ALLOWED]) == (status, origin)
        assert "Retry-After" in answer["Access-Control-Expose-Headers"]
        assert "Access-Control-Allow-Credentials" not in answer
    got, answer = await headers_of(here, method, path, OTHER, **headers)
    assert got == status
    assert ALLOWED not in answer
    assert answer["Vary"] == "Origin", "else a cache would give one site another's answer"


async def test_a_browser_may_ask_first_and_is_let_send_all_that_the_api_takes(here: World) -> None:
    asks = {"Access-Control-Request-Method": "PATCH"}
    for path in (f"{ROOT}/uploads/x", f"{ROOT}/run", f"{ROOT}/uploads"):
        status, answer = await headers_of(here, "OPTIONS", path, OURS, **asks)
        assert status == 204
        assert {"GET", "POST", "PATCH", "DELETE"} <= {
            *answer["Access-Control-Allow-Methods"].split(", ")
        }
        assert {"Authorization", "Content-Type", "Idempotency-Key", "Upload-Offset"} <= {
            *answer["Access-Control-Allow-Headers"].split(", ")
        }
    status, answer = await headers_of(here, "OPTIONS", f"{ROOT}/run", OTHER, **asks)
    assert status == 405
    assert not [name for name in answer if name.startswith("Access-Control")]


async def test_a_star_lets_every_site_in_which_still_needs_a_key(tmp_path: Path) -> None:
    async with world(tmp_path, cors_origins=frozenset({"*"})) as here:
        status, answer = await headers_of(here, "GET", f"{ROOT}/health", OTHER)
        assert (status, answer[ALLOWED]) == (401, "*")
        headers = {**KEY, "Origin": OTHER}
        assert (await here.ask("POST", f"{ROOT}/run", json=REQUEST, headers=headers)).status == 200
