"""The story that the examples of the API documents tell, of a real gateway and played workers.

``python -m tests.support.examples_story`` writes the answers into the file of the examples.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec
import pytest
from msgspec.structs import replace

from services.fetcher.parsing.datasets.archive import IMAGES
from services.gateway.api_docs.examples import FILE, Answer, Example, examples, text_of
from services.gateway.api_docs.schemas import Schema
from services.gateway.api_documents import documents
from services.gateway.endpoints import uploads
from services.gateway.endpoints.admin import disk
from services.gateway.key_ports import StoredKey
from services.gateway.system_ports import StoredBytes, StoredDeadLetter
from services.gateway.upload_ports import StoredUpload
from services.gateway.web import authorization
from services.gateway.web.authentication import digest_of
from shared.dataset.manifest import Captions, Estimate, Report, Skipped, TrainedPicture
from shared.dataset.pages import page_name
from shared.disk import Room
from shared.messaging.messages import (
    Artifact,
    CheckpointFinal,
    DatasetStaged,
    DrawnImage,
    DrawnSample,
    ImagesGenerated,
    SamplesGenerated,
    SavedCheckpoint,
    StageFailed,
    StagingDue,
    TrainingProgressed,
    WebhookDelivered,
    WebhookDue,
    WebhookFailed,
    encode,
    type_of,
)
from shared.messaging.topology import FETCHER, NOTIFIER_WEBHOOKS, TRAINER
from shared.ports import DeadLetter
from shared.storage.metrics import MetricsPiece, piece_key
from shared.storage.snapshots import sample_key
from shared.thumbnail import SUFFIX
from tests.support.gateway_world import API_KEY, Claimed, Clock, World, eventually, world

OPENAPI = documents()["openapi.json"]
ROOT = "/v1/everydream-v1"
URL = "https://everydream.example.com"
START = datetime(2026, 3, 2, 10, tzinfo=UTC).timestamp()
READER = "a-key-that-may-only-read"
GPU = "NVIDIA H100 80GB HBM3"
PROMPT = "a unique 123xyz concept name as a superhero"
UPLOADS = ("6a0f5d1e-2c8b-4b7e-9f43-0d1c5e8a7b21", "b3d94c70-51fe-4d0a-8a16-e72f90c4d385")
"""Ids of the uploads in the examples; the gateway makes others."""
DEAD_LETTERS = ("0d6e7ad1-5c2b-5f0a-8d0e-3a7c2f1e9b64", "b7f0a2c4-91d3-5e68-a1f5-64c0d98e2b17")
NO_IMAGE = f"neither an image ({IMAGES}) nor a caption file"
STEPS = 100
"""Each is an epoch."""
REPORT = Report(
    images=2,
    captions=Captions(from_names=1, from_files=1),
    skipped=[Skipped(file="photos/notes.docx", reason=NO_IMAGE)],
    skipped_count=1,
    undersized=["photos/a photo of 123xyz in the sun.jpg"],
    undersized_count=1,
    buckets={"512x512": 2},
    steps_per_epoch=1,
    steps=STEPS,
    megapixels=52.429,
    pictures=[
        TrainedPicture(
            file="photos/a photo of 123xyz in the sun.jpg", caption="a photo of 123xyz in the sun",
            source="name", bucket="512x512", remarks=["480x480: enlarged, and less sharp for it"],
        ),
        TrainedPicture(
            file="photos/2.jpg", caption="a photo of 123xyz, indoors", source="text",
            files=["photos/2.txt"], bucket="512x512",
        ),
    ],
    estimate=Estimate(
        minutes=0.4, rate="measured: 2 megapixels per second on an NVIDIA H100 80GB HBM3",
        bytes=9_300_000_000, checkpoints=0, checkpoint_bytes=0, model_bytes=4_200_000_000,
        resume_point_bytes=5_100_000_000,
    ),
    warnings=[f"not used, 1 file: photos/notes.docx ({NO_IMAGE})"],
    warnings_count=1,
)  # fmt: skip
METRICS = '{"step": 100, "epoch": 100, "loss": 0.118}\n'
POINTS = [
    {"time": START + each, "step": step, "epoch": step, "loss": loss, "lr": 1.5e-06,
     "images_per_second": 8.0}
    for each, step, loss in ((62.5, 10, 0.131), (65.0, 20, 0.125))
]  # fmt: skip
HEARTBEAT = 10.0
"""Seconds: no claim is lost while the story goes on."""
T = TypeVar("T")


class FixedClock(Clock):
    """Moves only when the story does, so that every time and signature is the same."""

    def __call__(self) -> float:
        return START + self.ahead


# --- Sending an example -----------------------------------------------------------------------


class Operation:
    """What the document says of an operation."""

    def __init__(self, name: str) -> None:
        ((self.method, path, item, self.described),) = (
            (method, path, item, operation)
            for path, item in OPENAPI["paths"].items()
            for method, operation in item.items()
            if method not in {"parameters", "servers"} and operation["operationId"] == name
        )
        servers = item.get("servers", OPENAPI["servers"])
        self._path = f"{servers[0]['url'].rstrip('/')}{path}"

    def path(self, values: Mapping[str, str]) -> str:
        return self._path.format(**{name: quote(value) for name, value in values.items()})

    def headers(self, *, key: str | None, has_body: bool) -> dict[str, str]:
        """What a client sends because of the document."""
        headers = {"Authorization": f"Bearer {key}"} if key and self.described["security"] else {}
        if has_body:
            (headers["Content-Type"],) = self.described["requestBody"]["content"]
        return headers

    def answer_headers(self, status: int) -> list[str]:
        """The headers that are described."""
        response: Schema = self.described["responses"][str(status)]
        if "$ref" in response:
            response = OPENAPI["components"]["responses"][str(status)]
        return list(response.get("headers", ()))


class Teller:
    """Sends the examples' requests, and keeps the answers."""

    def __init__(self, here: World) -> None:
        self.here = here
        self.told: dict[str, Example] = {}
        self._ids: dict[str, str] = {}
        """Of uploads: those of the gateway by those in the examples."""

    async def send(
        self, name: str, *, key: str | None = API_KEY, data: Callable[[bytes], Any] = bytes
    ) -> Any:
        """Send an example's request as it is, and keep the answer.

        Args:
            name: the example's.
            key: the API key; None: none is sent.
            data: how the body is sent.

        Returns:
            The answer's body, with the examples' ids.
        """
        (example,) = (each for each in examples() if each.name == name)
        operation, request = Operation(example.operation), replaced(example.request, self._ids)
        body = None if request.body is None else data(in_bytes(request.body))
        given = {header: str(value) for header, value in request.headers.items()}
        headers = operation.headers(key=key, has_body=body is not None) | given
        async with self.here.session.request(
            operation.method,
            self.here.url(operation.path(request.path)),
            params=pairs(request.query),
            headers=headers,
            data=body,
        ) as response:
            text = await body_of(response, example.operation)
            assert response.status == example.answer.status, (name, response.status, text)
            described = operation.answer_headers(response.status)
            answer = Answer(
                status=response.status,
                headers={header: response.headers[header] for header in described},
                body=json.loads(text) if "json" in response.content_type else text or None,
            )
        if example.operation == "post_uploads" and "id" in answer.body:
            self._ids[UPLOADS[len(self._ids)]] = answer.body["id"]
        answer = replaced(answer, {ours: shown for shown, ours in self._ids.items()})
        if example.excerpt:
            assert holds(answer.body, example.answer.body), (name, "is no excerpt")
            answer = replace(answer, body=example.answer.body)
        self.told[name] = replace(example, answer=answer)
        return answer.body

    async def submit(self, key: str) -> str:
        """Submit a job that is no example, by its idempotency key."""
        body = {"input": {"train": {"data_url": "https://example.com/photos.zip"}}}
        headers = {"Idempotency-Key": key}
        answer = await self.here.ask("POST", f"{ROOT}/run", json=body, headers=headers)
        assert answer.status == 200, answer
        return str(answer.body["id"])

    def later(self, seconds: float) -> None:
        self.here.clock.ahead += seconds


