"""Compose the gateway, and run it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from functools import partial

import structlog
from aiohttp import web

from services.gateway.api_documents import documents
from services.gateway.background.dead_letters import DeadLetterKeeper
from services.gateway.background.intake import Intake
from services.gateway.background.model_eviction import ModelEviction
from services.gateway.background.outbox_relay import OutboxRelay
from services.gateway.background.progress_writer import ProgressWriter
from services.gateway.background.recorder import Recorder
from services.gateway.background.releaser import Releaser
from services.gateway.background.retention import Retention
from services.gateway.background.state_metrics import StateMetrics
from services.gateway.background.supervisor import Supervisor
from services.gateway.endpoints.admin.dead_letters import AdminDeadLetterRoutes
from services.gateway.endpoints.admin.disk import AdminDiskRoutes
from services.gateway.endpoints.admin.webhooks import AdminWebhookRoutes
from services.gateway.endpoints.admin.work import AdminWorkRoutes
from services.gateway.endpoints.all_events import AllEventRoutes
from services.gateway.endpoints.browser.console import ASSET_PATH, ConsoleRoutes
from services.gateway.endpoints.browser.docs import DocsRoutes
from services.gateway.endpoints.browser.session import SessionRoutes
from services.gateway.endpoints.budgets import BudgetRoutes
from services.gateway.endpoints.datasets import DatasetRoutes
from services.gateway.endpoints.files import FileRoutes
from services.gateway.endpoints.health import HealthRoutes
from services.gateway.endpoints.job_list import JobListRoutes
from services.gateway.endpoints.job_removal import JobRemovalRoutes
from services.gateway.endpoints.jobs import JobRoutes
from services.gateway.endpoints.metrics import MetricsRoutes
from services.gateway.endpoints.routes import Endpoints
from services.gateway.endpoints.server_sent_events import EventRoutes
from services.gateway.endpoints.stream import OutputStreams
from services.gateway.endpoints.uploads import UploadRoutes, add_tus_headers
from services.gateway.endpoints.webhooks import WebhookRoutes
from services.gateway.jobs.admission import Admission
from services.gateway.jobs.budgets import Budgets
from services.gateway.jobs.outputs import forget_deleted
from services.gateway.jobs.presenter import Presenter
from services.gateway.jobs.references import References
from services.gateway.jobs.repository import JobRepository
from services.gateway.jobs.uploads import Uploads
from services.gateway.ports import JobStore
from services.gateway.queue.capacity import Capacity
from services.gateway.queue.position import QueuePositions
from services.gateway.stores import Stores
from services.gateway.turns.places import Places
from services.gateway.turns.workers import Workers
from services.gateway.web import application
from services.gateway.web.authentication import Keys, configured_keys, keep_address
from services.gateway.web.authorization import Authorizer
from services.gateway.web.bodies import Bodies
from services.gateway.web.large_answers import LargeAnswers
from services.gateway.web.room import FairLock
from services.gateway.web.sessions import Sessions
from shared.errors import SettingsError, Unavailable
from shared.monitoring.health import Check, Health, probed
from shared.monitoring.server import refreshed
from shared.ports import Bus, LocalStore, ObjectStore
from shared.retry import Reconnects
from shared.service_process import allow_many_connections, return_large_blocks
from shared.settings import Settings
from shared.storage.ready import StoreCheck

SHUTDOWN_SECONDS = 5.0
"""How long current requests may take when the gateway stops."""
UNREAD_BYTES = 1 << 14
"""What of a body is taken from the network before somebody reads it: hundreds may wait unread."""

log = structlog.get_logger()


class Gateway:
    """Answers HTTP, records facts, supervises workers, and publishes the outbox."""

    def __init__(
        self,
        settings: Settings,
        key: str,
        bus: Bus,
        store: ObjectStore,
        stores: Stores,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """The caller opens and closes bus and stores, and has upgraded the schema.

        Args:
            settings: of the deployment.
            key: the deployment's secret key, which signs links and encrypts secrets.
            bus: the gateway's own.
            store: for uploads and results.
            stores: jobs and uploads are written by gateways only, keys by the command line.
            clock: seconds since the epoch.
        """
        heartbeat, jobs = settings.heartbeat, stores.jobs
        presenter = Presenter(store, clock)
        budgets = Budgets(settings, jobs, stores.uploads)
        uploads = Uploads(stores.uploads, store, budgets, settings.public_url, clock)
        self._settings = settings
        self._retention = Retention(
            jobs,
            store,
            uploads,
            ModelEviction(jobs, store, clock=clock),
            stores.dead_letters,
            clock=clock,
            heartbeat=heartbeat,
            keep_days=settings.keep_days,
            on_deleted=self._forget_deleted,
        )
        self._repository = repository = JobRepository(
            bus,
            store,
            jobs,
            presenter,
            clock=clock,
            on_due=self._wake_relay,
            on_turn=self._wake_releaser,
            on_end=self._retention.job_ended,
            on_replaced=self._retention.object_replaced,
            on_uncertain=self._retention.job_uncertain,
        )
        self._relay = OutboxRelay(
            bus,
            jobs,
            clock=clock,
            heartbeat=heartbeat,
            on_unpublishable=repository.give_up_message,
        )
        workers = Workers(bus, jobs)
        places = Places(stores.turns, workers)
        self._releaser = Releaser(repository, places, clock=clock)
        references = References(
            public_url=settings.public_url,
            key=key,
            store=store,
            repository=repository,
            presenter=presenter,
            uploads=uploads,
            clock=clock,
        )
        admission = Admission(
            key,
            repository,
            references,
            budgets,
            places,
            clock=clock,
            allowed=settings.allowed_private_hosts,
        )
        self._supervisor = Supervisor(
            bus,
            jobs,
            repository,
            clock=clock,
            heartbeat=heartbeat,
            on_judged=self._releaser.wake,
        )
        self._progress = ProgressWriter(repository)
        self._recorder = Recorder(
            bus,
            store,
            repository,
            supervisor=self._supervisor,
            progress=self._progress,
            places=places,
            budgets=budgets,
            clock=clock,
            heartbeat=heartbeat,
        )
        self._health = Health(
            {
                "database": database_check(repository),
                "broker": self._supervisor.broker_check,
                "store": StoreCheck(store).problem,
            },
            essential=("database",),
            clock=clock,
        )
        self._state_metrics = StateMetrics(stores.load, workers, self._supervisor, clock)
        self._dead_letters = DeadLetterKeeper(bus, stores.dead_letters)
        self._intake = Intake(bus, admission, repository)
        keys = Keys(configured_keys(settings), stores.keys, clock)
        is_secure = settings.public_url.startswith("https:")
        sessions = Sessions(key, is_secure=is_secure, clock=clock)
        authorizer = Authorizer(repository, budgets)
        openapi, asyncapi = documents().values()
        one_large = FairLock()
        bodies = Bodies(budgets, settings.body_memory, one_large)
        large_answers = LargeAnswers(one_large)
        queue_positions = QueuePositions(workers, jobs, stores.turns, clock)
        endpoints = Endpoints(
            jobs=JobRoutes(
                authorizer=authorizer,
                admission=admission,
                repository=repository,
                presenter=presenter,
                streams=OutputStreams(jobs, presenter, clock),
                bodies=bodies,
                large_answers=large_answers,
                capacity=Capacity(workers, jobs),
                queue_positions=queue_positions,
                clock=clock,
            ),
            events=EventRoutes(
                authorizer=authorizer,
                keys=keys,
                repository=repository,
                jobs=jobs,
                presenter=presenter,
                large_answers=large_answers,
            ),
            all_events=AllEventRoutes(
                keys=keys,
                repository=repository,
                events=stores.events,
                presenter=presenter,
                large_answers=large_answers,
                clock=clock,
            ),
            job_list=JobListRoutes(jobs, presenter, queue_positions),
            metrics=MetricsRoutes(authorizer, store, large_answers),
            datasets=DatasetRoutes(
                authorizer=authorizer,
                repository=repository,
                presenter=presenter,
                budgets=budgets,
                store=store,
                bodies=bodies,
                large_answers=large_answers,
                clock=clock,
            ),
            webhooks=WebhookRoutes(authorizer, repository, clock),
            job_removal=JobRemovalRoutes(
                authorizer=authorizer,
                repository=repository,
                jobs=jobs,
                presenter=presenter,
                clock=clock,
                on_removal=self._retention.job_removed,
            ),
            uploads=UploadRoutes(uploads, stores.jobs),
            budgets=BudgetRoutes(budgets),
            files=FileRoutes(store, key, clock) if isinstance(store, LocalStore) else None,
            admin_work=AdminWorkRoutes(bus, stores.system, self._supervisor, clock),
            admin_dead_letters=AdminDeadLetterRoutes(stores.dead_letters, clock, self._wake_relay),
            admin_webhooks=AdminWebhookRoutes(stores.system, repository, clock),
            admin_disk=AdminDiskRoutes(stores.system, store),
            health=HealthRoutes(self._health),
            console=ConsoleRoutes(store),
            session=SessionRoutes(sessions),
            docs=DocsRoutes(openapi, asyncapi, settings.public_url),
        )
        self._app = application.application(
            filter(None, endpoints), keys, sessions, authorizer, settings.cors_origins,
            access_log=settings.access_log,
        )  # fmt: skip
        self._app.router.add_get(ASSET_PATH, endpoints.console.asset)
        self._app.on_response_prepare.append(add_tus_headers)
        self.listening = asyncio.Event()
        """Set when requests are answered."""
        self.port = settings.port
        """The port; 0 is replaced by the real one before ``listening`` is set."""

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set.

        Raises:
            SettingsError: the address cannot be bound.
        """
        allow_many_connections()
        return_large_blocks()
        background = (
            *(self._relay, self._recorder, self._progress, self._supervisor),
            *(self._releaser, self._intake, self._retention, self._dead_letters),
        )
        async with (
            probed(self._health),
            refreshed(self._state_metrics.refresh),
            self._serving(),
            asyncio.TaskGroup() as group,
        ):
            tasks = [group.create_task(each.run()) for each in background]
            await stop.wait()
            for task in tasks:
                task.cancel()

    def _wake_relay(self) -> None:
        self._relay.wake()

    def _wake_releaser(self) -> None:
        self._releaser.wake()

    async def _forget_deleted(self, job: str, prefixes: Collection[str]) -> None:
        await self._repository.change(job, partial(forget_deleted, prefixes=prefixes))

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        runner = web.AppRunner(
            self._app,
            access_log=None,
            shutdown_timeout=SHUTDOWN_SECONDS,
            keepalive_timeout=application.HEAD_SECONDS,
            auto_decompress=False,
            read_bufsize=UNREAD_BYTES,
        )
        await runner.setup()
        try:
            await self._bind(runner)
            yield
        finally:
            await runner.cleanup()

    async def _bind(self, runner: web.AppRunner) -> None:
        host, port = self._settings.host, self._settings.port
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise SettingsError(
                f"cannot listen at EVERYDREAM_HOST={host} EVERYDREAM_PORT={port}: {error}"
            ) from error
        self.port = runner.addresses[0][1]
        keep_address(self._settings)
        self.listening.set()
        log.info("listening", host=host, port=self.port)


def database_check(repository: JobRepository) -> Check:
    """Asks the database for a job that there is not."""

    async def check() -> None:
        await repository.get("")

    return check


async def migrate(jobs: JobStore) -> None:
    """Upgrade the schema as soon as the database answers."""
    async for _ in Reconnects():
        try:
            await jobs.migrate()
        except Unavailable as error:
            log.warning("database_away", reason=str(error))
        else:
            return
