"""One connection to a RabbitMQ broker, opened again whenever it is lost, and who listens on it.

Plain connections, opened again by ourselves: every consumer has a channel of its own, and losing
it, for whatever reason, ends in one place, where everything begins anew. That loss is
:class:`ConnectionLost`, whatever the library calls it.

Closing a channel gives back whatever was delivered on it and is not acked, so it is also how a
message is let go at any moment.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
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
from aio_pika.exceptions import CONNECTION_EXCEPTIONS
from yarl import URL

from shared.errors import Unavailable
from shared.retry import Reconnects

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 5.0
CLOSE_SECONDS = 4.0
PAUSE_SECONDS = 0.2
"""Between losing a channel or connection and asking for the next."""
DIFFERS_SECONDS = 2.0
"""Before declaring again what somebody must put right first."""

T = TypeVar("T")

log = structlog.get_logger()


class ConnectionLost(Exception):
    """A connection or channel is gone, or does not answer in time."""


class Differs(ConnectionLost):
    """The broker has something under this name already, with other arguments."""


@asynccontextmanager
async def translate_errors(seconds: float | None) -> AsyncIterator[None]:
    """Turn everything that says "lost", silence included, into one error.

    A channel that dies may cancel those who wait on it: our task is really cancelled only when
    somebody has asked for it since we began. Then it is, even where an answer came at the same
    moment and Python 3.11's `asyncio.wait_for`, which the library uses, forgot the cancel.
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
    if isinstance(lost, Differs):
        log.error("topology_differs", about=about, reason=str(lost))
        await asyncio.sleep(DIFFERS_SECONDS)
    else:
        log.info("broker_asked_again", about=about, after=str(lost))
        await asyncio.sleep(PAUSE_SECONDS)


async def hang_up(connection: AbstractChannel | AbstractConnection) -> None:
    with suppress(ConnectionLost):
        async with translate_errors(CLOSE_SECONDS):
            await connection.close()


class Connection:
    """One connection, opened again whenever it is lost."""

    def __init__(self, url: URL, *, name: str, heartbeat: int) -> None:
        self._url = url.update_query(heartbeat=heartbeat)
        self._name = name
        self._up = self._nobody_yet()
        self._keeper = asyncio.create_task(self._keep())

    async def channel(self, *, says: bool = False) -> AbstractChannel:
        """Open a channel as soon as there is a connection; wait for one.

        Raises:
            Lost: the connection was lost meanwhile.
            Unavailable: the line was closed by :meth:`close`.
        """
        connection = await asyncio.shield(self._up)
        async with translate_errors(CONNECT_SECONDS):
            return await connection.channel(publisher_confirms=says, on_return_raises=says)

    async def close(self) -> None:
        self._keeper.cancel()
        await asyncio.wait([self._keeper], timeout=2 * CLOSE_SECONDS)
        if not self._up.done():
            self._up.set_exception(Unavailable(f"the bus is closed ({self._name})"))
            self._up.exception()  # nobody may be waiting to see it

    async def _keep(self) -> None:
        while True:
            await self._connect_and_stay()
            await asyncio.sleep(PAUSE_SECONDS)

    async def _connect_and_stay(self) -> None:
        async for _ in Reconnects():
            try:
                connection = await self._connect()
            except ConnectionLost as lost:
                log.warning(
                    "broker_unreachable", connection=self._name, at=self._shown, reason=str(lost)
                )
            else:
                await self._stay(connection)
                return

    async def _connect(self) -> AbstractConnection:
        connection = aio_pika.Connection(
            self._url, client_properties={"connection_name": self._name}
        )
        try:
            async with translate_errors(CONNECT_SECONDS):
                await connection.connect()
        except BaseException:
            await hang_up(connection)
            raise
        return connection

    async def _stay(self, connection: AbstractConnection) -> None:
        lost = asyncio.Event()
        connection.close_callbacks.add(lambda *_: lost.set())
        log.info("broker_connected", connection=self._name, at=self._shown)
        self._up.set_result(connection)
        try:
            await lost.wait()
            log.warning("broker_lost", connection=self._name, at=self._shown)
        finally:
            self._up = self._nobody_yet()
            await hang_up(connection)

    @property
    def _shown(self) -> str:
        return f"{self._url.host}:{self._url.port}{self._url.path}"

    @staticmethod
    def _nobody_yet() -> asyncio.Future[AbstractConnection]:
        return asyncio.get_running_loop().create_future()


class Consumer:
    """A consumer on a channel of its own: what it hears, until the channel or the queue is gone."""

    def __init__(self, channel: AbstractChannel, queue: AbstractQueue) -> None:
        self.channel = channel
        self._queue = queue
        self._tag = ""
        self._arrived: asyncio.Queue[AbstractIncomingMessage | None] = asyncio.Queue()
        self._ended = False

    async def start(self, *, prefetch: int | None) -> None:
        """Consume with acks, at most ``prefetch`` in hand; None: without acks."""
        # When somebody deletes the queue, the consumer ends and its channel lives on.
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

    async def stop(self) -> None:
        """Ask for no more; what is in hand stays ours."""
        async with translate_errors(ANSWER_SECONDS):
            await self._queue.cancel(self._tag)

    async def _put(self, incoming: AbstractIncomingMessage) -> None:
        if not self._ended:
            self._arrived.put_nowait(incoming)

    def _end(self, *_: object) -> None:
        self._ended = True
        while not self._arrived.empty():
            self._arrived.get_nowait()  # the broker delivers it again
        self._arrived.put_nowait(None)


# --- What the libraries log ----------------------------------------------------------------------


class _OneLineEach(logging.Handler):
    """To them every loss is an error with a traceback; to us it is a line. Passwords are masked."""

    def emit(self, record: logging.LogRecord) -> None:
        log.info("amqp", library=record.name, said=record.getMessage())


def tame_the_vendors_logs() -> None:
    for name in ("aiormq", "aio_pika"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.WARNING)
        logger.handlers = [_OneLineEach()]
        logger.propagate = False
