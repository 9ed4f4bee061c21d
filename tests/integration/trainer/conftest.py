"""What the tests of the training loop share."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest

from services.trainer.training import train as loop
from shared.diffusion import saving
from shared.diffusion.loading import Parts, load
from tests.support.training import small_sizes


@pytest.fixture(scope="module")
def small_pictures() -> Iterator[None]:
    """For tests that train in their own process, whatever the pictures' size."""
    with small_sizes():
        yield


@pytest.fixture(scope="module")
def models_in_memory() -> Iterator[None]:
    """For tests that are not about files: what takes most of the time of a tiny training.

    The loop gets copies of its base models, each read once, and what it saves is not read again
    to see that it loads: of that tests/integration/shared/test_single_file.py has the tests.
    """
    read_once = cache(load)

    def copied(folder: Path) -> Parts:
        return deepcopy(read_once(folder))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "load", copied)
        patch.setattr(saving, "check_folder", lambda *_: None)
        yield
