"""Runs the notifier: ``python -m services.notifier``."""

from __future__ import annotations

import asyncio

from services.notifier.webhook import deliver_all
from services.notifier.work import NotifierWork
from shared import keys
from shared.adapters.s3 import S3Store
from shared.adapters.worker import run_worker
from shared.network.outbound import Guard, guarded_session
from shared.ports import Bus, ObjectStore
from shared.request import S3Config
from shared.service_process import or_stopped, run
from shared.settings import Settings
from shared.worker.runtime import Worker


async def serve(
    settings: Settings, key: str, bus: Bus, store: ObjectStore, stop: asyncio.Event
) -> None:
    """Publish artifacts and deliver webhooks until ``stop`` is set."""
    allowed = settings.allowed_private_hosts
    guard = Guard(allowed)

    def open_bucket(s3: S3Config) -> ObjectStore:
        return S3Store.for_bucket(
            s3.bucketName, endpoint_url=s3.endpointUrl, access_key=s3.accessId,
            secret_key=s3.accessSecret, prefix=s3.objectPath, guard=guard,
        )  # fmt: skip

    work = NotifierWork(
        store, open_bucket, key=key, scratch=settings.scratch, heartbeat=settings.heartbeat,
        concurrency=settings.concurrency or 4,
    )  # fmt: skip
    secret = keys.webhook_secret(settings.webhook_secret, key)
    worker = Worker(bus, store, work, heartbeat=settings.heartbeat, drain=settings.drain_seconds)
    async with guarded_session(allowed) as session:
        webhooks = deliver_all(bus, store, session, secret, allowed)
        await asyncio.gather(
            worker.run(stop),
            or_stopped(webhooks, stop),
        )


async def main() -> None:
    await run_worker("notifier", serve)


if __name__ == "__main__":
    run(main())