async def body_of(response: aiohttp.ClientResponse, operation: str) -> str:
    """The answer; of the stream of all jobs, which has no end, up to the first status."""
    if operation != "get_events":
        return await response.text()
    text = ""
    while "event: status" not in text or not text.endswith("\n\n"):
        text += (await response.content.readline()).decode()
    return text


def in_bytes(body: Any) -> bytes:
    return (body if isinstance(body, str) else json.dumps(body)).encode()


def replaced(value: T, texts: Mapping[str, str]) -> T:
    """The value with some texts in it replaced by others."""
    text = msgspec.json.encode(value).decode()
    for old, new in texts.items():
        text = text.replace(old, new)
    return msgspec.json.decode(text, type=type(value))


def pairs(query: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (name, str(each))
        for name, value in query.items()
        for each in (value if isinstance(value, list) else [value])
    ]


def holds(whole: Any, excerpt: Any) -> bool:
    """Whether an excerpt is a part of a JSON object, or of a text."""
    if isinstance(excerpt, dict):
        return all(key in whole and holds(whole[key], each) for key, each in excerpt.items())
    return excerpt in whole if isinstance(excerpt, str) else bool(excerpt == whole)


# --- The workers ------------------------------------------------------------------------------


async def stage(fetcher: Claimed, submitted: StagingDue) -> None:
    assert submitted.train
    prefix, pages = f"jobs/{submitted.job}/staging/1", f"jobs/{submitted.job}/pictures/1"
    await fetcher.world.store.put(f"{prefix}/dataset/manifest.json", b"{}")
    page = msgspec.json.encode(REPORT.pictures)
    await fetcher.world.store.put(f"{pages}/{page_name(1)}", page)
    await fetcher.publish(
        DatasetStaged,
        train=submitted.train,
        inference=submitted.inference,
        dataset=f"{prefix}/dataset",
        base_model="cache/base",
        report=REPORT.plain(),
        pictures=pages,
        dataset_bytes=1_204_880,
        pictures_bytes=9_312,
    )


