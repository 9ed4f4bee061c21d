"""The metrics of a training in the store: in pieces, while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from services.trainer import metrics_uploads
from services.trainer.metrics_uploads import (
    MetricsUploads,
    metrics_stored,
    read_lines,
    seconds_between,
)
from services.trainer.order import METRICS
from shared.adapters.folder import FolderStore
from shared.errors import Unavailable
from shared.messaging.messages import DatasetStaged
from shared.storage.metrics import MetricsPiece, piece_key, stored_pieces
from tests.support.training import train_request, training_order
from tests.support.workers import Facts, folder_store, granted_order

JOB = "j"


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full with the lines of three steps."""
    monkeypatch.setattr(metrics_uploads, "PIECE_BYTES", 2 * len(line(10)) + 1)


class Attempt:
    """One attempt at a training: the child's file, and what stores it."""

    def __init__(
        self, folder: Path, store: FolderStore, number: int = 1, resume: Path | None = None
    ) -> None:
        self.file = folder / f"out{number}" / METRICS
        self.file.parent.mkdir()
        self.order = granted_order(staged(), "training", Facts(), attempt=number)
        self.training_order = training_order(
            self.file.parent, dataset=folder, base=folder, resume=resume
        )
        self.uploads = MetricsUploads(store, self.order, self.training_order)
        if resume is not None:
            self.file.write_bytes((resume / METRICS).read_bytes())

    def record(self, *steps: int, **numbers: float) -> None:
        with self.file.open("ab") as file:
            file.writelines(line(step, **numbers) for step in steps)


def staged() -> DatasetStaged:
    return DatasetStaged(
        job=JOB, stage="staging", claim="c", attempt=1, train=train_request(), dataset="d",
        base_model="b", report={},
    )  # fmt: skip


def line(step: int, **numbers: float) -> bytes:
    return msgspec.json.encode({"step": step, **numbers}) + b"\n"


def resume_point(folder: Path, steps: Iterable[int]) -> Path:
    folder.mkdir()
    (folder / METRICS).write_bytes(b"".join(line(step) for step in steps))
    return folder


async def stored(store: FolderStore) -> dict[tuple[int, int], list[int]]:
    """The steps of each piece that counts, by attempt and first step."""
    found = {}
    for piece in await stored_pieces(store, JOB):
        lines = (await store.get(piece_key(JOB, piece))).splitlines()
        steps = [msgspec.json.decode(each)["step"] for each in lines]
        found[piece.attempt, piece.first_step] = steps
    return found


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return folder_store(tmp_path / "store")


async def test_the_last_piece_grows_until_it_is_full_and_then_the_next_one_begins(
    store: FolderStore, tmp_path: Path
) -> None:
    attempt = Attempt(tmp_path, store)
    attempt.record(10, 11, 12)
    await attempt.uploads.store_new()
    assert await stored(store) == {(1, 10): [10, 11]}

    attempt.record(13, 14, 15)
    await attempt.uploads.store_new()
    assert await stored(store) == {(1, 10): [10, 11, 12], (1, 13): [13, 14]}

    await attempt.uploads.store_new(to_end=True)
    assert await stored(store) == {(1, 10): [10, 11, 12], (1, 13): [13, 14, 15]}


async def test_a_step_is_stored_only_when_its_validation_cannot_come_any_more(
    store: FolderStore, tmp_path: Path
) -> None:
    attempt = Attempt(tmp_path, store)
    attempt.record(10, 11, 12)
    await attempt.uploads.store_new()
    attempt.record(12, validation_loss=0.5)
    await attempt.uploads.store_new()
    assert await stored(store) == {(1, 10): [10, 11]}

    attempt.record(13)
    await attempt.uploads.store_new()

    assert await stored(store) == {(1, 10): [10, 11, 12, 12]}, "a step is not divided"


async def test_what_is_stored_is_not_written_again_while_nothing_is_new(
    store: FolderStore, tmp_path: Path
) -> None:
    attempt = Attempt(tmp_path, store)
    await attempt.uploads.store_new()
    assert await stored(store) == {}, "the child has not begun"
    attempt.record(10, 11, 12, 13, 14)
    await attempt.uploads.store_new(to_end=True)
    await store.delete("jobs/")

    await attempt.uploads.store_new(to_end=True)

    assert await stored(store) == {}


async def test_a_line_that_the_child_has_not_ended_is_left_for_later(tmp_path: Path) -> None:
    file = tmp_path / METRICS
    file.write_bytes(line(1) + line(2)[:-1])

    (lines,) = read_lines(file, 0, to_end=True)

    assert lines.text == line(1)


