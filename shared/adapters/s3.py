"""An object store in a bucket of any S3-compatible service: the deployment's own, or a user's."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import quote, urlsplit

import aioboto3
import aiohttp
from aiobotocore.config import AioConfig
from botocore.exceptions import BotoCoreError, ClientError

from shared.adapters.files import atomic
from shared.adapters.object_keys import check_deletable, check_key, check_prefix, check_seconds
from shared.adapters.s3_errors import ODD, AnswerTooLarge, Location, OddAnswer, translate
from shared.adapters.s3_session import bounded_session
from shared.concurrency import gather_limited, in_thread
from shared.errors import NotFound, Refused, Unavailable
from shared.network.outbound import Guard
from shared.ports import StoredObject, no_keepalive

PART_BYTES = 8 * 2**20
MAX_PARTS = 10_000
PARTS_AT_ONCE = 4
"""Parts held in memory at a time, for each file in transfer."""
PIECE_BYTES = 4 * 2**20
"""Bytes downloaded before they are written to disk."""
PAGE = 1000
"""Keys per listing and per deletion; the most that S3 takes."""
SMALL_BYTES = 64 * 2**20
"""Of an object that is read into memory."""
ABORT_SECONDS = 30.0
"""For removing the parts of an upload that failed."""
DEFAULT_REGION = "us-east-1"

SETTINGS: Mapping[str, Any] = {
    "signature_version": "s3v4",
    "s3": {"addressing_style": "path"},
    # Several compatible services reject the checksums that botocore adds by default.
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
    "retries": {"max_attempts": 3, "mode": "standard"},
    "connect_timeout": 10,
    "read_timeout": 60,
}


class Bounds(NamedTuple):
    """What is read of a service's answers; see :func:`.s3_session.bounded_session`."""

    answer_bytes: int
    page: int
    """Keys per listing and per deletion, if that is less than :data:`PAGE`."""
    pages: int
    """Of one listing."""


OURS = Bounds(answer_bytes=4 << 20, page=PAGE, pages=100_000)
"""1000 of the longest keys take 1.5 MB."""
USERS = Bounds(answer_bytes=256 << 10, page=100, pages=100)
"""Parsing makes up to fifty times as much of hostile XML. We only list what we put there."""

VENDORS = (ClientError, BotoCoreError, aiohttp.ClientError, OSError)


