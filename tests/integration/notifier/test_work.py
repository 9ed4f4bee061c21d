"""The notifier's claimed work: a job's files in the user's own bucket, behind links that work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from msgspec.structs import replace

from services.notifier import bucket
from services.notifier.work import NotifierWork, artifacts_of
from shared.adapters.folder import FolderStore
from shared.adapters.s3 import PART_BYTES, S3Store
from shared.errors import NotFound, Passing, Refused, Unavailable
from shared.keys import seal
from shared.messaging.messages import (
    Artifact,
    ArtifactsPublished,
    BucketChecked,
    BucketDue,
    CheckpointFinal,
    DrawnImage,
    ImagesGenerated,
    JobSubmitted,
    SampleRow,
    SavedCheckpoint,
)
from shared.network.outbound import Guard
from shared.ports import ObjectStore
from shared.request import Inference, S3Config, Train
from shared.worker.order import Order
from tests.support.servers.process import HOST
from tests.support.servers.s3 import S3Server
from tests.support.workers import Facts, files_of, folder_store, granted_order

JOB = "7b1c"
KEY = "a key of thirty-two letters or more"
WEEK = 7 * 24 * 3600


class Publishing:
    """A notifier with a store of its own, and a user with a bucket."""

    def __init__(self, folder: Path, server: S3Server, bucket: str) -> None:
        self.ours: FolderStore = folder_store(folder / "ours")
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        self.server = server
        self.s3 = S3Config(
            accessId=server.access_key, accessSecret=server.secret_key, bucketName=bucket,
            endpointUrl=server.endpoint_url, objectPath="models/mine",
        )  # fmt: skip
        self.work = self.notifier(frozenset({HOST}))

    def notifier(self, allowed: frozenset[str]) -> NotifierWork:
        guard = Guard(allowed)

        def open_bucket(s3: S3Config) -> ObjectStore:
            return S3Store.for_bucket(
                s3.bucketName, endpoint_url=s3.endpointUrl, access_key=s3.accessId,
                secret_key=s3.accessSecret, prefix=s3.objectPath, guard=guard,
            )  # fmt: skip

        return NotifierWork(self.ours, open_bucket, key=KEY, scratch=self.scratch, heartbeat=0.01)

    async def stored(self, name: str, kind: Any, data: bytes) -> Artifact:
        """A file that a worker has left in our store."""
        key = f"jobs/{JOB}/{kind}/1/{name}"
        await self.ours.put(key, data)
        return Artifact(
            name=name, kind=kind, key=key, bytes=len(data), sha256=sha256(data).hexdigest()
        )

    def order(self, message: Any, *, key: str = KEY, **changes: str) -> Order:
        """A granted claim, with the user's bucket or one that differs in these fields."""
        stage: Any = self.work.stage_of(message)
        s3 = msgspec.structs.replace(self.s3, **changes)
        return granted_order(message, stage, Facts(), s3=seal(key, s3, JOB))

    async def in_bucket(self) -> dict[str, bytes]:
        """What the user finds in the bucket."""
        async with self.server.client() as client:
            listed = await client.list_objects_v2(Bucket=self.s3.bucketName)
            found = {}
            for item in listed.get("Contents", ()):
                answer = await client.get_object(Bucket=self.s3.bucketName, Key=item["Key"])
                found[item["Key"]] = await answer["Body"].read()
            return found

    @property
    def left_in_scratch(self) -> list[Path]:
        return list(self.scratch.iterdir())


@pytest.fixture
def publishing(tmp_path: Path, s3_server: S3Server, s3_bucket: str) -> Publishing:
    return Publishing(tmp_path, s3_server, s3_bucket)


