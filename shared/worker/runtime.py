"""The runtime of all workers: get a message, claim, ack, send heartbeats, publish the outcome.

A free slot gets one message and holds no consumer while it works. It claims the stage from the
gateway, acks when it has an answer, and works only if granted. Nothing starts before the grant, so
a second delivery is harmless. While it works it sends heartbeats; it stops when the gateway reports
that the claim is no longer the live one.

A service may also have best-effort tasks: messages that need no claim, because their outcome may be
lost. A slot runs one only while no work waits.

A worker may be told how many jobs to take; it then ends by itself, also when no work comes.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine
from time import monotonic
from typing import Any

import structlog
from structlog.contextvars import bound_contextvars

from shared.concurrency import cancelled, ended, until
from shared.errors import (
    Interrupted,
    Passing,
    Refused,
    SettingsError,
    Unavailable,
    Unpublishable,
    reason_of,
)
from shared.messaging.messages import (
    ClaimGranted,
    ClaimRefused,
    CommandIssued,
    JobCancelled,
    JobCompleted,
    JobFailed,
    JobTimedOut,
    Result,
    StageFact,
    StageFailed,
    claim_of,
    type_of,
)
from shared.messaging.topology import Queue
from shared.monitoring.health import probed
from shared.ports import Bus, Delivery, ObjectStore, ReplyQueue
from shared.release import release
from shared.retry import FAILURES_ALLOWED, reconnect_delay
from shared.service_process import exit_put_off, or_stopped
from shared.telemetry import tracing
from shared.worker.first_delivery import first_delivery
from shared.worker.order import BestEffortTask, Order
from shared.worker.outcome import publish_outcome
from shared.worker.state import WorkerState
from shared.worker.work import BestEffortTasks, Work

PATIENCE_HEARTBEATS = 60
"""Heartbeats without a sign of life after which work is cancelled: 10 minutes by default."""
GRACE_HEARTBEATS = 60
"""Heartbeats allowed for graceful work to save what it has to at shutdown."""
CLEAN_UP_SECONDS = 10.0
"""Allowed for cancelled work to end at shutdown; the next start removes its files."""
FINAL_PUBLISH_HEARTBEATS = 6
"""Heartbeats allowed for the final publish at shutdown; after these the worker counts as lost."""
FINAL_PUBLISH_SECONDS = 10.0
"""The most that these may be: a process that is told to stop has half a minute in all."""

IDLE_HEARTBEATS = 12
"""Heartbeats without work after which a worker that takes a number of jobs ends.

