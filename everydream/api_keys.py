"""The operator's commands for API keys."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from rich.console import Console

from everydream.terminal.display import print_table
from everydream.this_machine.machine import make_home, read_settings
from services.gateway.database.api_keys import SqlKeyStore
from services.gateway.database.connection import Database
from services.gateway.jobs.presenter import iso_or_null
from services.gateway.key_ports import StoredKey
from services.gateway.web.authentication import SCOPES, Scope, digest_of, new_key
from shared.errors import Refused
from shared.service_process import closing
from shared.settings import Settings
from shared.words import iso

T = TypeVar("T")


def prepared() -> Settings:
    """The settings, and a home folder that can be written.

    Raises:
        SettingsError: a setting is invalid, or the folder cannot be written.
    """
    settings = read_settings()
    make_home(settings)
    return settings


def make_key(settings: Settings, name: str, scopes: Sequence[Scope]) -> dict[str, Any]:
    """Create a key: ``name``, ``scopes`` and ``key``; only its SHA-256 is stored.

    Raises:
        Refused: there is, or was, a key of this name.
        Unavailable: the database does not answer.
    """
    key = new_key()
    stored = StoredKey(
        digest=digest_of(key),
        name=name,
        scopes=tuple(scope for scope in SCOPES if scope in scopes),
        created_at=time.time(),
    )

    async def add(table: SqlKeyStore) -> bool:
        return await table.add(stored)

    if not asyncio.run(_with_table(settings, add)):
        raise Refused(f"there is, or was, a key named {name!r}; choose another name")
    return {"name": name, "scopes": list(stored.scopes), "key": key}


def print_made(console: Console, made: dict[str, Any]) -> None:
    """Print a new key, once."""
    text = f"Key {made['name']!r} ({', '.join(made['scopes'])}), shown only now:"
    console.print(text, soft_wrap=True, markup=False)
    console.print(made["key"], soft_wrap=True, markup=False)


def list_keys(settings: Settings) -> dict[str, Any]:
    """Name, scopes and use of every key, never the key itself. Raises Unavailable.

    Times are in UTC, or null; ``configured`` counts those of EVERYDREAM_API_KEYS.
    """
    keys = [
        {
            "name": key.name,
            "scopes": list(key.scopes),
            "created_at": iso(key.created_at),
            "last_used_at": iso_or_null(key.last_used_at),
            "disabled_at": iso_or_null(key.disabled_at),
        }
        for key in asyncio.run(_with_table(settings, SqlKeyStore.all))
    ]
    return {"keys": keys, "configured": len(settings.api_keys)}


def print_keys(console: Console, keys: dict[str, Any]) -> None:
    """Print a table of keys."""
    rows = [
        (
            key["name"], ", ".join(key["scopes"]), _minutes(key["created_at"]),
            _minutes(key["last_used_at"]), "disabled" if key["disabled_at"] else "let in",
        )
        for key in keys["keys"]
    ]  # fmt: skip
    print_table(console, ("name", "scopes", "made", "last used", "state"), rows)
    if number := keys["configured"]:
        console.print(f"Besides, {number} from EVERYDREAM_API_KEYS, good for everything.")


def disable_key(settings: Settings, name: str) -> None:
    """Disable a key forever; its jobs continue.

    Raises:
        Refused: there is no enabled key of this name.
        Unavailable: the database does not answer.
    """

    async def disable(table: SqlKeyStore) -> bool:
        return await table.disable(name, time.time())

    if not asyncio.run(_with_table(settings, disable)):
        raise Refused(f"there is no key named {name!r} that is let in")


async def _with_table(settings: Settings, use: Callable[[SqlKeyStore], Awaitable[T]]) -> T:
    async with closing(Database.open(settings.database_url)) as database:
        await database.migrate()
        return await use(SqlKeyStore(database))


def _minutes(moment: str | None) -> str:
    """An ISO time to the minute."""
    return "never" if moment is None else moment[:16].replace("T", " ")
