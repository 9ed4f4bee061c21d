"""The promises of every key store, checked on SQLite and PostgreSQL."""

from __future__ import annotations

import msgspec
import pytest

from services.gateway.database.api_keys import SqlKeyStore
from services.gateway.database.connection import Database
from services.gateway.key_ports import StoredKey


@pytest.fixture
def keys(database: Database) -> SqlKeyStore:
    return SqlKeyStore(database)


def key(name: str = "anna", **changes: object) -> StoredKey:
    plain = StoredKey(
        digest=f"digest of {name}", name=name, scopes=("read", "submit"), created_at=5.5
    )
    return msgspec.structs.replace(plain, **changes)


async def test_a_key_is_found_by_its_digest_as_it_was_put(keys: SqlKeyStore) -> None:
    used = key("ben", created_at=4.0, disabled_at=7.25, last_used_at=6.125, scopes=("admin",))
    assert await keys.add(key())
    assert await keys.add(used)

    assert await keys.find("digest of anna") == key()
    assert await keys.find("digest of ben") == used
    assert await keys.find("anna") is None
    assert await keys.all() == [used, key()]


async def test_neither_a_name_nor_a_digest_is_kept_twice(keys: SqlKeyStore) -> None:
    await keys.add(key())

    assert not await keys.add(key(digest="another"))
    assert not await keys.add(key("another", digest="digest of anna"))

    assert await keys.all() == [key()]


async def test_a_key_is_disabled_once(keys: SqlKeyStore) -> None:
    await keys.add(key())
    await keys.add(key("ben"))

    assert await keys.disable("anna", 9.0)
    assert not await keys.disable("anna", 10.0)
    assert not await keys.disable("nobody", 10.0)

    assert await keys.find("digest of anna") == key(disabled_at=9.0)
    assert await keys.find("digest of ben") == key("ben")


async def test_the_last_use_is_kept(keys: SqlKeyStore) -> None:
    await keys.add(key())

    await keys.used("digest of anna", 8.0)
    await keys.used("nobody", 8.0)

    assert await keys.find("digest of anna") == key(last_used_at=8.0)