Longer than the work of a lost worker needs to come back, which other workers are started for: its
lease, and the longest delay before the next attempt.
"""

log = structlog.get_logger()


class Worker:
    """Runs a service's work in its slots until it is stopped, or has done its number of jobs."""

    def __init__(
        self,
        bus: Bus,
        store: ObjectStore,
        work: Work,
        *,
        heartbeat: float,
        best_effort_tasks: BestEffortTasks | None = None,
        drain: float = 0.0,
        jobs: int | None = None,
    ) -> None:
        """Told to stop it takes no other job, and has ``drain`` seconds to finish those it has.

        With ``jobs`` it ends after so many granted claims, however they end, and after
        :data:`IDLE_HEARTBEATS` without one.
        """
        self._bus = bus
        self._store = store
        self._work = work
        self._heartbeat = heartbeat
        self._best_effort_tasks = best_effort_tasks
        self._drain_seconds = drain
        self._ends_by_itself = jobs is not None
        self._jobs_left: float = math.inf if jobs is None else jobs
        self._hand_over = asyncio.Event()
        """Set when the work under way has to end: with the stop, or when the drain is over."""
        self._state = WorkerState(bus, work.queue, work.concurrency)
        self._orders: dict[str, Order] = {}
        self._tasks: dict[str, asyncio.Task[Result]] = {}
        self._under_way: dict[BestEffortTask, asyncio.Task[None]] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set or its jobs are done, then shut down in order."""
        async with (
            probed(self._state.health),
            self._bus.reply_queue(()) as reply_queue,
        ):
            listening = asyncio.create_task(self._listen(reply_queue))
            draining = asyncio.create_task(self._drain(stop))
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(self._work.concurrency):
                        group.create_task(self._slot(reply_queue, stop))
            finally:
                await cancelled(draining)
                await cancelled(listening)
                await self._work.close()

    async def _drain(self, stop: asyncio.Event) -> None:
        """Once stopping, let the work under way go on for the time allowed."""
        await stop.wait()
        if self._drain_seconds:
            jobs = [order.job for order in self._orders.values()]
            log.info("draining", seconds=self._drain_seconds, jobs=jobs)
            with exit_put_off(self._drain_seconds):
                await asyncio.sleep(self._drain_seconds)
        self._hand_over.set()

    async def _listen(self, reply_queue: ReplyQueue) -> None:
        async for message in reply_queue.messages():
            if isinstance(message, ClaimGranted | ClaimRefused | CommandIssued):
                if order := self._orders.get(message.claim):
                    order.receive(message)
                    if order.refused is not None:
                        self._cancel(order)
            elif isinstance(message, JobCompleted | JobFailed | JobCancelled | JobTimedOut):
                for best_effort_task, task in self._under_way.items():
                    if best_effort_task.message.job == message.job:
                        task.cancel()

    def _cancel(self, order: Order) -> None:
        """Cancel its work, once: another cancellation would cut into the clean-up of the first."""
        if task := self._tasks.pop(order.claim, None):
            task.cancel()

    # --- One slot ----------------------------------------------------------------------------

    async def _slot(self, reply_queue: ReplyQueue, stop: asyncio.Event) -> None:
        """One job after another; an unexpected error costs a pause. Raises SettingsError."""
        failures, idle_since = 0, None
        while not stop.is_set() and self._jobs_left > 0:
            self._jobs_left -= 1  # before it is there: other slots must not take it too
            worked = False
            try:
                preparing = self._state.prepared(self._work.prepare())
                if (gpu := await or_stopped(preparing, stop)) is None:
                    return
                failures, idle_since = 0, idle_since or monotonic()
                patience = self._patience(idle_since)
                if patience <= 0:
                    log.info("no_work_came", seconds=IDLE_HEARTBEATS * self._heartbeat)
                    return
                queue, delivery = await self._get_next(stop, patience)
                if delivery and queue == self._work.queue:
                    worked = await self._handle(delivery, gpu, reply_queue, stop)
                elif delivery:
                    await self._run_best_effort_task(delivery, reply_queue, stop)
            except SettingsError:
                raise  # another try would find the machine as it is
            except Exception:  # the slot must go on
                log.exception("slot_failed", queue=self._work.queue.name)
                failures += 1
                if self._ends_by_itself and failures == FAILURES_ALLOWED:
                    raise  # whoever started it starts another one
                await until(stop, timeout=reconnect_delay(failures))
            finally:
                if worked:
                    idle_since = None
                else:
                    self._jobs_left += 1

    def _patience(self, idle_since: float) -> float:
        """Seconds that a slot without work since then waits for it."""
        if not self._ends_by_itself:
            return math.inf
        return idle_since + IDLE_HEARTBEATS * self._heartbeat - monotonic()

    async def _get_next(
        self, stop: asyncio.Event, patience: float
    ) -> tuple[Queue, Delivery | None]:
        """The next message and its queue; no message when stopping, or to check again.

        While work waits, no best-effort task is taken: requeueing it again and again would use up
        its delivery limit. Another slot may get the work first, so the wait for it has a time-out.
        """
        if self._best_effort_tasks is None:
            return await first_delivery(self._bus, (self._work.queue,), stop, wait=patience)
        if await self._has_work():
            wait = min(self._heartbeat, patience)
            return await first_delivery(self._bus, (self._work.queue,), stop, wait=wait)
        queues = (self._work.queue, self._best_effort_tasks.queue)
        return await first_delivery(self._bus, queues, stop, wait=patience)

    async def _has_work(self) -> bool:
        """Whether work waits in the queue; False if the broker does not answer."""
        try:
            return await self._bus.depth(self._work.queue) > 0
        except Unavailable:
            return False

    async def _handle(
        self, delivery: Delivery, gpu: str, reply_queue: ReplyQueue, stop: asyncio.Event
    ) -> bool:
        """Returns whether it was work, granted to us."""
        stage = self._work.stage_of(delivery.message)
        if stage is None:
            await delivery.ack()
            return False
        order = Order(self._bus, self._store, reply_queue, delivery.message, stage)
        self._orders[order.claim] = order
        try:
            cause = tracing.context_of(delivery.envelope)
            with bound_contextvars(job=order.job, stage=stage), tracing.within(cause):
                return await self._claim_and_work(order, delivery, gpu, stop)
        finally:
            del self._orders[order.claim]

    async def _claim_and_work(
        self, order: Order, delivery: Delivery, gpu: str, stop: asyncio.Event
    ) -> bool:
        cause, job = tracing.context(), order.job
        with tracing.span(f"claim {order.stage}", parent=cause, everydream__job=job):
            if not await self._claim(order, gpu, stop):
                await delivery.release()
                return False
            await delivery.ack()
        if order.refused is not None:
            log.debug("claim_refused", job=order.job, stage=order.stage, reason=order.refused)
            return False
        # The stage may come hours after its cause, or again: it is linked to it, not a part.
        whole = tracing.context_of(order.grant) or cause
        with tracing.span(
            f"stage {order.stage}", parent=whole, kind="consumer", everydream__job=job
        ) as span:
            span.link(cause)
            await self._work_on(order, span)
            return True

    async def _run_best_effort_task(
        self, delivery: Delivery, reply_queue: ReplyQueue, stop: asyncio.Event
    ) -> None:
        """Ack when it is done, cancelled with its job or stuck; requeue on a stop or an error."""
        assert self._best_effort_tasks is not None  # noqa: S101 - it came from their queue
        best_effort_task = BestEffortTask(delivery.message)
        with tracing.within(tracing.context_of(delivery.envelope)):
            task = asyncio.create_task(
                _traced(self._best_effort_tasks.run(best_effort_task), best_effort_task)
            )
        self._under_way[best_effort_task] = task
        try:
            async with reply_queue.ends_of(best_effort_task.message.job):
                await self._watch_best_effort_task(best_effort_task, task, stop)
        finally:
            del self._under_way[best_effort_task]
            task.cancel()
            await asyncio.wait((task,), timeout=CLEAN_UP_SECONDS if stop.is_set() else None)
        finished = task.done() and not task.cancelled()
        error = task.exception() if finished else None
        if error is not None or (not finished and stop.is_set()):
            await delivery.release()
        else:
            await delivery.ack()
        if error is not None:
            raise error

    async def _watch_best_effort_task(
        self, best_effort_task: BestEffortTask, task: asyncio.Task[None], stop: asyncio.Event
    ) -> None:
        """Wait until a best-effort task is done, shows no sign of life, or has to stop."""
        stopping = asyncio.create_task(stop.wait())
        try:
            while not task.done() and not stop.is_set():
                await asyncio.wait(
                    (task, stopping), timeout=self._heartbeat, return_when=asyncio.FIRST_COMPLETED
                )
                silence = best_effort_task.silence
                if not task.done() and silence > PATIENCE_HEARTBEATS * self._heartbeat:
                    job = best_effort_task.message.job
                    log.warning("best_effort_task_stuck", job=job, silence=silence)
                    return
        finally:
            await cancelled(stopping)

    async def _claim(self, order: Order, gpu: str, stop: asyncio.Event) -> bool:
        """Claim until there is an answer; False: none within two heartbeats of a stop."""
        claims_left, asked_by = 2, claim_of(order.message)
        while claims_left:
            started = self._work.started(
                **order.stamp(), gpu=gpu, version=release(), asked_by=asked_by
            )
            await order.try_publish(started)
            if await until(order.answered, timeout=self._heartbeat):
                return True
            if stop.is_set():
                claims_left -= 1
        return False

    async def _work_on(self, order: Order, span: tracing.Span) -> None:
        log.info("working", job=order.job, stage=order.stage, attempt=order.grant.attempt)
        span.set(everydream__attempt=order.grant.attempt, everydream__worker=self._bus.source)
        begun = monotonic()
        order.keepalive()
        task = asyncio.create_task(self._perform(order))
        self._tasks[order.claim] = task
        sending_heartbeats = asyncio.create_task(self._send_heartbeats(order, task))
        stopping = asyncio.create_task(self._stop_work(order, task))
        try:
            await asyncio.wait((task, stopping), return_when=asyncio.FIRST_COMPLETED)
            outcome = self._outcome(order, task)
            span.set(everydream__outcome=type(outcome).__name__)
            if isinstance(outcome, StageFailed):
                span.fail(outcome.kind)
            if outcome is not None:
                seconds = min(FINAL_PUBLISH_HEARTBEATS * self._heartbeat, FINAL_PUBLISH_SECONDS)
                await publish_outcome(order, outcome, self._hand_over, seconds)
        finally:
            self._cancel(order)
            for side_task in (sending_heartbeats, stopping):
                await cancelled(side_task)
            if not self._hand_over.is_set():
                await ended(task)
        log.info(
            "claim_ended", job=order.job, stage=order.stage, attempt=order.grant.attempt,
            outcome=type(outcome).__name__, seconds=round(monotonic() - begun, 3),
        )  # fmt: skip

    async def _perform(self, order: Order) -> Result:
        with self._state.busy(order.stage):
            await order.load()
            return await self._work.perform(order)

    async def _send_heartbeats(self, order: Order, task: asyncio.Task[Result]) -> None:
        """Send heartbeats; cancel the work if it shows no sign of life for too long.

        Or if its progress cannot be published, since without heartbeats the claim is lost.
        """
        while True:
            await asyncio.sleep(self._heartbeat)
            if not task.done() and order.silence > PATIENCE_HEARTBEATS * self._heartbeat:
                self._cancel(order)
            heartbeat = self._work.progressed(**order.stamp(), progress=order.numbers)
            try:
                await order.try_publish(heartbeat, mandatory=False)
            except Unpublishable as error:
                order.unpublishable = error
                self._cancel(order)
                return

    async def _stop_work(self, order: Order, task: asyncio.Task[Result]) -> None:
        """Returns when the work has ended, or leaves a thread running that nothing can stop."""
        await self._hand_over.wait()
        order.stopping.set()
        if self._work.graceful:
            seconds = GRACE_HEARTBEATS * self._heartbeat
            with exit_put_off(seconds):
                await asyncio.wait((task,), timeout=seconds)
        self._cancel(order)
        await asyncio.wait((task,), timeout=CLEAN_UP_SECONDS)

    def _outcome(self, order: Order, task: asyncio.Task[Result]) -> StageFact | None:
        """Decide what an end of the work means; the only place that does."""
        stamp = order.stamp()
        if not task.done():
            log.warning("work_left_running", job=order.job, stage=order.stage)
            return self._outcome_of_cancellation(order)
        try:
            return task.result()
        except Refused as error:
            log.warning("work_refused", job=order.job, stage=order.stage, reason=str(error))
            return StageFailed(**stamp, kind="refused", reason=reason_of(error))
        except Interrupted:
            return self._work.interrupted(**stamp)
        except asyncio.CancelledError:
            return self._outcome_of_cancellation(order)
        except Exception as error:  # unknown errors are temporary: published, counted and retried
            if isinstance(error, Passing):  # such as a user's server that answers 500
                log.warning("work_failed", job=order.job, stage=order.stage, reason=str(error))
            else:
                log.exception("work_failed", job=order.job, stage=order.stage)
            return StageFailed(**stamp, kind="passing", reason=reason_of(error))

    def _outcome_of_cancellation(self, order: Order) -> StageFact | None:
        if order.refused is not None:
            log.info(
                "claim_lost_to_gateway", job=order.job, stage=order.stage, reason=order.refused
            )
            return None
        if order.unpublishable is not None:
            reason = reason_of(order.unpublishable)
            return StageFailed(**order.stamp(), kind="refused", reason=reason)
        if self._hand_over.is_set():
            return self._work.interrupted(**order.stamp())
        phase = order.numbers.get("phase", order.stage)
        reason = f"stalled in {phase}: no sign of life for {order.silence:.0f} s"
        return StageFailed(**order.stamp(), kind="passing", reason=reason)


async def _traced(work: Coroutine[Any, Any, None], best_effort_task: BestEffortTask) -> None:
    job, name = best_effort_task.message.job, type_of(best_effort_task.message)
    with (
        bound_contextvars(job=job),
        tracing.span(
            f"process {name}", parent=tracing.context(), kind="consumer", everydream__job=job
        ),
    ):
        await work
