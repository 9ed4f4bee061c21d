"""What the fuzzing reads: every target takes what it begins with, and anything else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import __main__ as fuzz
from tests.fuzz.targets import TARGETS

TURNED = st.tuples(st.integers(0, 5000), st.integers(0, 255))
"""A place, and the byte that comes there."""


@pytest.mark.parametrize("name", list(TARGETS))
def test_every_seed_is_read(name: str) -> None:
    for seed in TARGETS[name].seeds:
        TARGETS[name].read(seed)


@pytest.mark.parametrize("name", list(TARGETS))
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_bytes_that_are_turned_crash_no_reader(name: str, data: st.DataObject) -> None:
    damaged = bytearray(data.draw(st.sampled_from(TARGETS[name].seeds)))
    for place, byte in data.draw(st.lists(TURNED, max_size=8)):
        damaged[place % len(damaged)] = byte
    TARGETS[name].read(bytes(damaged))


def test_the_page_describes_every_crash() -> None:
    outcomes = [fuzz.Outcome("archive", 600.0, 12345, 321, 2)]
    page = fuzz.page(outcomes, "the command")
    assert "| archive | 10.0 | 12345 | 321 | 2 |" in page
    assert "Written by `the command`" in page
