"""A real gateway over SQLite, a folder and the in-memory bus; the test plays the workers."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast
from unittest.mock import patch
from uuid import uuid4

import aiohttp

from services.gateway.app import Gateway
from services.gateway.database.connection import Database
from services.gateway.database.jobs import SqlJobStore
from services.gateway.database.stores import stores_in
from services.gateway.ports import JobStore
from services.gateway.stores import Stores
from services.gateway.web import application
from shared.adapters.folder import FolderStore
from shared.adapters.memory import MemoryBroker
from shared.adapters.rabbitmq import RabbitMQBus
from shared.dataset.manifest import Captions, Report
from shared.errors import Unavailable
from shared.messaging.messages import (
    AnyMessage,
    Artifact,
    CheckpointFinal,
    ClaimGranted,
    ClaimRefused,
    DatasetStaged,
    DrawnImage,
    DrawnSample,
    GenerationStarted,
    ImagesGenerated,
    Message,
    ModelStaged,
    PublicationStarted,
    SavedCheckpoint,
    Stage,
    StageFact,
    StagingStarted,
    Started,
    Submission,
    TrainingStarted,
)
from shared.messaging.topology import FETCHER, TRAINER, Queue
from shared.ports import Bus, ReplyQueue
from shared.service_process import closing
from shared.settings import Settings, from_environment
from shared.storage.snapshots import sample_key
from tests.support.migrated import new_sqlite

KEY = "k" * 48
API_KEY, OTHER_KEY = "a-key-of-anna", "a-key-of-ben"
HEARTBEAT = 0.25
DEADLINE = 60.0
LIMIT = application.ANSWER_SECONDS
PATIENCE = 30.0
"""In place of it: other tests may have the cores for longer than a client would wait."""
STARTED: dict[Stage, type[Started]] = {
    "staging": StagingStarted,
    "bucket_check": PublicationStarted,
    "training": TrainingStarted,
    "generation": GenerationStarted,
    "model_publication": PublicationStarted,
    "image_publication": PublicationStarted,
}
REQUEST: dict[str, Any] = {
    "input": {
        "train": {"data_url": "https://example.com/dataset.zip"},
        "inference": {"prompt": "a unique 123xyz concept name as a superhero", "seed": 7},
    }
}
REPORT = Report(images=4, captions=Captions(from_names=4)).plain()
TRAIN_ONLY: dict[str, Any] = {"input": {"train": REQUEST["input"]["train"]}}
S3_CONFIG = {
    "accessId": "the-access-id",
    "accessSecret": "the-access-secret",
    "bucketName": "bucket",
    "endpointUrl": "https://s3.example.com",
}
T = TypeVar("T")


class FaultyJobs:
    """A job store that a test can make unavailable, or let hang."""

    def __init__(self, jobs: SqlJobStore) -> None:
        self._jobs = jobs
        self.unavailable = False
        self.hangs = False
        self.refusals = 0
        self.rival: Callable[[], Awaitable[Any]] | None = None
        """Runs between the next read of a record and its write."""

    async def replace(self, *row: Any, **expected: Any) -> bool:
        await self._let_rival_write()
        return bool(await self.__getattr__("replace")(*row, **expected))

    async def replace_many(self, rows: Any) -> Any:
        await self._let_rival_write()
        return await self.__getattr__("replace_many")(rows)

    async def _let_rival_write(self) -> None:
        rival, self.rival = self.rival, None
        if rival:
            await rival()

    def __getattr__(self, name: str) -> Any:
        if self.unavailable:
            self.refusals += 1
            raise Unavailable("a test made the database unavailable")
        return _for_ever if self.hangs and name.startswith("get") else getattr(self._jobs, name)


async def _for_ever(*_: Any, **__: Any) -> None:
    await asyncio.Event().wait()


@dataclass
class Clock:
    """The gateway's clock; a test can advance it."""

    ahead: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@dataclass
class Answer:
    """The gateway's answer to a request."""

    status: int
    headers: dict[str, str]
    body: Any