async def next_staging(here: World) -> tuple[Claimed, StagingDue]:
    submitted = await here.get(FETCHER)
    assert isinstance(submitted, StagingDue)
    return await here.claim(submitted.job, "staging"), submitted


async def file(here: World, key: str, kind: Any, text: str = "") -> Artifact:
    """A file in the store, as old as the story."""
    name, data = key.rpartition("/")[2], (text or f"The bytes of a {kind}.").encode()
    await here.store.put(key, data)
    os.utime(here.store.path_of(key), (START, START))
    return Artifact(name=name, kind=kind, key=key, bytes=len(data), sha256=sha256(data).hexdigest())


async def sample(here: World, job: str, step: int) -> DrawnSample:
    key = sample_key(job, step=step, index=0)
    return DrawnSample(
        artifact=await file(here, key, "sample"), thumbnail=await thumbnail(here, key),
        step=step, epoch=step, index=0, prompt="a photo of 123xyz", seed=555,
    )  # fmt: skip


async def thumbnail(here: World, key: str) -> str:
    """Of an image; its key."""
    return (await file(here, key.replace(".png", SUFFIX), "thumbnail")).key


async def end_training(trainer: Claimed) -> None:
    here, prefix = trainer.world, f"jobs/{trainer.job}/training/1"
    early = await file(here, f"{prefix}/{trainer.job}-ep50-gs00050.safetensors", "checkpoint")
    last = f"{prefix}/last-{trainer.job}-ep100-gs00100.safetensors"
    await trainer.publish(
        CheckpointFinal,
        model=f"{prefix}/model",
        checkpoint=await file(here, last, "checkpoint"),
        checkpoints=(SavedCheckpoint(artifact=early, step=50, epoch=50),),
        records=(await file(here, f"{prefix}/metrics.jsonl", "metrics", METRICS),),
        summary={"steps": STEPS, "updates": STEPS, "epochs": STEPS, "images": 200, "loss": 0.118,
                 "precision": "fp16", "optimizer": "adamw8bit", "attention": "sdpa", "seed": 555},
    )  # fmt: skip


