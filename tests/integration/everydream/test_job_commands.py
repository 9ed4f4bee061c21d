"""Commands for jobs that were submitted, against a server with fixed answers."""

from __future__ import annotations

import asyncio
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from everydream.commands import editing, jobs, training
from everydream.image_options import Drawing
from shared.dataset.manifest import Captions, Report, TrainedPicture
from shared.errors import EveryDreamError
from tests.support.servers.web import Answer, Page, Web

KEY = " --key KEY"
"""In a command that is named next: the place of a key that was given."""
ROOT = "/v1/everydream-v1"
JSON = {"Content-Type": "application/json"}


def answers(web: Web, operation: str, **body: Any) -> None:
    web.answer(Answer(200, JSON, json.dumps(body).encode()), path=f"{ROOT}{operation}")


def shows(web: Web, operation: str, **body: Any) -> None:
    web.serve(f"{ROOT}{operation}", Page(json.dumps(body).encode(), headers=JSON))


async def test_a_key_that_may_only_submit_sees_what_its_cancel_has_done(
    web: Web, capsys: pytest.CaptureFixture[str]
) -> None:
    answers(web, "/cancel/7b1c", id="7b1c", status="CANCELLED")
    web.serve(f"{ROOT}/status/7b1c", Page(b'{"error": "no"}', status=403, headers=JSON))

    await asyncio.to_thread(jobs.cancel, "7b1c", yes=True, url=web.url(), key="k")

    assert capsys.readouterr().out == "CANCELLED\n"


