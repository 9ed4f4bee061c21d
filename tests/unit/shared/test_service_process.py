"""Imports without garbage collection."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from shared.service_process import importing


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_imports_are_not_searched_for_garbage_and_all_that_comes_later_is() -> None:
    gc.unfreeze()
    with importing():
        searched = gc.isenabled()

    assert not searched
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
