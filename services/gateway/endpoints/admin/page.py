"""Which page of a list is wanted."""

from __future__ import annotations

from typing import NamedTuple

from multidict import MultiMapping

from services.gateway.jobs.request_parser import Invalid
from services.gateway.web.application import unknown_parameters
from services.gateway.web.paging import Position, limit_in, position_in


class Page(NamedTuple):
    limit: int
    after: Position | None
    """Of the last one of the previous page."""


def page_in(query: MultiMapping[str]) -> Page:
    """The query's parameters, checked.

    Raises:
        Invalid: with every mistake.
    """
    mistakes = unknown_parameters(query, ("limit", "cursor"))
    page = Page(limit_in(query, mistakes), position_in(query, mistakes))
    if mistakes:
        raise Invalid(mistakes)
    return page
