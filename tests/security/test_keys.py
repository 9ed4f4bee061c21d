"""Who is let in: nobody without a key, and nobody to what belongs to another one."""

from __future__ import annotations

import asyncio
import hmac
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pytest

from services.gateway.database.api_keys import SqlKeyStore
from services.gateway.database.connection import Database
from services.gateway.endpoints.routes import ROUTE_CLASSES
from services.gateway.key_ports import StoredKey
from services.gateway.web.authentication import SCOPES, Keys, Scope, digest_of
from services.gateway.web.authorization import REQUIRED_SCOPES
from services.gateway.web.routing import Route, routes_of
from services.gateway.web.sessions import SAFE
from shared import keys
from shared.request import BASE_PATHS
from shared.service_process import closing
from tests.support.gateway_world import API_KEY, OTHER_KEY, REQUEST, World, trained, world
from tests.support.migrated import new_sqlite

HOOK = "https://example.com/hook"
OPEN = {
    "/uploads", "/files/{key:.+}", "/healthz", "/livez", "/ready", "/readyz", "/openapi.json",
    "/asyncapi.json", "/docs", "/", "/session",
}  # fmt: skip
"""All that answers without a key; of ``/uploads`` only OPTIONS, of ``/session`` not POST."""


class Address(NamedTuple):
    """One method of one route, under one of its addresses."""

    method: str
    path: str
    route: Route

    def filled(self, **values: str) -> str:
        return self.path.format_map(values)


def addresses() -> Iterator[Address]:
    """Everything that the gateway answers, as its router is made of it."""
    for kind in ROUTE_CLASSES:
        for _, route in routes_of(kind):
            for base in BASE_PATHS if route.versioned else ("",):
                for method in route.methods:
                    yield Address(method, f"{base}{route.plain_path}", route)


EVERY = list(addresses())
GUARDED = [each for each in EVERY if each.route.needs]
OF_ONE = [each for each in GUARDED if "{" in each.path]
OF_AN_OWNER = [each for each in OF_ONE if each.route.needs != "operate"]
"""Operators look after the jobs of all keys."""
NOTHING = {"job": str(uuid4()), "upload": "u" * 22, "webhook": "x", "step": "1", "letter": "x"}
"""Names that stand for nothing."""


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as one:
        yield one