LAST = b"weights" * (PART_BYTES // 5)
"""More than S3 takes in one part."""
EARLIER = b"earlier weights"
METRICS = b'{"step": 1}'
PICTURES = {"000-00.png": b"first picture", "000-01 fuß.png": b"second picture"}


async def trained(publishing: Publishing) -> CheckpointFinal:
    last = await publishing.stored("last-mine-ep02-gs00010.safetensors", "checkpoint", LAST)
    early = await publishing.stored("mine-ep01-gs00005.safetensors", "checkpoint", EARLIER)
    metrics = await publishing.stored("metrics.jsonl", "metrics", METRICS)
    return CheckpointFinal(
        job=JOB, stage="training", claim="c", model="jobs/7b1c/training/1/model", checkpoint=last,
        checkpoints=(SavedCheckpoint(artifact=early, step=5, epoch=1),), records=(metrics,),
        summary={},
    )  # fmt: skip


async def drawn(publishing: Publishing) -> ImagesGenerated:
    stored = [await publishing.stored(name, "image", picture) for name, picture in PICTURES.items()]
    return ImagesGenerated(
        job=JOB, stage="generation", claim="c", images=tuple(map(drawn_image, stored))
    )


def drawn_image(artifact: Artifact) -> DrawnImage:
    return DrawnImage(
        artifact=artifact, thumbnail="not-for-the-bucket.webp", prompt="a cat", width=512,
        height=512, num_inference_steps=4, guidance_scale=7.5, scheduler="DDIM", seed=7,
    )  # fmt: skip


async def published_by(publishing: Publishing, order: Order) -> ArtifactsPublished:
    published = await publishing.work.perform(order)
    assert isinstance(published, ArtifactsPublished)
    return published


async def fetched(url: str) -> bytes:
    """What anybody gets who has the link and nothing else."""
    async with aiohttp.ClientSession() as session, session.get(url, raise_for_status=True) as got:
        return await got.read()


# --- Tried before there is anything to publish


async def checked(publishing: Publishing, **changes: str) -> BucketChecked:
    order = publishing.order(BucketDue(job=JOB, run=1), **changes)
    done = await publishing.work.perform(order)
    assert isinstance(done, BucketChecked)
    return done


async def test_a_bucket_that_takes_a_byte_is_good_and_stays_empty(publishing: Publishing) -> None:
    done = await checked(publishing)

    assert (done.stage, done.warning) == ("bucket_check", None)
    assert await publishing.in_bucket() == {}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"accessSecret": "wrong"}, "secret does not belong"),
        ({"accessId": "nobody"}, "access id is not known"),
        ({"bucketName": "no-such-bucket"}, "make the bucket"),
        ({"endpointUrl": "http://169.254.169.254"}, "private address"),
    ],
)
async def test_a_bucket_that_refuses_us_ends_the_job_before_any_training(
    publishing: Publishing, changes: dict[str, str], reason: str
) -> None:
    with pytest.raises(Refused, match=reason):
        await checked(publishing, **changes)


