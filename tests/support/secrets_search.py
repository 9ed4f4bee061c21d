"""Search for secrets in everything that a run stores or shows.

    found = leaks([*files_in(folder), *await rows_of(database_url)], {"the API key": "ed_..."})

A secret is found in plain text, in JSON, in a URL, and in base64 at any offset.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, quote_plus

import msgspec
import psutil
import sqlalchemy as sa
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue
from sqlalchemy.ext.asyncio import create_async_engine

from tests.support.live_folders import files_below
from tests.support.servers.rabbitmq import connected
from tests.support.servers.s3 import S3Server

MIN_LENGTH = 8
"""Characters; a shorter secret would be found by chance."""


class Place(NamedTuple):
    """Something that is searched for secrets."""

    name: str
    content: bytes


class Leak(NamedTuple):
    """A secret that was found."""

    place: str
    secret: str
    """Its name, not its value."""


def leaks(places: Iterable[Place], secrets: Mapping[str, str]) -> list[Leak]:
    """Find every secret in every place.

    Args:
        places: what to search.
        secrets: by a name that identifies each to a reader.

    Raises:
        ValueError: a secret is so short that it would be found by chance.
    """
    forms_by_name = {name: forms(secret) for name, secret in secrets.items()}
    return [
        Leak(place.name, name)
        for place in places
        for name, written in forms_by_name.items()
        if any(form in place.content for form in written)
    ]


def forms(secret: str) -> set[bytes]:
    """All encodings of a secret, as bytes to search for."""
    if len(secret) < MIN_LENGTH:
        raise ValueError(f"a secret of {len(secret)} letters would be found by chance")
    plain = secret.encode()
    quoted = {quote(secret), quote(secret, safe=""), quote_plus(secret)}
    escaped = msgspec.json.encode(secret)[1:-1]
    escaped_twice = msgspec.json.encode(escaped.decode())[1:-1]
    all_forms = {plain, escaped, escaped_twice, plain.hex().encode(), secret.encode("utf-16-le")}
    all_forms |= {text.encode() for text in quoted} | {
        _lowercase_percent(text).encode() for text in quoted
    }
    return all_forms | set(_in_base64(plain))


def _lowercase_percent(quoted: str) -> str:
    """Percent-encoding with lower-case hex digits, as some libraries write it."""
    head, *rest = quoted.split("%")
    return "%".join([head, *(part[:2].lower() + part[2:] for part in rest)])


def _in_base64(plain: bytes) -> Iterator[bytes]:
    """The base64 characters that depend on the secret alone, for each offset modulo 3."""
    for offset in range(3):
        padded = bytes(offset) + plain
        whole = len(padded) // 3 * 3
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            yield encode(padded[:whole])[4 if offset else 0 :]


# --- Places -----------------------------------------------------------------------------------


def answer(name: str, content: bytes | str) -> Place:
    """A response or any other output."""
    return Place(name, content if isinstance(content, bytes) else content.encode())


def files_in(folder: Path) -> list[Place]:
    """Every file below a folder, with its path: logs, homes, scratch, SQLite with its WAL."""
    return [
        Place(str(path.relative_to(folder)), str(path).encode() + b"\n" + _content(path))
        for path in files_below(folder)
        if not path.is_symlink()
    ]


def _content(path: Path) -> bytes:
    """Empty if the file is gone: running services delete files."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def process(pid: int) -> list[Place]:
    """A live process's arguments and environment."""
    name = " ".join(psutil.Process(pid).cmdline()[:3])[-60:]
    folder = Path("/proc") / str(pid)
    return [
        Place(f"arguments of {pid} {name}", (folder / "cmdline").read_bytes()),
        Place(f"environment of {pid} {name}", (folder / "environ").read_bytes()),
    ]


async def rows_of(database_url: str) -> list[Place]:
    """Every row of every table of a PostgreSQL or SQLite database; the URL is SQLAlchemy's."""
    engine = create_async_engine(database_url)
    try:
        async with engine.connect() as connection:
            tables = sa.MetaData()
            await connection.run_sync(tables.reflect)
            return [
                Place(f"a row of {table.name}", b"\n".join(map(_bytes, row)))
                for table in tables.sorted_tables
                for row in await connection.execute(sa.select(table))
            ]
    finally:
        await engine.dispose()


async def objects_in(s3: S3Server, bucket: str) -> list[Place]:
    """Every object of a bucket, with its key and metadata."""
    async with s3.client() as client:
        listed = (await client.list_objects_v2(Bucket=bucket)).get("Contents", ())
        found = []
        for item in listed:
            got = await client.get_object(Bucket=bucket, Key=item["Key"])
            head = f"{item['Key']}\n{got['Metadata']}\n".encode()
            found.append(Place(f"object {item['Key']}", head + await got["Body"].read()))
        return found


async def messages_on(amqp_url: str, queues: Sequence[str]) -> list[Place]:
    """All messages on these queues; they stay there."""
    async with connected(amqp_url) as connection:
        channel = await connection.channel()
        return [
            Place(f"a message on {name}", written(message))
            for name in queues
            for message in await _waiting(await channel.get_queue(name))
        ]


async def _waiting(queue: AbstractQueue) -> list[AbstractIncomingMessage]:
    """All messages on a queue; unacked, so they go back when the channel is closed."""
    count = queue.declaration_result.message_count or 0
    messages = [await queue.get(fail=False) for _ in range(count)]
    return [message for message in messages if message]


def written(message: AbstractIncomingMessage) -> bytes:
    """The body and all properties of an aio-pika message."""
    return b"\n".join(map(_bytes, (message.body, message.info())))


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
