"""How many jobs of a line are released at a time, and how many of one owner."""

from __future__ import annotations

from typing import Any, cast

import pytest

from services.gateway.ports import Held, Line
from services.gateway.turns.places import Places, Rooms

FEW: dict[Line, int] = {"train": 1, "draw": 0, "check": 4}


@pytest.mark.parametrize(("workers", "places"), [(0, 8), (4, 8), (5, 10), (20, 40)])
def test_a_line_has_eight_places_or_two_for_each_worker(workers: int, places: int) -> None:
    seen: dict[Line, int] = {**FEW, "train": workers}

    def rooms(taken: int) -> Rooms:
        return Rooms(seen, [Held("train", "anna", taken, 0)])

    assert rooms(places - 1).is_free("train")
    assert not rooms(places).is_free("train")
    assert rooms(places).is_free("draw")


def test_half_of_a_line_is_the_most_that_an_owner_gets() -> None:
    rooms = Rooms(FEW, [Held("train", "anna", 4, 0), Held("train", "ben", 3, 0)])

    assert rooms.barred("train") == {"anna"}
    assert rooms.barred("draw") == set()
    assert Rooms({**FEW, "train": 10}, [Held("train", "anna", 9, 0)]).barred("train") == set()


def test_a_quarter_of_the_downloads_is_left_to_others_over_all_lines() -> None:
    held = [Held("train", "anna", 2, 2), Held("check", "anna", 1, 1), Held("check", "ben", 2, 2)]

    assert Rooms(FEW, held).barred("draw") == {"anna"}
    assert Rooms({**FEW, "check": 8}, held).barred("draw") == set()


def test_what_is_being_admitted_counts_with_what_is_released() -> None:
    held = [Held("train", "anna", 3, 0), Held("train", "anna", 1, 1)]

    assert Rooms(FEW, held).barred("train") == {"anna"}


@pytest.mark.parametrize(
    ("slots", "claims", "crowding"), [(0, 3, True), (0, 2, False), (8, 5, False), (8, 6, True)]
)
async def test_three_quarters_of_the_uploads_are_the_most_that_an_owner_gets(
    slots: int,
    claims: int,
    crowding: bool,  # noqa: FBT001
) -> None:
    class Claims:
        async def claims_of(self, _stages: object) -> dict[str, int]:
            return {"anna": claims, "ben": 1}

    class Slots:
        def last_seen(self, _stage: str) -> int:
            return slots

    places = Places(cast("Any", Claims()), cast("Any", Slots()))

    assert await places.crowding() == ({"anna"} if crowding else set())
