"""What several tests of drawing need."""

from __future__ import annotations

from collections.abc import Iterator

import diffusers
import pytest
import torch


@pytest.fixture(scope="module")
def one_thread_and_no_advice() -> Iterator[None]:
    threads, verbosity = torch.get_num_threads(), diffusers.logging.get_verbosity()
    torch.set_num_threads(1)
    diffusers.logging.set_verbosity_error()
    yield
    torch.set_num_threads(threads)
    diffusers.logging.set_verbosity(verbosity)
