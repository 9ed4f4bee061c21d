"""What the gateway needs of its surroundings, and where clients find it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

BASES = ("/v1/everydream-v1", "/v2/everydream-v1")
"""The endpoint's paths on this server."""


Status = Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"]
ENDS: tuple[Status, ...] = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")


@runtime_checkable
class KeepsFiles(Protocol):
    """A store whose objects are files on this machine; the gateway serves its links."""

    def path_of(self, key: str) -> Path:
        """The object's file. Raises NotFound or Refused."""

    def free_bytes(self) -> int:
        """What can still be kept. Raises Unavailable."""
