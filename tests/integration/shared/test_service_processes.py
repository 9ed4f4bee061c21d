"""Services as real processes: what the end-to-end tests rely on."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import psutil
import pytest

from shared.errors import SettingsError
from shared.scratch import PREFIX
from tests.support.servers.process import ServerError
from tests.support.servers.s3 import S3Server
from tests.support.services import resolved, running, services_in_a_folder, shared_environment


def processes_below(folder: Path) -> list[psutil.Process]:
    found = psutil.process_iter(["cwd", "status"])
    return [
        process
        for process in found
        if (process.info["cwd"] or "").startswith(str(folder))
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


@pytest.mark.long
async def test_services_run_several_times_each_and_nothing_is_left_of_them(
    amqp_url: str, postgres_url: str, s3_server: S3Server, s3_bucket: str
) -> None:
    environment = shared_environment(
        amqp_url=amqp_url,
        database_url=postgres_url,
        s3=s3_server,
        bucket=s3_bucket,
        HEARTBEAT="0.5",
    )
    async with running(["gateway", "gateway", "trainer", "trainer"], environment) as services:
        assert len({gateway.url for gateway in services.named("gateway")}) == 2
        victim = services.first("trainer")
        await victim.wait_for(lambda: bool(victim.children), 60)
        await victim.kill()
        assert not victim.children
        assert len(services.named("trainer")) == 1
        await services.start("trainer")
        assert len(services.named("trainer")) == 2
    assert not services.folder.exists()
    assert not processes_below(services.folder)


async def run_until_killed(environment: dict[str, str]) -> None:
    """Run a notifier that ends, as far as the running services know, by itself."""
    async with running(["notifier"], environment) as services:
        victim = services.first("notifier")
        await victim.wait_for_log("broker_connected")
        victim.send(signal.SIGKILL)
        await asyncio.to_thread(victim._process.wait, 30)


async def test_a_service_that_ends_by_itself_is_reported_with_its_last_output(
    amqp_url: str,
) -> None:
    with pytest.raises(ServerError, match="notifier ended with status -9") as caught:
        await run_until_killed({"EVERYDREAM_AMQP_URL": amqp_url})
    assert "broker_connected" in caught.value.__notes__[0]


async def test_what_killed_workers_left_is_gone_once_another_has_started(
    amqp_url: str, tmp_path: Path
) -> None:
    left = [
        tmp_path / "scratch" / f"{PREFIX}abc-job-training-1",
        tmp_path / "cache" / f"{PREFIX}abc-incoming",
    ]
    kept = tmp_path / "cache" / "abc"
    for folder in (*left, kept):
        folder.mkdir(parents=True)
    environment = {"EVERYDREAM_AMQP_URL": amqp_url, "EVERYDREAM_HOME": str(tmp_path)}
    async with running(["notifier"], environment):
        assert [folder.exists() for folder in (*left, kept)] == [False, False, True]


async def test_a_worker_for_one_job_ends_in_good_order_when_none_comes(amqp_url: str) -> None:
    environment = {"EVERYDREAM_AMQP_URL": amqp_url, "EVERYDREAM_HEARTBEAT": "0.1"}
    async with services_in_a_folder(environment) as services:
        command = ("everydream", "service", "fetcher", "--jobs", "1")
        worker = services.begin("fetcher", environment | {"EVERYDREAM_BASE_MODEL": "tiny"}, command)
        worker.ended = True  # by itself
        async with asyncio.timeout(60):
            while worker.alive:
                await asyncio.sleep(0.05)
        await worker.kill()
        assert worker.status == 0, worker.last_words
        assert "no_work_came" in worker.text


async def test_a_service_that_cannot_start_is_reported_at_once(amqp_url: str) -> None:
    environment = {"EVERYDREAM_AMQP_URL": amqp_url, "EVERYDREAM_PORT": "none"}
    with pytest.raises(SettingsError, match="EVERYDREAM_PORT"):
        await started(environment)
    environment = {"EVERYDREAM_AMQP_URL": amqp_url, "EVERYDREAM_HOST": "192.0.2.1"}
    with pytest.raises(ExceptionGroup) as caught:
        await started(environment | {"EVERYDREAM_DATABASE_URL": "sqlite:///jobs.db"})
    assert "cannot listen at EVERYDREAM_HOST=192.0.2.1" in str(caught.value.exceptions[0])


async def started(environment: dict[str, str]) -> None:
    async with running(["gateway"], environment):
        pass


def test_only_the_project_s_own_commands_are_resolved() -> None:
    assert resolved(["everydream", "service", "gateway"])[-2:] == ["service", "gateway"]
    with pytest.raises(KeyError):
        resolved(["everydreem", "service", "gateway"])
