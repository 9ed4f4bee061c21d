"""Where a piece of work belongs: its W3C trace context, and spans if somebody collects them.

A context that came with a request or a message is passed on in any case. Spans are made only if
OpenTelemetry's own variables name an endpoint; else none of its packages is imported.
Source: https://www.w3.org/TR/trace-context/
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, Protocol

from msgspec import Struct

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
FORM = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
"""Of version 00; later ones may only be longer."""
LENGTH = 55
Kind = Literal["internal", "server", "client", "producer", "consumer"]
Attribute = str | int | float | bool


class Span:
    """A piece of work; this one is not collected, and only passes on its parent's context."""

    def __init__(self, parent: str | None) -> None:
        self.traceparent = parent
        """The context of what is done for it; None: it belongs to no trace."""

    def set(self, **attributes: Attribute) -> None:
        """Describe it; ``__`` in a name stands for a dot."""

    def link(self, traceparent: str | None) -> None:
        """Name another span that led to it, perhaps long ago."""

    def phase(self, name: str) -> None:
        """Begin a part of it, which ends with the next one, or with the span; empty: none."""

    def fail(self, reason: str) -> None:
        """It did not succeed."""

    def end(self) -> None:
        """It is over; afterwards it does not change."""


class Spans(Protocol):
    """Makes spans that are collected."""

    def begin(self, name: str, kind: Kind, parent: str | None) -> Span: ...

    def flush(self, seconds: float) -> None:
        """Have all that ended collected, within a time."""


class _Collected(Struct):
    spans: Spans | None = None


_collected = _Collected()
_current: ContextVar[Span | None] = ContextVar("span", default=None)


def are_wanted(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment names who collects spans."""
    return any(environment.get(name) for name in ENDPOINTS)


def collect(spans: Spans) -> None:
    """From now on have these make the spans of this process."""
    _collected.spans = spans


def flush(seconds: float = 2.0) -> None:
    """Have all spans that ended collected; waits no longer than this."""
    if _collected.spans is not None:
        _collected.spans.flush(seconds)


def traceparent() -> str | None:
    """The context that what is done now belongs to."""
    current = _current.get()
    return current.traceparent if current else None


def trace_id() -> str | None:
    """The trace that what is done now belongs to."""
    context = traceparent()
    return context.split("-")[1] if context else None


def link(to: str | None) -> None:
    """Name a span that led to what is done now, perhaps long ago."""
    if current := _current.get():
        current.link(to)


def phase(name: str) -> None:
    """What is done now enters its next phase; the same again goes on. Empty: none."""
    if current := _current.get():
        current.phase(name)


def parse(text: str | None) -> str | None:
    """A stranger's ``traceparent``; None where it has not the standard's form."""
    if not text or not FORM.fullmatch(text[:LENGTH]):
        return None
    rest = text[LENGTH:]
    if rest and (text.startswith("00") or not rest.startswith("-")):
        return None
    return f"00{text[2:LENGTH]}"


@contextmanager
def within(parent: str | None) -> Iterator[None]:
    """Do the block, and what it starts, as part of this."""
    with _doing(Span(parent)):
        yield


@contextmanager
def span(
    name: str, *, parent: str | None, kind: Kind = "internal", **attributes: Attribute
) -> Iterator[Span]:
    """Do the block as a span: a part of ``parent``, or the first of a trace of its own.

    An exception that leaves the block marks it as failed, by its type alone: the text may quote a
    user.
    """
    spans = _collected.spans
    made = spans.begin(name, kind, parent) if spans else Span(parent)
    made.set(**attributes)
    try:
        with _doing(made):
            yield made
    except BaseException as error:
        made.fail(type(error).__name__)
        raise
    finally:
        made.end()


@contextmanager
def _doing(current: Span) -> Iterator[None]:
    before = _current.set(current)
    try:
        yield
    finally:
        _current.reset(before)
