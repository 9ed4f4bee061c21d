"""A collector of traces: takes what the services export by OTLP over HTTP, and keeps it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.support.servers.process import HOST

WAIT_SECONDS = 20.0


@dataclass(frozen=True)
class Collected:
    """One span, as it came."""

    name: str
    service: str
    trace: str
    id: str
    parent: str
    """Empty: it is the first of its trace."""
    links: tuple[str, ...]
    """Ids of spans."""
    begun: float
    ended: float
    """Both in seconds since the epoch."""
    failed: bool
    attributes: dict[str, str]

    @property
    def seconds(self) -> float:
        return self.ended - self.begun


@dataclass
class Collector:
    """What was collected so far."""

    url: str = ""
    spans: list[Collected] = field(default_factory=list)
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def wait_for(self, enough: Callable[[list[Collected]], bool]) -> list[Collected]:
        """The spans so far, once they are enough, or the time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(WAIT_SECONDS), self._news:
                await self._news.wait_for(lambda: enough(self.spans))
        return self.spans

    async def take(self, request: web.Request) -> web.Response:
        sent = ExportTraceServiceRequest.FromString(await request.read())
        for resource in sent.resource_spans:
            service = _texts(resource.resource.attributes)["service.name"]
            for scope in resource.scope_spans:
                self.spans += [_collected(span, service) for span in scope.spans]
        async with self._news:
            self._news.notify_all()
        body = ExportTraceServiceResponse().SerializeToString()
        return web.Response(body=body, content_type="application/x-protobuf")


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """A collector for as long as the block lasts."""
    collector = Collector()
    app = web.Application(client_max_size=1 << 26)
    app.router.add_post("/v1/traces", collector.take)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, 0).start()
        collector.url = f"http://{HOST}:{runner.addresses[0][1]}"
        yield collector
    finally:
        await runner.cleanup()


def _collected(span: Span, service: str) -> Collected:
    return Collected(
        name=span.name,
        service=service,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        links=tuple(link.span_id.hex() for link in span.links),
        begun=span.start_time_unix_nano / 1e9,
        ended=span.end_time_unix_nano / 1e9,
        failed=span.status.code == Status.STATUS_CODE_ERROR,
        attributes=_texts(span.attributes),
    )


def _texts(attributes: Iterable[KeyValue]) -> dict[str, str]:
    return {
        each.key: str(getattr(each.value, each.value.WhichOneof("value") or "string_value"))
        for each in attributes
    }
