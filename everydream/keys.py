"""The operator's commands for API keys."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from services.gateway.database.api_keys import SqlKeyStore
from services.gateway.database.connection import Database
from services.gateway.ports import StoredKey
from services.gateway.web.authentication import SCOPES, Scope, digest_of, new_key
from shared.errors import Refused
from shared.service_process import closing
from shared.settings import Settings

T = TypeVar("T")


def make_key(settings: Settings, name: str, scopes: Sequence[Scope], console: Console) -> None:
    """Create a key and print it, once; only its SHA-256 is stored.

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
    console.print(f"Key {name!r} ({', '.join(stored.scopes)}), shown only now:", soft_wrap=True)
    console.print(key, soft_wrap=True, highlight=False)


def list_keys(settings: Settings, console: Console) -> None:
    """Print name, scopes and use of every key, never the key itself. Raises Unavailable."""
    table = Table("name", "scopes", "made", "last used", "state")
    for key in asyncio.run(_with_table(settings, SqlKeyStore.all)):
        state = "disabled" if key.disabled_at else "let in"
        table.add_row(
            key.name, ", ".join(key.scopes), _date_of(key.created_at), _date_of(key.last_used_at),
            state,
        )  # fmt: skip
    console.print(table)
    if settings.api_keys:
        number = len(settings.api_keys)
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


def _date_of(seconds: float | None) -> str:
    if seconds is None:
        return "never"
    return datetime.fromtimestamp(seconds, UTC).isoformat(" ", "minutes").removesuffix("+00:00")
