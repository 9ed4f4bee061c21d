"""What the hostile run looks at is seen: a service that dies, and what nobody has a use for."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

from tests.hostile.leftovers import leftovers
from tests.hostile.measure import watched
from tests.support.gateway_world import world
from tests.support.services import Services, services_in_a_folder

SECONDS = 30.0


async def test_a_service_that_dies_is_counted_and_started_again(amqp_url: str) -> None:
    environment = {"EVERYDREAM_AMQP_URL": amqp_url, "EVERYDREAM_SECRET_KEY": "k" * 32}
    async with services_in_a_folder(environment) as services:
        notifier = await services.start("notifier")
        async with watched(services) as watch:
            await until(lambda: "notifier" in watch.peaks)
            os.kill(notifier.pid, signal.SIGKILL)
            await until(lambda: watch.pids().get("notifier") not in (None, notifier.pid))
            await services.first("notifier").wait_until_ready()

    assert watch.restarts == {"notifier": 1}
    peak = watch.peaks["notifier"]
    assert peak.own_bytes > 10 << 20
    assert 0 < peak.files < peak.files_allowed
    assert watch.last_words


async def test_a_file_that_no_job_has_a_use_for_is_named_and_those_of_jobs_are_not(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as here:
        nobody = Services({}, tmp_path)
        job = await here.run()
        await here.store.put(f"jobs/{job}/values/a.json", b"{}")
        await here.store.put("cache/0/model_index.json", b"{}")
        url = here.settings.database_url
        assert await leftovers(nobody, tmp_path / "store", url, {}, 0) == []

        await here.store.put("jobs/no-such-job/values/a.json", b"{}")
        await here.store.put("uploads/no-such-upload/0", b"{}")

        assert sorted(await leftovers(nobody, tmp_path / "store", url, {}, 0)) == [
            "object jobs/no-such-job/values/a.json",
            "object uploads/no-such-upload/0",
        ]


async def test_working_files_of_a_job_that_has_ended_are_named(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        job = await here.run()
        await here.ask("POST", f"/v1/everydream-v1/cancel/{job}")
        await here.status_becomes(job, "CANCELLED")
        late = f"jobs/{job}/staging/1/dataset/000000.png"
        await here.store.put(late, b"late")

        found = await leftovers(
            Services({}, tmp_path), tmp_path / "store", here.settings.database_url, {}, 0
        )

        assert found == [f"object {late}"]


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not happened():
            await asyncio.sleep(0.05)
