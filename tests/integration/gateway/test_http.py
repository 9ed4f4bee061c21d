"""The endpoint over HTTP: the page's own examples, and the responses to mistakes."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from services.gateway.app import Gateway
from services.gateway.database.api_keys import SqlKeyStore
from services.gateway.database.shares import OF_AN_OWNER
from services.gateway.endpoints.jobs import RUN_BYTES
from services.gateway.key_ports import StoredKey
from services.gateway.request_owner import answering
from services.gateway.web.authentication import digest_of
from shared.errors import Unavailable
from shared.messaging.messages import StagingDue
from shared.messaging.topology import FETCHER
from shared.service_process import closing
from tests.support.gateway_world import (
    API_KEY,
    KEY,
    LIMIT,
    OTHER_KEY,
    REQUEST,
    S3_CONFIG,
    World,
    answers_within,
    running,
    world,
)

RUN = "/v1/everydream-v1/run"
STATUS = "/v1/everydream-v1/status"
SEEDLESS = {"train": {"data_url": "https://example.com/a.zip"}, "inference": {"prompt": "x"}}


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as one:
        yield one


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_the_pages_example_is_accepted(here: World, version: str) -> None:
    answer = await here.ask("POST", f"/{version}/everydream-v1/run", json=REQUEST)
    assert answer.status == 200
    assert answer.body == {"id": str(UUID(answer.body["id"])), "status": "IN_QUEUE"}

    for method in ("GET", "POST"):
        path = f"/{version}/everydream-v1/status/{answer.body['id']}"
        shown = await here.ask(method, path)
        assert shown.status == 200
        assert shown.body["status"] == "IN_QUEUE"
        assert shown.body["gpu"] == ""
        assert shown.body["input"] == REQUEST["input"]
        assert shown.body["executionTime"] == 0
        assert isinstance(shown.body["delayTime"], int)


async def test_a_bare_key_and_any_spelling_of_bearer_are_accepted(here: World) -> None:
    for header in (API_KEY, f"Bearer {API_KEY}", f"bearer  {API_KEY}", f" BEARER {API_KEY} "):
        answer = await here.ask("POST", RUN, json=REQUEST, headers={"Authorization": header})
        assert answer.status == 200, header


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Bearer wrong", "Basic x", "Bearer é"])
async def test_a_wrong_key_is_refused(here: World, header: str) -> None:
    answer = await here.ask("POST", RUN, json=REQUEST, headers={"Authorization": header})
    assert answer.status == 401
    assert "API key" in answer.body["error"]


async def test_a_body_that_is_not_json_is_refused(here: World) -> None:
    for body in (b"{", b"\xff", b'{"input": NaN}'):
        answer = await here.ask("POST", RUN, data=body)
        assert answer.status == 400
        assert "not JSON" in answer.body["error"]


@pytest.mark.parametrize(
    "body", [None, 7, "text", [], {}, {"input": None}, {"input": {"train": []}}]
)
async def test_json_that_is_no_request_is_refused(here: World, body: Any) -> None:
    answer = await here.ask("POST", RUN, data=json.dumps(body))
    assert answer.status == 400
    assert answer.body["mistakes"]


async def test_all_mistakes_come_at_once(here: World) -> None:
    wrong = {"input": {"train": {"batchsize": 2, "flip_p": "often", "max_epochs": 0}}}
    answer = await here.ask("POST", RUN, json=wrong)
    assert answer.status == 400
    assert len(answer.body["mistakes"]) == 4
    assert "did you mean batch_size?" in answer.body["error"]
    assert all(mistake in answer.body["error"] for mistake in answer.body["mistakes"])
    assert await here.bus.depth(FETCHER) == 0


async def test_jobs_of_others_do_not_exist(here: World) -> None:
    job = await here.run()
    for path, named in ((job, repr(job)), ("no-such-job", "'no-such-job'"), ("%00", r"'\x00'")):
        answer = await here.ask("GET", f"{STATUS}/{path}", key=OTHER_KEY)
        assert answer.status == 404
        assert answer.body == {"error": f"there is no job {named} of this key"}
    cancel = await here.ask("POST", f"/v1/everydream-v1/cancel/{job}", key=OTHER_KEY)
    assert cancel.status == 404
    assert (await here.status(job))["status"] == "IN_QUEUE"


async def test_unknown_paths_and_methods_get_json(here: World) -> None:
    assert (await here.ask("POST", "/v1/other/run", json=REQUEST)).status == 404
    answer = await here.ask("GET", RUN)
    assert answer.status == 405
    assert answer.headers["Allow"] == "POST"
    assert answer.body == {"error": "GET is not taken here: send POST"}
    several = await here.ask("DELETE", f"{STATUS}/7b1c")
    assert several.body == {"error": "DELETE is not taken here: send GET or POST"}


@pytest.mark.parametrize("body", [b"", b" \n"])
async def test_a_request_without_a_body_is_told_what_is_expected(here: World, body: bytes) -> None:
    answer = await here.ask("POST", RUN, data=body)

    assert answer.status == 400
    assert answer.body["mistakes"] == ["the request has no body: a JSON object is expected"]


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/run", "did you mean /v1/everydream-v1/run?"),
        ("/v1/other/run", "did you mean /v1/everydream-v1/run?"),
        ("/v2/everydream-v1/runs/", "did you mean /v2/everydream-v1/run?"),
        ("/v1/everydream-v1/RUN", "did you mean /v1/everydream-v1/run?"),
        ("/v1/everydream-v1/run-sync", "did you mean /v1/everydream-v1/runsync?"),
        ("/api/status/7b1c", "did you mean /v1/everydream-v1/status/{job}?"),
        ("/v1/everydream-v1/job/7b1c/stop", "did you mean /v1/everydream-v1/jobs/{job}/stop?"),
        ("/open-api.json", "did you mean /openapi.json?"),
        ("/v1/everydream-v1", "/docs lists all"),
        ("/" + "run/" * 100, "/docs lists all"),
    ],
)
async def test_a_wrong_path_gets_the_nearest_right_one(here: World, path: str, told: str) -> None:
    answer = await here.ask("GET", path)

    assert answer.status == 404
    assert answer.body == {"error": f"there is no such path; {told}"}


async def test_secrets_of_the_bucket_are_shown_to_nobody(here: World) -> None:
    job = await here.run({**REQUEST, "s3Config": S3_CONFIG})
    assert "s3" not in json.dumps(await here.status(job))
    submitted = await here.get(FETCHER)
    row = await here.jobs.get(job)
    for text in (str(submitted), row.record.decode(), repr(here.received.messages)):
        assert S3_CONFIG["accessSecret"] not in text
        assert S3_CONFIG["accessId"] not in text


async def test_a_wrong_bucket_is_refused_without_showing_it(here: World) -> None:
    wrong = {**S3_CONFIG, "accessSecret": 4711, "endpointUrl": "ftp://hidden.example.com"}
    answer = await here.ask("POST", RUN, json={**REQUEST, "s3Config": wrong})
    assert answer.status == 400
    assert "s3Config.accessSecret" in answer.body["error"]
    assert "4711" not in answer.body["error"]


async def test_what_is_left_to_chance_is_drawn_once_and_echoed_as_it_came(here: World) -> None:
    train = {**SEEDLESS["train"], "seed": -1}
    entries = [{"prompt": "x"}, {"prompt": "x", "seed": -1}, {"prompt": "x", "seed": 3}]
    job = await here.run({"input": {"train": train, "inference": entries}})
    submitted = await here.get(FETCHER)
    assert isinstance(submitted, StagingDue)
    assert submitted.train
    assert submitted.train.seed >= 0
    seeds = [entry.seed for entry in submitted.inference]
    assert seeds[2] == 3
    assert all(seed is not None and seed >= 0 for seed in seeds)
    assert (await here.status(job))["input"] == {"train": train, "inference": entries}


async def test_a_request_that_a_client_wrapped_once_more_is_unwrapped(here: World) -> None:
    job = await here.run({"input": REQUEST})
    assert (await here.status(job))["input"] == REQUEST["input"]


async def test_too_large_a_body_is_refused(here: World) -> None:
    padded = json.dumps(REQUEST).encode().ljust(RUN_BYTES)
    assert (await here.ask("POST", RUN, data=BytesIO(padded))).status == 200
    for body in (BytesIO(padded + b" "), _in_pieces(padded + b" ")):
        answer = await here.ask("POST", RUN, data=body)
        assert answer.status == 413
        assert "data_url" in answer.body["error"]


async def _in_pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 1 << 20):
        yield body[start : start + (1 << 20)]


async def test_a_key_that_asks_too_often_has_to_wait_and_others_do_not(here: World) -> None:
    job = await here.run()
    cancel = f"/v1/everydream-v1/cancel/{job}"
    answers = [await here.ask("POST", cancel) for _ in range(100)]
    assert {answer.status for answer in answers} == {200}
    while (answer := await here.ask("POST", cancel)).status == 200:
        answers.append(answer)
        assert len(answers) < 1000, "the limit never came"
    assert answer.status == 429
    assert answer.headers["Retry-After"] == "1"
    assert answer.body["error"]
    assert (await here.ask("POST", cancel, key=OTHER_KEY)).status == 404
    assert (await here.ask("GET", f"{STATUS}/{job}")).status == 200


async def test_an_internal_error_is_reported_without_details(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("the inside")

    job = await here.run()
    monkeypatch.setattr("services.gateway.jobs.repository.read", broken)
    answer = await here.ask("GET", f"{STATUS}/{job}")
    assert answer.status == 500
    assert "inside" not in json.dumps(answer.body)


async def test_health_needs_no_key(here: World) -> None:
    async with here.session.get(here.url("/healthz")) as answer:
        assert (answer.status, await answer.json()) == (200, {"status": "ok"})


async def test_no_file_leaves_by_a_path_that_climbs(here: World) -> None:
    outside = here.settings.home / "secret.txt"
    outside.write_text("secret")
    for path in ("/files/../secret.txt", "/files/%2e%2e/secret.txt", "/files//etc/passwd"):
        async with here.session.get(here.url(path)) as answer:
            assert answer.status in (403, 404)


async def test_the_first_start_makes_a_key_and_later_ones_know_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with world(tmp_path, api_keys=(), public_url="http://me.example"):
        shown = capsys.readouterr().out
    client = tmp_path / "client.toml"
    assert stat.S_IMODE(client.stat().st_mode) == 0o600
    url, key = [line.split('"')[1] for line in client.read_text().splitlines()]
    assert url == "http://me.example"
    assert key in shown
    kept = tmp_path / "keys.json"
    assert key not in kept.read_text()

    async with world(tmp_path, api_keys=()) as here:
        assert key not in capsys.readouterr().out
        assert (await here.ask("POST", RUN, json=REQUEST, key=key)).status == 200
        assert (await here.ask("POST", RUN, json=REQUEST)).status == 401


async def test_a_port_that_is_taken_is_named(here: World) -> None:
    taken = replace(here.settings, port=here.gateway.port)
    async with closing(here.broker.bus("gateway/late")) as bus:
        late = Gateway(taken, KEY, bus, here.store, here.stores)
        with pytest.raises(ExceptionGroup) as caught:
            async with running(late):
                pass
    assert "EVERYDREAM_PORT" in str(caught.value.exceptions)


async def key_with(here: World, *scopes: str) -> str:
    key = f"a key for {scopes}"
    digest = digest_of(key)
    await here.stores.keys.add(
        StoredKey(digest=digest, name=key, scopes=scopes, created_at=here.clock())
    )
    return key


async def test_a_key_is_good_for_its_scopes_only(here: World) -> None:
    reader, writer = await key_with(here, "read"), await key_with(here, "read", "submit")
    root = "/v1/everydream-v1"

    assert (await here.ask("GET", f"{root}/health", key=reader)).status == 200
    commands = ("jobs/x/sample", "jobs/x/save", "jobs/x/stop")
    for operation in ("run", "runsync", "purge-queue", "cancel/x", "retry/x", *commands):
        answer = await here.ask("POST", f"{root}/{operation}", key=reader, json=REQUEST)
        assert (answer.status, "no scope" in answer.body["error"]) == (403, True)
    assert (await here.ask("POST", RUN, key=writer, json=REQUEST)).status == 200
    for command in commands:
        assert (await here.ask("POST", f"{root}/{command}", key=writer)).status == 404
    assert (await here.ask("POST", f"{root}/purge-queue", key=writer)).status == 403


async def test_a_key_is_let_in_no_more_once_it_is_disabled(here: World) -> None:
    key = await key_with(here, "read")
    assert (await here.ask("GET", "/v1/everydream-v1/health", key=key)).status == 200

    await here.stores.keys.disable(key, here.clock())

    assert (await here.ask("GET", "/v1/everydream-v1/health", key=key)).status == 401


async def test_a_key_that_keeps_the_database_busy_waits_only_for_itself(
    here: World,
) -> None:
    job = await here.run()
    others = (await here.ask("POST", RUN, json=REQUEST, key=OTHER_KEY)).body["id"]
    database = cast("SqlKeyStore", here.stores.keys)._database
    async with AsyncExitStack() as stack:
        with answering(digest_of(API_KEY)):
            for _ in range(OF_AN_OWNER):
                await stack.enter_async_context(database._shares.hold())
        with answers_within(LIMIT):
            assert (await here.ask("GET", f"{STATUS}/{job}")).status == 503
        assert (await here.ask("GET", f"{STATUS}/{others}", key=OTHER_KEY)).status == 200
    assert (await here.ask("GET", f"{STATUS}/{job}")).status == 200


async def test_without_the_database_only_configured_keys_are_known(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_: str) -> None:
        raise Unavailable("taken away by a test")

    monkeypatch.setattr(here.stores.keys, "find", away)

    assert (await here.ask("GET", "/v1/everydream-v1/health")).status == 200
    assert (await here.ask("GET", "/v1/everydream-v1/health", key="other")).status == 503


async def test_a_client_that_leaves_before_its_answer_is_no_error_of_ours(here: World) -> None:
    job = await here.run()
    asked = (f"GET /v1/everydream-v1/events/{job} HTTP/1.1", "Host: x", f"Authorization: {API_KEY}")
    head = "\r\n".join([*asked, "", ""])
    with capture_logs() as logs:
        for _ in range(20):
            _, writer = await asyncio.open_connection("127.0.0.1", here.gateway.port)
            writer.write(head.encode())
            await writer.drain()
            await asyncio.sleep(0)
            writer.transport.abort()
        assert (await here.status(job))["id"] == job

    assert [each for each in logs if each["event"] == "request_failed"] == []