async def generate(here: World, job: str, *, samples: tuple[DrawnSample, ...] = ()) -> None:
    inferencer = await here.claim(job, "generation", gpu=GPU)
    key = f"jobs/{job}/generation/1/0000.png"
    drawn = DrawnImage(
        artifact=await file(here, key, "image"), thumbnail=await thumbnail(here, key),
        prompt=PROMPT, width=512, height=512, num_inference_steps=50, guidance_scale=7.5,
        scheduler="K-LMS", seed=7,
    )  # fmt: skip
    await inferencer.publish(ImagesGenerated, images=(drawn,), samples=samples)
    await here.status_becomes(job, "COMPLETED")


# --- The story --------------------------------------------------------------------------------


async def before_any_job(teller: Teller) -> None:
    await eventually(lambda: ready(teller.here))
    for name in ("live", "alive", "readyz", "ready", "openapi", "asyncapi", "page", "links"):
        await teller.send(name)
    await teller.send("upload-options")
    for name in ("begin-a-session", "get-a-session", "end-a-session"):
        await teller.send(name)
    for name in ("upload-a-file", "begin-an-upload", "ask-for-the-offset", "send-a-chunk"):
        await teller.send(name)
        teller.later(1)
    await teller.send("get-an-upload")
    await teller.send("list-uploads")


async def ready(here: World) -> bool | None:
    return (await here.ask("GET", "/ready")).status == 200 or None


async def check(teller: Teller) -> None:
    job = (await teller.send("check-a-dataset"))["id"]
    teller.later(20)
    await stage(*await next_staging(teller.here))
    await teller.here.status_becomes(job, "COMPLETED")
    await teller.here.get(TRAINER)
    for name in ("get-a-check", "wait-for-a-check", "follow-a-check", "follow-to-the-end"):
        await teller.send(name)
    for name in ("look-at-the-pictures", "mend-the-dataset"):
        await teller.send(name)


async def training(teller: Teller) -> None:
    here = teller.here
    job = (await teller.send("submit-a-job"))["id"]
    await teller.send("get-a-waiting-job")
    await teller.send("follow-all-jobs")
    teller.later(35)
    await stage(*await next_staging(here))
    assert isinstance(await here.get(TRAINER), DatasetStaged)
    trainer = await here.claim(job, "training", gpu=GPU)
    await here.status_becomes(job, "IN_PROGRESS")
    teller.later(30)
    await report(trainer, step=20)
    await here.publish(SamplesGenerated(job=job, samples=(await sample(here, job, 0),)))
    await eventually(lambda: has_samples(here, job))
    await teller.send("get-a-running-job")
    await record(trainer, POINTS[:1])
    await teller.send("get-metrics")
    await record(trainer, POINTS)
    await teller.send("get-new-metrics")
    await teller.send("stream-a-job")
    teller.later(10)
    await report(trainer, step=40)
    await teller.send("stream-a-job-by-post")
    for name in ("health", "health-by-post", "sample-now", "save-now", "stop-now"):
        await teller.send(name)
    teller.later(60)
    await end_training(trainer)
    await eventually(lambda: stage_is(here, job, "generation"))
    teller.later(5)
    await generate(here, job, samples=(await sample(here, job, STEPS),))
    for name in ("get-a-finished-job", "wait-for-a-job", "list-jobs", "get-budgets"):
        await teller.send(name)
    for name in ("get-a-file", "get-a-part-of-a-file", "get-an-unchanged-file"):
        await teller.send(name)
    await teller.send("delete-a-checkpoint")


