"""What is said of a job for good."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from rich.console import Console

from everydream.job_spec import JobSpec
from everydream.terminal.report import (
    PASSED_OVER,
    dataset_lines,
    files_lines,
    instead_of_a_sample,
    into_flag,
    missing_samples,
    next_steps,
    outcome_lines,
    picture_lines,
    while_it_runs,
)
from everydream.terminal.tables import print_jobs, print_report, print_status
from shared.dataset.manifest import Captions, Duplicate, Estimate, Report, Skipped

REPORT = Report(
    images=38,
    held_out=2,
    captions=Captions(from_names=30, from_files=10, missing=1),
    missing_captions=["_1.jpg"],
    skipped=[Skipped(file="IMG_1.heic", reason="not a picture that is read")],
    skipped_count=3,
    undersized=["small.png"],
    undersized_count=1,
    duplicates=[Duplicate(file="b.png", same_as="a.png")],
    duplicates_count=1,
    steps=100,
    estimate=Estimate(
        minutes=72.0, rate="measured: fast", bytes=4 * 10**9, checkpoints=0, checkpoint_bytes=0,
        model_bytes=0, resume_point_bytes=0,
    ),
    warnings=["multiply.txt: expected a number"],
)  # fmt: skip


def test_each_picture_that_is_left_out_is_said_with_its_reason() -> None:
    assert list(dataset_lines(REPORT.plain())) == [
        "38 pictures used, 2 more held out to measure the loss; 3 left out:",
        "  left out: IMG_1.heic: not a picture that is read",
        "  left out: 2 more",
        "captions: 30 from file names, 10 from text files",
        "without a caption: _1.jpg",
        "smaller than trained at, enlarged: small.png",
        "the same picture twice: b.png = a.png",
        "100 steps, about 1 h 12 min of training (measured: fast), up to 4.0 GB stored",
        "warning: multiply.txt: expected a number",
    ]


def test_minutes_that_are_not_known_are_not_said() -> None:
    assert REPORT.estimate
    estimate = replace(REPORT.estimate, minutes=None, rate="not known yet: no trainer")
    assert "100 steps of training (not known yet: no trainer), up to 4.0 GB stored" in (
        dataset_lines(replace(REPORT, estimate=estimate).plain())
    )


def test_a_report_without_trouble_is_short() -> None:
    plain = Report(images=1, captions=Captions(from_names=1)).plain()
    assert list(dataset_lines(plain)) == [
        "1 picture used; none left out", "captions: 1 from file names",
    ]  # fmt: skip


def test_a_caption_of_too_many_tokens_is_not_called_cut_like_one_of_too_many_characters() -> None:
    captions = Captions(from_files=2, over_long=1)
    report = Report(images=2, captions=captions, over_long_captions=["a.jpg"])

    assert [*dataset_lines(report.plain())][-1] == (
        "a caption of more than 75 tokens, whose rest has no effect: a.jpg"
    )


def test_captions_that_were_changed_after_the_check_are_counted() -> None:
    report = Report(images=15, captions=Captions(from_files=12, edited=3))
    assert "captions: 12 from text files, 3 edited" in dataset_lines(report.plain())


def checked(status: str = "COMPLETED", report: dict[str, Any] | None = None) -> dict[str, Any]:
    output = {"dataset": REPORT.plain() if report is None else report}
    return {"id": "7b1c", "status": status, "input": {}, "output": output}


EDIT = (
    "change captions, or leave pictures out:  everydream edit 7b1c --caption 'NAME=TEXT'"
    " --leave-out NAME"
)


def test_a_check_can_be_trained_on_next_if_it_is_completed() -> None:
    assert list(next_steps(checked(), " --url http://x")) == [
        f"{EDIT} --url http://x",
        "train on exactly these pictures, for a day:  everydream run 7b1c --url http://x",
    ]
    assert list(next_steps(checked("CANCELLED", {}), "")) == []


def test_warnings_of_a_check_s_request_are_said_once_beside_those_of_its_report() -> None:
    status = checked()
    status["output"]["warnings"] = [*REPORT.warnings, "lr_warmup_steps has no effect"]

    for show in (print_report, lambda console, status: print_status(console, status, "")):
        file = io.StringIO()
        show(Console(file=file, width=100), status)
        lines = file.getvalue().splitlines()
        assert lines.count("warning: lr_warmup_steps has no effect") == 1
        assert lines.count("warning: multiply.txt: expected a number") == 1


def test_a_check_is_shown_with_its_report_and_what_is_next() -> None:
    file = io.StringIO()
    print_status(Console(file=file, width=100), checked(), "")

    first, *lines = file.getvalue().splitlines()
    assert (first, lines[0]) == ("job 7b1c", "COMPLETED")
    assert lines[1] == "38 pictures used, 2 more held out to measure the loss; 3 left out:"
    assert lines[-2:] == [
        EDIT, "train on exactly these pictures, for a day:  everydream run 7b1c"
    ]  # fmt: skip


def test_pictures_are_shown_with_the_numbers_by_which_they_are_changed() -> None:
    told = {"file": "a/1.jpg", "caption": "IMG", "source": "name", "bucket": "1x1", "remarks": []}
    report = {
        **REPORT.plain(),
        "pictures": [
            {**told, "number": 12, "remarks": ["odd", "small"], "multiply": 2.5},
            {**told, "caption": "", "multiply": 1.0},
        ],
    }  # fmt: skip
    assert list(picture_lines(report)) == [
        "  12  a/1.jpg: IMG", "        multiply 2.5: trained on 2.5 times per epoch",
        "        odd", "        small", "      a/1.jpg: (no caption)", "and 38 more",
    ]  # fmt: skip


def test_a_running_job_is_shown_with_each_warning_once() -> None:
    file = io.StringIO()
    report = REPORT.plain()
    output = {
        "stage": "training", "dataset": report, "warnings": [*report["warnings"], "another"],
    }  # fmt: skip
    print_status(Console(file=file, width=100), ended("IN_PROGRESS", output=output), "")

    warnings = [line for line in file.getvalue().splitlines() if line.startswith("warning")]
    assert warnings == ["warning: multiply.txt: expected a number", "warning: another"]


def test_a_job_that_has_ended_is_shown_with_commands_that_reach_its_server() -> None:
    file = io.StringIO()
    status = ended()
    status["output"]["artifacts"] = [{"kind": "image"}]
    print_status(Console(file=file, width=100), status, " --url http://x")

    assert file.getvalue().splitlines()[-2:] == [
        "files:  everydream fetch 7b1c --url http://x",
        'draw more with it:  everydream draw 7b1c --prompt "..." --url http://x',
    ]


def ended(status: str = "COMPLETED", **more: Any) -> dict[str, Any]:
    train = {
        "steps": 500, "epochs": 10, "images": 1000, "loss": 0.5, "optimizer": "adamw",
        "precision": "fp32", "attention": "sdpa", "checkpoint_url": "https://x",
        "warnings": ["careful"], "samples": [],
    }  # fmt: skip
    body = {
        "id": "7b1c", "status": status, "gpu": "cpu", "delayTime": 1500, "executionTime": 65_000,
        "input": {"train": {"sample_steps": 250}},
        "output": {"train": train, "inference": [], "artifacts": []},
    }  # fmt: skip
    return {**body, **more}


def rows(*steps: int) -> list[dict[str, Any]]:
    return [{"step": step, "prompt": "x"} for step in steps]


def test_the_end_of_a_training_is_said_with_its_warnings_and_without_empty_lists() -> None:
    assert list(outcome_lines(ended())) == [
        "COMPLETED",
        "10 epochs, 500 steps, 1000 pictures seen, last loss 0.5000",
        "adamw, fp32, sdpa on cpu; waited 1 s, ran 1 min",
        "warning: careful",
    ]


def test_images_are_counted_and_one_that_is_not_drawn_has_its_reason() -> None:
    images = [
        {"image": "https://x", "prompt": "one"},
        {"image": None, "prompt": "two", "error": "too large"},
    ]
    drawn = ended(output={"train": None, "inference": images, "artifacts": []})
    assert list(outcome_lines(drawn)) == [
        "COMPLETED", "1 image drawn", "  not drawn: two: too large",
    ]  # fmt: skip


def test_a_failure_is_said_with_its_reason_and_what_to_do() -> None:
    failed = ended("FAILED", error="no usable image", output={})
    assert list(outcome_lines(failed)) == ["FAILED: no usable image"]
    assert list(next_steps(failed, " --url http://x")) == [
        "try again:  everydream retry 7b1c --url http://x"
    ]


def test_a_job_that_was_out_of_time_is_told_which_limit_to_raise(tmp_path: Path) -> None:
    for limit in ("executionTimeout", "ttl"):
        late = ended("TIMED_OUT", error=f"{limit} of 60000 ms has passed", output={})
        more, again = next_steps(late, " --url http://x")
        config = json.loads(more[more.index("{") : more.rindex("}") + 1])
        (tmp_path / "more.json").write_text(json.dumps(config))
        request = JobSpec("http://x/a.zip", config=tmp_path / "more.json").checked()
        assert request["policy"] == {limit: 172_800_000}
        assert again == (
            "go on from where it stopped, for as long again:  everydream retry 7b1c --url http://x"
        )


UPLOADED = {"train": {"data_url": f"http://x/v1/everydream-v1/uploads/{'1' * 8}"}}


@pytest.mark.parametrize(
    ("inputs", "error", "dataset", "expected"),
    [
        (UPLOADED, "the upload: no usable image", {}, "begin anew:  everydream run DATA"),
        (UPLOADED, "staging failed 3 times in a row: away", {}, "everydream retry 7b1c"),
        (UPLOADED, "the loss is not a number", {"images": 3}, "everydream retry 7b1c"),
        ({"train": {"data_url": "http://x/a.zip"}}, "no zip", {}, "everydream retry 7b1c"),
    ],
)
def test_an_upload_that_was_refused_is_mended_and_not_tried_again(
    inputs: dict[str, Any], error: str, dataset: dict[str, Any], expected: str
) -> None:
    output: dict[str, Any] = {"train": None, "inference": [], "artifacts": [], "dataset": dataset}
    (line,) = next_steps(ended("FAILED", input=inputs, error=error, output=output), "")
    assert expected in line

    check = {**checked("FAILED", {}), "input": UPLOADED, "error": "no usable image"}
    assert [*next_steps(check, "")] == ["mend what it says, and begin anew:  everydream check DATA"]


@pytest.mark.parametrize(
    ("status", "output", "expected"),
    [
        (
            "COMPLETED",
            {"train": {"checkpoint_url": "https://x"}},
            'draw 7b1c --prompt "..." --url x',
        ),
        ("IN_PROGRESS", {"stage": "generation"}, 'draw 7b1c --prompt "..." --url x'),
        ("IN_PROGRESS", {"stage": "training"}, "follow 7b1c --url x"),
        ("IN_QUEUE", {"stage": "staging"}, "follow 7b1c --url x"),
        ("FAILED", {"train": {"checkpoint_url": None}}, ""),
    ],
)
def test_what_works_in_place_of_a_sample_is_said(
    status: str, output: dict[str, Any], expected: str
) -> None:
    said = instead_of_a_sample(ended(status, output=output), " --url x")
    assert said.rpartition("everydream ")[2] == expected


def test_a_trained_model_can_be_drawn_with_next() -> None:
    assert list(next_steps(ended(), "")) == [
        'draw more with it:  everydream draw 7b1c --prompt "..."'
    ]


def test_rows_of_samples_that_are_missing_are_said() -> None:
    status = ended()
    train = status["output"]["train"]
    train["samples"] = rows(0, 0, 250, 250, 500, 500)
    assert missing_samples(status) == []
    train["samples"] = rows(0, 0, 500)
    partly = "warning: samples of step 500 (1 of 2) are missing"
    assert missing_samples(status) == [f"no samples of step 250: {PASSED_OVER}", partly]
    train["warnings"] = ["no samples, because two earlier rows were not drawn yet, at steps: 250"]
    assert missing_samples(status) == [partly]
    train["samples"] = rows(0, 0, 250, 250)
    assert missing_samples(status) == ["warning: samples of step 500 are missing"]
    train["samples"] = []
    assert missing_samples(status) == []


def test_a_short_training_that_was_over_before_its_first_row_was_drawn_gives_no_warning() -> None:
    status = ended()
    status["output"]["train"] |= {"samples": rows(3), "steps": 3, "warnings": []}

    assert missing_samples(status) == [f"no samples of step 0: {PASSED_OVER}"]
    assert not any(line.startswith("warning") for line in outcome_lines(status))


def test_where_the_files_are_is_said_by_kind() -> None:
    artifacts = [{"kind": kind} for kind in ("checkpoint", "sample", "sample", "metrics")]
    there = Path("there")
    assert [*files_lines(there, artifacts, ended())] == ["files in there/: 1 checkpoint, 2 samples"]
    told = [*files_lines(there, [*artifacts, {"kind": "report"}], ended())]
    assert told == ["files in there/: 1 checkpoint, 2 samples, report.html"]
    assert [*files_lines(there, [], ended())] == ["files in there/: summary.json alone"]


def test_what_is_not_there_of_a_job_that_is_not_completed_is_said_and_why() -> None:
    asked = {"train": {"data_url": "x"}, "inference": [{"prompt": "one"}]}
    failed = {"id": "7b1c", "status": "FAILED", "input": asked, "output": {"artifacts": []}}
    waiting = {"id": "7b1c", "status": "IN_QUEUE", "input": asked, "output": {}}
    check = {**failed, "output": {"dataset": {}}}

    assert [*files_lines(Path("there"), [], failed)][1:] == [
        "not there: the finished model, the images, because the job is FAILED"
    ]
    assert [*files_lines(Path("there"), [], check)][1:] == [
        "not there: the report, because the job is FAILED"
    ]
    assert [*files_lines(Path("there"), [], waiting)][1:] == [
        "the job has not ended: what it still makes is not there"
    ]
    assert [*next_steps(waiting, "")] == [
        "watch it, and fetch its results at its end:  everydream follow 7b1c"
    ]


JOB_ID = "0a6b2f3c-6f0e-4b0e-9d53-0c1f6b1f7c11"


def listed(status: str, *, started: bool = True, **more: Any) -> dict[str, Any]:
    made = "2026-01-02T12:04:05.678Z"
    return {
        "id": JOB_ID, "kind": "train", "status": status, "created_at": made,
        "started_at": made if started else None, "delayTime": 90_000, "executionTime": 4_320_000,
        **more,
    }  # fmt: skip


def shown(width: int, *jobs: dict[str, Any], is_terminal: bool = True) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=is_terminal)
    print_jobs(console, {"jobs": jobs, "next": None}, "")
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 140])
def test_a_list_of_jobs_fits_the_terminal_and_cuts_nothing(width: int) -> None:
    lines = shown(width, listed("IN_PROGRESS"), listed("COMPLETED", kind="check"))

    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    for word in (
        JOB_ID,
        "IN_PROGRESS",
        "COMPLETED",
        "train",
        "check",
        "runs 1 h 12 min",
        "2026-01-02",
    ):
        assert word in text, word
    assert len(lines) == (3 if width == 140 else 6)


def test_a_list_that_is_no_terminal_s_has_a_line_for_each_job() -> None:
    assert len(shown(60, listed("COMPLETED"), is_terminal=False)) == 2


def test_a_job_that_waits_is_not_said_to_have_run() -> None:
    _, waits = shown(140, listed("IN_QUEUE", started=False, executionTime=0))
    _, cancelled = shown(140, listed("CANCELLED", started=False, executionTime=0))

    assert waits.endswith("waits 1 min")
    assert cancelled.endswith("not at all")


def test_an_older_gateway_s_jobs_have_no_kind() -> None:
    job = listed("COMPLETED")
    del job["kind"]

    assert JOB_ID in shown(140, job)[1]


def test_a_job_that_goes_on_can_be_stopped_without_loss_or_cancelled() -> None:
    assert while_it_runs("7b1c", " --output there", " --url x").splitlines() == [
        "The job goes on.",
        "  watch it again, and fetch its results:  everydream follow 7b1c --output there --url x",
        "  end the training now, and keep what it has learnt:  everydream stop 7b1c --url x",
        "  end it, and throw away what it has learnt:  everydream cancel 7b1c --url x",
    ]


def test_the_folder_of_the_results_is_named_as_the_shell_reads_it() -> None:
    assert into_flag(Path("my results")) == " --output 'my results'"
    assert into_flag(None) == ""
