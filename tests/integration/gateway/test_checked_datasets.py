"""Check, mend, train: what a check has staged is looked at, changed, and trained on."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from services.gateway.background.retention import CLOCKS_DIFFER
from services.gateway.endpoints import datasets
from services.gateway.jobs.transitions import KEPT_SECONDS
from services.gateway.web.large_answers import LargeAnswers
from shared.dataset.edited_report import LEFT_OUT, SIZES_AS_FOUND
from shared.dataset.edits import EditedDataset, PictureEdit
from shared.dataset.manifest import CAPTION_CHARACTERS, Captions, Report, TrainedPicture
from shared.dataset.pages import PAGE, page_name, preview_name
from shared.messaging.messages import DatasetStaged, StageFailed, StagingDue
from shared.messaging.topology import FETCHER, TRAINER
from shared.request import Policy
from shared.storage import large_fields
from tests.support.gateway_world import (
    DEADLINE,
    OTHER_KEY,
    TRAIN_ONLY,
    Answer,
    Claimed,
    World,
    eventually,
    world,
)

ROOT = "/v2/everydream-v1"
PICTURES = 120
BYTES = 5_000_000
PAGES_BYTES = 70_000
DAY_OVER = KEPT_SECONDS + CLOCKS_DIFFER + 1.0


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path, max_upload_bytes=12_000_000) as one:
        yield one


async def begun(here: World, **train: Any) -> tuple[str, Claimed, StagingDue]:
    """A check whose staging is claimed."""
    body = {"input": {"train": {**TRAIN_ONLY["input"]["train"], **train}}}
    answer = await here.ask("POST", f"{ROOT}/dataset/check", json=body)
    assert answer.status == 200, answer
    due = await here.get(FETCHER)
    assert isinstance(due, StagingDue)
    return due.job, await here.claim(due.job, "staging"), due


async def staged(
    here: World, fetcher: Claimed, due: StagingDue, dataset_bytes: int = BYTES
) -> None:
    """What a fetcher leaves of 120 pictures."""
    prefix = f"jobs/{due.job}/staging/{fetcher.grant.attempt}/dataset"
    pages = f"jobs/{due.job}/pictures/{fetcher.grant.attempt}"
    await here.store.put(f"{prefix}/manifest.json", b"{}")
    for first in range(0, PICTURES, PAGE):
        numbers = range(first + 1, min(first + PAGE, PICTURES) + 1)
        page = [
            TrainedPicture(file=f"{n}.jpg", caption=f"found {n}", source="name", bucket="512x512")
            for n in numbers
        ]
        key = f"{pages}/{page_name(first // PAGE + 1)}"
        await here.store.put(key, msgspec.json.encode(page))
        await here.store.put(f"{pages}/{preview_name(first + 1)}", b"webp")
    assert due.train
    await fetcher.publish(
        DatasetStaged, train=due.train, dataset=prefix, base_model="cache/base/", pictures=pages,
        dataset_bytes=dataset_bytes, pictures_bytes=PAGES_BYTES,
        report=Report(images=PICTURES, captions=Captions(from_names=PICTURES)).plain(),
    )  # fmt: skip


async def checked(here: World, dataset_bytes: int = BYTES, **train: Any) -> str:
    job, fetcher, due = await begun(here, **train)
    await staged(here, fetcher, due, dataset_bytes)
    await here.status_becomes(job, "COMPLETED")
    return job


async def page(here: World, job: str, number: int = 1) -> dict[str, Any]:
    answer = await here.ask("GET", f"{ROOT}/jobs/{job}/dataset?page={number}")
    assert answer.status == 200, answer
    body: dict[str, Any] = answer.body
    return body


async def change(here: World, job: str, *pictures: dict[str, Any], **more: Any) -> Answer:
    path = f"{ROOT}/jobs/{job}/dataset"
    return await here.ask("PATCH", path, json={"pictures": [*pictures]}, **more)


async def train(here: World, check: str, *, ttl: int = 7_200_000, **more: Any) -> Answer:
    body = {"input": {"train": {"data_url": check}}, "policy": {"ttl": ttl}}
    return await here.ask("POST", f"{ROOT}/run", json=body, **more)


async def edited(here: World) -> EditedDataset:
    """What the next fetcher is told to train on."""
    due = await here.get(FETCHER)
    assert isinstance(due, StagingDue)
    assert due.train
    key = due.train.data_url.removeprefix("store:")
    return msgspec.json.decode(await here.store.get(key), type=EditedDataset)


async def test_every_picture_is_shown_page_by_page_with_a_preview(here: World) -> None:
    job = await checked(here)

    last = await page(here, job, 3)

    assert (last["page"], last["pages"], len(last["pictures"])) == (3, 3, PICTURES - 2 * PAGE)
    first = last["pictures"][0]
    assert (first["number"], first["file"], first["caption"], first["use"]) == (
        2 * PAGE + 1, "101.jpg", "found 101", True
    )  # fmt: skip
    link = first["preview"].removeprefix("http://gateway.example")
    async with here.session.get(here.url(link)) as answer:
        assert await answer.read() == b"webp"


async def test_what_is_trained_is_what_the_pages_show_after_changes(here: World) -> None:
    job = await checked(here)

    answer = await change(
        here, job, {"number": 2, "caption": "a red cat"}, {"number": 60, "use": False}
    )
    assert answer.status == 200
    assert answer.body["pictures"][1]["caption"] == "a red cat"
    assert answer.body["pictures"][1]["source"] == "edit"
    assert (await change(here, job, {"number": 2, "use": False})).status == 200
    assert (await change(here, job, {"number": 2, "use": True})).status == 200

    (second, *_), (*_, last) = [(await page(here, job, n))["pictures"][1:10] for n in (1, 2)]
    assert (second["caption"], second["use"]) == ("a red cat", True)
    assert (last["number"], last["use"]) == (60, False)

    report = (await here.status(job))["output"]["dataset"]
    assert (report["images"], report["skipped_count"]) == (119, 1)
    assert report["skipped"] == [{"file": "60.jpg", "reason": LEFT_OUT}]
    assert (report["captions"]["from_names"], report["captions"]["edited"]) == (118, 1)
    first = report["pictures"][0]
    assert (first["number"], first["caption"], first["source"]) == (2, "a red cat", "edit")
    assert report["warnings"][0] == SIZES_AS_FOUND
    assert report["warnings_count"] == len(report["warnings"])

    assert (await train(here, job)).status == 200
    dataset = await edited(here)
    assert dataset.dataset == f"jobs/{job}/staging/1/dataset"
    assert dataset.edits == {2: PictureEdit(caption="a red cat"), 60: PictureEdit(use=False)}
    assert await here.store.exists(f"{dataset.dataset}/manifest.json")


async def test_a_later_change_does_not_reach_a_job_that_was_submitted(here: World) -> None:
    job = await checked(here)
    await train(here, job)
    await change(here, job, {"number": 1, "use": False})

    assert (await edited(here)).edits == {}

    await change(here, job, {"number": 1, "use": True, "caption": None})
    await train(here, job)
    assert (await edited(here)).edits == {1: PictureEdit()}


async def test_changes_that_are_taken_back_or_forgotten_leave_the_report_as_it_was(
    here: World,
) -> None:
    job = await checked(here)
    before = (await here.status(job))["output"]["dataset"]
    await change(here, job, {"number": 1, "use": False}, {"number": 2, "caption": ""})
    changed = (await here.status(job))["output"]["dataset"]
    await change(here, job, {"number": 1, "use": True}, {"number": 2, "caption": None})
    back = (await here.status(job))["output"]["dataset"]
    await change(here, job, {"number": 1, "use": False})
    here.clock.ahead = DAY_OVER
    await deleted_what_is_over(here)

    assert (changed["images"], changed["missing_captions"]) == (119, ["2.jpg"])
    assert {**back, "pictures": []} == before
    assert (await here.status(job))["output"]["dataset"] == before


async def test_a_report_that_is_large_follows_the_changes_too(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_fields, "LARGE", 100)
    job = await checked(here)
    await change(here, job, {"number": 1, "use": False})
    await change(here, job, {"number": 2, "use": False})
    assert (await here.status(job))["output"]["dataset"]["images"] == 118
    here.clock.ahead = DAY_OVER
    await deleted_what_is_over(here)

    assert (await here.status(job))["output"]["dataset"]["images"] == 120


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"pictures": [{"number": 121}]}, "there are 120, and none with number 121"),
        (
            {"pictures": [{"number": 3, "caption": each} for each in "aab"]},
            "pictures[2].caption: picture 3 has another caption in the same request",
        ),
        ({"pictures": [{"number": 0}]}, "pictures[0].number: expected an integer of at least 1"),
        ({"pictures": []}, "pictures: expected a list that is not empty, each item an object"),
        ({"picture": [{"number": 1}]}, "picture: no such field; did you mean pictures?"),
        (
            {"pictures": [{"number": 1, "captoin": "x"}]},
            "[0].captoin: no such field; did you mean caption?",
        ),
        ({"pictures": [{"number": 1, "prompt": "x"}]}, "[0].prompt: no such field; known: number"),
        ({"pictures": [{"caption": "x"}]}, "[0].number: required, but missing"),
        ({"pictures": [{"number": 1, "caption": "x" * 8193}]}, "a string of at most 8192 letters"),
        ({"pictures": [{"number": 1, "use": "no"}]}, '[0].use: expected true or false, got "no"'),
        ({"pictures": [{"number": n, "use": False} for n in range(1, 121)]}, "at least one"),
        ([], "the request: expected an object"),
    ],
)
async def test_a_change_that_makes_no_sense_is_refused_whole(
    here: World, body: Any, expected: str
) -> None:
    job = await checked(here)
    body = (
        {"pictures": [{"number": 5, "use": False}, *body["pictures"]]}
        if "121" in expected
        else body
    )

    answer = await here.ask("PATCH", f"{ROOT}/jobs/{job}/dataset", json=body)

    assert answer.status == 400
    assert expected in answer.body["error"]
    assert all(each["use"] for each in (await page(here, job))["pictures"])


async def test_only_its_owner_may_look_change_and_train(here: World) -> None:
    job = await checked(here)

    path = f"{ROOT}/jobs/{job}/dataset"
    assert (await here.ask("GET", path, key=OTHER_KEY)).status == 404
    assert (await change(here, job, {"number": 1}, key=OTHER_KEY)).status == 404
    answer = await train(here, job, key=OTHER_KEY)
    assert answer.status == 400
    assert "the id of a dataset check of yours" in answer.body["error"]


async def test_what_is_no_finished_check_is_not_trained_on_or_changed(here: World) -> None:
    job, fetcher, due = await begun(here)
    assert (await train(here, job)).status == 400
    assert (await change(here, job, {"number": 1})).status == 409
    assert (await here.ask("GET", f"{ROOT}/jobs/{job}/dataset")).status == 409
    await staged(here, fetcher, due)
    await here.status_becomes(job, "COMPLETED")

    plain = await here.run(TRAIN_ONLY)
    assert (await train(here, plain)).status == 400
    answer = await change(here, plain, {"number": 1})
    assert (answer.status, "of a check" in answer.body["error"]) == (409, True)


async def test_a_dataset_is_kept_for_a_day_and_counted_meanwhile(here: World) -> None:
    job = await checked(here)
    used = (await here.ask("GET", f"{ROOT}/budgets")).body["upload_bytes"]
    assert used == {"used": BYTES + PAGES_BYTES, "allowed": 12_000_000}

    here.clock.ahead = KEPT_SECONDS - 60.0
    await deleted_what_is_over(here)
    assert (await train(here, job, ttl=Policy().ttl)).status == 200
    await edited(here)

    other = await checked(here)
    here.clock.ahead += Policy().ttl / 1000 + CLOCKS_DIFFER + 60.0
    await deleted_what_is_over(here)
    for each in (job, other):
        assert not await here.store.exists(f"jobs/{each}/staging/1/dataset/manifest.json")
        answer = await train(here, each)
        assert (answer.status, "is still kept" in answer.body["error"]) == (400, True)
        assert (await change(here, each, {"number": 1})).status == 409
    assert (await page(here, job))["pictures"], "what is told of the pictures stays with the job"
    assert (await here.ask("GET", f"{ROOT}/budgets")).body["upload_bytes"]["used"] == (
        2 * PAGES_BYTES
    ), "and is counted as long"


async def test_a_check_that_is_trained_on_outlives_the_days_that_jobs_are_kept(here: World) -> None:
    job = await checked(here)
    here.gateway._retention._keep = 3600.0
    here.clock.ahead = KEPT_SECONDS - 60.0
    assert (await train(here, job)).status == 200

    here.clock.ahead += 3600.0
    async with asyncio.timeout(DEADLINE):
        await here.gateway._retention.delete_expired()

    assert await here.store.exists(f"jobs/{job}/staging/1/dataset/manifest.json")
    assert (await here.status(job))["status"] == "COMPLETED"


async def test_changes_have_a_size_that_they_may_have_together(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await checked(here)
    monkeypatch.setattr(datasets, "MOST_LETTERS", 10)

    assert (await change(here, job, {"number": 1, "caption": "12345"})).status == 200
    answer = await change(here, job, {"number": 2, "caption": "123456"})
    assert (answer.status, "at most 10 letters" in answer.body["error"]) == (400, True)
    monkeypatch.setattr(datasets, "MOST_CHANGES", 3)
    assert (await change(here, job, {"number": 2, "use": False})).status == 409


async def test_large_changes_count_with_all_before_them_until_the_check_is_deleted(
    tmp_path: Path,
) -> None:
    long = [{"number": number, "caption": "x" * 8000} for number in range(1, 11)]
    async with world(tmp_path, max_request_bytes=200_000) as here:
        job = await checked(here)
        before = await request_bytes(here)
        assert (await change(here, job, {"number": 1, "caption": "a small change"})).status == 200
        assert await request_bytes(here) == before

        assert (await change(here, job, *long)).status == 200
        first = await request_bytes(here) - before
        assert first > 80_000
        assert (await change(here, job, {"number": 11, "caption": "y"})).status == 200
        assert await request_bytes(here) - before > 2 * first
        refused = await change(here, job, {"number": 12, "caption": "z"})

        assert (refused.status, refused.body["budget"]["name"]) == (429, "request_bytes")
        assert (await page(here, job))["pictures"][11]["caption"] == "found 12"
        assert (await here.ask("DELETE", f"{ROOT}/jobs/{job}")).status == 200
        assert await request_bytes(here) == 0


async def test_a_page_of_large_changes_is_sent_as_a_large_answer(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, send = [], LargeAnswers.send

    async def noted(answers: LargeAnswers, request: web.Request, *more: Any) -> web.StreamResponse:
        sent.append(request.method)
        return await send(answers, request, *more)

    monkeypatch.setattr(LargeAnswers, "send", noted)
    long = [{"number": number, "caption": "\U0001f600" * 2000} for number in range(1, 11)]
    job = await checked(here)
    await change(here, job, long[0])
    await page(here, job)
    assert sent == []

    assert (await change(here, job, *long)).body["pictures"][9]["caption"] == long[9]["caption"]
    assert (await page(here, job))["pictures"][0]["caption"] == long[0]["caption"]
    assert sent == ["PATCH", "GET"]


async def request_bytes(here: World) -> int:
    used: int = (await here.ask("GET", f"{ROOT}/budgets")).body["request_bytes"]["used"]
    return used


@pytest.mark.parametrize("number", ["0", "-1", "x", "9" * 5000, "1e3", "4"])
async def test_a_page_that_is_none_is_refused(here: World, number: str) -> None:
    job = await checked(here)

    answer = await here.ask("GET", f"{ROOT}/jobs/{job}/dataset?page={number}")

    assert (answer.status, answer.body["error"][:5]) == (400, "page:")


async def test_a_job_that_waits_keeps_its_dataset_beyond_the_day(here: World) -> None:
    job = await checked(here)
    here.clock.ahead = KEPT_SECONDS - 60.0
    assert (await train(here, job)).status == 200

    here.clock.ahead += 3600.0
    await deleted_what_is_over(here)

    assert await here.store.exists(f"jobs/{job}/staging/1/dataset/manifest.json")


async def deleted_what_is_over(here: World) -> None:
    async with asyncio.timeout(DEADLINE):
        await here.gateway._retention.delete_due()


async def test_checks_that_began_together_keep_no_more_than_the_budget_has_left(
    here: World,
) -> None:
    together = [await begun(here) for _ in range(3)]
    for _, fetcher, due in together:
        await staged(here, fetcher, due)
    ended = [await here.status_becomes(job, "COMPLETED") for job, _, _ in together]

    reports = [each["output"]["dataset"] for each in ended]
    assert [len(each.get("warnings", ())) for each in reports] == [0, 0, 1]
    assert "budget upload_bytes" in reports[-1]["warnings"][0]
    assert (await here.ask("GET", f"{ROOT}/budgets")).body["upload_bytes"]["used"] == (
        2 * BYTES + 3 * PAGES_BYTES
    )
    job = together[-1][0]
    assert (await train(here, job)).status == 400
    await eventually(lambda: is_deleted(here, f"jobs/{job}/staging/1/dataset/manifest.json"))


async def is_deleted(here: World, key: str) -> bool | None:
    return not await here.store.exists(key) or None


async def test_a_check_is_refused_when_nothing_more_may_be_kept(here: World) -> None:
    await checked(here)
    await checked(here, dataset_bytes=12_000_000 - BYTES - 2 * PAGES_BYTES)

    answer = await here.ask("POST", f"{ROOT}/dataset/check", json=TRAIN_ONLY)

    assert answer.status == 429
    assert answer.body["budget"]["name"] == "upload_bytes"
    assert "checks of datasets" in answer.body["error"]


async def test_a_removed_check_leaves_nothing(here: World) -> None:
    job = await checked(here)

    assert (await here.ask("DELETE", f"{ROOT}/jobs/{job}")).status in (200, 204)

    assert (await train(here, job)).status == 400
    assert (await here.ask("GET", f"{ROOT}/budgets")).body["upload_bytes"]["used"] == 0


async def delete(here: World, path: str) -> Answer:
    return await here.ask("DELETE", f"{ROOT}{path}")


async def test_a_check_stays_while_a_job_has_yet_to_fetch_its_dataset(here: World) -> None:
    check = await checked(here)
    job = str((await train(here, check)).body["id"])

    refused = await delete(here, f"/jobs/{check}")

    assert refused.status == 409
    assert refused.body["error"] == (
        f"jobs that have not ended still need it: {job}; cancel them first, or delete it when they"
        " have ended"
    )
    dataset = await edited(here)
    assert await here.store.exists(f"{dataset.dataset}/manifest.json")
    assert (await here.ask("POST", f"{ROOT}/cancel/{job}")).status == 200
    assert (await delete(here, f"/jobs/{check}")).status == 200


async def test_a_check_goes_once_the_job_has_its_own_copy(here: World) -> None:
    check = await checked(here)
    job = str((await train(here, check)).body["id"])
    fetcher, due = await here.claim(job, "staging"), await here.get(FETCHER)
    await fetcher.stage_dataset(due)
    assert isinstance(await here.get(TRAINER), DatasetStaged)
    await here.claim(job, "training")

    assert (await delete(here, f"/jobs/{check}")).status == 200


async def test_an_upload_stays_while_a_job_has_yet_to_fetch_it(here: World) -> None:
    upload = (await here.ask("POST", f"{ROOT}/uploads", data=b"a zip")).body
    job = str((await train(here, upload["data_url"])).body["id"])

    refused = await delete(here, f"/uploads/{upload['id']}")

    assert refused.status == 409
    assert job in refused.body["error"]
    assert (await here.ask("POST", f"{ROOT}/cancel/{job}")).status == 200


# --- Trained on again


async def failed_on(here: World, check: str) -> str:
    """A job on a check's dataset whose staging has failed for good."""
    job = str((await train(here, check)).body["id"])
    assert isinstance(await here.get(FETCHER), StagingDue)
    fetcher = await here.claim(job, "staging")
    await fetcher.publish(StageFailed, kind="refused", reason="the hub has no such model")
    await here.status_becomes(job, "FAILED")
    return job


