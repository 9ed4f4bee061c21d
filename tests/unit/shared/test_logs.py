"""What a process writes to its log, and what it does not."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import pytest
import structlog
from structlog.testing import capture_logs

from shared.release import release
from shared.settings import from_environment
from shared.starting import begin_telemetry
from shared.telemetry import logs, tracing
from shared.telemetry.repeats import Repeats

WHO = {"service": "trainer", "instance": socket.gethostname(), "pid": os.getpid(),
       "version": release()}  # fmt: skip
TRACE = "0af7651916cd43dd8448eb211c80319c"
SECRETS = ("sesame", "s3cret", "hunter2", "k" * 32, "whsec_", "swordfish")
ENVIRONMENT = {
    "EVERYDREAM_API_KEYS": "sesame,open-sesame",
    "EVERYDREAM_SECRET_KEY": "k" * 40,
    "EVERYDREAM_WEBHOOK_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "EVERYDREAM_AMQP_URL": "amqps://trainer:s3cret@broker.example:5671/jobs?password=hunter2",
    "EVERYDREAM_DATABASE_URL": "postgresql://gateway:s3cret@db.example/jobs?password=hunter2",
    "EVERYDREAM_STORE_URL": "s3://id:s3cret@bucket/prefix?key=hunter2",
    "EVERYDREAM_STORE_PUBLIC_ENDPOINT": "https://id:swordfish@s3.example",
    "EVERYDREAM_PUBLIC_URL": "https://u:sword@swordfish@train.example.com",
    "EVERYDREAM_BASE_MODEL": "tiny",
    "EVERYDREAM_HEARTBEAT": "2",
}
log = structlog.get_logger()


def written(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_every_line_says_who_writes_it_those_of_libraries_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = logging.getLogger()
    before, root.handlers = root.handlers, []
    try:
        logs.configure("trainer")
        with tracing.within(tracing.Context(f"00-{TRACE}-b7ad6b7169203331-01")):
            log.info("working", job="abc")
        logging.getLogger("some.package").warning("it is %s", "late")
    finally:
        root.handlers = before

    ours, theirs = written(capsys)
    for line in (ours, theirs):
        assert {name: line[name] for name in WHO} == WHO
        assert line["timestamp"].endswith("Z")
    assert (ours["event"], ours["job"], ours["trace_id"]) == ("working", "abc", TRACE)
    assert (theirs["event"], theirs["logger"]) == ("it is late", "some.package")


def test_the_line_at_the_start_has_the_settings_that_count_and_no_secret(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("trainer")
    begin_telemetry("trainer", from_environment(ENVIRONMENT))

    (line,) = written(capsys)
    assert (line["event"], line["version"]) == ("starting", release())
    assert line["settings"] == {
        "amqp_url": "amqps://broker.example:5671/jobs",
        "database_url": "postgresql://db.example/jobs",
        "store_url": "s3://bucket/prefix",
        "store_public_endpoint": "https://s3.example",
        "public_url": "https://train.example.com",
        "base_model": "tiny",
        "heartbeat": 2.0,
    }
    assert [secret for secret in SECRETS if secret in json.dumps(line)] == []


def test_a_process_logs_from_the_level_on_that_is_set(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("trainer")
    begin_telemetry("trainer", from_environment({"EVERYDREAM_LOG_LEVEL": "error"}))
    log.warning("store_unavailable")
    log.error("topology_differs")
    logs.set_level("debug")
    log.debug("claim_refused")

    assert [line["event"] for line in written(capsys)] == ["topology_differs", "claim_refused"]


def test_an_outage_is_its_first_line_a_count_each_half_minute_and_one_at_its_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    logs.configure("gateway")
    with_repeats(Repeats(30.0, clock))

    for number in range(1082):  # as one outage once wrote
        clock.now = number / 10
        log.warning("heartbeat_lost", number=number, reason=f"no confirm for {number}")
    for clock.now in (140.0, 175.0):
        log.warning("another", at=clock.now)

    lines = written(capsys)
    first, *counts, last = (line for line in lines if line["event"] != "another")
    assert (first["event"], first["number"]) == ("heartbeat_lost", 0)
    assert [each["times"] for each in counts] == [299, 300, 300, 182]
    assert {each["event"] for each in counts} == {"repeated"}
    assert (counts[0]["of"], counts[0]["level"]) == ("heartbeat_lost", "warning")
    assert counts[0]["reason"] == "no confirm for 299"
    assert (last["of"], last["times"], last["over"]) == ("heartbeat_lost", 1081, True)
    assert len(lines) == 8


def test_what_is_about_other_things_is_no_repetition(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("gateway")
    with_repeats(Repeats(30.0, Clock()))
    for job in ("one", "two", "one"):
        log.warning("work_failed", job=job, stage="training", reason="the server is away")
        log.warning("not_published", job=job, id=f"{job}/1", reason="the broker is away")
        log.info("request", path="/status")

    events = [(line["event"], line.get("job")) for line in written(capsys)]
    assert events.count(("work_failed", "one")) == 1
    assert events.count(("work_failed", "two")) == 1
    assert [event for event, _ in events].count("not_published") == 1
    assert [event for event, _ in events].count("request") == 3


async def test_the_end_of_an_outage_is_told_though_nothing_else_is_logged(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("gateway")
    with_repeats(Repeats(0.02))
    log.warning("broker_lost", reason="it is gone")
    log.warning("broker_lost", reason="it is gone again")

    lines = written(capsys)
    async with asyncio.timeout(20):
        while not lines[-1].get("over"):
            await asyncio.sleep(0.01)
            lines += written(capsys)
    assert [(line["event"], line.get("times")) for line in lines] == [
        ("broker_lost", None), ("repeated", 1), ("repeated", 1),
    ]  # fmt: skip


def test_threads_may_warn_at_the_same_time() -> None:
    repeats, before = Repeats(0.0005), sys.getswitchinterval()
    structlog.configure(processors=[structlog.processors.add_log_level, repeats, dropped])

    def warn(thread: int) -> int:
        for number in range(2000):
            log.warning("work_failed", job=f"{thread}-{number % 300}")
        return thread

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(warn, range(3))) == [0, 1, 2]
    finally:
        sys.setswitchinterval(before)


def dropped(*_: object) -> NoReturn:
    raise structlog.DropEvent


def test_a_process_that_ends_tells_what_it_has_counted(capsys: pytest.CaptureFixture[str]) -> None:
    repeats = Repeats(30.0, Clock())
    logs.configure("gateway")
    with_repeats(repeats)
    log.warning("broker_lost")
    log.warning("broker_lost")

    repeats.flush()

    assert written(capsys)[-1]["times"] == 1


def with_repeats(repeats: Repeats) -> None:
    """In the place of the one that looks at the real clock."""
    processors = structlog.get_config()["processors"]
    structlog.configure(
        processors=[repeats if isinstance(each, Repeats) else each for each in processors]
    )


def test_without_a_collector_nothing_of_opentelemetry_is_known() -> None:
    with capture_logs() as told:
        begin_telemetry("trainer", from_environment({}))
    assert told[0]["event"] == "starting"
    assert not tracing.are_wanted({})
    assert tracing.are_wanted({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"})


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        (f"00-{TRACE}-b7ad6b7169203331-01", f"00-{TRACE}-b7ad6b7169203331-01"),
        (f"cc-{TRACE}-b7ad6b7169203331-00-of-the-future", f"00-{TRACE}-b7ad6b7169203331-00"),
        (f"00-{TRACE}-b7ad6b7169203331-01-more", None),
        (f"ff-{TRACE}-b7ad6b7169203331-01", None),
        (f"00-{TRACE.upper()}-b7ad6b7169203331-01", None),
        (f"00-{'0' * 32}-b7ad6b7169203331-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE}-b7ad6b7169203331-01\n", None),
        ("", None),
        (None, None),
    ],
)
def test_a_stranger_s_context_is_taken_only_in_the_standard_s_form(
    text: str | None, taken: str | None
) -> None:
    assert tracing.parse(text) == (tracing.Context(taken) if taken else None)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("vendor=t61rcWkgMzE", None),
        ("a=1, tenant@vendor=x y/z ,,b_-*/=~", None),
        (",".join(f"v{number}=1" for number in range(32)), None),
        (",".join(f"v{number}=1" for number in range(33)), ""),
        (f"a={'1' * 256}", None),
        (f"a={'1' * 257}", ""),
        (f"a={'1' * 250},b={'1' * 250},c={'1' * 10}", ""),
        ("vendor", ""),
        ("Vendor=1", ""),
        ("a==", ""),
        ("a=", ""),
        ("a=b\nc: d", ""),
        ("a=é", ""),
    ],
)
def test_of_a_stranger_s_state_what_is_no_standard_s_is_left_out(
    text: str, left: str | None
) -> None:
    traceparent = f"00-{TRACE}-b7ad6b7169203331-01"

    assert tracing.parse(traceparent, text) == (traceparent, text if left is None else left)
    assert tracing.parse("none", text) is None
