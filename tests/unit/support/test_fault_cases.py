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


def test_every_run_of_the_tests_has_faults_of_each_kind_but_of_what_users_send() -> None:
    """Those are refused, or retried, before any other service hears of them."""
    kinds = {case.run.__module__ for case in all_cases()}
    in_every_run = {case.run.__module__ for case in all_cases() if not case.shown_by}
    assert {kind.rpartition(".")[2] for kind in kinds - in_every_run} <= {
        "cases_data", "cases_storms",
    }  # fmt: skip


def test_no_sqlite_fault_is_among_those_of_every_run() -> None:
    """They share one world, over PostgreSQL."""
    assert not [
        case.name for case in all_cases() if case.database == "sqlite" and not case.shown_by
    ]
