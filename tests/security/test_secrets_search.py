"""The search for secrets finds them, however they are written, and nothing else."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from tests.support.secrets_search import (
    Leak,
    Place,
    answer,
    files_in,
    forms,
    leaks,
    process,
    rows_of,
)

SECRET = 'pä"s/w+rd&of=Anna'
WRITTEN = [
    SECRET.encode(),
    f"before {SECRET} after".encode(),
    json.dumps({"a": SECRET}, ensure_ascii=False).encode(),
    json.dumps(json.dumps({"a": SECRET}, ensure_ascii=False), ensure_ascii=False).encode(),
    quote(SECRET).encode(),
    quote(SECRET, safe="").encode(),
    quote(SECRET, safe="").lower().replace("anna", "Anna").encode(),
    *(base64.b64encode(before + SECRET.encode() + b"!") for before in (b"", b"x", b"xy", b"xyz")),
    *(base64.urlsafe_b64encode(b"u:" + SECRET.encode()) for _ in (1,)),
    SECRET.encode().hex().encode(),
]


@pytest.mark.parametrize("content", WRITTEN, ids=range(len(WRITTEN)))
def test_a_secret_is_found_however_it_is_written(content: bytes) -> None:
    assert leaks([Place("there", content)], {"it": SECRET}) == [Leak("there", "it")]


def test_what_only_looks_like_it_is_no_leak() -> None:
    near = [SECRET[:-1], SECRET.swapcase(), SECRET[::-1], "", base64.b64encode(b"Anna").decode()]
    assert leaks([answer("there", each) for each in near], {"it": SECRET}) == []


def test_a_secret_too_short_to_search_for_is_told() -> None:
    with pytest.raises(ValueError, match="found by chance"):
        forms("anna")


async def test_rows_files_and_processes_are_looked_at(tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/a.db")
    async with engine.begin() as connection:
        await connection.execute(sa.text("CREATE TABLE t (a TEXT, b BLOB)"))
        row = {"a": "x", "b": SECRET.encode()}
        await connection.execute(sa.text("INSERT INTO t VALUES (:a, :b)"), row)
    await engine.dispose()
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "input()", SECRET, env={"A": SECRET}, stdin=asyncio.subprocess.PIPE
    )
    try:
        looked_at = [
            *await rows_of(f"sqlite+aiosqlite:///{tmp_path}/a.db"),
            *files_in(tmp_path),
            *process(child.pid),
        ]
    finally:
        child.kill()
        await child.wait()
    found = [leak.place.split()[0] for leak in leaks(looked_at, {"it": SECRET})]
    assert found == ["a", "a.db", "arguments", "environment"]
