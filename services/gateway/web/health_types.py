"""What the health checks answer."""

from __future__ import annotations

from typing import Literal, TypedDict


class Liveness(TypedDict):
    """The check holds."""

    status: Literal["ok"]


class UnreadyPart(TypedDict):
    """A part that is not ready."""

    part: Literal["database", "broker", "store"]
    reason: str
    since: str
    """UTC: when this gateway noticed it."""


class Readiness(TypedDict):
    """Whether everything that jobs need is available."""

    status: Literal["ready", "not ready"]
    lacking: list[UnreadyPart]
