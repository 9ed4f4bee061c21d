"""A job goes by way of a check of its data, at a real gateway and at some that have none."""

from __future__ import annotations

import asyncio
import io
import json
import shlex
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from everydream import following
from everydream.access import Access, client_of
from everydream.cli import app
from everydream.commands import uploads
from everydream.following import Announcer
from everydream.image_options import Drawing
from everydream.job_spec import JobSpec
from everydream.photos import upload
from everydream.presets import fields_of
from everydream.submission import check_and_submit, check_dataset, submit
from everydream.terminal.display import Display
from services.gateway.jobs.rows import read
from services.gateway.key_ports import StoredKey
from services.gateway.web.authentication import digest_of
from shared.dataset.edits import EditedDataset
from shared.dataset.manifest import TrainedPicture
from shared.dataset.pages import page_name
from shared.errors import Refused
from shared.messaging.messages import DatasetStaged, StageFailed, StagingDue
from shared.messaging.topology import FETCHER
from tests.support.gateway_world import API_KEY, REPORT, World, eventually, world
from tests.support.servers.web import Answer, Page, Web

ROOT = "/v1/everydream-v1"
JSON = {"Content-Type": "application/json"}
CHECK, JOB = "0a6b2f3c-6f0e-4b0e-9d53-0c1f6b1f7c11", "7b1c2f3c-6f0e-4b0e-9d53-0c1f6b1f7c22"
URL = "https://example.com/photos.zip"
SKIPPED = {"skipped": [{"file": "b.jpg", "reason": "broken"}], "skipped_count": 1}


class Said:
    """What a person is told."""

    def __init__(self) -> None:
        self._file = io.StringIO()
        self.display = Display(Console(file=self._file))

    @property
    def lines(self) -> list[str]:
        return self._file.getvalue().splitlines()


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Said:
    monkeypatch.setattr(following, "POLL_SECONDS", 0.05)
    return Said()


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path / "home") as one:
        yield one


@pytest.fixture
def photos(tmp_path: Path) -> str:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "ted_1.png").write_bytes(b"a picture")
    return str(tmp_path / "photos")


def submitting(gateway: Access, spec: JobSpec, said: Said) -> asyncio.Task[str]:
    announcer = Announcer(said.display)
    return asyncio.create_task(check_and_submit(gateway, spec, said.display, announcer))


def at(here: World) -> Access:
    return Access(here.url(""), API_KEY, " --url there")


async def due(here: World) -> StagingDue:
    message = await here.get(FETCHER)
    assert isinstance(message, StagingDue)
    assert message.train
    return message


async def staged(here: World, check: StagingDue) -> None:
    """What a fetcher says of the pictures; it keeps them."""
    assert check.train
    fetcher = await here.claim(check.job, "staging")
    page = [
        TrainedPicture(file=f"{number}.jpg", caption="ted", source="name", bucket="1x1")
        for number in "1234"
    ]
    await here.store.put(f"jobs/{check.job}/pictures/{page_name(1)}", msgspec.json.encode(page))
    await fetcher.publish(
        DatasetStaged, train=check.train, dataset=f"jobs/{check.job}/dataset", base_model="base/",
        pictures=f"jobs/{check.job}/pictures", dataset_bytes=5, report={**REPORT, **SKIPPED},
    )  # fmt: skip


async def test_a_folder_is_checked_shown_and_trained_on_as_it_was_checked(
    here: World, photos: str, said: Said, tmp_path: Path
) -> None:
    hook = "https://example.com/hook"
    (tmp_path / "job.json").write_text(
        json.dumps(
            {
                "input": {"train": {}},
                "webhook": hook,
                "webhook_events_filter": ["completed"],
            }
        )
    )
    spec = JobSpec(photos, config=tmp_path / "job.json", drawing=Drawing(("one",)))

    submitted = submitting(at(here), spec, said)
    check = await due(here)
    assert not submitted.done()
    assert "warnings" not in (await here.status(check.job))["output"]
    await staged(here, check)
    job = await submitted
    training = await due(here)

    assert training.job == job
    assert training.train
    key = training.train.data_url.removeprefix("store:")
    trained_on = msgspec.json.decode(await here.store.get(key), type=EditedDataset)
    assert trained_on.dataset == f"jobs/{check.job}/dataset"
    assert [entry.prompt for entry in training.inference] == ["one"]
    assert await webhooks(here) == {check.job: None, job: hook}
    passing = ("packing", "uploading", "connecting", "preparing", "waiting")
    assert [line for line in said.lines if not line.startswith(passing)] == [
        f"check {check.job}",
        "4 pictures used; 1 left out:",
        "  left out: b.jpg: broken",
        "captions: 4 from file names",
        f"job {job}",
    ]