async def record(trainer: Claimed, points: Sequence[Mapping[str, float]]) -> None:
    """Store what the training has recorded so far."""
    piece = MetricsPiece(attempt=trainer.grant.attempt, first_step=10)
    lines = msgspec.json.Encoder().encode_lines(points)
    await trainer.world.store.put(piece_key(trainer.job, piece), lines)


async def report(trainer: Claimed, step: int) -> None:
    numbers = {"step": step, "steps": STEPS, "epoch": step, "loss": 0.125,
               "images_per_second": 8.0, "eta_seconds": (STEPS - step) / 4}  # fmt: skip
    await trainer.publish(TrainingProgressed, progress=numbers)
    await eventually(lambda: step_is(trainer, step))


async def step_is(trainer: Claimed, step: int) -> bool | None:
    return (await trainer.world.status(trainer.job))["output"]["step"] == step or None


async def stage_is(here: World, job: str, stage: str) -> bool | None:
    return (await here.status(job))["output"]["stage"] == stage or None


async def has_samples(here: World, job: str) -> bool | None:
    return bool((await here.status(job))["output"]["samples"]) or None


async def webhooks(teller: Teller) -> None:
    here = teller.here
    due = await here.get(NOTIFIER_WEBHOOKS)
    assert isinstance(due, WebhookDue)
    teller.later(1)
    delivered = WebhookDelivered(
        job=due.job, run=due.run, attempt=due.attempt, webhook_id=due.webhook_id, status=200
    )
    await here.publish(delivered)
    await eventually(lambda: has_delivered(here, due.job))
    await teller.send("list-webhooks")
    await teller.send("resend-a-webhook")


async def has_delivered(here: World, job: str) -> bool | None:
    answer = await here.ask("GET", f"{ROOT}/jobs/{job}/webhooks")
    return answer.body["deliveries"][0]["status"] == 200 or None


async def operating(teller: Teller) -> None:
    """What the operator sees: a webhook that its receiver wants no more, and dead letters."""
    here = teller.here
    due = await here.get(NOTIFIER_WEBHOOKS)
    assert isinstance(due, WebhookDue)
    failed = WebhookFailed(
        job=due.job, run=due.run, attempt=due.attempt, webhook_id=due.webhook_id,
        reason="answered with status 410", permanent=True,
    )  # fmt: skip
    await here.publish(failed)
    await eventually(lambda: is_given_up(here))
    await teller.send("list-given-up-webhooks")
    await teller.send("resend-a-given-up-webhook")
    await here.get(NOTIFIER_WEBHOOKS)
    for letter_id in DEAD_LETTERS:
        await here.stores.dead_letters.add(dead_letter(letter_id, due.job, here.clock()))
    for name in ("list-dead-letters", "requeue-a-dead-letter", "delete-a-dead-letter"):
        await teller.send(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "release", lambda: "0.4.0")
        patch.setattr(here.store, "total", lambda: Room(1_967_397_240_832, 122_101_760))
        patch.setattr(here.store, "free_bytes", lambda: 1_204_880_318_464)
        patch.setattr(here.store, "free_files", lambda: 121_660_416)
        patch.setattr(here.stores.system, "stored_bytes", stored_bytes)
        await teller.send("get-the-disk")


async def stored_bytes() -> StoredBytes:
    return StoredBytes(48_201_733, 1_214_192, 4_200_000_000, 1_302_528)


async def is_given_up(here: World) -> bool | None:
    return bool((await here.ask("GET", f"{ROOT}/admin/webhooks")).body["webhooks"]) or None


def dead_letter(letter_id: str, job: str, at: float) -> StoredDeadLetter:
    """A fact that the gateway could not record."""
    fact = TrainingProgressed(
        job=job, stage="training", claim="0c5d1f8e-6d0e-4d7c-9f0b-6a3f1f0b7d55", attempt=1,
        worker="trainer/gpu-1-17", progress={"step": 90},
    )  # fmt: skip
    body = encode(fact)
    letter = DeadLetter(
        queue="gateway.recorder", reason="delivery_limit", length=len(body),
        sha256=sha256(body).hexdigest(), body=body, type=type_of(fact), job=job,
    )  # fmt: skip
    return StoredDeadLetter(letter_id, at, letter)


