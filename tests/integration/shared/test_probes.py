"""Probes of real processes: what they answer while they start, work, and lack something."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from services.trainer import work
from shared.adapters.memory import MemoryBroker
from shared.concurrency import cancelled
from shared.errors import SettingsError
from shared.monitoring import health
from shared.monitoring.server import monitored
from shared.settings import from_environment
from shared.worker.runtime import Worker
from tests.support.gateway_world import eventually
from tests.support.scraping import Port, port_of, port_of_this_process, value
from tests.support.servers.process import HOST, free_port
from tests.support.services import running
from tests.support.workers import folder_store

ANY_PORT = {"EVERYDREAM_METRICS_PORT": "0"}
SETTINGS = from_environment({})


async def is_ready(port: Port) -> bool:
    return not await port.lacking()


async def test_a_process_lives_and_is_not_ready_while_there_is_no_broker() -> None:
    nowhere = {"EVERYDREAM_AMQP_URL": f"amqp://guest:guest@{HOST}:{free_port()}/"}
    async with running(["notifier"], {**nowhere, **ANY_PORT}, ready=False) as services:
        port = await port_of(services.first("notifier"))
        assert await port.probe("/livez") == (200, {"status": "ok"})
        assert await port.probe("/healthz") == (200, {"status": "ok"})
        assert await port.lacking() == {"process": "is starting"}
        assert value(await port.scrape(), "everydream_ready") == 0
        assert "not_ready" not in services.first("notifier").text


async def test_every_service_answers_probes_and_shows_metrics(amqp_url: str) -> None:
    environment = {"EVERYDREAM_AMQP_URL": amqp_url, "EVERYDREAM_BASE_MODEL": "tiny", **ANY_PORT}
    names = ["gateway", "fetcher", "notifier"]
    async with running(names, environment) as services:
        for name in names:
            port = await port_of(services.first(name))
            await eventually(partial(is_ready, port), 60.0)
            assert await port.probe("/livez") == (200, {"status": "ok"})
            samples = await port.scrape()
            assert value(samples, "everydream_ready") == 1
            assert value(samples, "process_resident_memory_bytes") > 0
            built = [labels for metric, labels in samples if metric == "everydream_build_info"]
            assert [dict(labels)["service"] for labels in built] == [name]
        assert "not_ready" not in services.last_words()


@pytest.mark.long
async def test_a_trainer_that_still_imports_torch_is_not_ready(amqp_url: str) -> None:
    environment = {"EVERYDREAM_AMQP_URL": amqp_url, "EVERYDREAM_DEVICE": "cpu", **ANY_PORT}
    async with running(["trainer"], environment) as services:
        port = await port_of(services.first("trainer"))
        await eventually(partial(lacks, port, {"trainer": "is starting"}))
        await eventually(partial(is_ready, port), 120.0)


async def test_a_worker_is_ready_while_its_child_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "CHILD", "tests.support.scripted_child")
    bus = MemoryBroker().bus("trainer/test")
    store = folder_store(tmp_path / "store")
    trainer = work.TrainerWork(store, scratch=tmp_path, cache=tmp_path, resume_every=300.0)
    training = asyncio.create_task(Worker(bus, store, trainer, heartbeat=0.1).run(asyncio.Event()))
    try:
        async with port_of_this_process(SETTINGS) as port:
            with capture_logs() as logs:
                assert await port.lacking() == {"trainer": "is starting"}
            assert "not_ready" not in [each["event"] for each in logs], "it is no fault"
            await eventually(partial(is_ready, port))
            samples = await port.scrape()
            assert value(samples, "everydream_worker_slots", service="trainer") == 1
    finally:
        await cancelled(training)


async def lacks(port: Port, parts: dict[str, str]) -> bool:
    return await port.lacking() == parts


async def test_a_part_that_hangs_is_told_in_time_and_since_when(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def hang() -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(health, "CHECK_SECONDS", 0.05)
    moments = iter((10.0, 20.0))
    store = health.Health({"store": hang}, clock=lambda: next(moments))
    async with health.probed(store), port_of_this_process(SETTINGS) as port:
        with capture_logs() as logs:
            await port.lacking()
        assert [each["part"] for each in logs if each["event"] == "not_ready"] == ["store"]
        for _ in range(2):
            status, body = await port.probe("/readyz")
            assert status == 503
            (lacking,) = body["lacking"]
            assert (lacking["part"], lacking["reason"]) == ("store", "does not answer")
            assert lacking["since"] == "1970-01-01T00:00:10.000Z"
        assert await port.probe("/healthz") == (200, {"status": "ok"})


async def test_a_port_that_is_taken_stops_the_process_with_its_name() -> None:
    async with monitored("first", replace(SETTINGS, metrics_port=0)) as port:
        second = replace(SETTINGS, metrics_port=port)
        with pytest.raises(SettingsError, match=f"EVERYDREAM_METRICS_PORT={port}.* a port each"):
            async with monitored("second", second):
                pass


async def test_without_the_setting_nothing_listens() -> None:
    async with monitored("nobody", SETTINGS) as port:
        assert port is None