async def test_a_resumed_training_goes_on_with_the_piece_in_which_it_was_lost(
    store: FolderStore, tmp_path: Path
) -> None:
    first = Attempt(tmp_path, store)
    first.record(*range(10, 19))
    await first.uploads.store_new(to_end=True)
    assert [*await stored(store)] == [(1, 10), (1, 13), (1, 16)]

    second = Attempt(tmp_path, store, 2, resume_point(tmp_path / "at14", range(10, 15)))
    second.record(17, 20, 21)
    await second.uploads.store_new()

    assert await stored(store) == {(1, 10): [10, 11, 12], (2, 13): [13, 14, 17], (2, 20): [20]}


async def test_a_resumed_training_stores_what_the_lost_one_had_not(
    store: FolderStore, tmp_path: Path
) -> None:
    point = resume_point(tmp_path / "point", range(10, 15))
    second = Attempt(tmp_path, store, 2, point)
    second.record(15)

    await second.uploads.store_new(to_end=True)

    assert await stored(store) == {(2, 10): [10, 11, 12], (2, 13): [13, 14, 15]}


async def test_a_training_that_begins_anew_replaces_every_earlier_piece(
    store: FolderStore, tmp_path: Path
) -> None:
    first, second = Attempt(tmp_path, store), Attempt(tmp_path, store, 2)
    first.record(*range(10, 19))
    await first.uploads.store_new()
    second.record(9, 10, 11)

    await second.uploads.store_new()

    assert await stored(store) == {(2, 9): [9, 10]}


async def test_a_resume_point_of_an_earlier_version_has_no_metrics_to_go_on_from(
    store: FolderStore, tmp_path: Path
) -> None:
    first = Attempt(tmp_path, store)
    first.record(10, 11, 12)
    await first.uploads.store_new(to_end=True)
    point = resume_point(tmp_path / "old", ())
    second = Attempt(tmp_path, store, 2, point)
    (point / METRICS).unlink()
    second.record(12, 13)

    await second.uploads.store_new()

    assert [piece.first_step for piece in await stored_pieces(store, JOB)] == [10, 12]


class Failing(FolderStore):
    """Refuses what is put, with an error of its own."""

    error: Exception | None = None

    async def put(self, key: str, data: bytes) -> None:
        if self.error is not None:
            raise self.error
        await super().put(key, data)


def failing(folder: Path, error: Exception) -> Failing:
    store = Failing(folder / "store", public_url="http://127.0.0.1:1", key="k" * 32)
    store.error = error
    return store


async def test_what_could_not_be_stored_comes_with_the_next_lines(tmp_path: Path) -> None:
    store = failing(tmp_path, OSError("a bug"))
    attempt = Attempt(tmp_path, store)
    attempt.record(10, 11)
    with capture_logs() as logs:
        await attempt.uploads.store_new()
    assert [(each["event"], each["reason"]) for each in logs] == [("metrics_not_stored", "a bug")]

    store.error = None
    attempt.record(12, 13, 14)
    await attempt.uploads.store_new()

    assert await stored(store) == {(1, 10): [10, 11, 12], (1, 13): [13]}


async def test_a_store_that_is_away_costs_the_last_lines_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_uploads, "END_SECONDS", 0.2)
    store = failing(tmp_path, Unavailable("away"))
    attempt = Attempt(tmp_path, store)

    with capture_logs() as logs:
        async with metrics_stored(store, attempt.order, attempt.training_order):
            attempt.record(10, 11)

    reasons = [each["reason"] for each in logs if each["event"] == "metrics_not_stored"]
    assert reasons == ["the store did not answer"]


@pytest.mark.parametrize("error", [None, RuntimeError("died"), asyncio.CancelledError()])
async def test_the_last_lines_are_stored_however_the_training_ends_unless_it_is_cancelled(
    store: FolderStore, tmp_path: Path, error: BaseException | None
) -> None:
    attempt = Attempt(tmp_path, store)

    with suppress(RuntimeError, asyncio.CancelledError):
        async with metrics_stored(store, attempt.order, attempt.training_order):
            attempt.record(10, 11)
            if error is not None:
                raise error

    expected: dict[Any, Any] = {(1, 10): [10, 11]}
    assert await stored(store) == ({} if isinstance(error, asyncio.CancelledError) else expected)


async def test_lines_are_stored_while_the_training_runs(
    store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_uploads, "FIRST_SECONDS", 0.01)
    attempt = Attempt(tmp_path, store)

    async with asyncio.timeout(30), metrics_stored(store, attempt.order, attempt.training_order):
        for step in range(10, 13):
            attempt.record(step, step + 1)
            while not any(step in steps for steps in (await stored(store)).values()):
                await asyncio.sleep(0.01)


def test_pieces_are_written_every_five_seconds_and_later_every_thousandth_of_the_time() -> None:
    assert [seconds_between(elapsed) for elapsed in (0.0, 5000.0, 86_400.0)] == [5.0, 5.0, 86.4]


def test_a_piece_is_named_by_its_attempt_and_its_first_step() -> None:
    key = piece_key(JOB, MetricsPiece(attempt=2, first_step=1500))
    assert key == "jobs/j/metrics/2/1500.jsonl"