async def test_a_bucket_that_does_not_answer_is_a_warning(
    publishing: Publishing, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object, **__: object) -> None:
        raise Unavailable("the bucket does not answer")

    monkeypatch.setattr(S3Store, "put", away)
    assert "could not be told before the training: the bucket" in str(
        (await checked(publishing)).warning
    )

    async def silent(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(S3Store, "put", silent)
    monkeypatch.setattr(bucket, "CHECK_SECONDS", 0.01)
    assert "did not answer in 0.01 s" in str((await checked(publishing)).warning)


async def test_keys_that_may_write_need_not_be_ones_that_may_delete(
    publishing: Publishing, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def denied(*_: object, **__: object) -> int:
        raise Refused("these keys may not do that")

    monkeypatch.setattr(S3Store, "delete", denied)

    assert (await checked(publishing)).warning is None
    assert list(await publishing.in_bucket()) == [f"models/mine/{JOB}/everydream-write-check"]


async def test_what_a_check_could_not_remove_goes_when_the_results_come(
    publishing: Publishing, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object, **__: object) -> int:
        raise Unavailable("the bucket does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(S3Store, "delete", away)
        await checked(publishing, objectPath="")
    assert list(await publishing.in_bucket()) == [f"{JOB}/everydream-write-check"]

    await published_by(publishing, publishing.order(await drawn(publishing), objectPath=""))

    assert list(await publishing.in_bucket()) == [f"{JOB}/{name}" for name in PICTURES]


# --- Published


async def test_the_model_checkpoints_and_records_land_in_the_users_bucket_behind_links_that_work(
    publishing: Publishing,
) -> None:
    final = await trained(publishing)

    published = await published_by(publishing, publishing.order(final))

    folder = f"models/mine/{JOB}"
    assert await publishing.in_bucket() == {
        f"{folder}/last-mine-ep02-gs00010.safetensors": LAST,
        f"{folder}/mine-ep01-gs00005.safetensors": EARLIER,
        f"{folder}/metrics.jsonl": METRICS,
    }
    assert list(published.urls) == [
        final.checkpoint.key, final.checkpoints[0].artifact.key, final.records[0].key
    ]  # fmt: skip
    assert [await fetched(url) for url in published.urls.values()] == [LAST, EARLIER, METRICS]
    assert all(f"X-Amz-Expires={WEEK}" in url for url in published.urls.values())
    assert publishing.left_in_scratch == []


async def test_a_checkpoint_that_its_user_has_deleted_is_left_out(publishing: Publishing) -> None:
    final = await trained(publishing)
    await publishing.ours.delete(final.checkpoints[0].artifact.key)

    published = await published_by(publishing, publishing.order(final))

    assert list(published.urls) == [final.checkpoint.key, final.records[0].key]
    assert sorted((await publishing.in_bucket()).values()) == sorted([LAST, METRICS])


async def test_a_model_that_our_store_has_lost_is_not_passed_over(publishing: Publishing) -> None:
    final = await trained(publishing)
    await publishing.ours.delete(final.checkpoint.key)

    with pytest.raises(NotFound):
        await published_by(publishing, publishing.order(final))


async def test_the_images_land_there_too_and_the_fact_says_whose_they_are(
    publishing: Publishing,
) -> None:
    order = publishing.order(await drawn(publishing), objectPath="")

    published = await published_by(publishing, order)

    assert await publishing.in_bucket() == {
        f"{JOB}/{name}": data for name, data in PICTURES.items()
    }
    assert [await fetched(url) for url in published.urls.values()] == list(PICTURES.values())
    assert published == ArtifactsPublished(
        job=JOB, stage="image_publication", claim=order.claim, attempt=1, worker="worker/test",
        urls=published.urls,
    )  # fmt: skip


async def test_the_samples_that_the_grant_names_land_beside_the_images(
    publishing: Publishing,
) -> None:
    sample = await publishing.stored("sample-gs00000-000.png", "sample", b"a first row")
    order = publishing.order(await drawn(publishing), objectPath="")
    order.granted = msgspec.structs.replace(order.grant, samples=(sample,))

    published = await published_by(publishing, order)

    found = await publishing.in_bucket()
    assert set(found) == {f"{JOB}/{name}" for name in (*PICTURES, sample.name)}
    assert await fetched(published.urls[sample.key]) == b"a first row"


@pytest.mark.parametrize("path", ["models/mine", "/models/mine/"])
async def test_slashes_around_the_object_path_make_no_difference(
    publishing: Publishing, path: str
) -> None:
    await publishing.work.perform(publishing.order(await drawn(publishing), objectPath=path))

    assert set(await publishing.in_bucket()) == {f"models/mine/{JOB}/{name}" for name in PICTURES}


async def test_to_publish_again_changes_nothing(publishing: Publishing) -> None:
    images = await drawn(publishing)
    first = await published_by(publishing, publishing.order(images))
    before = await publishing.in_bucket()

    second = await published_by(publishing, publishing.order(images))

    assert await publishing.in_bucket() == before
    assert list(second.urls) == list(first.urls)


async def test_progress_reports_how_many_files_are_published(
    publishing: Publishing, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = publishing.order(await drawn(publishing))
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(order, "progress", lambda **numbers: told.append(numbers))

    await publishing.work.perform(order)

    assert [numbers["files"] for numbers in told] == sorted(numbers["files"] for numbers in told)
    assert told[0] == {"phase": "publishing", "files": 0}
    assert told[-1] == {"phase": "publishing", "files": 2}


# --- Refused: the user's to mend


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"accessSecret": "wrong-and-private"}, "the secret does not belong to the access id"),
        ({"accessId": "NOBODY"}, "the access id is not known there"),
        ({"bucketName": "no-such-bucket"}, "make the bucket, or correct its name"),
        ({"objectPath": "../up"}, "cannot"),
    ],
    ids=["secret", "id", "bucket", "path"],
)
async def test_what_is_wrong_with_the_bucket_ends_the_stage_by_its_name(
    publishing: Publishing, changes: dict[str, str], reason: str
) -> None:
    order = publishing.order(await drawn(publishing), **changes)

    with pytest.raises(Refused, match=reason) as caught:
        await publishing.work.perform(order)

    if "objectPath" not in changes:
        assert changes.get("bucketName", publishing.s3.bucketName) in str(caught.value)
    for private in (publishing.s3.accessSecret, "wrong-and-private"):
        assert private not in str(caught.value)
    assert publishing.left_in_scratch == []