@dataclass
class Received:
    """Everything that arrived on a reply queue."""

    reply_queue: ReplyQueue
    messages: list[AnyMessage] = field(default_factory=list)

    async def collect(self) -> None:
        async for message in self.reply_queue.messages():
            self.messages.append(message)


@dataclass
class World:
    """One gateway with everything around it."""

    settings: Settings
    broker: MemoryBroker
    bus: Bus
    """The workers'."""
    jobs: FaultyJobs
    stores: Stores
    store: FolderStore
    clock: Clock
    gateway: Gateway
    session: aiohttp.ClientSession
    received: Received
    gateway_stops: Callable[[], Coroutine[Any, Any, None]]

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.gateway.port}{path}"

    async def ask(self, method: str, path: str, *, key: str = API_KEY, **more: Any) -> Answer:
        headers = {"Authorization": f"Bearer {key}", **more.pop("headers", {})}
        async with self.session.request(method, self.url(path), headers=headers, **more) as answer:
            assert answer.content_type == "application/json", await answer.text()
            return Answer(answer.status, dict(answer.headers), await answer.json())

    async def run(self, request: dict[str, Any] = REQUEST) -> str:
        answer = await self.ask("POST", "/v1/everydream-v1/run", json=request)
        assert answer.status == 200, answer
        return str(answer.body["id"])

    async def status(self, job: str) -> dict[str, Any]:
        answer = await self.ask("GET", f"/v1/everydream-v1/status/{job}")
        assert answer.status == 200, answer
        body: dict[str, Any] = answer.body
        return body

    async def status_becomes(self, job: str, status: str) -> dict[str, Any]:
        return await eventually(lambda: self._status_if(job, status))

    async def _status_if(self, job: str, status: str) -> dict[str, Any] | None:
        now = await self.status(job)
        return now if now["status"] == status else None

    async def get(self, queue: Queue) -> AnyMessage:
        """The next message of a queue, acked."""
        async with asyncio.timeout(DEADLINE):
            delivery = await self.bus.get(queue)
        await delivery.ack()
        return delivery.message

    async def publish(self, fact: Message) -> None:
        """Publish a fact; like a worker, retry until the broker has taken it."""
        while True:
            try:
                return await self.bus.publish(fact, reply_to=self.received.reply_queue.address)
            except Unavailable:
                await asyncio.sleep(0.1)

    async def claim(self, job: str, stage: Stage, *, gpu: str = "") -> Claimed:
        """Claim a stage, repeated every heartbeat until it is granted."""
        claim = str(uuid4())
        started = STARTED[stage](job=job, stage=stage, claim=claim, worker="w", gpu=gpu)
        deadline = time.monotonic() + DEADLINE
        while not self._answers(claim):
            assert time.monotonic() < deadline, "the gateway never answered"
            await self.publish(started)
            await self._answer_or_heartbeat(claim)
        answer = self._answers(claim)[-1]
        assert isinstance(answer, ClaimGranted), answer
        return Claimed(self, job, stage, claim, answer)

    async def _answer_or_heartbeat(self, claim: str) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self.settings.heartbeat):
                await self.answer_to(claim)

    async def answer_to(self, claim: str) -> ClaimGranted | ClaimRefused:
        return await eventually(lambda: found(self._answers(claim)))

    async def refusal_of(self, claim: str) -> ClaimRefused:
        return await eventually(lambda: found(self._refusals(claim)))

    async def receive(self, kind: type[T]) -> T:
        """Wait for a message of a kind on the workers' reply queue; the last one."""
        return await eventually(
            lambda: found([each for each in self.received.messages if isinstance(each, kind)])
        )

    def _refusals(self, claim: str) -> list[ClaimRefused]:
        return [each for each in self._answers(claim) if isinstance(each, ClaimRefused)]

    def _answers(self, claim: str) -> list[ClaimGranted | ClaimRefused]:
        return [
            message
            for message in self.received.messages
            if isinstance(message, ClaimGranted | ClaimRefused) and message.claim == claim
        ]


