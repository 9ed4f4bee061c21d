"""Databases that are migrated once for many tests."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from services.gateway.database.connection import Database
from shared.service_process import closing
from tests.support.servers.process import in_own_loop


async def migrate(url: str) -> None:
    async with closing(Database.open(url)) as database:
        await database.migrate()


@cache
def migrated_sqlite() -> bytes:
    """An empty database of the newest schema: to migrate anew takes longer than most tests ask."""

    with TemporaryDirectory(prefix="migrated-") as folder:
        file = Path(folder) / "everydream.db"
        in_own_loop(migrate(f"sqlite:///{file}"))
        return file.read_bytes()


def new_sqlite(file: Path) -> str:
    """The address of a new database of the newest schema in this file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(migrated_sqlite())
    return f"sqlite:///{file}"
