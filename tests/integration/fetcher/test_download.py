"""Downloads from good and bad servers."""

import asyncio
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from services.fetcher.download import LEAST_BYTES, download
from shared.errors import Passing, Refused
from shared.network.outbound import guarded_session
from tests.support.servers.process import free_port
from tests.support.servers.web import Page, Web, running_web

LOOPBACK, LOCALHOST = frozenset({"127.0.0.1"}), frozenset({"localhost"})
BODY = bytes(range(256)) * 4000


async def fetch(url: str, folder: Path, **more: Any) -> bytes:
    """What the file has in the end."""
    options = {"allowed": LOOPBACK, "limit": 1 << 24, "pauses": (0.01, 0.01), **more}
    await download(url, folder / "file", **options)
    return (folder / "file").read_bytes()


async def test_a_file_arrives_whole_and_reports_its_progress(web: Web, tmp_path: Path) -> None:
    reported: list[tuple[int, int | None]] = []
    url = web.serve("/data.zip", Page(BODY, piece=100_000))

    got = await fetch(url, tmp_path, on_bytes=lambda done, total: reported.append((done, total)))

    assert got == BODY
    assert reported[-1] == (len(BODY), len(BODY))
    assert len(reported) > 1


async def test_a_private_address_is_refused_as_literal_and_by_name(
    web: Web, tmp_path: Path
) -> None:
    literal = web.serve("/data.zip?key=secret", BODY)
    by_name = literal.replace("127.0.0.1", "localhost")
    mapped = literal.replace("127.0.0.1", "[::ffff:127.0.0.1]")

    for url in (literal, by_name, mapped):
        with pytest.raises(Refused, match="EVERYDREAM_ALLOWED_PRIVATE_HOSTS") as refused:
            await fetch(url, tmp_path, allowed=frozenset())
        assert "secret" not in str(refused.value)
    assert web.seen == []


async def test_a_session_alone_blocks_every_spelling_of_loopback(web: Web) -> None:
    port = web.url().rsplit(":", 1)[1].strip("/")

    async with guarded_session(frozenset()) as session:
        for host in ("127.0.0.1", "localhost", "[::ffff:7f00:1]", "0x7f.1", "2130706433", "0"):
            with pytest.raises(aiohttp.ClientError):
                await session.get(f"http://{host}:{port}/")
    assert web.seen == []


async def test_an_allowed_name_is_reached_but_only_on_its_port(web: Web, tmp_path: Path) -> None:
    url = web.serve("/data.zip", BODY).replace("127.0.0.1", "localhost")
    port = url.split(":")[2].split("/")[0]

    assert await fetch(url, tmp_path, allowed=frozenset({f"localhost:{port}"})) == BODY
    with pytest.raises(Refused, match=r"localhost:.* is a private address"):
        await fetch(url, tmp_path, allowed=frozenset({"localhost:1"}))


async def test_a_redirect_is_followed_and_a_redirect_to_a_private_address_is_not(
    tmp_path: Path,
) -> None:
    async with running_web() as outside, running_web() as inside:
        port = outside.url().rsplit(":", 1)[1].strip("/")
        outside.serve("/data.zip", BODY)
        good = outside.redirect("/good", "/data.zip")
        bad = outside.redirect("/bad", inside.serve("/secret", b"inside"))
        scheme = outside.redirect("/scheme", "file:///etc/passwd")
        only_outside = frozenset({f"127.0.0.1:{port}"})

        assert await fetch(good, tmp_path, allowed=only_outside) == BODY
        with pytest.raises(Refused, match="is a private address"):
            await fetch(bad, tmp_path, allowed=only_outside)
        with pytest.raises(Refused, match="expected an http or https URL"):
            await fetch(scheme, tmp_path, allowed=only_outside)
        assert inside.seen == []


async def test_a_cookie_is_brought_along_to_where_a_redirect_goes(web: Web, tmp_path: Path) -> None:
    web.serve("/data.zip", BODY)
    headers = {"Location": "/data.zip", "Set-Cookie": "let=in; Path=/"}
    url = web.serve("/share", Page(status=302, headers=headers))

    # no jar keeps cookies of bare addresses
    for _ in range(2):
        await fetch(url.replace("127.0.0.1", "localhost"), tmp_path, allowed=LOCALHOST)

    assert [seen.headers.get("cookie") for seen in web.seen] == [None, "let=in"] * 2


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://[", r"/odd: redirects to http://\[, which is not a URL"),
        ("//[x]/", r"/odd: redirects to //\[x\]/, which is not a URL"),
        ("http://x:y/", "http://x:y/: not a URL"),
        (f"http://{'a' * 64}.example/", r"a\.example/: the host is not a name that a server can"),
    ],
)
async def test_a_redirect_to_no_url_is_refused_at_once(
    web: Web, tmp_path: Path, location: str, reason: str
) -> None:
    with pytest.raises(Refused, match=reason):
        await fetch(web.redirect("/odd", location), tmp_path)
    assert len(web.seen) == 1


async def test_redirects_in_a_circle_end(web: Web, tmp_path: Path) -> None:
    url = web.redirect("/round", "/round")

    with pytest.raises(Refused, match="more than 5 redirects"):
        await fetch(url, tmp_path)
    assert len(web.seen) == 6