async def status_of(here: World, address: Address, path: str, key: str | None) -> int:
    headers = {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    async with here.session.request(address.method, here.url(path), headers=headers) as answer:
        return answer.status


async def key_with(here: World, *scopes: Scope) -> str:
    key = f"a key for {','.join(scopes)}"
    stored = StoredKey(digest=digest_of(key), name=key, scopes=scopes, created_at=here.clock())
    await here.stores.keys.add(stored)
    return key


# --- Every route ------------------------------------------------------------------------------


def test_every_route_of_the_running_gateway_is_walked(here: World) -> None:
    answered = {
        (route.method, resource.canonical)
        for resource in here.gateway._app.router.resources()
        for route in resource
    }
    page = {(method, "/assets/{asset}") for method in ("GET", "HEAD")}
    assert {(each.method, each.path) for each in EVERY} == answered - page
    assert len(OF_ONE) >= 30


def test_only_these_routes_answer_without_a_key() -> None:
    assert {each.route.path for each in EVERY if each.route.needs is None} == OPEN
    changing = [each for each in EVERY if each.route.needs is None and each.method not in SAFE]
    assert [(each.method, each.path) for each in changing] == [("DELETE", "/session")]


LOOKING = {"status", "status-sync", "stream", "events", "health", "budgets", "jobs", "session"}
"""First words of what only shows something, unless more than that is asked of it."""


def test_a_key_needs_admin_to_remove_submit_to_change_read_to_look_and_operate_for_all() -> None:
    for address in GUARDED:
        assert address.route.needs is not None
        path = address.route.plain_path
        deletes = address.method == "DELETE" and path.startswith("/jobs/{job}")
        removes = path == "/purge-queue" or deletes
        changes = address.method in ("POST", "PATCH") and path.startswith("/jobs/")
        looks = path.split("/")[1] in LOOKING and not changes
        expected = "admin" if removes else "read" if looks else "submit"
        if path.startswith("/admin/"):
            expected = "operate"
        assert REQUIRED_SCOPES[address.route.needs] == expected, address


async def test_without_a_known_key_no_route_answers(here: World) -> None:
    for address in GUARDED:
        for key in (None, "unknown"):
            answer = await status_of(here, address, address.filled(**NOTHING), key)
            assert answer == 401, (address, key)


async def test_a_key_without_the_scope_is_refused_on_every_route(here: World) -> None:
    without = {
        scope: await key_with(here, *(other for other in SCOPES if other != scope))
        for scope in SCOPES
    }
    for address in GUARDED:
        assert address.route.needs is not None
        key = without[REQUIRED_SCOPES[address.route.needs]]
        answer = await status_of(here, address, address.filled(**NOTHING), key)
        assert answer == 403, address


async def test_what_is_anothers_is_unknown_on_every_route_that_takes_an_id(here: World) -> None:
    """And stays as it was: the owner finds it unchanged after all of them."""
    job = await trained(here, webhook=HOOK)
    deliveries = f"{BASE_PATHS[0]}/jobs/{job}/webhooks"
    (webhook,) = (await here.ask("GET", deliveries)).body["deliveries"]
    begun = await here.ask("POST", f"{BASE_PATHS[0]}/uploads", data=b"a whole file")
    theirs = {**NOTHING, "job": job, "upload": begun.body["id"], "webhook": webhook["id"]}
    before = await here.status(job)

    for address in OF_AN_OWNER:
        answer = await status_of(here, address, address.filled(**theirs), OTHER_KEY)
        assert answer == 404, address

    after = await here.status(job)
    assert {**after, "output": ()} == {**before, "output": ()}  # its links are signed anew
    assert (await here.ask("GET", deliveries)).body["deliveries"] == [webhook]
    assert (await here.ask("GET", f"{BASE_PATHS[0]}/uploads/{begun.body['id']}")).status == 200


async def test_lists_and_counts_show_nothing_of_anothers(here: World) -> None:
    await here.run()
    theirs = await here.ask("GET", f"{BASE_PATHS[0]}/jobs", key=OTHER_KEY)
    assert theirs.body["jobs"] == []
    health = await here.ask("GET", f"{BASE_PATHS[0]}/health", key=OTHER_KEY)
    assert set(health.body["jobs"].values()) == {0}
    await here.ask("POST", f"{BASE_PATHS[0]}/purge-queue", key=OTHER_KEY)
    mine = await here.ask("GET", f"{BASE_PATHS[0]}/jobs")
    assert [job["status"] for job in mine.body["jobs"]] == ["IN_QUEUE"]


async def test_a_revoked_key_is_refused_by_the_next_request(here: World) -> None:
    key = await key_with(here, *SCOPES)
    health = f"{BASE_PATHS[0]}/health"
    assert (await here.ask("GET", health, key=key)).status == 200

    await here.stores.keys.disable(key, here.clock())

    for _ in range(3):
        assert (await here.ask("GET", health, key=key)).status == 401


# --- The header -------------------------------------------------------------------------------

MALFORMED = [
    "", " ", "Bearer", "Bearer ", "Bearer  ", "Bearer: KEY", "Bearer=KEY", "BearerKEY", "Basic KEY",
    "Basic YW5uYTphLWtleQ==", "Digest KEY", "Token KEY", "Bearer KEY KEY", "Bearer KEY, Bearer KEY",
    "Bearer Bearer KEY", "Bearer 'KEY'", 'Bearer "KEY"', "Bearer KEY;", "Bearer KE", "Bearer KEYY",
    "KEY KEY", "Bearer\tKEY", "Bearer *", "Bearer %", "Bearer ' OR 1=1 --", "Bearer null",
    "Bearer undefined", "Bearer DIGEST", "DIGEST", "Bearer " + "K" * 7000, "Bearer k\u00e9y",
]  # fmt: skip


@pytest.mark.parametrize("header", MALFORMED, ids=range(len(MALFORMED)))
async def test_a_malformed_header_is_told_how_it_should_be(here: World, header: str) -> None:
    header = header.replace("KEY", API_KEY).replace("DIGEST", digest_of(API_KEY))
    headers = {"Authorization": header}
    async with here.session.get(here.url(f"{BASE_PATHS[0]}/health"), headers=headers) as answer:
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        told = (await answer.json())["error"]
        assert told == "invalid API key: send it as 'Authorization: Bearer KEY'"
        assert API_KEY not in str(answer.headers)


async def test_of_two_headers_none_counts(here: World) -> None:
    """A proxy in front may have checked the other one."""
    for first, second in ((API_KEY, "x"), ("x", API_KEY), (API_KEY, API_KEY)):
        both = [("Authorization", f"Bearer {each}") for each in (first, second)]
        async with here.session.get(here.url(f"{BASE_PATHS[0]}/health"), headers=both) as answer:
            assert answer.status == 401


@pytest.mark.parametrize("raw", [b"Bearer \0", b"Bearer a\0b", b"Bearer \xff\xfe", b"Bearer \x01"])
async def test_bytes_that_no_header_may_hold_let_nobody_in(here: World, raw: bytes) -> None:
    line = await asyncio.to_thread(first_line, here.gateway.port, raw)
    assert line.split()[1] in (b"400", b"401")
    assert (await here.ask("GET", f"{BASE_PATHS[0]}/health")).status == 200


def first_line(port: int, authorization: bytes) -> bytes:
    """What a request with these very bytes is answered."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        head = f"GET {BASE_PATHS[0]}/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n".encode()
        connection.sendall(head + b"Authorization: " + authorization + b"\r\n\r\n")
        return connection.makefile("rb").readline()


# --- At rest, and compared --------------------------------------------------------------------


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """Every pair that is compared in constant time, as it comes."""
    pairs: list[tuple[Any, Any]] = []
    compare = hmac.compare_digest

    def recorded(one: Any, other: Any) -> bool:
        pairs.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", recorded)
    return pairs


@pytest.mark.parametrize("given", ["one", "two", "three", "none of them", ""])
async def test_a_key_is_compared_with_all_by_digest_in_constant_time(
    tmp_path: Path, compared: list[tuple[Any, Any]], given: str
) -> None:
    known = [digest_of(key) for key in ("one", "two", "three")]
    async with closing(Database.open(new_sqlite(tmp_path / "keys.db"))) as database:
        await database.migrate()
        caller = await Keys(known, SqlKeyStore(database)).caller(f"Bearer {given}")

    assert (caller is not None) == (digest_of(given) in known)
    assert compared == [(digest_of(given), each) for each in known]


def test_a_links_signature_is_compared_in_constant_time(compared: list[tuple[Any, Any]]) -> None:
    true = keys.link_signature("k" * 32, "a", 10)

    assert keys.link_holds("k" * 32, "a", 10, true, now=0)
    assert not keys.link_holds("k" * 32, "a", 10, "guessed", now=0)

    assert compared == [(true.encode(), true.encode()), (true.encode(), b"guessed")]


async def test_made_keys_are_found_by_digest_and_no_file_holds_one(tmp_path: Path) -> None:
    asked: list[str] = []

    class Watched(SqlKeyStore):
        async def find(self, digest: str) -> StoredKey | None:
            asked.append(digest)
            return await super().find(digest)

    async with closing(Database.open(new_sqlite(tmp_path / "keys.db"))) as database:
        await database.migrate()
        table = Watched(database)
        made = StoredKey(digest=digest_of("made"), name="n", scopes=("read",), created_at=0.0)
        await table.add(made)
        assert await Keys([], table).caller("Bearer made") is not None
    kept = await asyncio.to_thread(all_bytes_in, tmp_path)

    assert asked == [digest_of("made")]
    assert digest_of("made").encode() in kept
    assert b"made" not in kept.replace(digest_of("made").encode(), b"")


def all_bytes_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


# --- Browsers ---------------------------------------------------------------------------------


async def test_no_other_site_may_ask_in_a_users_name_or_read_an_answer(here: World) -> None:
    """A browser sends no key by itself, and a session's cookie to no other site: no CORS."""
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    for address in EVERY:
        path = address.filled(job="x", upload="x", webhook="x", key="x", step="1", letter="x")
        for method in (address.method, "OPTIONS"):
            async with here.session.request(method, here.url(path), headers=headers) as answer:
                assert not [name for name in answer.headers if name.startswith("Access-Control")]
                cookies = answer.headers.getall("Set-Cookie", [])
                assert all("Max-Age=0" in cookie for cookie in cookies), (method, path)
                assert answer.headers["X-Content-Type-Options"] == "nosniff", (method, path)


async def test_a_key_in_a_cookie_or_in_the_address_lets_nobody_in(here: World) -> None:
    health = here.url(f"{BASE_PATHS[0]}/health")
    for query in ("", f"?key={API_KEY}", f"?api_key={API_KEY}", f"?Authorization=Bearer {API_KEY}"):
        cookies = {"Cookie": f"Authorization=Bearer {API_KEY}; key={API_KEY}"}
        async with here.session.get(health + query, headers=cookies) as answer:
            assert answer.status in (400, 401)


async def test_a_form_of_another_site_starts_no_job(here: World) -> None:
    async with here.session.post(
        here.url(f"{BASE_PATHS[0]}/run"), data={"input": str(REQUEST)}
    ) as no:
        assert no.status == 401


async def test_the_page_of_documents_holds_no_script(here: World) -> None:
    async with here.session.get(here.url("/docs")) as answer:
        page = (await answer.text()).lower()
        policy = answer.headers["Content-Security-Policy"]
    assert "<script" not in page
    assert "javascript:" not in page
    assert " onclick" not in page
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "script-src" not in policy
    assert "unsafe-inline" not in policy