async def webhooks(here: World) -> dict[str, str | None]:
    """By job: whom its end is told to."""
    listed = (await here.ask("GET", f"{ROOT}/jobs")).body["jobs"]
    records = {each["id"]: await here.stores.jobs.get(each["id"]) for each in listed}
    return {job: read(row).webhook for job, row in records.items() if row}


async def test_the_report_is_not_shown_again_when_the_job_is_followed(
    here: World, photos: str, said: Said, tmp_path: Path
) -> None:
    announcer = Announcer(said.display)
    submitted = asyncio.create_task(
        check_and_submit(at(here), JobSpec(photos), said.display, announcer)
    )
    await staged(here, await due(here))
    job = await submitted
    followed = asyncio.create_task(
        following.follow(at(here), job, tmp_path / "results", said.display, announcer)
    )
    await staged(here, await due(here))
    await here.claim(job, "training", gpu="card")
    await eventually(lambda: noted(said, "training: waiting for a worker"))
    assert (await here.status(job))["output"]["dataset"]["images"] == 4
    await here.ask("POST", f"{ROOT}/cancel/{job}")

    ended = await followed

    assert ended.status["status"] == "CANCELLED"
    assert said.lines.count("4 pictures used; 1 left out:") == 1


async def test_what_cannot_be_trained_on_is_said_and_is_no_job(
    here: World, photos: str, said: Said
) -> None:
    submitted = submitting(at(here), JobSpec(photos), said)
    fetcher = await here.claim((await due(here)).job, "staging")
    await fetcher.publish(StageFailed, kind="refused", reason="no usable image")

    with pytest.raises(Refused) as refused:
        await submitted

    assert str(refused.value) == (
        "nothing is trained, because the check is FAILED: no usable image"
    )
    assert len((await here.ask("GET", f"{ROOT}/jobs")).body["jobs"]) == 1


async def test_a_check_is_trained_on_without_another_with_the_captions_of_now(
    here: World, photos: str, said: Said
) -> None:
    checked = asyncio.create_task(check_dataset(at(here), JobSpec(photos), said.display))
    check = await due(here)
    await staged(here, check)
    assert (await checked)["status"] == "COMPLETED"
    edit = {"pictures": [{"number": 1, "caption": "a red cat"}]}
    changed = await here.ask("PATCH", f"{ROOT}/jobs/{check.job}/dataset", json=edit)
    assert changed.status == 200

    job = await submitting(at(here), JobSpec(check.job), said)
    training = await due(here)

    assert training.job == job
    assert training.train
    key = training.train.data_url.removeprefix("store:")
    trained_on = msgspec.json.decode(await here.store.get(key), type=EditedDataset)
    assert trained_on.edits[1].caption == "a red cat"


async def test_a_key_that_may_only_read_is_refused_before_anything_is_packed(
    here: World, photos: str, said: Said
) -> None:
    reader = StoredKey(digest=digest_of("k"), name="k", scopes=("read",), created_at=here.clock())
    await here.stores.keys.add(reader)
    access = at(here)._replace(key="k")
    spec = JobSpec(photos)

    for begun in (
        submitting(access, spec, said),
        submit(access, spec, said.display),
        check_dataset(access, spec, said.display),
    ):
        with pytest.raises(Refused, match="it has no scope submit, only read; give another by"):
            await begun

    assert said.lines == []
    assert (await here.stores.uploads.usage(reader.digest)).uploads == 0


async def test_ctrl_c_leaves_a_check_going_and_says_how_to_go_on(
    here: World, photos: str, said: Said
) -> None:
    drawing = Drawing(("ted's hat", "--ted"), count=2)
    spec = JobSpec(photos, preset="person", changes=("max_epochs=3",), drawing=drawing)
    submitted = asyncio.create_task(
        check_and_submit(at(here), spec, said.display, Announcer(said.display), Path("my results"))
    )
    check = (await due(here)).job
    await eventually(lambda: noted(said, "waiting in line"))

    submitted.cancel()
    with pytest.raises(asyncio.CancelledError):
        await submitted

    assert said.lines[-5:] == [
        "The check goes on; nothing is trained.",
        f"  watch it again:  everydream follow {check} --url there",
        f"  show its report:  everydream show {check} --url there",
        f"  train on its pictures, once it is COMPLETED:  {asked_again(spec, check)}",
        f"  end it:  everydream cancel {check} --url there",
    ]
    assert (await here.status(check))["status"] in ("IN_QUEUE", "IN_PROGRESS")


