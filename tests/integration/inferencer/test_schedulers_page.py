"""docs/schedulers.md agrees with the code."""

from __future__ import annotations

import re

import pytest
from PIL import Image

from bench.schedulers import (
    COLUMNS,
    NAMES,
    PAGE,
    SHEET,
    STOCHASTIC,
    calls,
    changed,
    stock_class,
)
from shared.request import Scheduler
from tests.support.models import SCHEDULER

TEXT = PAGE.read_text()
ROWS = [re.split(r" *\| *", line)[1:-1] for line in TEXT.splitlines() if line.startswith("| `")]
KINDS = {row[0].strip("`"): row[1:] for row in ROWS if len(row) == 6}
DISTANCES = {row[0].strip("`"): row[1:] for row in ROWS if len(row) == 1 + len(COLUMNS)}

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


def test_the_page_has_exactly_the_twelve_in_both_kinds_of_table() -> None:
    assert tuple(KINDS) == NAMES
    assert sorted(DISTANCES) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_page_says_of_each_what_it_is(name: Scheduler) -> None:
    noise = "yes" if name in STOCHASTIC else "no"

    said = KINDS[name][:4]

    assert said == [f"`{stock_class(name)}`", changed(name), noise, str(calls(name, SCHEDULER))]


@pytest.mark.parametrize("name", NAMES)
def test_fifty_steps_come_nearer_than_one(name: Scheduler) -> None:
    one, *_, fifty = map(float, DISTANCES[name])

    assert fifty < one / 4


def test_the_sheet_is_a_small_picture() -> None:
    assert SHEET.stat().st_size < 400_000
    with Image.open(SHEET) as sheet:
        assert sheet.format == "PNG"