@dataclass
class Claimed:
    """A worker with a granted claim."""

    world: World
    job: str
    stage: Stage
    id: str
    grant: ClaimGranted

    async def publish_started(self) -> None:
        started = STARTED[self.stage]
        await self.world.publish(started(job=self.job, stage=self.stage, claim=self.id, worker="w"))

    async def publish(self, kind: type[StageFact], /, **fields: Any) -> None:
        stamp: dict[str, Any] = {
            "job": self.job,
            "stage": self.stage,
            "claim": self.id,
            "worker": "w",
        }
        await self.world.publish(kind(**{**stamp, "attempt": self.grant.attempt, **fields}))

    async def stage_dataset(
        self, submitted: AnyMessage, model: str = "cache/base", model_bytes: int = 0
    ) -> None:
        assert isinstance(submitted, Submission)
        assert submitted.train
        prefix = f"jobs/{self.job}/staging/{self.grant.attempt}"
        await self.world.store.put(f"{prefix}/dataset/manifest.json", b"{}")
        await self.publish(
            DatasetStaged,
            train=submitted.train,
            inference=submitted.inference,
            dataset=f"{prefix}/dataset/",
            base_model=model,
            report=REPORT,
            model_bytes=model_bytes,
        )

    async def stage_model(self, submitted: AnyMessage) -> None:
        assert isinstance(submitted, Submission)
        assert submitted.model
        await self.publish(
            ModelStaged,
            inference=submitted.inference,
            model=submitted.model.source.removeprefix("store:"),
            name=submitted.model.name,
        )

    async def finish_training(self, *, lora_base: str = "") -> None:
        prefix = f"jobs/{self.job}/training/{self.grant.attempt}"
        checkpoint = await self.put(f"{prefix}/last-job.safetensors", "checkpoint")
        early = await self.put(f"{prefix}/job-ep01.safetensors", "checkpoint")
        await self.publish(
            CheckpointFinal,
            model=f"{prefix}/model",
            lora_base=lora_base,
            checkpoint=checkpoint,
            checkpoints=(
                SavedCheckpoint(artifact=early, step=4, epoch=1, validation_loss=0.25, best=True),
            ),
            records=(await self.put(f"{prefix}/metrics.jsonl", "metrics"),),
            summary={"steps": 8, "epochs": 2, "loss": 0.5},
        )

    async def finish_generation(self) -> None:
        prefix = f"jobs/{self.job}/generation/{self.grant.attempt}"
        drawn = DrawnImage(
            artifact=await self.put(f"{prefix}/000.png", "image"),
            thumbnail=await self.put_beside(f"{prefix}/000.png"),
            prompt="a unique 123xyz concept name as a superhero",
            width=512,
            height=512,
            num_inference_steps=50,
            guidance_scale=7.5,
            scheduler="K-LMS",
            seed=7,
        )
        await self.publish(ImagesGenerated, images=(drawn,), samples=(await self.sample(8, 0),))

    async def sample(self, step: int, index: int) -> DrawnSample:
        key = sample_key(self.job, step=step, index=index)
        return DrawnSample(
            artifact=await self.put(key, "sample"), thumbnail=await self.put_beside(key),
            step=step, epoch=step // 4, index=index, prompt=f"prompt {index}", seed=5 + index,
        )  # fmt: skip

    async def put_beside(self, key: str) -> str:
        """An image's thumbnail; its key."""
        small = key.replace(".png", ".webp")
        await self.world.store.put(small, small.encode())
        return small

    async def put(self, key: str, kind: Any) -> Artifact:
        data = key.encode()
        await self.world.store.put(key, data)
        name = key.rpartition("/")[2]
        return Artifact(name=name, kind=kind, key=key, bytes=len(data), sha256="0" * 64)


async def training(
    here: World, request: dict[str, Any] = TRAIN_ONLY, **more: Any
) -> tuple[str, Claimed]:
    """Start a job and claim its training; ``more`` goes into its request."""
    job = await here.run({**request, **more})
    submitted = await here.get(FETCHER)
    await (await here.claim(job, "staging")).stage_dataset(submitted)
    assert isinstance(await here.get(TRAINER), DatasetStaged)
    return job, await here.claim(job, "training", gpu="card")


