"""The owner whose request is being answered, for a limit that lies far below the handlers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_owner: ContextVar[str | None] = ContextVar("request_owner", default=None)


def request_owner() -> str | None:
    """None: this is the gateway's own work."""
    return _owner.get()


@contextmanager
def answering(owner: str | None) -> Iterator[None]:
    """What this block and the tasks that it starts do is done for this owner."""
    before = _owner.set(owner)
    try:
        yield
    finally:
        _owner.reset(before)