async def retried(here: World, job: str) -> Answer:
    return await here.ask("POST", f"{ROOT}/retry/{job}")


async def test_a_job_that_is_retried_keeps_its_dataset_beyond_the_day(here: World) -> None:
    check = await checked(here)
    job = await failed_on(here, check)
    here.clock.ahead = KEPT_SECONDS - 60.0

    assert (await retried(here, job)).status == 200

    here.clock.ahead += 3600.0
    await deleted_what_is_over(here)
    dataset = await edited(here)
    assert await here.store.exists(f"{dataset.dataset}/manifest.json")


@pytest.mark.parametrize("dataset", ["deleted", "there for a moment"])
async def test_a_job_whose_dataset_is_gone_is_not_retried_and_says_what_to_do(
    here: World, dataset: str
) -> None:
    check = await checked(here)
    job = await failed_on(here, check)
    here.clock.ahead = DAY_OVER
    if dataset == "deleted":
        await deleted_what_is_over(here)

    answer = await retried(here, job)

    assert answer.status == 400
    assert answer.body["error"] == (
        f"the dataset of check {check}, which this job trains on, is not kept any more: check it"
        " again, and submit the job with that check's id"
    )
    assert (await here.status(job))["status"] == "FAILED"


async def test_a_check_that_was_removed_is_not_trained_on_again(here: World) -> None:
    check = await checked(here)
    job = await failed_on(here, check)
    assert (await here.ask("DELETE", f"{ROOT}/jobs/{check}")).status == 200

    assert (await retried(here, job)).status == 400


