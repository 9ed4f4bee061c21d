"""Which pieces of a training's metrics count."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.storage.metrics import MetricsPiece, newest, piece_key, stored_pieces
from tests.support.workers import folder_store


def pieces(*named: tuple[int, int]) -> list[MetricsPiece]:
    return [MetricsPiece(attempt=attempt, first_step=step) for attempt, step in named]


@pytest.mark.parametrize(
    ("stored", "kept"),
    [
        (pieces(), pieces()),
        (pieces((1, 5), (1, 100), (1, 20)), pieces((1, 5), (1, 20), (1, 100))),
        (pieces((1, 1), (1, 50), (1, 90), (2, 50)), pieces((1, 1), (2, 50))),
        (pieces((1, 1), (1, 50), (2, 0), (2, 70)), pieces((2, 0), (2, 70))),
        (pieces((1, 1), (2, 40), (3, 20), (3, 60)), pieces((1, 1), (3, 20), (3, 60))),
        (pieces((9, 1), (9, 30), (10, 10)), pieces((9, 1), (10, 10))),
    ],
)
def test_of_an_attempt_only_the_pieces_before_those_of_later_ones_count(
    stored: list[MetricsPiece], kept: list[MetricsPiece]
) -> None:
    assert newest(stored) == kept


async def test_pieces_are_listed_by_their_names_alone_and_those_of_other_jobs_are_not(
    tmp_path: Path,
) -> None:
    store = folder_store(tmp_path)
    await store.put(piece_key("j", MetricsPiece(attempt=2, first_step=7)), b"nobody reads it")
    await store.put(piece_key("j", MetricsPiece(attempt=1, first_step=0)), b"")
    await store.put(piece_key("j1", MetricsPiece(attempt=1, first_step=3)), b"")

    assert await stored_pieces(store, "j") == pieces((1, 0), (2, 7))
