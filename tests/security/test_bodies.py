"""What strangers send in place of a request: each gets its answer, and the gateway goes on."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
import zlib
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from services.gateway.endpoints import jobs
from services.gateway.jobs.request_parser import MAX_MISTAKES
from services.gateway.web import application, bodies
from shared.messaging.topology import FETCHER
from shared.request import MAX_ITEMS
from tests.support.gateway_world import API_KEY, REQUEST, World, world
from tests.support.servers.process import HOST

RUN = "/v1/everydream-v1/run"
RUNSYNC = "/v1/everydream-v1/runsync"
STATUS = "/v1/everydream-v1/status"
SECONDS = 20.0
"""The longest that any answer may take on a busy machine."""
PIECE = b"7\r\n" + b" " * 7 + b"\r\n"
"""One of a body that has no announced length."""


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    """A gateway that is patient for a moment only, and is as good as new afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(application, "HEAD_SECONDS", 0.5)
        patch.setattr(bodies, "IDLE_SECONDS", 0.3)
        patch.setattr(bodies, "BODY_SECONDS", 1.0)
        patch.setattr(jobs, "RUN_BYTES", 20_000)
        async with world(tmp_path) as one:
            yield one
            await goes_on(one)


async def goes_on(here: World) -> None:
    """Nothing was admitted, and the next request is answered at once.

    By a new connection: an idle one is closed after HEAD_SECONDS, perhaps as the request leaves.
    """
    assert await here.bus.depth(FETCHER) == 0
    body = json.dumps(REQUEST).encode()
    assert (await said(here, head(f"Content-Length: {len(body)}"), body)).status == 200


class Said(NamedTuple):
    """An answer as it came; 0: the connection was closed without one."""

    status: int
    text: str


