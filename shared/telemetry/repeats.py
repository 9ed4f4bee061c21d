"""Say the first of what is repeated, then how often, each half minute and once it is over."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, MutableMapping
from contextvars import Context
from time import monotonic
from typing import Any

import structlog
from msgspec import Struct

EVERY_SECONDS = 30.0
"""Between two counts; it is over when nothing was repeated for as long."""
MOST = 10_000
"""Different lines that are remembered; further ones are written as they come."""
LEVELS = ("warning", "error", "critical")
ALSO = ("broker_retried", "amqp_library_log")
"""Events below these levels that a server which is away causes again and again."""
VARYING = {
    "reason", "error", "message", "exc_info", "number", "again_in", "id", "path", "silence",
    "timestamp", "request_id", "trace_id",
}  # fmt: skip
"""Fields by which two lines about the same thing differ."""
ONE_CAUSE = (
    "not_published", "outbox_unwritable", "answer_lost", "fact_not_published", "not_judged",
    "server_away", "cannot_answer",
)  # fmt: skip
"""Events that one server which is away causes for many jobs: they are counted together."""
COUNT = "repeated"
"""The event that counts others."""
UNSAID = {"event", "level", "exc_info", "timestamp"}
"""Of the last one, what its count does not repeat."""

Line = MutableMapping[str, Any]

log = structlog.get_logger()


class _Seen(Struct):
    since: float
    """When the first one was written."""
    said: float
    """When it, or a count, was written last."""
    last: dict[str, Any]
    new: int = 0
    """Repetitions since then."""
    total: int = 0


class Repeats:
    """A processor of structlog: drops repeated warnings and errors, and has them counted."""

    def __init__(
        self, every: float = EVERY_SECONDS, clock: Callable[[], float] = monotonic
    ) -> None:
        """``every`` and ``clock`` are in seconds."""
        self._every = every
        self._clock = clock
        self._seen: dict[tuple[str, ...], _Seen] = {}
        self._lock = threading.RLock()
        """Threads log too, such as the one that sends spans."""
        self._looks_in: asyncio.AbstractEventLoop | None = None
        """The event loop that has a timer for it."""

    def __call__(self, _: object, __: str, line: Line) -> Line:
        """Raises structlog.DropEvent: it is a repetition, and counted."""
        event = str(line.get("event", ""))
        if event == COUNT or (line.get("level") not in LEVELS and event not in ALSO):
            return line
        same = [f"{name}={value!r}" for name, value in line.items() if name not in VARYING]
        key = (event,) if event in ONE_CAUSE else (event, *sorted(same))
        with self._lock:
            self._count(key, line)
        return line

    def _count(self, key: tuple[str, ...], line: Line) -> None:
        now = self._clock()
        self._say_what_is_due(now)
        seen = self._seen.get(key)
        if seen is not None:
            seen.new += 1
            seen.total += 1
            seen.last = dict(line)
            raise structlog.DropEvent
        if len(self._seen) < MOST:
            self._seen[key] = _Seen(now, now, dict(line))
            self._look_later()

    def flush(self) -> None:
        """Say all that is counted and not said."""
        with self._lock:
            self._say_what_is_due(self._clock(), at_once=True)

    def _say_what_is_due(self, now: float, *, at_once: bool = False) -> None:
        due = [
            (key, seen)
            for key, seen in self._seen.items()
            if at_once or now - seen.said >= self._every
        ]
        for key, seen in due:
            is_over = at_once or not seen.new
            if is_over:
                del self._seen[key]
            if seen.total:
                _say(seen, now, is_over=is_over)
            seen.said, seen.new = now, 0

    def _look_later(self) -> None:
        """By a timer of the event loop; without one the next warning looks."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        if self._looks_in is not loop:
            self._looks_in = loop
            loop.call_later(self._every, self._look, context=Context())

    def _look(self) -> None:
        with self._lock:
            self._looks_in = None
            self._say_what_is_due(self._clock())
            if self._seen:
                self._look_later()


def _say(seen: _Seen, now: float, *, is_over: bool) -> None:
    fields = {name: value for name, value in seen.last.items() if name not in UNSAID}
    fields["of"] = seen.last["event"]
    fields["times"] = seen.total if is_over else seen.new
    fields["seconds"] = round(now - (seen.since if is_over else seen.said), 1)
    getattr(log, str(seen.last["level"]))(COUNT, over=is_over, **fields)