async def test_a_job_that_has_staged_its_dataset_is_retried_without_the_check(here: World) -> None:
    check = await checked(here)
    job = str((await train(here, check)).body["id"])
    fetcher, due = await here.claim(job, "staging"), await here.get(FETCHER)
    await fetcher.stage_dataset(due)
    assert isinstance(await here.get(TRAINER), DatasetStaged)
    trainer = await here.claim(job, "training")
    await trainer.publish(StageFailed, kind="refused", reason="the loss is not a number")
    await here.status_becomes(job, "FAILED")
    here.clock.ahead = DAY_OVER
    await deleted_what_is_over(here)

    assert (await retried(here, job)).status == 200


async def test_a_job_whose_upload_is_gone_is_not_retried_and_says_what_to_do(here: World) -> None:
    upload = (await here.ask("POST", f"{ROOT}/uploads", data=b"a zip")).body
    job = str((await train(here, upload["data_url"])).body["id"])
    fetcher = await here.claim(job, "staging")
    await fetcher.publish(StageFailed, kind="refused", reason="no usable image")
    await here.status_becomes(job, "FAILED")
    async with here.session.delete(
        here.url(f"{ROOT}/uploads/{upload['id']}"),
        headers={"Authorization": "Bearer a-key-of-anna"},
    ) as deleted:
        assert deleted.status == 204

    answer = await retried(here, job)

    assert (answer.status, "submit it anew" in answer.body["error"]) == (400, True)


