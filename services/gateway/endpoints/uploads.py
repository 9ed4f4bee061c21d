"""Upload a file in one POST, or in chunks by tus 1.0 (https://tus.io/protocols)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

from aiohttp import web
from msgspec import Meta

from services.gateway.endpoints.job_removal import NAMED, refuse_if_needed
from services.gateway.jobs.references import jobs_needing
from services.gateway.jobs.request_parser import Invalid
from services.gateway.jobs.uploads import (
    Upload,
    UploadConflict,
    UploadPage,
    Uploads,
    least_chunk,
)
from services.gateway.ports import JobStore
from services.gateway.upload_ports import StoredUpload
from services.gateway.web.application import in_time, unknown_parameters
from services.gateway.web.authorization import NULL
from services.gateway.web.paging import PAGING, encode_cursor, limit_in, position_in
from services.gateway.web.request_scope import is_disconnected
from services.gateway.web.routing import Answer, Body, Parameter, route
from shared.storage.uploads import ARCHIVE_BYTES, list_key
from shared.words import iso

VERSION = "1.0.0"
EXTENSIONS = "creation,termination"
CHUNK = "application/offset+octet-stream"
IDLE_SECONDS = 60.0
"""A client that sends nothing for so long is disconnected; what it has sent is kept."""
SHA256_PATTERN = r"^[0-9a-fA-F]{64}$"
UPLOAD_PATH = "/uploads/{upload}"
BYTES = Annotated[int, Meta(ge=0, le=10**15 - 1)]

TUS_VERSION = Parameter(
    "Tus-Resumable", "header", Literal["1.0.0"], "The tus version of the client."
)
OFFSET_HEADER = {"Upload-Offset": "Bytes received so far."}
UPLOAD_ANSWER = {200: Answer("The upload.", Upload)}


class UploadRoutes:
    """Create, continue, read and delete uploads."""

    def __init__(self, uploads: Uploads, jobs: JobStore) -> None:
        self._uploads = uploads
        self._jobs = jobs

    @route(
        "OPTIONS",
        "/uploads",
        "Get the supported tus versions and extensions",
        needs=None,
        answers={
            204: Answer(
                "Versions, extensions and the largest upload.",
                headers={"Tus-Extension": "Separated by commas.", "Tus-Max-Size": "Bytes."},
            )
        },
    )
    async def _options(self, _request: web.Request) -> web.Response:
        headers = {"Tus-Extension": EXTENSIONS, "Tus-Max-Size": str(ARCHIVE_BYTES)}
        return web.Response(status=204, headers=headers)

    @route(
        "POST",
        "/uploads",
        "Upload a whole file, or create an upload for chunks",
        needs="upload",
        parameters=(
            Parameter(
                "sha256",
                "query",
                Annotated[str, Meta(pattern=SHA256_PATTERN)],
                "The expected SHA-256 of the file.",
            ),
            Parameter(
                "Upload-Length",
                "header",
                Annotated[int, Meta(ge=1, le=ARCHIVE_BYTES)],
                "Size in bytes, for an upload in chunks; without it the body is the file.",
            ),
            TUS_VERSION,
        ),
        body=Body("application/octet-stream", {}, "The file.", required=False),
        answers={201: Answer("The upload.", Upload, headers={"Location": "Its address."})},
        errors=(400, 408, 409, 411, 412, 413, 415, 507),
    )
    async def _post(self, request: web.Request, owner: str) -> web.Response:
        if "Upload-Length" in request.headers:
            size = number_in(request, "Upload-Length")
            upload = await self._create(request, owner, size)
        else:
            upload = await self._receive_whole(request, owner)
        headers = {"Location": self._uploads.address(upload.id)}
        return web.json_response(self._shown(upload), status=201, headers=headers)

    @route(
        "GET",
        "/uploads",
        "List your uploads, newest first",
        needs="upload",
        parameters=PAGING,
        answers={200: Answer("A page of uploads.", UploadPage)},
        errors=(400,),
    )
    async def _list(self, request: web.Request, owner: str) -> web.Response:
        mistakes = unknown_parameters(request.query, ["limit", "cursor"])
        limit, before = limit_in(request.query, mistakes), position_in(request.query, mistakes)
        if mistakes:
            raise Invalid(mistakes)
        async with in_time():
            found = await self._uploads.newest(owner, before, limit + 1)
        shown = found[:limit]
        last = (shown[-1].touched_at, shown[-1].id) if len(found) > limit else None
        page: UploadPage = {
            "uploads": [
                {**self._shown(each), "changed_at": iso(each.touched_at)} for each in shown
            ],
            "next": encode_cursor(last) if last else None,
        }
        return web.json_response(page)

    async def _receive_whole(self, request: web.Request, owner: str) -> StoredUpload:
        if request.content_type.startswith("multipart/"):
            raise web.HTTPUnsupportedMediaType(text="send the file itself, not a form around it")
        if request.content_length is None:
            raise web.HTTPLengthRequired(text="say by Content-Length how many bytes will come")
        upload = await self._create(request, owner, request.content_length)
        try:
            return verified(await self._append(request, upload))
        except Exception:  # the client does not know its id, so it cannot continue it
            await self._uploads.remove(upload.id)
            raise

    @route(
        "HEAD",
        UPLOAD_PATH,
        "Get the offset of an upload",
        needs="upload",
        parameters=(TUS_VERSION,),
        answers={
            200: Answer(
                "See the headers.",
                headers={**OFFSET_HEADER, "Upload-Length": "Size of the whole file in bytes."},
            )
        },
        errors=(412,),
    )
    async def _head(self, request: web.Request, owner: str) -> web.Response:
        upload = await self._upload(request, owner)
        return web.Response(
            headers={
                "Cache-Control": "no-store",
                "Upload-Length": str(upload.bytes),
                "Upload-Offset": str(upload.received),
            }
        )

    @route(
        "PATCH",
        UPLOAD_PATH,
        "Continue an upload",
        needs="upload",
        parameters=(
            Parameter(
                "Upload-Offset", "header", BYTES, "Where the chunk begins, in bytes.", required=True
            ),
            TUS_VERSION,
        ),
        body=Body(CHUNK, {}, "The next bytes."),
        answers={204: Answer("The chunk was received.", headers=OFFSET_HEADER)},
        errors=(400, 408, 409, 412, 413, 415, 507),
    )
    async def _patch(self, request: web.Request, owner: str) -> web.Response:
        """Receive the next chunk; after the last one the whole file is verified."""
        upload = await self._upload(request, owner)
        check_chunk(request, upload)
        upload = verified(await self._append(request, upload))
        return web.Response(status=204, headers={"Upload-Offset": str(upload.received)})

    @route(
        "GET",
        UPLOAD_PATH,
        "Get an upload",
        needs="upload",
        parameters=(TUS_VERSION,),
        answers=UPLOAD_ANSWER,
        errors=(400, 409, 412),
    )
    async def _get(self, request: web.Request, owner: str) -> web.Response:
        upload = await self._upload(request, owner)
        if upload.received == upload.bytes:
            with conflicts_as_409():
                upload = verified(await self._uploads.finish(upload))
        return web.json_response(self._shown(upload))

    @route(
        "DELETE",
        UPLOAD_PATH,
        "Delete an upload",
        needs="upload",
        parameters=(TUS_VERSION,),
        answers={204: Answer("The upload was deleted.")},
        errors=(409, 412),
    )
    async def _delete(self, request: web.Request, owner: str) -> web.Response:
        upload = await self._upload(request, owner)
        async with in_time():
            refuse_if_needed(await jobs_needing(self._jobs, owner, list_key(upload.id), NAMED))
        await self._uploads.remove(upload.id)
        return web.Response(status=204)

    async def _create(self, request: web.Request, owner: str, size: int) -> StoredUpload:
        check_version(request)
        if size > ARCHIVE_BYTES:
            raise too_large(size)
        if size == 0:
            raise Invalid(["Upload-Length: expected at least one byte, got 0"])
        async with in_time():
            return await self._uploads.create(owner, size, expected_in(request))

    async def _append(self, request: web.Request, upload: StoredUpload) -> StoredUpload:
        begun = upload.received
        pieces = received_pieces(request, upload.bytes - begun)
        with conflicts_as_409():
            upload = await self._uploads.append(upload, pieces)
        if not request.content.at_eof():
            raise web.HTTPRequestTimeout(
                text=f"the connection was silent or broke off; {upload.received} bytes are here"
            )
        if upload.received == begun and request.content.total_bytes:
            raise too_short(upload)
        return upload

    async def _upload(self, request: web.Request, owner: str) -> StoredUpload:
        check_version(request)
        upload_id = request.match_info["upload"]
        async with in_time():
            upload = None if NULL in upload_id else await self._uploads.find(upload_id, owner)
        if upload is None:
            raise web.HTTPNotFound(text=f"there is no upload {upload_id[:80]!r} of this key")
        return upload

    def _shown(self, upload: StoredUpload) -> Upload:
        return {
            "id": upload.id,
            "bytes": upload.bytes,
            "received": upload.received,
            "sha256": upload.sha256 or None,
            "data_url": self._uploads.address(upload.id),
        }


async def add_tus_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Add the headers that tus requires in every response, errors included."""
    if "/uploads" in request.path:
        response.headers.update({"Tus-Resumable": VERSION, "Tus-Version": VERSION})


