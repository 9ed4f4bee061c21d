"""A fault whose short form is left out is shown by tests that exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.cases import Case, all_cases

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
def test_what_shows_a_fault_is_there(case: Case) -> None:
    for shown_by in case.shown_by:
        file, _, name = shown_by.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text(), shown_by


def test_most_faults_have_their_short_form_in_every_run() -> None:
    cases = all_cases()
    assert sum(not case.shown_by for case in cases) > 3 * len(cases) // 4