# --- What stays in the store


async def keys(here: World, job: str, pattern: str) -> list[str]:
    """What the store has of a job that fits."""
    every = [each.key async for each in here.store.list(f"jobs/{job}/")]
    return [key for key in every if re.search(pattern, key)]


async def become(here: World, job: str, pattern: str, number: int) -> list[str]:
    async def look() -> list[str] | None:
        there = await keys(here, job, pattern)
        return there if len(there) == number else None

    return await eventually(look)


def large(letter: str) -> list[dict[str, Any]]:
    """Changes that together do not stay in the record."""
    return [{"number": number, "caption": letter * 8000} for number in range(1, 11)]


async def test_of_large_changes_the_last_is_kept_and_each_job_has_its_own(here: World) -> None:
    job = await checked(here)
    assert (await change(here, job, *large("a"))).status == 200
    assert (await train(here, job)).status == 200
    for letter in "bca":
        assert (await change(here, job, *large(letter))).status == 200

    await become(here, job, "/values/edits-", 1)
    assert (await page(here, job))["pictures"][9]["caption"] == "a" * CAPTION_CHARACTERS
    assert (await change(here, job, {"number": 10, "caption": "short"})).status == 200
    assert (await edited(here)).edits[10] == PictureEdit(caption="a" * 8000)
    await become(here, job, "/values/edits-", 1)

    here.clock.ahead = KEPT_SECONDS + 7200.0 + CLOCKS_DIFFER
    await deleted_what_is_over(here)
    await become(here, job, "/values/edits-", 0)