def asked_again(spec: JobSpec, check: str) -> str:
    """The command that asks for the same; what it says is read back."""
    command = (
        f"everydream run {check} --preset person --set max_epochs=3"
        """ '--prompt=ted'"'"'s hat' --prompt=--ted --count=2 --output 'my results' --url there"""
    )
    called, bound, _ = app.parse_args(shlex.split(command)[1:], exit_on_error=False)
    given = bound.arguments
    assert called.__name__ == "run"
    assert (given["drawing"], given["set"]) == (spec.drawing, spec.changes)
    assert (given["preset"], given["output"]) == (spec.preset, Path("my results"))
    return command


async def noted(said: Said, beginning: str) -> bool | None:
    return any(line.startswith(beginning) for line in said.lines) or None


def known(web: Web, health: int = 200) -> Access:
    """A gateway with fixed answers."""
    body: dict[str, Any] = {"workers": {}} if health == 200 else {"error": "no"}
    page = Page(json.dumps(body).encode(), status=health, headers=JSON)
    web.serve(f"{ROOT}/health", page)
    return Access(web.url("").rstrip("/"), "k")


def answers(web: Web, operation: str, *bodies: tuple[int, Any]) -> None:
    web.answer(
        *(Answer(status, JSON, json.dumps(body).encode()) for status, body in bodies),
        path=f"{ROOT}{operation}",
    )


def posts(web: Web) -> list[tuple[str, Any]]:
    sent = [(each.path.removeprefix(ROOT), json.loads(each.body)) for each in web.posts]
    return [(path, body["input"].get("train", {}).get("data_url")) for path, body in sent]


async def test_a_key_that_may_not_look_submits_at_once_and_it_is_said(web: Web, said: Said) -> None:
    gateway = known(web, health=403)
    answers(web, "/run", (200, {"id": JOB}))

    assert await submitting(gateway, JobSpec(URL), said) == JOB

    assert posts(web) == [("/run", URL)]
    assert said.lines == [
        "the pictures are not checked first: this key may not look at jobs", f"job {JOB}",
    ]  # fmt: skip


@pytest.mark.parametrize("status", [403, 404, 405])
async def test_where_there_are_no_checks_the_job_is_submitted_at_once_and_it_is_said(
    web: Web, said: Said, status: int
) -> None:
    gateway = known(web)
    answers(web, "/dataset/check", (status, {"error": "there is no such path"}))
    answers(web, "/run", (200, {"id": JOB}))

    assert await submitting(gateway, JobSpec(URL), said) == JOB

    assert posts(web) == [("/dataset/check", URL), ("/run", URL)]
    assert said.lines == [
        "the pictures are not checked first: this key or server makes no checks", f"job {JOB}",
    ]  # fmt: skip


def completed_check(web: Web) -> None:
    answers(web, "/dataset/check", (200, {"id": CHECK}))
    status = {"id": CHECK, "status": "COMPLETED", "output": {"dataset": REPORT}}
    web.serve(f"{ROOT}/status/{CHECK}", Page(json.dumps(status).encode(), headers=JSON))


async def test_a_server_that_keeps_no_checks_gets_the_data_as_they_were_and_it_is_said(
    web: Web, said: Said
) -> None:
    gateway = known(web)
    completed_check(web)
    mistake = "input.train.data_url: expected the id of a job of yours that has a model"
    refusal = {"error": mistake, "mistakes": [mistake]}
    answers(web, "/run", (400, refusal), (200, {"id": JOB}))

    assert await submitting(gateway, JobSpec(URL), said) == JOB

    assert posts(web) == [("/dataset/check", URL), ("/run", CHECK), ("/run", URL)]
    assert said.lines[-2:] == [
        "the check is not trained on but its data, again: this server keeps no checks",
        f"job {JOB}",
    ]


async def test_another_refusal_after_the_check_is_the_end(web: Web, said: Said) -> None:
    gateway = known(web)
    completed_check(web)
    mistakes = ["webhook: expected another", "input.train.data_url: expected another"]
    answers(web, "/run", (400, {"error": "; ".join(mistakes), "mistakes": mistakes}))

    with pytest.raises(Refused, match="webhook: expected another"):
        await submitting(gateway, JobSpec(URL), said)

    assert posts(web) == [("/dataset/check", URL), ("/run", CHECK)]


