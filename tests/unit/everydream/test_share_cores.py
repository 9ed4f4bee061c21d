"""How many threads each child gets if both share a machine."""

from __future__ import annotations

import os

import pytest

from everydream.all_in_one import share_cores


@pytest.mark.parametrize(("cores", "threads"), [(1, "1"), (2, "1"), (5, "2"), (16, "8")])
def test_each_of_two_has_half_of_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, threads: str
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # restored at the end
    monkeypatch.delenv("OMP_NUM_THREADS")

    share_cores()

    assert os.environ["OMP_NUM_THREADS"] == threads


def test_an_empty_value_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("OMP_NUM_THREADS", "")

    share_cores()

    assert os.environ["OMP_NUM_THREADS"] == "4"


def test_whoever_runs_it_may_choose_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")

    share_cores()

    assert os.environ["OMP_NUM_THREADS"] == "7"