async def trained(here: World, **more: Any) -> str:
    """A job that has completed."""
    job, trainer = await training(here, **more)
    await trainer.finish_training()
    await here.status_becomes(job, "COMPLETED")
    return job


@asynccontextmanager
async def world(
    home: Path,
    *,
    amqp_url: str | None = None,
    key: str = KEY,
    clock: Clock | None = None,
    **changes: Any,
) -> AsyncIterator[World]:
    """A gateway that is up; ``changes`` go into its settings. Without a URL, an in-memory bus."""
    settings, clock = replace(settings_for(home), **changes), clock or Clock()
    broker = MemoryBroker()
    file = home / "everydream.db"
    if "database_url" not in changes and not file.exists():
        new_sqlite(file)
    async with AsyncExitStack() as stack:
        stack.enter_context(answers_within(PATIENCE))
        opening = Database.open(settings.database_url, settings.database_connections)
        database = await stack.enter_async_context(closing(opening))
        await database.migrate()
        jobs = FaultyJobs(SqlJobStore(database))
        stores = stores_in(database)._replace(jobs=cast("JobStore", jobs))
        store = FolderStore(home / "store", public_url=settings.public_url, key=key, clock=clock)

        async def open_bus(source: str) -> Bus:
            if amqp_url is None:
                return await stack.enter_async_context(closing(broker.bus(source)))
            opened = await RabbitMQBus.open(amqp_url, source=source, heartbeat=settings.heartbeat)
            return await stack.enter_async_context(closing(opened))

        bus, workers = await open_bus("gateway/test"), await open_bus("workers/test")
        received = Received(await stack.enter_async_context(workers.reply_queue(("job.*",))))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        gateway = Gateway(settings, key, bus, store, stores, clock=clock)
        async with running(gateway) as stop, collecting(received):
            yield World(
                settings,
                broker,
                workers,
                jobs,
                stores,
                store,
                clock,
                gateway,
                session,
                received,
                stop,
            )


def answers_within(seconds: float) -> AbstractContextManager[object]:
    """Gateways in this process answer within so many seconds, or say that they cannot."""
    return patch.object(application, "ANSWER_SECONDS", seconds)


@asynccontextmanager
async def running(gateway: Gateway) -> AsyncIterator[Callable[[], Coroutine[Any, Any, None]]]:
    """Run the gateway; stop it gracefully at the end, or earlier by calling what is yielded."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(gateway.run(stop))

        async def end() -> None:
            stop.set()
            async with asyncio.timeout(DEADLINE):
                await serving

        async with asyncio.timeout(DEADLINE):
            await gateway.listening.wait()
        try:
            yield end
        finally:
            await end()


@asynccontextmanager
async def collecting(received: Received) -> AsyncIterator[None]:
    task = asyncio.create_task(received.collect())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait((task,))


def settings_for(home: Path) -> Settings:
    return replace(
        from_environment({"EVERYDREAM_HOME": str(home)}),
        port=0,
        public_url="http://gateway.example",
        api_keys=(API_KEY, OTHER_KEY),
        heartbeat=HEARTBEAT,
    )


async def eventually(look: Callable[[], Awaitable[T | None]], seconds: float = DEADLINE) -> T:
    """Poll until there is a value; False is none."""
    deadline = time.monotonic() + seconds
    while (seen := await look()) is None or seen is False:
        assert time.monotonic() < deadline, "timed out"
        await asyncio.sleep(0.02)
    return seen


async def found(things: Sequence[T]) -> T | None:
    """The last one, if any."""
    return things[-1] if things else None


def without_signatures(value: Any) -> Any:
    """A JSON value without what each answer signs anew, with the second in it: its links."""
    return json.loads(re.sub(r"expires=\d+&signature=\w+", "", json.dumps(value)))
