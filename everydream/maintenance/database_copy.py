"""A database in a file and back, by its own tools: SQLite's backup, pg_dump and pg_restore."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from sqlalchemy.engine import URL, make_url

from shared.concurrency import in_thread
from shared.errors import Refused, shorten

SQLITE, POSTGRESQL = "database.sqlite", "database.dump"
"""Names of the copies; a dump is in PostgreSQL's custom format."""


def name_for(url: str) -> str:
    """What a copy of this database is called."""
    return SQLITE if make_url(url).get_backend_name() == "sqlite" else POSTGRESQL


async def copy_out(url: str, file: Path) -> None:
    """Write the database, as it is at one moment, to a file; it is used on meanwhile.

    Raises:
        Refused: there is none, or its own tool cannot do it; the text has what that says.
    """
    address = make_url(url)
    if address.get_backend_name() == "sqlite":
        await in_thread(_copy_sqlite, Path(address.database or ""), file)
    else:
        words = ("--format=custom", "--no-owner", "--no-privileges", f"--file={file}")
        await _run("pg_dump", words, address)


async def copy_back(url: str, file: Path) -> None:
    """Fill an empty database from such a file, whole or not at all. Raises as :func:`copy_out`."""
    address = make_url(url)
    if address.get_backend_name() == "sqlite":
        await in_thread(_copy_sqlite, file, Path(address.database or ""))
    else:
        words = ("--no-owner", "--no-privileges", "--exit-on-error", "--single-transaction")
        name = f"--dbname={address.database}"
        await _run("pg_restore", (*words, name, str(file)), address)


def _copy_sqlite(source: Path, target: Path) -> None:
    if not source.is_file():
        raise Refused(f"there is no database at {source}")
    with (
        closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as read,
        closing(sqlite3.connect(target)) as write,
    ):
        read.backup(write)
        # One file, which can be read where nothing can be written.
        write.execute("PRAGMA journal_mode = DELETE")


async def _run(program: str, words: tuple[str, ...], address: URL) -> None:
    """Run one of PostgreSQL's programs; the password is not among its words."""
    found = shutil.which(program)
    if not found:
        raise Refused(
            f"{program} is missing: install PostgreSQL's client programs, of the server's major"
            " version or a newer one"
        )
    process = await asyncio.create_subprocess_exec(
        found, "--no-password", *words,
        env=os.environ | _environment(address),
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        _, said = await process.communicate()
    except BaseException:
        process.terminate()
        await process.wait()
        raise
    if process.returncode:
        raise Refused(f"{program} failed: {shorten(said.decode(errors='replace').strip())}")


def _environment(address: URL) -> Mapping[str, str]:
    """Where the database is, in the variables of PostgreSQL's programs."""
    ssl = address.query.get("ssl") or address.query.get("sslmode")
    given = {
        "PGHOST": address.host,
        "PGPORT": address.port,
        "PGUSER": address.username,
        "PGPASSWORD": address.password,
        "PGDATABASE": address.database,
        "PGSSLMODE": ssl,
    }
    return {name: str(value) for name, value in given.items() if value}
