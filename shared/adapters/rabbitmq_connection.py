"""One connection to a RabbitMQ broker, reopened whenever it is lost, and its consumers.

aio-pika's own reconnecting is not used. Every consumer has a channel of its own; losing it, for
whatever reason, raises :class:`ConnectionLost`, and the consumer starts again from nothing.

Closing a channel requeues what is unacked on it, so that is how a message is requeued at any time.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

import aio_pika
import structlog
from aio_pika.abc import (
    AbstractChannel,
    AbstractConnection,
    AbstractIncomingMessage,
    AbstractQueue,
)
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, ChannelInvalidStateError
from yarl import URL

from shared.errors import SettingsError, Unavailable
from shared.retry import Reconnects

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 5.0
CLOSE_SECONDS = 4.0
PAUSE_SECONDS = 0.2
"""Between losing a channel or connection and asking for the next."""
MISMATCH_SECONDS = 2.0
"""Before declaring again what an operator has to fix first."""

HOSTS = re.compile(r"(\w+://(?:[^/?#]*@)?)([^/?#@]+)(.*)")
"""What stands before the hosts of a URL, they, and what stands after them."""

T = TypeVar("T")

log = structlog.get_logger()


def parse_urls(url: str) -> list[URL]:
    """One for each host, in the order in which they are named.

    Raises:
        SettingsError: it is no AMQP URL.
    """
    found = HOSTS.fullmatch(url)
    before, hosts, after = found.groups() if found else ("", "", "")
    return [_parse_url(f"{before}{host}{after}") for host in hosts.split(",")]


def _parse_url(url: str) -> URL:
    try:
        parsed = URL(url)
    except ValueError:
        parsed = URL()
    if parsed.scheme not in ("amqp", "amqps") or not parsed.host:
        raise SettingsError("the broker's URL must be like amqp://user:password@host:5672/vhost")
    return parsed.with_port(parsed.port or (5671 if parsed.scheme == "amqps" else 5672))


class ConnectionLost(Exception):
    """A connection or channel is lost, or does not answer in time."""


class TopologyMismatch(ConnectionLost):
    """The broker has a queue or exchange of this name, with other arguments."""


@asynccontextmanager
async def translate_errors(seconds: float | None) -> AsyncIterator[None]:
    """Turn every error that means a lost connection, time-outs included, into ConnectionLost.

    A dying channel may cancel the tasks that wait on it. Ours is really cancelled only if its count
    of cancels has grown since we began; then it is, even if an answer arrived at the same moment
    and Python 3.11's `asyncio.wait_for`, which the library uses, lost the cancel.
    """
    task = asyncio.current_task()
    cancels = task.cancelling() if task else 0
    try:
        async with asyncio.timeout(seconds):
            yield
    except (*CONNECTION_EXCEPTIONS, asyncio.CancelledError) as error:
        raise ConnectionLost(str(error) or type(error).__name__) from error
    finally:
        if task and task.cancelling() > cancels:
            raise asyncio.CancelledError


async def retry_until_connected(once: Callable[[], Awaitable[T]], about: str) -> T:
    while True:
        try:
            return await once()
        except ConnectionLost as lost:
            await pause(about, lost)


async def pause(about: str, lost: ConnectionLost) -> None:
    if isinstance(lost, TopologyMismatch):
        log.error("topology_differs", about=about, reason=str(lost))
        await asyncio.sleep(MISMATCH_SECONDS)
    else:
        log.info("broker_retried", about=about, reason=str(lost))
        await asyncio.sleep(PAUSE_SECONDS)


async def close_quietly(opened: AbstractChannel | AbstractConnection) -> None:
    with suppress(ConnectionLost):
        async with translate_errors(CLOSE_SECONDS):
            await opened.close()


def is_in_hand(incoming: AbstractIncomingMessage) -> bool:
    """Whether it is not settled, and its channel not lost."""
    try:
        return not incoming.processed and not incoming.channel.is_closed
    except ChannelInvalidStateError:  # the library's word for a lost channel
        return False


class Connection:
    """One connection, reopened whenever it is lost, to any of several hosts of one cluster."""

    def __init__(self, urls: Sequence[URL], *, name: str, heartbeat: int) -> None:
        self._urls = [url.update_query(heartbeat=heartbeat) for url in urls]
        self._url = self._urls[0]
        self._name = name
        self._connection = self._pending()
        self._task = asyncio.create_task(self._run())

    async def channel(self, *, confirms: bool = False) -> AbstractChannel:
        """Wait for a connection and open a channel on it.

        Raises:
            ConnectionLost: the connection was lost meanwhile.
            Unavailable: it was closed by :meth:`close`.
        """
        connection = await asyncio.shield(self._connection)
        async with translate_errors(CONNECT_SECONDS):
            return await connection.channel(publisher_confirms=confirms, on_return_raises=confirms)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task], timeout=2 * CLOSE_SECONDS)
        if not self._connection.done():
            self._connection.set_exception(Unavailable(f"the bus is closed ({self._name})"))
            self._connection.exception()  # retrieved, in case nothing waits for it

    async def _run(self) -> None:
        while True:
            await self._connect_until_lost()
            await asyncio.sleep(PAUSE_SECONDS)

    async def _connect_until_lost(self) -> None:
        async for _ in Reconnects():
            for _ in self._urls:
                try:
                    connection = await self._connect()
                except ConnectionLost as lost:
                    log.warning(
                        "broker_unreachable",
                        connection=self._name, at=self._address, reason=str(lost),
                    )  # fmt: skip
                    self._next_host()
                else:
                    await self._wait_until_lost(connection)
                    return

    def _next_host(self) -> None:
        """The one after the last; each service begins with the first that is named."""
        following = self._urls.index(self._url) + 1
        self._url = self._urls[following % len(self._urls)]

    async def _connect(self) -> AbstractConnection:
        connection = aio_pika.Connection(
            self._url, client_properties={"connection_name": self._name}
        )
        try:
            async with translate_errors(CONNECT_SECONDS):
                await connection.connect()
        except BaseException:
            await close_quietly(connection)
            raise
        return connection

    async def _wait_until_lost(self, connection: AbstractConnection) -> None:
        lost = asyncio.Event()
        connection.close_callbacks.add(lambda *_: lost.set())
        log.info("broker_connected", connection=self._name, at=self._address)
        self._connection.set_result(connection)
        try:
            await lost.wait()
            log.warning("broker_lost", connection=self._name, at=self._address)
        finally:
            self._connection = self._pending()
            await close_quietly(connection)

    @property
    def _address(self) -> str:
        return f"{self._url.host}:{self._url.port}{self._url.path}"

    @staticmethod
    def _pending() -> asyncio.Future[AbstractConnection]:
        return asyncio.get_running_loop().create_future()


class Consumer:
    """A consumer on a channel of its own, until the channel or the queue is gone."""

    def __init__(self, channel: AbstractChannel, queue: AbstractQueue) -> None:
        self.channel = channel
        self._queue = queue
        self._tag = ""
        self._arrived: asyncio.Queue[AbstractIncomingMessage | None] = asyncio.Queue()
        self._ended = False

    async def start(self, *, prefetch: int | None) -> None:
        """Consume with at most ``prefetch`` unacked messages; None: without acks."""
        # If the queue is deleted, the consumer ends but its channel stays open.
        wire = await self.channel.get_underlay_channel()
        wire.on_consumer_cancel_callbacks.add(self._end)
        self.channel.close_callbacks.add(self._end)
        if prefetch:
            await self.channel.set_qos(prefetch_count=prefetch)
        self._tag = await self._queue.consume(self._put, no_ack=prefetch is None)

    async def next(self) -> AbstractIncomingMessage:
        incoming = await self._arrived.get()
        if incoming is None:
            self._arrived.put_nowait(None)
            raise ConnectionLost("the consumer was ended")
        return incoming

    @property
    def has_arrived(self) -> bool:
        """Whether the next message is here."""
        return not self._ended and not self._arrived.empty()

    async def stop(self) -> None:
        """Take no more messages; the unacked ones stay."""
        async with translate_errors(ANSWER_SECONDS):
            await self._queue.cancel(self._tag)

    async def _put(self, incoming: AbstractIncomingMessage) -> None:
        if not self._ended:
            self._arrived.put_nowait(incoming)

    def _end(self, *_: object) -> None:
        self._ended = True
        while not self._arrived.empty():
            self._arrived.get_nowait()  # the broker redelivers it
        self._arrived.put_nowait(None)


# --- Logs of the libraries ----------------------------------------------------------------------


class _LogOneLine(logging.Handler):
    """Logs one line in place of a traceback for every loss. Passwords are masked."""

    def emit(self, record: logging.LogRecord) -> None:
        log.info("amqp_library_log", library=record.name, message=record.getMessage())


def redirect_library_logs() -> None:
    for name in ("aiormq", "aio_pika"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.WARNING)
        logger.handlers = [_LogOneLine()]
        logger.propagate = False
