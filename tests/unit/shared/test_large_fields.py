"""What is too large for a message is in the store, and the message means the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from shared.adapters.folder import FolderStore
from shared.errors import NotFound
from shared.messaging.messages import (
    ArtifactsPublished,
    CheckpointSampled,
    DatasetStaged,
    JobSubmitted,
    LargeFact,
    LargeMessage,
    SampleRow,
    WebhookDue,
    decode,
    encode,
)
from shared.request import Inference, Train
from shared.storage.large_fields import LARGE, load_fields, store_message
from tests.support.workers import folder_store

STAMP: dict[str, Any] = {"job": "a", "claim": "c"}
LONG = "ein Fuß " * (LARGE // 8)
MESSAGES: dict[str, LargeMessage | LargeFact] = {
    "a list": JobSubmitted(job="a", run=1, inference=(Inference(prompt=LONG, seed=7),)),
    "two fields, one in a part": DatasetStaged(
        **STAMP, stage="staging", train=Train(data_url="store:x", sample_prompts=[LONG]),
        dataset="d", base_model="b", report={"warnings": [LONG]},
    ),
    "a tuple in a part": CheckpointSampled(
        **STAMP, stage="training", snapshot="s", base_model="b", command=3,
        row=SampleRow(step=1, epoch=0, prompts=(LONG,), seed=1, resolution=256),
    ),
    "a map": ArtifactsPublished(**STAMP, stage="image_publication", urls={"key": LONG}),
    "a text": WebhookDue(job="a", run=1, attempt=1, url="https://x.org", webhook_id="w", body=LONG),
}  # fmt: skip


class Counted(FolderStore):
    """A store that counts what is put."""

    puts = 0

    async def put(self, key: str, data: bytes) -> None:
        self.puts += 1
        await super().put(key, data)


@pytest.fixture
def store(tmp_path: Path) -> Counted:
    return Counted(tmp_path, public_url="http://127.0.0.1:1", key="k" * 32)


@pytest.mark.parametrize("whole", MESSAGES.values(), ids=MESSAGES)
async def test_a_large_message_is_small_on_the_broker_and_whole_for_who_loads_it(
    store: Counted, whole: LargeMessage | LargeFact
) -> None:
    small = await store_message(store, whole)
    received = decode(encode(small))
    assert isinstance(received, LargeMessage | LargeFact)

    assert len(encode(small)) < 2000
    assert received == small
    assert await load_fields(store, received) == whole
    assert all(key.startswith("jobs/a/values/") for key in small.stored.values())


@pytest.mark.parametrize("letters", [LARGE - 2, LARGE - 1])
async def test_a_field_is_stored_from_a_size_on(store: Counted, letters: int) -> None:
    """Its JSON has two quotation marks besides."""
    due = WebhookDue(job="a", run=1, attempt=1, url="u", webhook_id="w", body="x" * letters)

    small = await store_message(store, due)

    assert ("body" in small.stored, store.puts) == (
        (True, 1) if letters + 2 > LARGE else (False, 0)
    )


async def test_one_value_is_one_object_and_put_once(store: Counted) -> None:
    known: set[str] = set()
    for run in (1, 2):
        submitted = msgspec.structs.replace(MESSAGES["a list"], run=run)
        await store_message(store, submitted, known)

    assert store.puts == 1
    assert len([each async for each in store.list("jobs/a/")]) == 1


async def test_only_what_is_wanted_is_loaded(store: Counted) -> None:
    whole = MESSAGES["two fields, one in a part"]
    small = await store_message(store, whole)
    (_,) = [key for place, key in small.stored.items() if place == "report"]
    await store.delete(small.stored["train.sample_prompts"])

    reported = await load_fields(store, small, ["report", "urls"])

    assert isinstance(reported, DatasetStaged)
    assert reported.report == {"warnings": [LONG]}
    assert reported.stored.keys() == {"train.sample_prompts"}
    with pytest.raises(NotFound):
        await load_fields(store, small)


async def test_a_message_with_nothing_stored_is_itself() -> None:
    nothing = folder_store(Path("never-written"))
    submitted = JobSubmitted(job="a", run=1)

    assert await store_message(nothing, submitted) is submitted
    assert await load_fields(nothing, submitted) is submitted