class S3Store:
    """Objects in one bucket below a prefix; see :class:`shared.ports.ObjectStore`.

    Connects at the first call. Created by :meth:`open` or :meth:`for_bucket`.
    """

    def __init__(
        self,
        location: Location,
        client: Mapping[str, Any],
        *,
        public_endpoint: str | None = None,
        guard: Guard | None = None,
    ) -> None:
        self._location = location
        self._bounds = USERS if location.user_owned else OURS
        self._guard = guard
        self._prefix = f"{check_key(location.prefix)}/" if location.prefix else ""
        self._arguments = client
        self._public_endpoint = public_endpoint
        self._stack = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._clients: dict[str | None, Any] = {}

    @classmethod
    def open(cls, url: str, *, public_endpoint: str | None) -> Self:
        """The deployment's store at ``s3://bucket/prefix``.

        Endpoint, region and keys come from botocore's own variables (``AWS_ENDPOINT_URL``,
        ``AWS_DEFAULT_REGION``, ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ...).
        ``public_endpoint`` is used in links, if clients reach the store under another name. A wrong
        key or bucket is ``Unavailable``: the operator has to fix it, no job is at fault.
        """
        parts = urlsplit(url)
        location = Location(bucket=parts.netloc, prefix=parts.path.strip("/"))
        session = {"http_session_cls": bounded_session(OURS.answer_bytes)}
        client = {"config": AioConfig(**SETTINGS, **session)}
        return cls(location, client, public_endpoint=public_endpoint)

    @classmethod
    def for_bucket(
        cls,
        bucket: str,
        *,
        endpoint_url: str,
        access_key: str,
        secret_key: str,
        prefix: str = "",
        guard: Guard | None = None,
    ) -> Self:
        """A user's bucket; ``guard`` decides which addresses may be connected to.

        A wrong key, bucket or endpoint is ``Refused``, with a reason that names the bucket.

        Raises:
            Refused: no key can begin with this prefix.
        """
        location = Location(bucket, prefix.strip("/"), endpoint_url, user_owned=True)
        session: dict[str, Any] = {"http_session_cls": bounded_session(USERS.answer_bytes, guard)}
        if guard:
            session["proxies"] = {}
        client = {
            "config": AioConfig(**SETTINGS, **session),
            "endpoint_url": endpoint_url,
            "region_name": region_of(endpoint_url),
            "aws_access_key_id": access_key,
            "aws_secret_access_key": secret_key,
        }
        return cls(location, client, guard=guard)

    async def put(self, key: str, data: bytes) -> None:
        with self._translated(key):
            client = await self._client()
            await client.put_object(**self._object(key), Body=data)

    async def get(self, key: str) -> bytes:
        with self._translated(key):
            client = await self._client()
            answer = await client.get_object(**self._object(key))
            async with answer["Body"] as body:
                return await _read_small(body.content)

    async def upload(
        self,
        path: Path,
        key: str,
        *,
        keepalive: Callable[[], None] = no_keepalive,
        immutable: bool = False,
    ) -> None:
        del immutable  # the bucket is elsewhere
        with self._translated(key):
            size = (await in_thread(path.stat)).st_size
            if size > PART_BYTES:
                await self._upload_parts(path, key, size, keepalive)
            else:
                await self.put(key, await in_thread(path.read_bytes))
                keepalive()

    async def download(
        self,
        key: str,
        path: Path,
        *,
        keepalive: Callable[[], None] = no_keepalive,
        immutable: bool = False,
    ) -> None:
        del immutable  # the bucket is elsewhere
        with self._translated(key), atomic(path) as temporary:
            client = await self._client()
            answer = await client.get_object(**self._object(key))
            async with answer["Body"] as body:
                size = await _stream_to_file(body.content, temporary, keepalive)
            if size != answer["ContentLength"]:
                raise Unavailable(
                    f"{key!r} in {self._location}: {size} bytes of {answer['ContentLength']} came"
                )

    async def exists(self, key: str) -> bool:
        try:
            with self._translated(key):
                client = await self._client()
                await client.head_object(**self._object(key))
        except NotFound:
            return False
        return True

    async def list(self, prefix: str) -> AsyncIterator[StoredObject]:
        with self._translated(prefix):
            client = await self._client()
            pages = client.get_paginator("list_objects_v2").paginate(
                Bucket=self._location.bucket,
                Prefix=self._prefix + check_prefix(prefix),
                PaginationConfig={"PageSize": self._page},
            )
            number = 0
            async for page in pages:
                number += 1
                if number > self._bounds.pages:
                    raise AnswerTooLarge(f"lists more than {self._bounds.pages} pages of objects")
                for item in page.get("Contents", ()):
                    key = item["Key"].removeprefix(self._prefix)
                    yield StoredObject(key, item["Size"], item["LastModified"].timestamp())

    async def delete(self, prefix: str) -> int:
        check_deletable(prefix)
        keys = [entry.key async for entry in self.list(prefix)]
        for start in range(0, len(keys), self._page):
            await self._delete_some(keys[start : start + self._page])
        return len(keys)

    async def link(self, key: str, *, seconds: int, filename: str | None = None) -> str:
        options = {"ResponseContentDisposition": _attachment(filename)} if filename else {}
        check_seconds(seconds)
        with self._translated(key):
            client = await self._client(self._public_endpoint)
            link = await client.generate_presigned_url(
                "get_object", Params=self._object(key) | options, ExpiresIn=seconds
            )
            return str(link)

    async def close(self) -> None:
        self._clients.clear()
        await self._stack.aclose()

    async def _client(self, endpoint: str | None = None) -> Any:
        """The client for an endpoint, by default the store's own; each is opened once."""
        async with self._opening:
            if endpoint not in self._clients:
                self._clients[endpoint] = await self._open_client(endpoint)
            return self._clients[endpoint]

    async def _open_client(self, endpoint: str | None) -> Any:
        self._check_endpoint()
        session = _users_session() if self._location.user_owned else aioboto3.Session()
        defaults = {"region_name": session.region_name or DEFAULT_REGION, **self._arguments}
        override = {"endpoint_url": endpoint} if endpoint else {}
        try:
            return await self._stack.enter_async_context(
                session.client("s3", **(defaults | override))
            )
        except ValueError as error:  # what botocore raises if the endpoint is not a URL
            raise translate(error, "", self._location) from error

    @property
    def _page(self) -> int:
        return min(self._bounds.page, PAGE)

    def _check_endpoint(self) -> None:
        if self._guard:
            try:
                self._guard.check_url(self._location.endpoint)
            except Refused as refused:
                raise Refused(f"{self._location}: {refused}") from None

    def _object(self, key: str) -> dict[str, str]:
        return {"Bucket": self._location.bucket, "Key": self._prefix + check_key(key)}

    async def _upload_parts(
        self, path: Path, key: str, size: int, keepalive: Callable[[], None]
    ) -> None:
        """A failed or cancelled upload leaves nothing behind."""
        client = await self._client()
        begun = await client.create_multipart_upload(**self._object(key))
        upload = self._object(key) | {"UploadId": begun["UploadId"]}
        try:
            parts = await _send_parts(client, upload, path, size, keepalive)
            await client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
        except BaseException:
            await _abort(client, upload)
            raise

    async def _delete_some(self, keys: Sequence[str]) -> None:
        deletion = {"Objects": [{"Key": self._prefix + key} for key in keys], "Quiet": True}
        with self._translated(keys[0]):
            client = await self._client()
            answer = await client.delete_objects(Bucket=self._location.bucket, Delete=deletion)
            for error in answer.get("Errors", ()):
                left = f"{error['Key']!r} in {self._location} stays"
                raise Unavailable(f"{left}: {error.get('Message')}")

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        """Turn the vendor's errors into ours."""
        try:
            yield
        except VENDORS as error:
            raise translate(error, key, self._location) from error
        except ODD as error:
            raise translate(OddAnswer(error), key, self._location) from error


