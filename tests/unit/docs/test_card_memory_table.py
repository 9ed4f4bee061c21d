"""docs/models.md says of each card what the arithmetic says of it."""

from __future__ import annotations

import pytest

from tests.support.card_memory_table import PAGE, PARTS, text_of
from tests.support.measured_page import read


@pytest.mark.parametrize("part", PARTS)
def test_the_table_of_what_fits_a_card_is_that_of_the_arithmetic(part: str) -> None:
    assert read(part, PAGE).strip() == text_of(part).strip(), "write it anew: make pages"