async def test_an_endpoint_at_a_private_address_is_refused(publishing: Publishing) -> None:
    publishing.work = publishing.notifier(frozenset())

    with pytest.raises(Refused, match="the host is a private address") as caught:
        await publishing.work.perform(publishing.order(await drawn(publishing)))

    assert publishing.s3.bucketName in str(caught.value)
    assert await publishing.in_bucket() == {}
    assert publishing.left_in_scratch == []


async def test_a_bucket_that_was_sealed_under_another_key_is_refused_with_advice(
    publishing: Publishing,
) -> None:
    order = publishing.order(await drawn(publishing), key="another key of thirty-two letters")

    with pytest.raises(Refused, match="EVERYDREAM_SECRET_KEY"):
        await publishing.work.perform(order)


async def test_a_job_whose_secrets_are_wiped_is_refused(publishing: Publishing) -> None:
    order = granted_order(await drawn(publishing), "image_publication", Facts())

    with pytest.raises(Refused, match="no s3Config any more"):
        await publishing.work.perform(order)


# --- Whatever happens


async def test_a_file_that_is_gone_from_our_store_is_named(publishing: Publishing) -> None:
    images = await drawn(publishing)
    gone = files_of(images)[1].key
    await publishing.ours.delete(gone)

    with pytest.raises(NotFound, match=gone[:20]):
        await publishing.work.perform(publishing.order(images))
    assert publishing.left_in_scratch == []


async def test_a_bucket_that_takes_its_time_for_ever_is_left_in_the_end(
    publishing: Publishing, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: Any, keepalive: Callable[[], None], **__: Any) -> None:
        while True:
            keepalive()
            await asyncio.sleep(0.01)

    monkeypatch.setattr(bucket, "SLOW_SECONDS", 0.1)
    monkeypatch.setattr(S3Store, "upload", never)

    with pytest.raises(Passing, match=r"has not taken the results \(27 bytes\) within 0 s"):
        await publishing.work.perform(publishing.order(await drawn(publishing)))
    assert publishing.left_in_scratch == []


async def test_a_cancelled_publication_leaves_nothing_running_and_nothing_lying(
    publishing: Publishing, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = publishing.order(await trained(publishing))
    sending, closed = asyncio.Event(), asyncio.Event()

    async def hang(*_: Any, **__: Any) -> None:
        """The endpoint takes the bytes and never answers."""
        assert publishing.left_in_scratch != []
        sending.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(S3Store, "upload", hang)
    monkeypatch.setattr(S3Store, "close", _noting(S3Store.close, closed))
    task = asyncio.create_task(publishing.work.perform(order))
    async with asyncio.timeout(60):
        await sending.wait()

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert publishing.left_in_scratch == []
    assert closed.is_set()
    assert await publishing.in_bucket() == {}


def _noting(close: Callable[[Any], Any], closed: asyncio.Event) -> Callable[[Any], Any]:
    async def closing(store: Any) -> None:
        await close(store)
        closed.set()

    return closing


# --- What is published at all


async def test_each_fact_asks_for_its_own_stage_and_no_other_fact_for_any(
    publishing: Publishing,
) -> None:
    final, images = await trained(publishing), await drawn(publishing)
    submitted = JobSubmitted(job=JOB, run=1, train=Train(data_url="u"))

    assert publishing.work.stage_of(final) == "model_publication"
    assert publishing.work.stage_of(images) == "image_publication"
    assert publishing.work.stage_of(submitted) is None
    assert artifacts_of(submitted) == []
    assert [each.name for each in artifacts_of(images)] == list(PICTURES)


async def test_a_bucket_gets_one_report_the_last_there_is(publishing: Publishing) -> None:
    report = Artifact(name="report.html", kind="report", key="k", bytes=1, sha256="0")
    final = replace(await trained(publishing), html_report=report, inference=(), row=None)
    images = replace(await drawn(publishing), html_report=report)
    row = SampleRow(step=1, epoch=0, prompts=("a cat",), seed=1, resolution=256)

    with_reports = (final, replace(final, inference=(Inference(prompt="a cat"),)),
                    replace(final, row=row), images)  # fmt: skip

    assert [report in artifacts_of(each) for each in with_reports] == [True, False, False, True]