@cache
def _users_session() -> aioboto3.Session:
    """One session for all users' buckets; each client has keys of its own.

    Each session parses S3's description again and blocks the event loop for a fifth of a second.
    """
    return aioboto3.Session()


def region_of(endpoint_url: str) -> str:
    """The region to sign requests for, as far as the endpoint's name shows it.

    Services without regions accept any.
    """
    try:
        host = urlsplit(endpoint_url).hostname or ""
    except ValueError:  # not a URL; reported when it is used
        return DEFAULT_REGION
    found = re.search(r"\bs3[.-](?:dualstack\.)?([a-z]{2,}-[a-z0-9-]+)\.", host)
    return found[1] if found else DEFAULT_REGION


async def _send_parts(
    client: Any, upload: Mapping[str, str], path: Path, size: int, keepalive: Callable[[], None]
) -> Sequence[Mapping[str, Any]]:
    length = max(PART_BYTES, math.ceil(size / MAX_PARTS))

    async def send(number: int) -> Mapping[str, Any]:
        start = (number - 1) * length
        data = await in_thread(_read_part, path, start, min(length, size - start))
        answer = await client.upload_part(**upload, PartNumber=number, Body=data)
        keepalive()
        return {"PartNumber": number, "ETag": answer["ETag"]}

    numbers = range(1, math.ceil(size / length) + 1)
    return await gather_limited(send, numbers, limit=PARTS_AT_ONCE)


def _read_part(path: Path, start: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        data = file.read(length)
    if len(data) < length:
        raise OSError(f"{path} became shorter while it was uploaded")
    return data


async def _abort(client: Any, upload: Mapping[str, str]) -> None:
    """Remove the parts; if that fails too, the first error is the useful one."""
    try:
        async with asyncio.timeout(ABORT_SECONDS):
            await client.abort_multipart_upload(**upload)
    except (*VENDORS, *ODD, TimeoutError):
        return


async def _read_small(content: aiohttp.StreamReader) -> bytes:
    data = bytearray()
    while piece := await content.read(PIECE_BYTES):
        data += piece
        if len(data) > SMALL_BYTES:
            raise AnswerTooLarge(f"gives more than {SMALL_BYTES} bytes as a small object")
    return bytes(data)


async def _stream_to_file(
    content: aiohttp.StreamReader, path: Path, keepalive: Callable[[], None]
) -> int:
    """Stream into a file; returns the number of bytes."""
    with await in_thread(path.open, "xb") as file:
        while piece := await _next_piece(content):
            await in_thread(file.write, piece)
            keepalive()
        return file.tell()


async def _next_piece(content: aiohttp.StreamReader) -> bytes:
    piece = bytearray()
    while len(piece) < PIECE_BYTES and (some := await content.read(PIECE_BYTES - len(piece))):
        piece += some
    return bytes(piece)


def _attachment(filename: str) -> str:
    return f"attachment; filename*=UTF-8''{quote(filename, safe='')}"
