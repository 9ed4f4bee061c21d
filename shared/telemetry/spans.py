"""Spans for a collector, by OpenTelemetry's SDK; its own variables say where, which and how many.

Imported only where they are collected: the SDK costs 9 MiB, and 0.1 s of the start.
"""

from __future__ import annotations

import logging
import os
import threading

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    INVALID_SPAN,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)
from opentelemetry.trace import Span as SdkSpan

from shared.telemetry.logs import of_this_process
from shared.telemetry.tracing import Attribute, Context, Kind, Span

KINDS = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
}

log = structlog.get_logger()


class ExportedSpans:
    """Sends spans to the collector by OTLP over HTTP, in batches, from a thread of its own."""

    def __init__(self, service: str) -> None:
        _log_failures_as_ours()
        self._provider = TracerProvider(resource=_resource(service), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("everydream")

    def begin(self, name: str, kind: Kind, parent: Context | None) -> _ExportedSpan:
        above = NonRecordingSpan(_context_of(parent)) if parent else INVALID_SPAN
        context = set_span_in_context(above)
        return _ExportedSpan(self, self._tracer.start_span(name, context, kind=KINDS[kind]))

    def flush(self, seconds: float) -> None:
        """In a thread: what the exporter waits for cannot be cut short."""
        flushing = threading.Thread(target=self._provider.force_flush, daemon=True)
        flushing.start()
        flushing.join(seconds)


class _ExportedSpan(Span):
    def __init__(self, spans: ExportedSpans, span: SdkSpan) -> None:
        context = span.get_span_context()
        traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
        super().__init__(Context(traceparent, context.trace_state.to_header()))
        self._spans = spans
        self._span = span
        self._phase: tuple[str, _ExportedSpan] | None = None

    def set(self, **attributes: Attribute) -> None:
        self._span.set_attributes(
            {name.replace("__", "."): value for name, value in attributes.items()}
        )

    def link(self, to: Context | None) -> None:
        if to:
            self._span.add_link(_context_of(to))

    def phase(self, name: str) -> None:
        if self._phase is not None:
            if self._phase[0] == name:
                return
            self._phase[1].end()
        self._phase = None
        if name:
            self._phase = (name, self._spans.begin(name, "internal", self.context))

    def fail(self, reason: str) -> None:
        self._span.set_status(Status(StatusCode.ERROR, reason))

    def end(self) -> None:
        self.phase("")
        self._span.end()


def _context_of(context: Context) -> SpanContext:
    _, trace, span, flags = context.traceparent.split("-")
    return SpanContext(
        int(trace, 16),
        int(span, 16),
        is_remote=True,
        trace_flags=TraceFlags(int(flags, 16)),
        trace_state=TraceState.from_header([context.tracestate]),
    )


def _resource(service: str) -> Resource:
    """Who makes the spans; what the deployment's own variables say comes first."""
    process = of_this_process()
    who = {
        "service.version": process["version"],
        "service.instance.id": f"{process['instance']}-{process['pid']}",
    }
    if not os.environ.get("OTEL_SERVICE_NAME"):
        who["service.name"] = f"everydream-{service}" if service != "everydream" else service
    return Resource.create(who)


class _LogAsOurs(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        log.warning("traces_not_exported", reason=record.getMessage()[:300])


def _log_failures_as_ours() -> None:
    """A collector that is away is one warning, not a traceback for each batch."""
    library = logging.getLogger("opentelemetry")
    library.setLevel(logging.WARNING)
    library.handlers = [_LogAsOurs()]
    library.propagate = False
