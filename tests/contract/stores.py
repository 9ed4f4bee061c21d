"""Object stores of every kind, each with a server for its links."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web
from yarl import URL

from shared.adapters.folder import FolderStore
from shared.adapters.s3 import S3Store
from shared.keys import link_holds
from tests.support.servers.s3 import S3Server

SECRET = "a secret key of thirty-two letters or more"


@asynccontextmanager
async def folder_store(root: Path) -> AsyncIterator[FolderStore]:
    """A folder, and a server that returns its files for valid links."""

    async def give(request: web.Request) -> web.StreamResponse:
        key, query = request.match_info["key"], request.query
        if not link_holds(SECRET, key, int(query["expires"]), query["signature"], time.time()):
            raise web.HTTPForbidden
        name = query.get("filename")
        headers = {"Content-Disposition": f"attachment; filename={name}"} if name else None
        return web.FileResponse(store.path_of(key), headers=headers)

    app = web.Application()
    app.router.add_get("/files/{key:.+}", give)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        store = FolderStore(root, public_url=url, key=SECRET)
        yield store
    finally:
        await runner.cleanup()


@asynccontextmanager
async def s3_store(server: S3Server, bucket: str) -> AsyncIterator[S3Store]:
    """A bucket of the test's own, below a prefix, as a user's would be opened."""
    store = S3Store.for_bucket(
        bucket,
        endpoint_url=server.endpoint_url,
        access_key=server.access_key,
        secret_key=server.secret_key,
        prefix="below/here",
    )
    try:
        yield store
    finally:
        await store.close()


async def fetch(link: str) -> tuple[int, bytes, str]:
    """What a GET of a link returns: status, body, content disposition."""
    async with aiohttp.ClientSession() as session, session.get(URL(link, encoded=True)) as answer:
        disposition = answer.headers.get("Content-Disposition", "")
        return answer.status, await answer.read(), disposition


def names_in(folder: Path) -> list[str]:
    """The files of a folder."""
    return sorted(path.name for path in folder.iterdir())
