"""Store the metrics beside the training, so that its curves can be drawn while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from time import monotonic

import msgspec
import structlog
from msgspec import Struct

from services.trainer.order import METRICS, TrainingOrder
from shared.concurrency import cancelled, in_thread
from shared.ports import ObjectStore
from shared.storage.metrics import MetricsPiece, piece_key, stored_pieces
from shared.storage.retrying import RetryingStore
from shared.worker.order import Order

FIRST_SECONDS = 5.0
"""Between two looks for new lines, at first."""
SHARE_OF_RUN = 0.001
"""Later it is this part of the time so far: about a pixel of the whole curve."""
PIECE_BYTES = 256 * 1024
"""A piece that has as many is full: at most a hundred a day."""
END_SECONDS = 10.0
"""Allowed for the last lines: a training is worth more than they are."""

log = structlog.get_logger()


class Lines(Struct, frozen=True, kw_only=True):
    """What one piece holds of a metrics file."""

    first_step: int
    start: int
    """In the file."""
    text: bytes

    @property
    def end(self) -> int:
        return self.start + len(self.text)


class _Line(Struct):
    step: int


_decoder = msgspec.json.Decoder(_Line)


@asynccontextmanager
async def metrics_stored(
    store: ObjectStore, order: Order, training_order: TrainingOrder
) -> AsyncIterator[None]:
    """Store what the child records while the block trains, and the rest when it has ended.

    Training never waits for it, and does not fail with it. A block that is cancelled ends at once.
    """
    uploads = MetricsUploads(store, order, training_order)
    task = asyncio.create_task(uploads.run())
    try:
        yield
    except Exception:
        await uploads.finish(task)
        raise
    else:
        await uploads.finish(task)
    finally:
        await cancelled(task)


class MetricsUploads:
    """One attempt's pieces in the store."""

    def __init__(self, store: ObjectStore, order: Order, training_order: TrainingOrder) -> None:
        self._store = RetryingStore(store)  # without a deadline: training goes on meanwhile
        self._job = order.job
        self._attempt = order.grant.attempt
        self._file = Path(training_order.out) / METRICS
        resumed = training_order.resume
        self._resumed = Path(resumed) / METRICS if resumed else None
        self._start: int | None = None
        """Where the last piece begins in the file; None: not known yet."""
        self._stored = 0
        """Where in the file that ends which is stored."""

    async def run(self) -> None:
        """Store new lines now and then, until cancelled."""
        began = monotonic()
        while True:
            await asyncio.sleep(seconds_between(monotonic() - began))
            await self.store_new()

    async def finish(self, task: asyncio.Task[None]) -> None:
        """Store the last lines in place of the task that has run so far."""
        await cancelled(task)
        try:
            async with asyncio.timeout(END_SECONDS):
                await self.store_new(to_end=True)
        except TimeoutError:
            log.warning("metrics_not_stored", job=self._job, reason="the store did not answer")

    async def store_new(self, *, to_end: bool = False) -> None:
        """Store what is new; what could not be stored comes with the next lines.

        The last step waits for the next one, or for the end: its validation may be under way, and
        who has seen a step does not ask for it again.
        """
        try:
            await self._store_new(to_end=to_end)
        except Exception as error:  # whatever it is, no training is lost by it
            log.warning("metrics_not_stored", job=self._job, reason=str(error), exc_info=True)

    async def _store_new(self, *, to_end: bool) -> None:
        if self._start is None:
            self._start = await self._first_start()
        for lines in await in_thread(read_lines, self._file, self._start, to_end=to_end):
            if lines.end > self._stored:
                piece = MetricsPiece(attempt=self._attempt, first_step=lines.first_step)
                await self._store.put(piece_key(self._job, piece), lines.text)
                self._stored = lines.end
            self._start = lines.start

    async def _first_start(self) -> int:
        """Past the full pieces that earlier attempts have stored of what is resumed."""
        if self._resumed is None or not self._resumed.exists():
            return 0
        stored = await stored_pieces(self._store, self._job)
        return await in_thread(start_of_last, self._resumed, [each.first_step for each in stored])


def seconds_between(elapsed: float) -> float:
    """Seconds to the next look for new lines, ``elapsed`` seconds after the beginning."""
    return max(FIRST_SECONDS, elapsed * SHARE_OF_RUN)


def read_lines(file: Path, start: int, *, to_end: bool) -> list[Lines]:
    """What the file has from ``start`` on, in pieces; all but the last are full.

    Without the last step, unless it is read ``to_end``. The child may be at a line, which is left
    for later, and may not have begun.
    """
    data = b""
    with suppress(FileNotFoundError), file.open("rb") as opened:
        opened.seek(start)
        data = opened.read()
    steps, end = step_starts(data), data.rfind(b"\n") + 1
    if steps and not to_end:
        _, end = steps.pop()
    begins: list[tuple[int, int]] = []
    for step, at in steps:
        if not begins or at - begins[-1][1] >= PIECE_BYTES:
            begins.append((step, at))
    ends = [at for _, at in begins[1:]] + [end]
    return [
        Lines(first_step=step, start=start + at, text=data[at:until])
        for (step, at), until in zip(begins, ends, strict=False)
    ]


def step_starts(data: bytes) -> list[tuple[int, int]]:
    """Where the lines of each step begin; a line that has no end yet is left out."""
    starts: dict[int, int] = {}
    offset = 0
    for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
        starts.setdefault(_decoder.decode(line).step, offset)
        offset += len(line)
    return [*starts.items()]


def start_of_last(file: Path, stored: Iterable[int]) -> int:
    """Where in a resume point's file the last piece begins that has lines of it.

    ``stored`` are the first steps of the pieces. That piece is the last that may have been
    incomplete, and may go on with steps that are trained again.
    """
    starts = dict(step_starts(file.read_bytes()))
    return max((starts[step] for step in stored if step in starts), default=0)