async def test_a_job_that_reads_changes_while_they_are_replaced_gets_the_later_ones(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await checked(here)
    await change(here, job, *large("a"))
    (former,) = await keys(here, job, "/values/edits-")
    get = here.store.get

    async def get_late(key: str) -> bytes:
        if key == former:
            monkeypatch.setattr(here.store, "get", get)
            await change(here, job, *large("b"))
            await eventually(lambda: is_deleted(here, former))
        return await get(key)

    monkeypatch.setattr(here.store, "get", get_late)
    assert (await train(here, job)).status == 200

    assert (await edited(here)).edits[1] == PictureEdit(caption="b" * 8000)


async def test_changes_at_the_same_time_all_stay_and_leave_one_copy(here: World) -> None:
    job = await checked(here)
    await change(here, job, *large("a"))

    answers = await asyncio.gather(
        *(change(here, job, {"number": number, "use": False}) for number in range(20, 26))
    )

    assert [answer.status for answer in answers] == [200] * 6
    left_out = [each["number"] for each in (await page(here, job))["pictures"] if not each["use"]]
    assert left_out == [*range(20, 26)]
    await become(here, job, "/values/edits-", 1)


async def test_pages_of_attempts_that_failed_go_when_the_check_ends(here: World) -> None:
    job, fetcher, _ = await begun(here)
    await here.store.put(f"jobs/{job}/pictures/1/{page_name(1)}", b"[]")
    await fetcher.publish(StageFailed, kind="passing", reason="the store was away")
    due = await here.get(FETCHER)
    assert isinstance(due, StagingDue)
    await staged(here, await here.claim(job, "staging"), due)
    await here.status_becomes(job, "COMPLETED")

    await eventually(lambda: is_deleted(here, f"jobs/{job}/pictures/1/{page_name(1)}"))
    assert (await page(here, job))["pictures"]


async def test_pages_of_a_job_that_failed_before_it_had_a_dataset_go_too(here: World) -> None:
    job, fetcher, _ = await begun(here)
    await here.store.put(f"jobs/{job}/pictures/1/{page_name(1)}", b"[]")

    await fetcher.publish(StageFailed, kind="refused", reason="no usable image")

    await here.status_becomes(job, "FAILED")
    await become(here, job, "/pictures/", 0)
