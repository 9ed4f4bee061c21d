"""Authentication of API keys."""

from __future__ import annotations

import stat
import tomllib
from collections.abc import AsyncIterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from services.gateway.database.api_keys import SqlKeyStore
from services.gateway.database.connection import Database
from services.gateway.key_ports import StoredKey
from services.gateway.web.authentication import (
    SCOPES,
    Caller,
    Keys,
    digest_of,
    first_key,
    keep_address,
)
from shared.service_process import closing
from shared.settings import from_environment
from tests.support.migrated import new_sqlite

URL = "http://127.0.0.1:8080"
NOW = 1_700_000_000.0


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[SqlKeyStore]:
    async with closing(Database.open(new_sqlite(tmp_path / "keys.db"))) as database:
        await database.migrate()
        yield SqlKeyStore(database)


def configured(made: SqlKeyStore, *keys: str, clock: Any = lambda: NOW) -> Keys:
    return Keys([digest_of(key) for key in keys], made, clock)


async def kept(made: SqlKeyStore, key: str, scopes: Sequence[str] = ("read",)) -> None:
    digest = digest_of(key)
    assert await made.add(StoredKey(digest=digest, name=key, scopes=tuple(scopes), created_at=NOW))


async def test_the_owner_is_the_keys_digest(made: SqlKeyStore) -> None:
    keys = configured(made, "one", "two")
    assert await keys.caller("Bearer one") == Caller(sha256(b"one").hexdigest(), SCOPES)
    assert await keys.caller("Bearer two") == Caller(sha256(b"two").hexdigest(), SCOPES)


@pytest.mark.parametrize("header", ["Bearer one", "bearer one", "BEARER   one ", "one", " one "])
async def test_every_way_to_send_a_key(made: SqlKeyStore, header: str) -> None:
    caller = await configured(made, "one").caller(header)
    assert caller
    assert caller.owner == digest_of("one")


@pytest.mark.parametrize(
    "header",
    [None, "", " ", "Bearer", "Bearer ", "Bearer One", "Bearer one two", "Basic one", "onee",
     "Bearer\tone", "Bearer one\x00", "Bearer \udcff", digest_of("one"), "é"],
)  # fmt: skip
async def test_nobody_else_is_let_in(made: SqlKeyStore, header: str | None) -> None:
    await kept(made, "made")
    assert await configured(made, "one").caller(header) is None


async def test_without_keys_nobody_is_let_in(made: SqlKeyStore) -> None:
    assert await configured(made).caller("Bearer one") is None
    assert await configured(made).caller(None) is None


async def test_a_key_with_a_space_works_when_it_is_sent_as_bearer(made: SqlKeyStore) -> None:
    assert await configured(made, "two words").caller("Bearer two words")


async def test_a_key_that_was_made_has_its_own_scopes_until_it_is_disabled(
    made: SqlKeyStore,
) -> None:
    await kept(made, "one", ["read", "submit"])
    keys = configured(made)

    assert await keys.caller("Bearer one") == Caller(digest_of("one"), ("read", "submit"))
    await made.disable("one", NOW)
    assert await keys.caller("Bearer one") is None


async def test_the_last_use_is_noted_to_the_minute(made: SqlKeyStore) -> None:
    await kept(made, "one")
    moments = iter([NOW, NOW + 59, NOW + 60])
    keys = configured(made, clock=lambda: next(moments))
    noted = []
    for _ in range(3):
        await keys.caller("one")
        found = await made.find(digest_of("one"))
        assert found
        noted.append(found.last_used_at)

    assert noted == [NOW, NOW, NOW + 60]


def test_a_key_is_made_once_shown_once_and_kept_as_a_hash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "not" / "there" / "yet"
    (made,) = first_key(home, URL)
    client = tomllib.loads((home / "client.toml").read_text())
    assert client["url"] == URL
    assert capsys.readouterr().out.count(client["key"]) == 1
    assert len(client["key"]) >= 43
    assert made == digest_of(client["key"])

    assert first_key(home, URL) == (made,)
    assert capsys.readouterr().out == ""
    assert client["key"] not in (home / "keys.json").read_text()
    for name in ("client.toml", "keys.json"):
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600
    assert sorted(path.name for path in home.iterdir()) == ["client.toml", "keys.json"]


def test_two_homes_have_two_keys(tmp_path: Path) -> None:
    assert first_key(tmp_path / "a", URL) != first_key(tmp_path / "b", URL)


def test_a_gateway_that_listens_elsewhere_says_so_to_the_command_line(tmp_path: Path) -> None:
    (made,) = first_key(tmp_path, URL)
    before = tomllib.loads((tmp_path / "client.toml").read_text())
    named = {"EVERYDREAM_HOME": str(tmp_path), "EVERYDREAM_PORT": "9090"}

    keep_address(from_environment(named | {"EVERYDREAM_API_KEYS": "one"}))
    assert tomllib.loads((tmp_path / "client.toml").read_text()) == before, "not with its key"
    keep_address(from_environment(named))

    after = tomllib.loads((tmp_path / "client.toml").read_text())
    assert after == {"url": "http://127.0.0.1:9090", "key": before["key"]}
    assert digest_of(after["key"]) == made
    assert stat.S_IMODE((tmp_path / "client.toml").stat().st_mode) == 0o600


def test_the_address_of_another_gateway_is_left_as_it_is(tmp_path: Path) -> None:
    first_key(tmp_path, URL)
    theirs = 'url = "https://train.example.com"\nkey = "theirs"\n'
    (tmp_path / "client.toml").write_text(theirs)

    keep_address(from_environment({"EVERYDREAM_HOME": str(tmp_path)}))

    assert (tmp_path / "client.toml").read_text() == theirs