async def test_a_client_error_is_final_and_names_url_and_status(web: Web, tmp_path: Path) -> None:
    url = web.serve("/gone.zip", Page(status=404))

    with pytest.raises(Refused, match=r"/gone\.zip: the server answers 404 Not Found"):
        await fetch(url + "?signature=secret", tmp_path)
    assert len(web.seen) == 1


async def test_a_server_error_passes_after_three_tries(web: Web, tmp_path: Path) -> None:
    url = web.serve("/data.zip", Page(status=503))

    with pytest.raises(Passing, match="the server answers 503"):
        await fetch(url, tmp_path)
    assert len(web.seen) == 3


async def test_a_file_that_breaks_off_passes_and_is_never_taken_for_whole(
    web: Web, tmp_path: Path
) -> None:
    url = web.serve("/data.zip", Page(BODY, cut_at=1000))

    with pytest.raises(Passing, match="broke off in the middle"):
        await fetch(url, tmp_path)
    assert len(web.seen) == 3


async def test_a_second_try_may_succeed(web: Web, tmp_path: Path) -> None:
    url = web.serve("/data.zip", Page(BODY, cut_at=300_000, piece=100_000))

    def mend(done: int, _total: int | None) -> None:
        web.serve("/data.zip", BODY)
        assert done <= len(BODY)

    assert await fetch(url, tmp_path, on_bytes=mend) == BODY
    assert len(web.seen) == 2


async def test_a_silent_server_passes(web: Web, tmp_path: Path) -> None:
    url = web.serve("/data.zip", Page(BODY, piece=1000, pause=30))

    with pytest.raises(Passing, match="does not answer in time"):
        await fetch(url, tmp_path, read_seconds=0.2, pauses=())


async def test_a_drip_is_refused_after_a_minute(web: Web, tmp_path: Path) -> None:
    url = web.serve("/data.zip", Page(BODY, piece=2, pause=0.05))

    began = time.monotonic()
    with pytest.raises(Refused, match=r"/data.zip: too slow: \d+ bytes in the last 0.4 s"):
        await fetch(url, tmp_path, minute=0.4)
    assert time.monotonic() - began < 3
    assert len(web.seen) == 1


async def test_a_drip_after_a_quick_start_is_refused_a_minute_later(tmp_path: Path) -> None:
    start = b"HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n" + bytes(LEAST_BYTES * 2)
    async with dripping(start, b"..") as url:
        with pytest.raises(Refused, match=r"too slow: \d+ bytes in the last 0.5 s"):
            await fetch(url, tmp_path, limit=10**9, minute=0.5)


async def test_a_drip_is_one_though_much_is_unpacked_of_it(tmp_path: Path) -> None:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    piece = packer.compress(bytes(LEAST_BYTES * 4)) + packer.flush(zlib.Z_FULL_FLUSH)
    start = b"HTTP/1.1 200 OK\r\ncontent-encoding: deflate\r\n\r\n\x78\x9c"
    async with dripping(start, piece) as url:
        with pytest.raises(Refused, match=r"too slow: \d+ bytes in the last 0.5 s"):
            await fetch(url, tmp_path, limit=10**10, minute=0.5)


async def test_a_slow_download_that_keeps_the_pace_arrives_however_long_it_takes(
    web: Web, tmp_path: Path
) -> None:
    body = bytes(LEAST_BYTES * 4)
    url = web.serve("/data.zip", Page(body, piece=LEAST_BYTES // 2, pause=0.15))

    began = time.monotonic()
    assert await fetch(url, tmp_path, minute=0.8) == body
    assert time.monotonic() - began > 0.8


async def test_headers_that_drip_pass_after_a_minute_for_each_attempt(tmp_path: Path) -> None:
    async with dripping(b"HTTP/1.1 200 OK\r\n", b"x: y\r\n") as url:
        with pytest.raises(Passing, match="does not answer in time"):
            await fetch(url, tmp_path, minute=0.2)


@asynccontextmanager
async def dripping(start: bytes, piece: bytes) -> AsyncIterator[str]:
    """A server that begins its answer so, and goes on with a piece now and then for ever."""

    over, ended = asyncio.Event(), asyncio.Semaphore(0)
    asked = 0

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        with suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(start)
            while not over.is_set():
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.05)
        writer.transport.abort()
        ended.release()

    async with await asyncio.start_server(drip, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/data.zip"
        over.set()
        for _ in range(asked):
            await ended.acquire()


async def test_a_download_ends_in_any_case(web: Web, tmp_path: Path) -> None:
    url = web.serve("/data.zip", Page(bytes(1 << 24), piece=100_000, pause=0.05))

    with pytest.raises(Refused, match=r"not complete after .* hours, the most that"):
        await fetch(url, tmp_path, seconds=0.3)


async def test_a_server_that_is_away_passes(tmp_path: Path) -> None:
    with pytest.raises(Passing, match=r"no connection to 127\.0\.0\.1"):
        await fetch(f"http://127.0.0.1:{free_port()}/data.zip", tmp_path)


@pytest.mark.parametrize("announce", [True, False])
async def test_a_file_over_the_limit_is_refused_announced_or_not(
    web: Web, tmp_path: Path, *, announce: bool
) -> None:
    url = web.serve("/data.zip", Page(BODY, announce=announce, piece=100_000))

    with pytest.raises(Refused, match=r"more than 0\.0005 GB"):
        await fetch(url, tmp_path, limit=500_000)
