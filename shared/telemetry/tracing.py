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
from typing import Literal, NamedTuple, Protocol, TypedDict

from msgspec import Struct

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
FORM = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
"""Of version 00; later ones may only be longer."""
LENGTH = 55
_KEY = r"[a-z0-9][a-z0-9_*/-]{0,255}(?:@[a-z][a-z0-9_*/-]{0,13})?"
_VALUE = r"[ -+\--<>-~]{0,255}[!-+\--<>-~]"
_MEMBER = rf"[ \t]*(?:{_KEY}={_VALUE})?[ \t]*"
STATE_FORM = re.compile(rf"{_MEMBER}(?:,{_MEMBER}){{0,31}}")
STATE_LENGTH = 512
"""Letters of a ``tracestate`` that is passed on: what the standard asks for at least."""
Kind = Literal["internal", "server", "client", "producer", "consumer"]
Attribute = str | int | float | bool


class Context(NamedTuple):
    """Where a piece of work belongs: its trace, and the span that it is a part of."""

    traceparent: str
    tracestate: str = ""
    """What tracing systems tell one another beside it; empty: nothing."""

    @property
    def trace_id(self) -> str:
        return self.traceparent.split("-")[1]

    @property
    def headers(self) -> dict[str, str]:
        """As it is given to others."""
        return {name: text for name, text in self._asdict().items() if text}


class Traced(Protocol):
    """What a context is kept in."""

    @property
    def traceparent(self) -> str | None: ...

    @property
    def tracestate(self) -> str: ...


class Span:
    """A piece of work; this one is not collected, and only passes on its parent's context."""

    def __init__(self, parent: Context | None) -> None:
        self.context = parent
        """The context of what is done for it; None: it belongs to no trace."""

    def set(self, **attributes: Attribute) -> None:
        """Describe it; ``__`` in a name stands for a dot."""

    def link(self, to: Context | None) -> None:
        """Name another span that led to it, perhaps long ago."""

    def phase(self, name: str) -> None:
        """Begin a part of it, which ends with the next one, or with the span; empty: none."""

    def fail(self, reason: str) -> None:
        """It did not succeed."""

    def end(self) -> None:
        """It is over; afterwards it does not change."""


class Spans(Protocol):
    """Makes spans that are collected."""

    def begin(self, name: str, kind: Kind, parent: Context | None) -> Span: ...

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


def context() -> Context | None:
    """What is done now belongs there."""
    current = _current.get()
    return current.context if current else None


class Kept(TypedDict):
    """The fields that keep a context."""

    traceparent: str | None
    tracestate: str


def kept(context: Context | None) -> Kept:
    """A context as fields of a record or a message: ``Envelope(..., **kept(context))``."""
    if context is None:
        return {"traceparent": None, "tracestate": ""}
    return {"traceparent": context.traceparent, "tracestate": context.tracestate}


def context_of(kept: Traced) -> Context | None:
    """The context that is kept in a record or a message."""
    return Context(kept.traceparent, kept.tracestate) if kept.traceparent else None


def trace_id() -> str | None:
    """The trace that what is done now belongs to."""
    current = context()
    return current.trace_id if current else None


def link(to: Context | None) -> None:
    """Name a span that led to what is done now, perhaps long ago."""
    if current := _current.get():
        current.link(to)


def phase(name: str) -> None:
    """What is done now enters its next phase; the same again goes on. Empty: none."""
    if current := _current.get():
        current.phase(name)


def parse(traceparent: str | None, tracestate: str = "") -> Context | None:
    """A stranger's headers; None where the first has not the standard's form.

    One ``tracestate`` that has it not, or is too long, is left out.
    """
    text = traceparent
    if not text or not FORM.fullmatch(text[:LENGTH]):
        return None
    rest = text[LENGTH:]
    if rest and (text.startswith("00") or not rest.startswith("-")):
        return None
    is_state = len(tracestate) <= STATE_LENGTH and STATE_FORM.fullmatch(tracestate)
    return Context(f"00{text[2:LENGTH]}", tracestate if is_state else "")


@contextmanager
def within(parent: Context | None) -> Iterator[None]:
    """Do the block, and what it starts, as part of this."""
    with _doing(Span(parent)):
        yield


@contextmanager
def span(
    name: str, *, parent: Context | None, kind: Kind = "internal", **attributes: Attribute
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
