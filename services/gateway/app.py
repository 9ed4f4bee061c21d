"""The gateway as a whole: its parts, and their life together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count

import structlog
from aiohttp import web

from services.gateway.api_documents import documents
from services.gateway.background.intake import Intake
from services.gateway.background.outbox_relay import Relay
from services.gateway.background.recorder import Recorder
from services.gateway.background.retention import Retention
from services.gateway.background.supervisor import Supervisor
from services.gateway.endpoints.docs import DocsRoutes
from services.gateway.endpoints.files import Files
from services.gateway.endpoints.health import Health
from services.gateway.endpoints.job_list import Listing
from services.gateway.endpoints.job_removal import Removal
from services.gateway.endpoints.jobs import Endpoint
from services.gateway.endpoints.server_sent_events import Events
from services.gateway.endpoints.stream import Streams
from services.gateway.endpoints.uploads import UploadRoutes, name_the_version
from services.gateway.endpoints.webhooks import Webhooks
from services.gateway.jobs.admission import Admission
from services.gateway.jobs.capacity import Workforce
from services.gateway.jobs.change_notifier import Changes
from services.gateway.jobs.presenter import View
from services.gateway.jobs.queue_position import Waiting
from services.gateway.jobs.references import Ours
from services.gateway.jobs.repository import Ledger
from services.gateway.jobs.uploads import Uploads
from services.gateway.ports import JobStore, KeepsFiles, Record
from services.gateway.web import application
from services.gateway.web.authentication import Keys, configured_keys
from services.gateway.web.authorization import Door
from shared.errors import SettingsError, Unavailable
from shared.ports import Bus, ObjectStore
from shared.retry import reconnect_delay
from shared.settings import Settings

LAST_ANSWERS_SECONDS = 5.0
"""How long requests under way may take when the gateway stops."""

log = structlog.get_logger()


class Gateway:
    """Answers HTTP, records facts, supervises workers, and relays what is due."""

    def __init__(
        self,
        settings: Settings,
        key: str,
        bus: Bus,
        store: ObjectStore,
        record: Record,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """The caller opens and closes bus, store and jobs; the schema is up to date.

        Args:
            settings: the deployment's.
            key: the deployment's secret key; signs links and seals secrets.
            bus: the gateway's own.
            store: where the results are.
            record: nobody else writes it but other gateways, and the command line its keys.
            clock: seconds since the epoch.
        """
        beat, jobs = settings.beat, record.jobs
        view, changes = View(store, clock), Changes()
        uploads = Uploads(record.uploads, store, settings.public_url, clock)
        self._settings = settings
        self._relay = Relay(bus, jobs, clock=clock, beat=beat)
        self._retention = Retention(
            jobs, store, uploads, clock=clock, beat=beat, keep_days=settings.keep_days
        )
        ledger = Ledger(
            bus,
            jobs,
            view,
            clock=clock,
            on_due=self._relay.wake,
            on_end=self._retention.job_ended,
            on_change=changes.tell,
        )
        ours = Ours(settings.public_url, key, ledger, uploads, clock)
        admission = Admission(key, ledger, ours, clock, settings.allowed_private_hosts)
        self._supervisor = Supervisor(bus, jobs, ledger, clock=clock, beat=beat)
        self._recorder = Recorder(bus, ledger, self._supervisor, clock=clock, beat=beat)
        self._intake = Intake(bus, admission)
        keys = Keys(configured_keys(settings), record.keys, clock)
        door, workforce = Door(ledger), Workforce(bus, jobs)
        endpoint = Endpoint(
            door=door,
            admission=admission,
            ledger=ledger,
            view=view,
            changes=changes,
            streams=Streams(jobs, ledger, view, changes, clock),
            workforce=workforce,
            waiting=Waiting(workforce, jobs, clock),
            clock=clock,
        )
        events = Events(door=door, ledger=ledger, jobs=jobs, view=view, changes=changes)
        listing, webhooks = Listing(jobs, clock), Webhooks(door, ledger, clock)
        removal = Removal(door, ledger, clock, self._retention.job_removed)
        uploading = UploadRoutes(uploads)
        files = [Files(store, key, clock)] if isinstance(store, KeepsFiles) else []
        openapi, asyncapi = documents().values()
        pages = DocsRoutes(openapi, asyncapi, settings.public_url)
        own = (endpoint, events, listing, webhooks, removal, uploading)
        health = Health(ledger, self._supervisor, store, clock)
        parts = (*own, health, pages, *files)
        self._app = application.application(parts, keys, door)
        self._app.on_response_prepare.append(name_the_version)
        self.listening = asyncio.Event()
        """Set once requests are answered."""
        self.port = settings.port
        """Where they are answered; 0 is replaced by the real one before ``listening`` is set."""

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set.

        Raises:
            SettingsError: the address cannot be bound.
        """
        parts = (self._relay, self._recorder, self._supervisor, self._intake, self._retention)
        async with self._answering(), asyncio.TaskGroup() as group:
            tasks = [group.create_task(part.run()) for part in parts]
            await stop.wait()
            for task in tasks:
                task.cancel()

    @asynccontextmanager
    async def _answering(self) -> AsyncIterator[None]:
        runner = web.AppRunner(
            self._app,
            access_log=None,
            shutdown_timeout=LAST_ANSWERS_SECONDS,
            keepalive_timeout=application.HEAD_SECONDS,
            auto_decompress=False,
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
        self.listening.set()
        log.info("listening", host=host, port=self.port)


async def migrate(jobs: JobStore) -> None:
    """Bring the schema up to date as soon as the database answers."""
    for attempt in count():
        try:
            await jobs.migrate()
        except Unavailable as error:
            log.warning("database_away", reason=str(error))
            await asyncio.sleep(reconnect_delay(attempt))
        else:
            return
