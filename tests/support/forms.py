"""The short form of a test with many cases: a few of them in every run, all in the long form."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import pytest
from _pytest.mark import ParameterSet

T = TypeVar("T")


def few(*chosen: T, of: Iterable[T]) -> list[T | ParameterSet]:
    """The cases, of which all but the chosen ones are marked ``long``.

    Raises:
        ValueError: a chosen one is none of them.
    """
    cases = list(of)
    if unknown := [case for case in chosen if case not in cases]:
        raise ValueError(f"not among the cases: {unknown}")
    return [
        case if case in chosen else pytest.param(case, marks=pytest.mark.long) for case in cases
    ]