async def other_jobs(teller: Teller) -> None:
    here = teller.here
    waiting = asyncio.create_task(teller.send("generate-and-wait"))
    fetcher, submitted = await next_staging(here)
    await fetcher.stage_model(submitted)
    await generate(here, submitted.job)
    await waiting

    job = await teller.submit("photos-2026-03-02-c")
    teller.later(12)
    fetcher, _ = await next_staging(here)
    await eventually(lambda: is_heard(here))
    await teller.send("list-workers")
    await teller.send("get-queues")
    await fetcher.publish(StageFailed, kind="refused", reason="the archive has no usable image")
    await here.status_becomes(job, "FAILED")
    for name in ("get-a-failed-job", "retry-a-job", "cancel-a-job", "delete-a-job"):
        await teller.send(name)
    await teller.submit("photos-2026-03-02-d")
    await teller.send("purge-the-queue")


async def is_heard(here: World) -> bool | None:
    (busy,) = (await here.ask("GET", f"{ROOT}/admin/workers")).body["busy"]
    return busy["silent_seconds"] is not None or None


async def errors(teller: Teller) -> None:
    here = teller.here
    teller.later(60)
    await here.stores.keys.add(
        StoredKey(
            digest=digest_of(READER), name="reader", scopes=("read",), created_at=here.clock()
        )
    )
    for name in ("mistakes", "job-not-found", "command-too-late", "other-tus-version"):
        await teller.send(name)
    for name in ("too-large-an-upload", "not-a-chunk", "no-such-range", "link-not-valid"):
        await teller.send(name)
    for name in ("another-request-under-a-key", "private-address"):
        await teller.send(name)
    await teller.send("no-key", key=None)
    await teller.send("no-scope", key=READER)
    await teller.send("no-length", data=in_pieces)
    await teller.send("silence", data=and_then_silence)
    for _ in range(2):
        await here.ask("POST", f"{ROOT}/purge-queue")
    await teller.send("too-often")
    await teller.send("delete-an-upload")
    await use_up_uploads(here)
    await teller.send("budget-used-up")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(here.store, "free_bytes", lambda: 10_000_000)
        await teller.send("not-ready-z")
        await teller.send("not-ready")
        await teller.send("store-is-full")
    here.jobs.unavailable = True
    await teller.send("database-is-away")
    here.jobs.unavailable = False


async def use_up_uploads(here: World) -> None:
    """As many unfinished uploads as a key may have."""
    for number in range(here.settings.max_unfinished_uploads):
        upload = StoredUpload(
            id=f"unfinished-{number}", owner=digest_of(API_KEY), bytes=24, touched_at=here.clock()
        )
        await here.stores.uploads.add(upload)


async def in_pieces(body: bytes) -> AsyncIterator[bytes]:
    """Without the length, which is known at the end only."""
    yield body


async def and_then_silence(body: bytes) -> AsyncIterator[bytes]:
    yield body
    await asyncio.Event().wait()


@contextmanager
def fixed_times() -> Iterator[FixedClock]:
    """A clock for the gateway, by which its rate limits go, too; silence is noticed at once."""
    clock = FixedClock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(authorization, "monotonic", clock)
        patch.setattr(uploads, "IDLE_SECONDS", 0.1)
        yield clock


async def tell(home: Path) -> dict[str, Example]:
    """All examples by name, with the answers that a gateway gives now."""
    with fixed_times() as clock:
        async with world(home, clock=clock, public_url=URL, heartbeat=HEARTBEAT) as here:
            teller = Teller(here)
            for part in (before_any_job, check, training, webhooks, operating, other_jobs, errors):
                await part(teller)
    return teller.told


def main() -> None:
    with TemporaryDirectory() as home:
        told = asyncio.run(tell(Path(home)))
    FILE.write_text(text_of(tuple(told[each.name] for each in examples())), encoding="utf-8")


if __name__ == "__main__":
    main()
