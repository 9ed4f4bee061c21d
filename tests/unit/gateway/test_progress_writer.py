"""Progress is written for many jobs at once, at most each second, and outlives a database."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from services.gateway.background import progress_writer
from services.gateway.background.progress_writer import ProgressWriter
from services.gateway.ports import StoredProgress
from shared.errors import Unavailable
from shared.messaging.messages import StagingProgressed, TrainingProgressed


class Written:
    """A repository that notes what is written, and may be away."""

    def __init__(self) -> None:
        self.commits: list[dict[tuple[str, str], bytes]] = []
        self.away = False

    async def write_progress(self, rows: Sequence[StoredProgress]) -> None:
        if self.away:
            raise Unavailable("a test made the database unavailable")
        self.commits.append({(row.job, row.stage): row.numbers for row in rows})


def fact(job: str, step: int) -> TrainingProgressed:
    return TrainingProgressed(job=job, stage="training", claim="c", progress={"step": step})


async def test_the_newest_numbers_of_all_stages_are_one_commit() -> None:
    written = Written()
    writer = ProgressWriter(cast("Any", written))
    for step in (1, 2):
        writer.note(fact("a", step), run=1)
        writer.note(fact("b", 10 * step), run=1)
    writer.note(StagingProgressed(job="c", stage="staging", claim="c"), run=1)

    await writer.write()

    assert written.commits == [
        {("a", "training"): b'{"step":2}', ("b", "training"): b'{"step":20}'}
    ]


async def test_what_cannot_be_written_is_written_later_unless_there_is_newer() -> None:
    written = Written()
    writer = ProgressWriter(cast("Any", written))
    writer.note(fact("a", 1), run=1)
    writer.note(fact("b", 1), run=1)
    written.away = True
    await writer.write()
    writer.note(fact("a", 2), run=1)
    written.away = False

    await writer.write()

    assert written.commits == [{("a", "training"): b'{"step":2}', ("b", "training"): b'{"step":1}'}]


async def test_the_first_is_written_at_once_and_the_next_after_a_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress_writer, "PROGRESS_SECONDS", 3600.0)
    written = Written()
    writer = ProgressWriter(cast("Any", written))
    running = asyncio.create_task(writer.run())
    for step in (1, 2):
        writer.note(fact("a", step), run=1)
        for _ in range(5):
            await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait((running,))

    assert written.commits == [{("a", "training"): b'{"step":1}'}]