def check_version(request: web.Request) -> None:
    """Accept our version of tus, or none, as from curl.

    Raises:
        web.HTTPPreconditionFailed: the client uses another version.
    """
    version = request.headers.get("Tus-Resumable", VERSION)
    if version != VERSION:
        raise web.HTTPPreconditionFailed(
            text=f"Tus-Resumable: expected {VERSION}, got {version[:40]!r}"
        )


def check_chunk(request: web.Request, upload: StoredUpload) -> None:
    """Check a chunk's headers before its body is read.

    Raises:
        Invalid: it has no offset.
        web.HTTPUnsupportedMediaType: its content type is not that of a chunk.
        web.HTTPConflict: its offset is not where the upload ends.
        web.HTTPRequestEntityTooLarge: it exceeds the size of the upload.
        Invalid: it is too short, and not the last.
    """
    if request.content_type != CHUNK:
        raise web.HTTPUnsupportedMediaType(text=f"Content-Type: expected {CHUNK}")
    if number_in(request, "Upload-Offset") != upload.received:
        raise conflict(upload, f"the next chunk begins at byte {upload.received}")
    size, left = request.content_length or 0, upload.bytes - upload.received
    if size > left:
        raise too_large(size, left)
    if 0 < size < min(least_chunk(upload.bytes), left):
        raise too_short(upload)


