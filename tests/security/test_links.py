"""Signed links: they end, open one file each, and nobody but us can make or widen one."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import msgspec
import pytest
import yarl

from shared import keys
from shared.adapters.folder import FolderStore
from shared.adapters.object_keys import LONGEST_LINK
from shared.adapters.s3 import S3Store
from shared.errors import Refused
from shared.request import S3Config
from tests.support.gateway_world import API_KEY, KEY, World, world
from tests.support.servers.s3 import S3Server

OTHER_KEY = "another key of thirty-two letters or more"
FILE = "jobs/1/training/1/model.html"
PAGE = b"<script>alert(document.domain)</script>"
SECRET = b"nobody was let in to read this"
HOUR = 3600
S3 = S3Config(
    accessId="an-access-id", accessSecret="an-access-secret", bucketName="a-bucket",
    endpointUrl="https://s3.example.com",
)  # fmt: skip
JOB, OTHER_JOB = "a1b2c3d4-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    """A gateway with a file to link to, and one to climb to."""
    async with world(tmp_path) as one:
        await one.store.put(FILE, PAGE)
        await one.store.put("jobs/2/training/1/model.html", SECRET)
        (tmp_path / "secret.txt").write_bytes(SECRET)
        yield one


async def link(here: World, key: str = FILE) -> str:
    """What the store signs, without the address of the gateway."""
    made = await here.store.link(key, seconds=HOUR, filename="model.html")
    return made.removeprefix(here.settings.public_url)


async def asked(here: World, target: str, method: str = "GET") -> tuple[int, bytes]:
    """Status and body, for a target that is sent as it stands."""
    url = yarl.URL(here.url("") + target, encoded=True)
    async with here.session.request(method, url) as answer:
        return answer.status, await answer.read()


def changed(text: str, before: str, after: str) -> str:
    assert before in text
    return text.replace(before, after, 1)


def parts_of(text: str) -> tuple[str, str]:
    """When a link ends, and its signature."""
    query = yarl.URL(text).query
    return query["expires"], query["signature"]


# --- Those of a folder ------------------------------------------------------------------------


async def test_a_link_opens_its_file_until_it_ends(here: World) -> None:
    made = await link(here)
    assert await asked(here, made) == (200, PAGE)
    assert (await asked(here, made, "HEAD"))[0] == 200

    here.clock.ahead = HOUR + 1
    assert (await asked(here, made))[0] == 403


async def test_a_compressed_file_beside_a_linked_one_is_not_sent_in_its_place(here: World) -> None:
    made = await link(here)
    for ending in ("gz", "br"):
        await here.store.put(f"{FILE}.{ending}", SECRET)

    for coding in ("gzip", "br", "gzip, br", "GZIP", "*"):
        headers = {"Accept-Encoding": coding}
        async with here.session.get(here.url(made), headers=headers, auto_decompress=False) as got:
            assert (got.status, await got.read()) == (200, PAGE)
            assert "Content-Encoding" not in got.headers


async def test_no_cache_on_the_way_keeps_what_one_key_or_link_was_given(here: World) -> None:
    job = await here.run()
    paths = ("jobs", f"status/{job}", f"stream/{job}", f"jobs/{job}/webhooks", "health", "nothing")
    for path in (*paths, "budgets", f"status-sync/{job}?wait=1", "status/unknown"):
        async with here.session.get(
            here.url(f"/v1/everydream-v1/{path}"), headers={"Authorization": API_KEY}
        ) as answer:
            assert answer.headers["Cache-Control"] == "no-store", path
    async with here.session.get(here.url(await link(here))) as answer:
        assert answer.headers["Cache-Control"] == "private"
    headers = {"If-None-Match": answer.headers["ETag"]}
    async with here.session.get(here.url(await link(here)), headers=headers) as answer:
        assert (answer.status, answer.headers["Cache-Control"]) == (304, "private")


async def test_nothing_but_looking_is_done_by_a_link(here: World) -> None:
    made = await link(here)
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert (await asked(here, made, method))[0] == 405, method
    assert await asked(here, made) == (200, PAGE)


async def test_a_signature_that_was_changed_opens_nothing(here: World) -> None:
    made = await link(here)
    expires, signature = parts_of(made)
    forged = [
        "", signature[:-1], signature + "0", signature + "%00", signature[1:], signature.upper(),
        "0" * 64, signature[::-1], "%C3%A9", quote("\N{FULLWIDTH DIGIT ZERO}") + signature[1:],
        keys.link_signature(OTHER_KEY, FILE, int(expires)),
        keys.link_signature("", FILE, int(expires)),
    ]  # fmt: skip
    for each in forged:
        target = changed(made, f"signature={signature}", f"signature={each}")
        assert (await asked(here, target))[0] == 403, each
    assert (await asked(here, changed(made, f"&signature={signature}", "")))[0] == 403


async def test_an_end_that_was_changed_opens_nothing(here: World) -> None:
    made = await link(here)
    expires, _ = parts_of(made)
    later = str(int(expires) + 1)
    for each in (
        "",
        later,
        expires + "0",
        "9" * 5000,
        "-1",
        "1e99",
        "NaN",
        f"{expires}.5",
        "%C3%A9",
    ):
        target = changed(made, f"expires={expires}", f"expires={each}")
        assert (await asked(here, target))[0] == 403, each
    assert (await asked(here, changed(made, f"expires={expires}&", "")))[0] == 403
    twice = changed(made, "expires=", f"expires={later}&expires=")
    assert (await asked(here, twice))[0] == 403


PATHS = [
    "jobs/2/training/1/model.html", "jobs/1/training/1/MODEL.html", "Jobs/1/training/1/model.html",
    "jobs/1/training/1/", "jobs/1", "", "jobs/1/training/1/model.html/", "../secret.txt",
    "jobs/1/../../../secret.txt", "%2e%2e/secret.txt", "..%2fsecret.txt", "%252e%252e/secret.txt",
    "..%252fsecret.txt", "..%5csecret.txt", "jobs/1/training/1/model.html%00",
    "jobs/1/training/1/model.html%00.png", "jobs/1/training/1/model.html%2500", "/etc/passwd",
    "%2fetc%2fpasswd", "//etc/passwd", "file:///etc/passwd", "jobs/2/training/1/model%2ehtml",
    "jobs/1/training/1/../../../2/training/1/model.html",
    "jobs%2f1%2f..%2f2%2ftraining%2f1%2fmodel.html", ".incoming/x", "jobs/1/training/1/mod%C3%A9l",
    "jobs/1/training/1/%EF%BD%8Dodel.html",
]  # fmt: skip
"""Where somebody may want to bend a link that was signed for another path."""


@pytest.mark.parametrize("path", PATHS)
async def test_a_link_opens_no_other_path(here: World, path: str) -> None:
    made = await link(here)
    status, body = await asked(here, changed(made, f"/files/{FILE}", f"/files/{path}"))
    assert status in (400, 403, 404)
    assert SECRET not in body


CLIMBING = ["../secret.txt", "jobs/../../secret.txt", "/etc/passwd", ".incoming/x", "a\0b", "a//b"]


@pytest.mark.parametrize("key", CLIMBING)
async def test_even_a_true_signature_leads_to_nothing_outside_the_store(
    here: World, key: str
) -> None:
    expires = int(here.clock()) + HOUR
    signature = keys.link_signature(KEY, key, expires)
    query = f"expires={expires}&signature={signature}"
    status, body = await asked(here, f"/files/{quote(key, safe='')}?{query}")
    assert status in (400, 403, 404)
    assert SECRET not in body


async def test_a_symbolic_link_in_the_store_leads_nowhere(here: World) -> None:
    folder = Path(here.settings.home) / "store"
    (folder / "jobs" / "1" / "out").symlink_to(here.settings.home / "secret.txt")
    status, body = await asked(here, await link(here, "jobs/1/out"))
    assert (status, SECRET in body) == (404, False)


@pytest.mark.parametrize("named", ["&filename=x.html", "&filename=a%0d%0aSet-Cookie:%20b=c", ""])
async def test_no_browser_runs_a_file_as_a_page_of_ours(here: World, named: str) -> None:
    made = changed(await link(here), "&filename=model.html", named)
    async with here.session.get(yarl.URL(here.url("") + made, encoded=True)) as answer:
        assert answer.status == 200
        assert answer.headers["Content-Disposition"].startswith("attachment;")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
        assert "Set-Cookie" not in answer.headers


async def test_a_page_of_ours_can_show_an_image_that_no_browser_runs(here: World) -> None:
    for kind in ("png", "webp"):
        key = f"jobs/1/samples/small.{kind}"
        await here.store.put(key, b"pixels")
        made = yarl.URL(here.url("") + await link(here, key), encoded=True)
        async with here.session.get(made) as answer:
            assert answer.content_type == f"image/{kind}"
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
            assert "Cross-Origin-Resource-Policy" not in answer.headers


async def test_links_of_two_deployments_are_no_good_to_each_other(
    here: World, tmp_path: Path
) -> None:
    other = FolderStore(tmp_path / "other", public_url=here.settings.public_url, key=OTHER_KEY)
    await other.put(FILE, PAGE)
    theirs = await other.link(FILE, seconds=HOUR)
    assert (await asked(here, theirs.removeprefix(here.settings.public_url)))[0] == 403


# --- Those of S3 ------------------------------------------------------------------------------


async def test_a_presigned_link_lives_for_seven_days_at_most(
    s3_server: S3Server, s3_bucket: str
) -> None:
    store = S3Store.for_bucket(
        s3_bucket, endpoint_url=s3_server.endpoint_url, access_key=s3_server.access_key,
        secret_key=s3_server.secret_key,
    )  # fmt: skip
    try:
        made = await store.link("a", seconds=LONGEST_LINK)
        assert "X-Amz-Expires=604800" in urlsplit(made).query
        assert s3_server.secret_key not in made
        for seconds in (LONGEST_LINK + 1, 0, -1):
            with pytest.raises(ValueError, match="from 1 to 604800 seconds"):
                await store.link("a", seconds=seconds)
    finally:
        await store.close()


# --- Sealed bucket secrets --------------------------------------------------------------------


def test_what_is_sealed_for_one_job_opens_for_no_other_one() -> None:
    sealed = keys.seal(KEY, S3, JOB)

    assert keys.unseal(KEY, sealed, JOB) == S3
    for job in (OTHER_JOB, "", JOB.upper(), f"{JOB} "):
        with pytest.raises(Refused):
            keys.unseal(KEY, sealed, job)


def test_what_is_sealed_opens_under_no_other_key() -> None:
    for key in (OTHER_KEY, KEY + "k", KEY[:-1], ""):
        with pytest.raises(Refused, match="different EVERYDREAM_SECRET_KEY"):
            keys.unseal(key, keys.seal(KEY, S3, JOB), JOB)


def test_nothing_can_be_cut_off_put_on_or_taken_from_another_seal() -> None:
    ours, theirs = (base64.b64decode(keys.seal(KEY, S3, job)) for job in (JOB, OTHER_JOB))
    plain = msgspec.json.encode(S3)
    for mixed in (ours[:-1], ours + b"\0", ours[:12] + theirs[12:], theirs[:12] + ours[12:],
                  ours[:12] + plain, b"", ours[:12]):  # fmt: skip
        with pytest.raises(Refused):
            keys.unseal(KEY, base64.b64encode(mixed).decode(), JOB)