async def test_what_brings_no_new_pictures_is_submitted_at_once(
    web: Web, said: Said, tmp_path: Path
) -> None:
    gateway = known(web)
    checked_with(web)
    (tmp_path / "job.json").write_text(json.dumps({"data_url": CHECK}))
    answers(web, "/run", *[(200, {"id": JOB})] * 3)

    for spec in (
        JobSpec(model="org/name", drawing=Drawing(("one",))),
        JobSpec(config=tmp_path / "job.json"),
        JobSpec(CHECK),
    ):
        assert await submitting(gateway, spec, said) == JOB

    assert posts(web) == [("/run", None), ("/run", CHECK), ("/run", CHECK)]
    assert said.lines == [f"job {JOB}"] * 3


def checked_with(web: Web, **options: Any) -> None:
    """The status of a check that was asked for with these options."""
    check = {"id": CHECK, "status": "COMPLETED", "input": {"train": {"data_url": URL, **options}}}
    web.serve(f"{ROOT}/status/{CHECK}", Page(json.dumps(check).encode(), headers=JSON))


async def test_a_job_on_a_check_has_the_checks_options_unless_others_are_given(
    web: Web, said: Said
) -> None:
    gateway = known(web)
    checked_with(web, lr=1e-6, flip_p=0.5, clip_skip=1)
    answers(web, "/run", (200, {"id": JOB}))

    await submitting(gateway, JobSpec(CHECK, preset="person", changes=["lr=2e-6"]), said)

    train = json.loads(web.posts[-1].body)["input"]["train"]
    assert (train["data_url"], train["clip_skip"], train["lr"]) == (CHECK, 1, 2e-6)
    assert train["flip_p"] == fields_of("person")["flip_p"]
    told = " ".join(said.lines)
    assert "as the check, unless said otherwise here: lr 1e-06, flip_p 0.5, clip_skip 1" in told


async def test_what_a_check_does_not_use_is_named(web: Web, said: Said, tmp_path: Path) -> None:
    gateway = known(web)
    completed_check(web)
    config = {"input": {"train": {}, "inference": {"prompt": "ted"}}, "webhook": "https://x.org/h"}
    (tmp_path / "job.json").write_text(json.dumps(config))

    await check_dataset(gateway, JobSpec(URL, config=tmp_path / "job.json"), said.display)

    assert "not used by a check: inference" in said.lines
    sent = json.loads(web.posts[-1].body)
    assert sent["webhook"] == "https://x.org/h", "which is called for a check, too"


async def test_whoever_interrupts_a_submission_learns_that_it_may_have_been_taken(
    web: Web, said: Said
) -> None:
    gateway = known(web)
    web.answer(Answer(None), path=f"{ROOT}/run")
    task = submitting(gateway, JobSpec(model="org/name", drawing=Drawing(("one",))), said)
    await eventually(lambda: is_posted(web))

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert said.lines == ["It may have been submitted already; this shows it:  everydream jobs"]


async def is_posted(web: Web) -> bool | None:
    return bool(web.posts) or None


async def test_a_budget_that_waiting_does_not_free_is_told_at_once(web: Web, said: Said) -> None:
    gateway = known(web)
    budget = {"name": "kept_jobs", "used": 5, "allowed": 5}
    answers(web, "/run", (429, {"error": "budget kept_jobs: 5 of 5 are used", "budget": budget}))

    with pytest.raises(Refused, match="budget kept_jobs: 5 of 5 are used"):
        await submitting(gateway, JobSpec(model="org/name", drawing=Drawing(("one",))), said)

    assert len(web.posts) == 1


async def test_uploads_are_listed_and_deleted(
    here: World, photos: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with client_of(at(here)) as client:
        whole = await upload(client, Path(photos) / "ted_1.png", lambda _bytes: None)
        begun = await client.begin_upload(2000, "e" * 64)
    at_it: dict[str, Any] = {"url": here.url(""), "key": API_KEY}

    await asyncio.to_thread(uploads.list_, **at_it)
    listed = capsys.readouterr().out
    await asyncio.to_thread(uploads.list_, **at_it, limit=1)
    *_, more = capsys.readouterr().out.splitlines()
    await asyncio.to_thread(uploads.delete, begun, **at_it, yes=True)
    assert capsys.readouterr().out == f"{begun} is deleted\n"
    await asyncio.to_thread(uploads.list_, **at_it, json=True)
    (left,) = json.loads(capsys.readouterr().out)["uploads"]

    assert "9 bytes" in listed
    assert "complete" in listed
    assert "2.0 kB" in listed
    assert "0 bytes have arrived" in listed
    assert more.startswith("more:  everydream uploads --cursor ")
    assert left["data_url"] == whole