class Caller:
    """A client that minds no rules."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    @classmethod
    async def of(cls, here: World) -> Caller:
        return cls(*await asyncio.open_connection(HOST, here.gateway.port))

    async def drips(self, piece: bytes, seconds: float = 0.05) -> None:
        """Say the same again and again, until nobody listens."""
        while not self.writer.is_closing():
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(seconds)

    async def answer(self) -> Said:
        async with asyncio.timeout(SECONDS):
            head = await self._head()
            lengths = [line for line in head if line.lower().startswith("content-length:")]
            length = int(lengths[0].partition(":")[2]) if lengths else 0
            return Said(int(head[0].split()[1]) if head else 0, await self._text(length))

    async def _head(self) -> list[str]:
        try:
            return (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return []

    async def _text(self, length: int) -> str:
        return (await self._reader.readexactly(length)).decode() if length else ""


async def said(here: World, *pieces: bytes, drip: bytes = b"") -> Said:
    """The answer to these bytes, after which the same drip comes for ever, if any."""
    caller = await Caller.of(here)
    dripping = None
    try:
        caller.writer.writelines(pieces)
        if drip:
            dripping = asyncio.create_task(caller.drips(drip))
        return await caller.answer()
    finally:
        if dripping:
            dripping.cancel()
            await asyncio.wait((dripping,))
        caller.writer.close()


def head(*lines: str, first: str = f"POST {RUN} HTTP/1.1", key: str = API_KEY) -> bytes:
    every = (first, "Host: x", f"Authorization: Bearer {key}", *lines)
    return "\r\n".join((*every, "", "")).encode("utf-8", "surrogateescape")


# --- size


async def test_a_body_that_is_announced_too_large_is_refused_before_it_comes(here: World) -> None:
    answer = await said(here, head("Content-Length: 20001"))

    assert answer.status == 413
    assert "larger than 20000 bytes; put the images behind data_url" in answer.text


async def test_a_body_without_end_is_refused_once_it_is_too_large(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "IDLE_SECONDS", SECONDS)
    monkeypatch.setattr(bodies, "BODY_SECONDS", SECONDS)
    large = b"2000\r\n" + b" " * 0x2000 + b"\r\n"

    assert (await said(here, head("Transfer-Encoding: chunked"), drip=large)).status == 413


@pytest.mark.parametrize("coding", ["gzip", "deflate", "GZIP", "br", "gzip, gzip"])
async def test_a_compressed_body_is_not_even_looked_at(here: World, coding: str) -> None:
    zeros = bytes(1 << 24)
    bomb = zlib.compress(zeros) if coding == "deflate" else gzip.compress(zeros)

    answer = await said(
        here, head(f"Content-Encoding: {coding}", f"Content-Length: {len(bomb)}"), bomb
    )

    assert answer.status == 415
    assert "not compressed" in answer.text


# --- time


async def test_a_head_that_never_ends_is_given_up(here: World) -> None:
    assert (await said(here, head()[:-2], drip=b"X-More: 1\r\n")).status == 0
    assert (await said(here, b"POST")).status == 0
    assert (await said(here)).status == 0


async def test_a_second_head_on_the_same_connection_is_given_up_too(here: World) -> None:
    caller = await Caller.of(here)
    caller.writer.write(head(first="GET /healthz HTTP/1.1"))
    assert (await caller.answer()).status == 200

    caller.writer.write(b"GET")

    assert (await caller.answer()).status == 0
    caller.writer.close()


@pytest.mark.parametrize("announced", ["Content-Length: 100", "Transfer-Encoding: chunked"])
async def test_a_body_that_does_not_come_is_waited_for_no_longer(
    here: World, announced: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "BODY_SECONDS", 600.0)

    answer = await said(here, head(announced))

    assert answer.status == 408
    assert "not be silent for 0.3 s" in answer.text


async def test_a_body_that_only_drips_is_waited_for_no_longer(here: World) -> None:
    answer = await said(here, head("Transfer-Encoding: chunked"), drip=PIECE)

    assert answer.status == 408
    assert "must come within 1 s" in answer.text


async def test_a_stranger_s_body_is_not_waited_for_at_all(here: World) -> None:
    assert (await said(here, head("Content-Length: 100", key="wrong"))).status == 401


async def test_many_who_dawdle_hold_up_nobody(here: World) -> None:
    dawdlers = [await Caller.of(here) for _ in range(50)]
    for caller in dawdlers:
        caller.writer.write(b"POST")

    async with asyncio.timeout(SECONDS):
        assert (await here.ask("GET", "/v1/everydream-v1/health")).status == 200

    assert {(await caller.answer()).status for caller in dawdlers} == {0}
    for caller in dawdlers:
        caller.writer.close()


# --- form


WRONG_HEADS = {
    "both lengths": head("Content-Length: 4", "Transfer-Encoding: chunked"),
    "both lengths the other way": head("Transfer-Encoding: chunked", "Content-Length: 4"),
    "two lengths": head("Content-Length: 4", "Content-Length: 5"),
    "two lengths in one": head("Content-Length: 4, 5"),
    "length below zero": head("Content-Length: -1"),
    "length with a plus": head("Content-Length: +4"),
    "hexadecimal length": head("Content-Length: 0x4"),
    "length that is a word": head("Content-Length: four"),
    "length with an underscore": head("Content-Length: 1_0"),
    "length of other digits": head("Content-Length: \uff14"),
    "another transfer coding": head("Transfer-Encoding: xchunked"),
    "chunked not last": head("Transfer-Encoding: chunked, identity"),
    "chunked twice": head("Transfer-Encoding: chunked, chunked"),
    "size of a chunk that is a word": head("Transfer-Encoding: chunked") + b"four\r\n",
    "size of a chunk below zero": head("Transfer-Encoding: chunked") + b"-1\r\n",
    "size of a chunk that is endless": head("Transfer-Encoding: chunked") + b"f" * 20_000,
    "chunk longer than its size": head("Transfer-Encoding: chunked") + b"1\r\nabc\r\n",
    "space before a colon": head("Transfer-Encoding : chunked"),
    "folded header": head("X-A: 1", " Content-Length: 4"),
    "header without colon": head("nonsense"),
    "null in a header": head("X-A: a\x00b"),
    "null in a name": head("X\x00A: b"),
    "bare line feed in a header": head("X-A: a\nContent-Length : 4"),
    "header of 100 kB": head(f"X-A: {'a' * 100_000}"),
    "name of 100 kB": head(f"{'a' * 100_000}: 1"),
    "thousands of headers": head(*(f"X-{number}: 1" for number in range(5000))),
    "path of 100 kB": head(first=f"GET {STATUS}/{'a' * 100_000} HTTP/1.1"),
    "no version": head(first=f"POST {RUN}"),
    "another version": head(first=f"POST {RUN} HTTP/9.9"),
    "spaces in the path": head(first=f"POST {RUN} {RUN} HTTP/1.1"),
    "no HTTP at all": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "method that is none": head(first=f"GE\x01T {RUN} HTTP/1.1"),
}


async def test_a_wrong_head_is_refused_and_nothing_behind_it_is_taken_for_a_request(
    here: World,
) -> None:
    smuggled = head("Content-Length: 2") + b"{}"
    for name, wrong in WRONG_HEADS.items():
        answer = await said(here, wrong, smuggled)

        assert answer.status in (400, 413, 414, 431), (name, answer)
        assert answer.text, name


async def test_a_body_shorter_than_announced_is_no_request(here: World) -> None:
    body = json.dumps(REQUEST).encode()
    caller = await Caller.of(here)
    caller.writer.write(head(f"Content-Length: {len(body) + 1}") + body)
    caller.writer.write_eof()

    assert (await caller.answer()).status in (0, 400, 408)
    caller.writer.close()


async def test_a_body_longer_than_announced_is_cut_there(here: World) -> None:
    body = json.dumps(REQUEST).encode()

    answer = await said(here, head(f"Content-Length: {len(body) - 1}"), body)

    assert answer.status == 400
    assert answer.text


# --- content

WRONG_BODIES: dict[str, bytes] = {
    "nothing": b"",
    "deep list": b"[" * 10_000,
    "deep list that ends": b"[" * 9_000 + b"]" * 9_000,
    "deep object": b'{"a":' * 3_000 + b"1" + b"}" * 3_000,
    "number too large for a float": b'{"input": 1e400}',
    "number of thousands of digits": b'{"input": ' + b"1" * 15_000 + b"}",
    "number beyond 64 bits": b'{"input": {"train": {"seed": ' + b"9" * 30 + b"}}}",
    "fraction of thousands of digits": b'{"input": 0.' + b"1" * 15_000 + b"}",
    "not a number": b'{"input": NaN}',
    "infinity": b'{"input": -Infinity}',
    "hexadecimal number": b'{"input": 0x10}',
    "leading zero": b'{"input": 01}',
    "two fields of one name": b'{"input": {"train": {"data_url": "https://a.example/a",'
    b'"data_url": "https://a.example/b"}}}',
    "two fields of one name, one escaped": b'{"input": 1, "\\u0069nput": {}}',
    "no UTF-8": b'{"input": "\xff"}',
    "overlong UTF-8": b'{"input": "\xc0\xaf"}',
    "surrogate in UTF-8": b'{"input": "\xed\xa0\x80"}',
    "lone surrogate": b'{"input": "\\ud800"}',
    "surrogates the wrong way round": b'{"input": "\\udc00\\ud800"}',
    "UTF-16": json.dumps(REQUEST).encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf" + json.dumps(REQUEST).encode(),
    "null in a text": b'{"input": {"train": {"data_url": "https://a.example/\\u0000"}}}',
    "bare null in a text": b'{"input": "\x00"}',
    "comment": b'{"input": /* none */ 1}',
    "comma at the end": b'{"input": 1,}',
    "two values": b"{} {}",
    "form": b"input=1",
}


async def test_a_body_that_is_no_request_is_refused_with_its_reason(here: World) -> None:
    for name, body in WRONG_BODIES.items():
        answer = await said(here, head(f"Content-Length: {len(body)}"), body)

        assert answer.status == 400, (name, answer)
        assert json.loads(answer.text)["mistakes"], name


async def answer_to(here: World, request: Any) -> dict[str, Any]:
    """The refusal, and that it took no noticeable time."""
    begun = time.monotonic()
    body = BytesIO(json.dumps(request).encode())
    answer = await here.ask("POST", "/v1/everydream-v1/runsync", data=body)
    assert answer.status == 400
    assert time.monotonic() - begun < SECONDS / 2
    assert len(json.dumps(answer.body)) < 30_000
    told: dict[str, Any] = answer.body
    return told


TRAIN = REQUEST["input"]["train"]
MANY: dict[str, Any] = {
    "unknown fields": {"input": {"train": TRAIN}, **dict.fromkeys(map(str, range(100_000)), 1)},
    "wrong entries": {"input": {"train": TRAIN, "inference": [{}] * MAX_ITEMS}},
    "entries with unknown fields": {
        "input": {
            "train": TRAIN,
            "inference": [dict.fromkeys(map(str, range(60)), 1)] * MAX_ITEMS,
        }
    },
    "wrong prompts": {"input": {"train": {**TRAIN, "sample_prompts": [1] * MAX_ITEMS}}},
    "wrong events": {"input": {"train": TRAIN}, "webhook_events_filter": ["x"] * MAX_ITEMS},
}


@pytest.mark.parametrize("kind", MANY)
async def test_of_thousands_of_mistakes_the_first_are_told(here: World, kind: str) -> None:
    answer = await answer_to(here, MANY[kind])

    assert len(answer["mistakes"]) == MAX_MISTAKES
    assert answer["error"].endswith("; and more")


LONG: dict[str, Any] = {
    "entries": {"input": {"train": TRAIN, "inference": [{"prompt": ""}] * 50_000}},
    "prompts": {"input": {"train": {**TRAIN, "sample_prompts": [""] * 100_000}}},
    "events": {"input": {"train": TRAIN}, "webhook_events_filter": ["start"] * 100_000},
}


@pytest.mark.parametrize("kind", LONG)
async def test_a_list_without_measure_is_refused_for_its_length(here: World, kind: str) -> None:
    answer = await answer_to(here, LONG[kind])

    assert len(answer["mistakes"]) == 1
    assert f"expected at most {MAX_ITEMS} items, got" in answer["error"]


async def test_a_name_or_a_text_without_measure_is_shown_by_its_beginning(here: World) -> None:
    long = "x" * 5_000_000
    answer = await answer_to(here, {"input": {"train": {"data_url": long}}, long: 1})

    assert len(answer["mistakes"]) == 2


async def test_what_would_make_too_many_objects_is_refused_before_any_is_made(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(*_: Any, **__: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(msgspec.json, "decode", decode)
    for name, body in {
        "objects": b"[" + b"{}," * 110_000 + b"{}]",
        "numbers": b"[" + b"1," * 310_000 + b"1]",
        "texts without commas": b'"' * 700_000,
        "depth": b"[" * 40 + b"]" * 40,
        "depth of objects": b'{"a":' * 40 + b"1" + b"}" * 40,
        "behind a text": b'{"a": "\\"[", "b": ' + b"[" * 40 + b"]" * 40 + b"}",
    }.items():
        answer = await here.ask("POST", RUNSYNC, data=BytesIO(body))
        assert answer.status == 400, name
        assert "expected at most" in answer.body["error"], (name, answer)

    monkeypatch.undo()
    brackets = json.dumps({"a": "[{," * 200_000 + '\\"' + "[" * 40})
    answer = await here.ask("POST", RUNSYNC, data=BytesIO(brackets.encode()))
    assert answer.body["mistakes"][0].startswith("a: no such field")


# --- headers

NO_TEXT = b"\xff\xed\xa0\x80"
HEADERS = [
    "Accept-Encoding", "Authorization", "Content-Encoding", "Content-Type", "Cookie", "Expect",
    "If-Match", "If-Modified-Since", "If-None-Match", "Last-Event-ID", "Range", "Tus-Resumable",
    "Upload-Length", "Upload-Offset", "Wait",
]  # fmt: skip


async def test_an_idempotency_key_that_is_no_text_is_a_mistake(here: World) -> None:
    body = json.dumps(REQUEST).encode()
    length = f"Content-Length: {len(body)}"
    for path in ("run", "runsync", "dataset/check"):
        first = f"POST /v1/everydream-v1/{path} HTTP/1.1"
        for key in (NO_TEXT, b"a\xff", b"\xc0\xaf", b"\xed\xb2\x80"):
            lines = head(length, first=first)[:-2] + b"Idempotency-Key: " + key + b"\r\n\r\n"
            answer = await said(here, lines, body)

            assert answer.status == 400, (path, key)
            assert "Idempotency-Key: expected a text in UTF-8" in answer.text


@pytest.mark.parametrize(
    "first", ["POST /v1/everydream-v1/uploads", f"GET {STATUS}/x", "GET /docs"]
)
async def test_no_header_that_is_no_text_is_a_fault_of_ours(here: World, first: str) -> None:
    for name in HEADERS:
        line = name.encode() + b": " + NO_TEXT + b"\r\nContent-Length: 0\r\n\r\n"
        answer = await said(here, head(first=f"{first} HTTP/1.1")[:-2] + line)

        assert answer.status < 500, (name, answer)


# --- paths

PATHS = [
    f"{STATUS}/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    f"{STATUS}/../../../etc/passwd",
    f"{STATUS}/..%2f..%2fetc%2fpasswd",
    f"{STATUS}/..%5c..%5cetc",
    f"{STATUS}/%00",
    f"{STATUS}/a%00b",
    f"{STATUS}/%ff",
    f"{STATUS}/%ed%a0%80",
    f"{STATUS}/%",
    f"{STATUS}/%zz",
    f"{STATUS}//",
    f"/{STATUS}/x",
    f"{STATUS}/{'a' * 5000}",
    f"{STATUS}/\x7f",
    "/files/%2e%2e/%2e%2e/etc/passwd",
    "/files//etc/passwd",
    "/files/jobs/%00",
    "/files/%252e%252e/etc/passwd",
    "/v1/everydream-v1/uploads/%00",
    "/v1/everydream-v1/uploads/..%2f..%2fetc",
    "/v1/everydream-v1/jobs?status=%00",
    "/v1/everydream-v1/jobs?cursor=%00",
    "/v1/everydream-v1/jobs?cursor=%ff%fe",
    "http://169.254.169.254/latest/meta-data/",
    "//169.254.169.254/latest/meta-data/",
    "*",
]


async def _refuses_every_path(here: World) -> None:
    for path in PATHS:
        answer = await said(here, head(first=f"GET {path} HTTP/1.1"))

        assert 400 <= answer.status < 500, (path, answer)
        assert "root:" not in answer.text


async def test_no_path_leads_astray(here: World) -> None:
    await _refuses_every_path(here)


async def test_no_path_leads_astray_over_postgresql(tmp_path: Path, postgres_url: str) -> None:
    async with world(tmp_path, database_url=postgres_url) as here:
        await _refuses_every_path(here)
        await goes_on(here)
