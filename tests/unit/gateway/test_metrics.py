"""The points of a curve: each step once, thinned evenly, and no validation lost."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest

from services.gateway.endpoints.metrics import MAX_POINTS, after_step
from services.gateway.jobs.response_types import MetricsPoint
from shared.storage.curve import Curve, Point, Thinned
from shared.storage.metrics import MetricsPiece


def text(*lines: tuple[int, Mapping[str, float | None]]) -> bytes:
    whole = [{"step": step, "epoch": 0, "time": step / 2, **numbers} for step, numbers in lines]
    return msgspec.json.Encoder().encode_lines(whole)


def curve(*pieces: bytes, after: int = -1, points: int = MAX_POINTS) -> Curve:
    made = Curve(points, after=after)
    for piece in pieces:
        made.add(piece, float("inf"))
    return made


@pytest.mark.parametrize("most", [1, 2, 10, 1000])
@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 20, 21, 999, 1001])
def test_a_series_is_thinned_evenly_and_only_if_it_is_too_long(most: int, count: int) -> None:
    thinned = Thinned[int](most)
    for number in range(count):
        thinned.add(number)

    assert len(thinned.kept) <= most
    if count <= most:
        assert thinned.kept == [*range(count)]
    else:
        assert len(thinned.kept) >= most // 2
        assert thinned.kept == [*range(0, count, thinned.kept[1] if thinned.kept[1:] else count)]


def test_a_validation_and_a_report_of_one_step_are_one_point() -> None:
    made = curve(
        text((4, {"loss": 0.5, "lr": 1e-6}), (4, {"validation_loss": 0.25}), (5, {"loss": None}))
    )

    assert [msgspec.to_builtins(each) for each in made.points()] == [
        {"step": 4, "epoch": 0, "time": 2.0, "loss": 0.5, "lr": 1e-6, "validation_loss": 0.25},
        {"step": 5, "epoch": 0, "time": 2.5},
    ]


def test_of_a_long_curve_every_validation_stays_and_the_last_point() -> None:
    lines = [(step, {"loss": 0.5}) for step in range(1, 100)]
    lines += [(100, {"validation_loss": 0.25}), (101, {"loss": 0.5}), (102, {"loss": 0.5})]

    steps = [each.step for each in curve(text(*lines), points=10).points()]

    assert 100 in steps
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1]) == (1, 102)
    assert len(steps) <= 12


def test_more_validations_than_points_are_thinned_by_themselves() -> None:
    lines = [(step, {"validation_loss": 0.5}) for step in range(100)]

    assert len(curve(text(*lines), text((100, {"loss": 0.5})), points=10).points()) <= 11


def test_a_curve_tells_its_last_step_also_when_it_is_not_new() -> None:
    made = curve(text((4, {"loss": 0.5})), after=4)

    assert (made.points(), made.last_step) == ([], 4)
    assert curve().last_step is None


def test_a_piece_ends_where_the_next_one_begins() -> None:
    made = Curve(10)
    made.add(text((4, {}), (7, {}), (8, {})), 7)

    assert [each.step for each in made.points()] == [4]


@pytest.mark.parametrize(
    ("after", "read"),
    [(-1, [0, 50, 90]), (48, [0, 50, 90]), (49, [50, 90]), (89, [90]), (5000, [90])],
)
def test_only_pieces_that_can_have_later_steps_are_read_and_the_last(
    after: int, read: list[int]
) -> None:
    pieces = [MetricsPiece(attempt=1, first_step=step) for step in (0, 50, 90)]

    assert [each.piece.first_step for each in after_step(pieces, after)] == read
    assert after_step([], after) == []


def test_the_document_describes_every_number_of_a_point() -> None:
    assert set(Point.__struct_fields__) == set(MetricsPoint.__annotations__)