def conflict(upload: StoredUpload, text: str) -> web.HTTPConflict:
    return web.HTTPConflict(text=text, headers={"Upload-Offset": str(upload.received)})


def too_large(size: int, most: int = ARCHIVE_BYTES) -> web.HTTPRequestEntityTooLarge:
    text = f"at most {most} bytes are taken"
    return web.HTTPRequestEntityTooLarge(max_size=most, actual_size=size, text=text)


def too_short(upload: StoredUpload) -> Invalid:
    least = least_chunk(upload.bytes)
    return Invalid([f"every chunk of this upload but the last needs at least {least} bytes"])


@contextmanager
def conflicts_as_409() -> Iterator[None]:
    try:
        yield
    except UploadConflict:
        text = "another request has gone on with this upload, or removed it"
        raise web.HTTPConflict(text=text) from None


def verified(upload: StoredUpload) -> StoredUpload:
    """The upload, unchanged.

    Raises:
        Invalid: it is complete, but has not the expected SHA-256.
    """
    if upload.sha256 and upload.finished_at is None:
        raise Invalid(
            [f"what arrived has sha256 {upload.sha256}, not {upload.expected}: upload it anew"]
        )
    return upload


def number_in(request: web.Request, header: str) -> int:
    """Raises Invalid."""
    text = request.headers.get(header, "")
    if not re.fullmatch(r"\d{1,15}", text, re.ASCII):
        raise Invalid([f"{header}: expected a number of bytes, got {text[:40]!r}"])
    return int(text)


def expected_in(request: web.Request) -> str:
    """The SHA-256 in the query, or an empty text; raises Invalid."""
    text = request.query.get("sha256")
    mistakes = unknown_parameters(request.query, ["sha256"])
    if text is not None and not re.fullmatch(SHA256_PATTERN, text, re.ASCII):
        mistakes.append(f"sha256: expected 64 hexadecimal digits, got {text[:80]!r}")
    if mistakes:
        raise Invalid(mistakes)
    return (text or "").lower()


async def received_pieces(request: web.Request, most: int) -> AsyncIterator[bytes]:
    """The body as it arrives; it ends early when the client is gone or sends nothing more.

    Raises:
        web.HTTPRequestEntityTooLarge: the body has more than ``most`` bytes.
    """
    left = most
    while not is_disconnected(request):
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                piece = await request.content.readany()
        except (TimeoutError, OSError, web.RequestPayloadError):
            return
        if not piece:
            return
        left -= len(piece)
        if left < 0:
            raise too_large(most - left, most)
        yield piece