async def test_a_job_that_has_ended_otherwise_is_said_to_be_too_late_to_cancel(
    web: Web, capsys: pytest.CaptureFixture[str]
) -> None:
    answers(web, "/cancel/7b1c", id="7b1c", status="COMPLETED")

    await asyncio.to_thread(jobs.cancel, "7b1c", yes=True, url=web.url(), key="k")

    assert capsys.readouterr().out == "7b1c has ended as COMPLETED: nothing to cancel\n"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who answers every question with no."""
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)


@pytest.mark.usefixtures("terminal")
async def test_the_cancel_of_a_job_that_has_ended_asks_nothing(
    web: Web, capsys: pytest.CaptureFixture[str]
) -> None:
    shows(web, "/status/7b1c", id="7b1c", status="FAILED", input={}, output={})

    await asyncio.to_thread(jobs.cancel, "7b1c", url=web.url(), key="k")

    assert capsys.readouterr() == ("7b1c has ended as FAILED: nothing to cancel\n", "")


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("may_look", [True, False])
async def test_the_cancel_of_a_job_that_goes_on_asks_first(
    web: Web, capsys: pytest.CaptureFixture[str], *, may_look: bool
) -> None:
    shows(web, "/status/7b1c", id="7b1c", status="IN_PROGRESS", input={}, output={})
    if not may_look:
        web.serve(f"{ROOT}/status/7b1c", Page(b'{"error": "no"}', status=403, headers=JSON))

    with pytest.raises(SystemExit, match="nothing was changed"):
        await asyncio.to_thread(jobs.cancel, "7b1c", url=web.url(), key="k")

    assert "Cancel job 7b1c, and throw away" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("checkpoint", "path", "said"),
    [
        (None, "/jobs/7b1c", "7b1c is deleted\n"),
        (40, "/jobs/7b1c/checkpoints/40", "the checkpoint at step 40 of job 7b1c is deleted\n"),
    ],
)
async def test_a_job_is_deleted_whole_or_one_of_its_checkpoints(
    web: Web, capsys: pytest.CaptureFixture[str], checkpoint: int | None, path: str, said: str
) -> None:
    shows(web, path, id="7b1c", deleted=True)

    await asyncio.to_thread(
        jobs.delete, "7b1c", checkpoint=checkpoint, yes=True, url=web.url(), key="k"
    )

    assert capsys.readouterr().out == said
    assert [(each.method, each.path) for each in web.seen] == [("DELETE", f"{ROOT}{path}")]


@pytest.mark.parametrize(("status", "code"), [("FAILED", 1), ("IN_QUEUE", 1), ("COMPLETED", 0)])
async def test_fetching_a_job_that_is_not_completed_is_no_success(
    web: Web, capsys: pytest.CaptureFixture[str], tmp_path: Path, status: str, code: int
) -> None:
    asked = {"train": {"data_url": "https://example.com/photos.zip"}}
    shows(web, "/status/7b1c", id="7b1c", status=status, input=asked, output={})

    ended = await asyncio.to_thread(
        training.fetch, "7b1c", output=tmp_path / "there", url=web.url(), key="k"
    )

    assert ended == code
    assert ("not there" in capsys.readouterr().err) is bool(code)


@pytest.mark.parametrize("as_json", [True, False])
async def test_a_job_that_is_not_waited_for_is_named_once(
    web: Web, capsys: pytest.CaptureFixture[str], *, as_json: bool
) -> None:
    shows(web, "/health", workers={})
    answers(web, "/run", id="7b1c", status="IN_QUEUE")

    await asyncio.to_thread(
        training.draw, "org/name", drawing=Drawing(("one",)), no_wait=True, json=as_json,
        url=web.url(), key="k",
    )  # fmt: skip

    said = capsys.readouterr()
    assert (said.out + said.err).count("7b1c") == 1


async def test_what_is_said_to_be_next_reaches_the_same_server(
    web: Web, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(web, "/retry/7b1c", id="7b1c", status="IN_QUEUE")
    at = web.url().rstrip("/")

    await asyncio.to_thread(jobs.retry, "7b1c", url=at, key="k")
    assert (
        capsys.readouterr().out == f"IN_QUEUE; watch it:  everydream follow 7b1c --url {at}{KEY}\n"
    )

    monkeypatch.setenv("EVERYDREAM_URL", at)
    monkeypatch.setenv("EVERYDREAM_API_KEY", "k")
    answers(web, "/retry/7b1c", id="7b1c", status="IN_QUEUE")
    await asyncio.to_thread(jobs.retry, "7b1c", url=at, key="k")
    assert capsys.readouterr().out == "IN_QUEUE; watch it:  everydream follow 7b1c\n"


async def test_the_next_page_of_a_list_has_the_same_jobs_and_as_many(
    web: Web, capsys: pytest.CaptureFixture[str]
) -> None:
    job = {
        "id": "7b1c", "status": "FAILED", "created_at": "2026-01-02T12:04:05.678Z",
        "started_at": None, "delayTime": 0, "executionTime": 0,
    }  # fmt: skip
    shows(web, "/jobs", jobs=[job], next="abc")
    at = web.url().rstrip("/")

    await asyncio.to_thread(jobs.jobs, status=("FAILED", "TIMED_OUT"), limit=5, url=at, key="k")

    more = capsys.readouterr().out.splitlines()[-1]
    flags = f"--cursor abc --status FAILED --status TIMED_OUT --limit 5 --url {at}{KEY}"
    assert more == f"more:  everydream jobs {flags}"


async def test_a_sample_of_a_job_that_does_not_train_is_refused_with_what_works_instead(
    web: Web, capsys: pytest.CaptureFixture[str]
) -> None:
    refusal = {"error": "the job has ended: it is COMPLETED"}
    web.answer(Answer(409, JSON, json.dumps(refusal).encode()), path=f"{ROOT}/jobs/7b1c/sample")
    status = {
        "id": "7b1c", "status": "COMPLETED", "input": {"train": {"data_url": "x"}},
        "output": {"train": {"checkpoint_url": "https://x"}},
    }  # fmt: skip
    web.serve(f"{ROOT}/status/7b1c", Page(json.dumps(status).encode(), headers=JSON))
    at = web.url().rstrip("/")

    with pytest.raises(SystemExit) as end:
        await asyncio.to_thread(jobs.sample, "7b1c", url=at, key="k")

    assert end.value.code == 1
    assert capsys.readouterr().err == (
        f"everydream: {at} says:\n  - the job has ended: it is COMPLETED\n"
        f'  - draw with its model instead:  everydream draw 7b1c --prompt "..." --url {at}{KEY}\n'
    )


async def test_a_key_that_may_not_look_is_told_why_there_is_no_sample(
    web: Web, capsys: pytest.CaptureFixture[str]
) -> None:
    web.answer(
        Answer(409, JSON, b'{"error": "the training has ended"}'), path=f"{ROOT}/jobs/7b1c/sample"
    )
    web.serve(f"{ROOT}/status/7b1c", Page(b'{"error": "no"}', status=403, headers=JSON))

    with pytest.raises(SystemExit):
        await asyncio.to_thread(jobs.sample, "7b1c", url=web.url(), key="k")

    assert capsys.readouterr().err.endswith("says:\n  - the training has ended\n")


PICTURES = [
    {"number": 1, "file": "a=b.jpg"}, {"number": 2, "file": "x/ted.jpg"},
    {"number": 3, "file": "y/ted.jpg"}, {"number": 4, "file": "y/sue.jpg"},
]  # fmt: skip


@pytest.mark.parametrize(
    ("captions", "left_out", "expected"),
    [
        (["a=b.jpg=ted, c=d"], [], [{"number": 1, "caption": "ted, c=d"}]),
        (["sue.jpg="], ["y/ted.jpg"], [{"number": 4, "caption": ""}, {"number": 3, "use": False}]),
        (["4="], ["4"], [{"number": 4, "caption": "", "use": False}]),
    ],
)
def test_pictures_are_changed_by_name_or_number(
    captions: list[str], left_out: list[str], expected: list[dict[str, Any]]
) -> None:
    assert editing.changes(captions, left_out, [], PICTURES) == expected


@pytest.mark.parametrize(
    ("captions", "reason"),
    [
        ([], "nothing is to be changed: give --caption"),
        (["sue.jpg"], "--caption sue.jpg: expected NAME=TEXT"),
    ],
)
def test_a_change_of_nothing_is_refused_before_any_picture_is_looked_for(
    captions: list[str], reason: str
) -> None:
    with pytest.raises(EveryDreamError, match="^" + re.escape(reason)):
        editing.expect_changes(captions, [])


def test_one_picture_is_not_given_two_captions_by_two_names() -> None:
    with pytest.raises(
        EveryDreamError, match=r"--caption: y/sue\.jpg is given twice, as 'b' and as 'c'"
    ):
        editing.changes(["4=b", "sue.jpg=c"], [], [], PICTURES)
    assert editing.changes(["4=b", "sue.jpg=b"], [], [], PICTURES) == [
        {"number": 4, "caption": "b"}
    ]


def test_a_picture_that_is_left_out_gets_no_caption() -> None:
    with pytest.raises(EveryDreamError, match=r"--leave-out sue\.jpg: the same command gives"):
        editing.changes(["4=sue"], ["sue.jpg"], [], PICTURES)


def test_a_picture_is_restored_with_the_caption_that_was_found() -> None:
    found = editing.changes(["4=b"], [], ["1", "a=b.jpg"], PICTURES)

    assert found == [
        {"number": 4, "caption": "b"},
        {"number": 1, "caption": None, "use": True},
    ]
    for captions, left_out in ((["sue.jpg=b"], []), ([], ["sue.jpg"])):
        with pytest.raises(EveryDreamError, match="--restore 4: the same command changes"):
            editing.changes(captions, left_out, ["4"], PICTURES)


async def test_where_results_go_is_not_said_for_a_job_that_is_not_waited_for(
    web: Web, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as end:
        await asyncio.to_thread(
            training.draw, "org/name", drawing=Drawing(("one",)), no_wait=True, output=tmp_path,
            url=web.url(), key="k",
        )  # fmt: skip

    assert end.value.code == 2
    assert "--output: with --no-wait nothing is fetched" in capsys.readouterr().err
    assert web.posts == []


@pytest.mark.parametrize(
    ("captions", "left_out", "reason"),
    [
        (
            ["seu.jpg=x"],
            [],
            "seu.jpg: no picture of the check has this name; did you mean sue.jpg?",
        ),
        ([], ["ted.jpg"], "ted.jpg: several pictures have this name: x/ted.jpg, y/ted.jpg"),
        ([], ["9"], "9: no picture of the check has this name; everydream show lists them"),
    ],
)
def test_a_change_that_names_no_picture_is_refused(
    captions: list[str], left_out: list[str], reason: str
) -> None:
    with pytest.raises(EveryDreamError, match="^" + re.escape(reason)):
        editing.changes(captions, left_out, [], PICTURES)


async def test_an_edited_check_is_shown_as_it_will_be_trained(
    web: Web, capsys: pytest.CaptureFixture[str]
) -> None:
    page = {"page": 1, "pages": 1, "pictures": PICTURES}
    web.serve(f"{ROOT}/jobs/7b1c/dataset", Page(json.dumps(page).encode(), headers=JSON))
    answers(web, "/jobs/7b1c/dataset", **page)
    report = Report(
        images=3,
        captions=Captions(from_names=2, edited=1),
        pictures=[
            TrainedPicture(number=4, file="y/sue.jpg", caption="sue", source="edit", bucket="1x1")
        ],
    ).plain()
    status = {"id": "7b1c", "status": "COMPLETED", "input": {}, "output": {"dataset": report}}
    web.serve(f"{ROOT}/status/7b1c", Page(json.dumps(status).encode(), headers=JSON))

    await asyncio.to_thread(
        editing.edit, "7b1c", caption=("sue.jpg=sue",), leave_out=("1",), url=web.url(), key="k"
    )

    shown = capsys.readouterr().out.splitlines()
    assert "captions: 2 from file names, 1 edited" in shown
    assert "   4  y/sue.jpg: sue" in shown
    assert any("everydream run 7b1c" in line for line in shown)
