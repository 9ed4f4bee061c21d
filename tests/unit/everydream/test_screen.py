"""What is shown of a job: a function of its status, the time and the width."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from everydream.terminal.screen import STAGES as STAGES_IN_WORDS
from everydream.terminal.screen import Screen, View, screen_of, transfer_screen
from everydream.terminal.words import clock
from shared.messaging.messages import STAGES

NOW = 1_772_000_000.0
URL = "http://127.0.0.1:8080"
WIDE = 140


def view(status: str, *, queue: Any = None, since: float | None = None, **output: Any) -> View:
    """A job's status a moment ago."""
    body: dict[str, Any] = {"id": "7b1c", "status": status, "output": output}
    body |= {"queue": queue} if queue else {}
    return View(body, NOW, URL, since)


def lines(seen: View, now: float = NOW, width: int = WIDE) -> list[str]:
    return screen_of(seen, now).lines(width)


TRAINING: dict[str, Any] = {
    "stage": "training", "phase": "training", "step": 120, "steps": 1000, "epoch": 11,
    "epochs": 100, "loss": 0.12345, "images_per_second": 3.21, "eta_seconds": 4320,
}  # fmt: skip


def test_a_training_is_shown_in_words_with_one_clock() -> None:
    end = clock(NOW + 4320, NOW)
    assert lines(view("IN_PROGRESS", **TRAINING)) == [
        "training",
        "[##----------------------]  12 %  step 120 of 1000",
        "epoch 12 of 100, loss 0.1235, 3.2 pictures/s",
        f"1 h 12 min left, about {end}",
    ]


def test_as_a_line_of_a_log_it_is_the_same_without_the_bar() -> None:
    end = clock(NOW + 4320, NOW)
    assert screen_of(view("IN_PROGRESS", **TRAINING), NOW).line() == (
        "training: step 120 of 1000, epoch 12 of 100, loss 0.1235, 3.2 pictures/s,"
        f" 1 h 12 min left, about {end}"
    )


def test_the_time_left_goes_on_between_two_answers_and_its_end_stays() -> None:
    later = lines(view("IN_PROGRESS", **TRAINING), NOW + 60)[-1]
    assert later == f"1 h 11 min left, about {clock(NOW + 4320, NOW)}"
    soon = {**TRAINING, "eta_seconds": 5}
    assert lines(view("IN_PROGRESS", **soon), NOW + 10)[-1].startswith("a moment left")


def test_numbers_that_do_not_change_for_long_promise_no_end() -> None:
    assert lines(view("IN_PROGRESS", **TRAINING), NOW + 180)[-1] == "no news for 3 min"


def test_a_job_in_the_queue_waits_in_line_and_does_not_train() -> None:
    start = datetime.fromtimestamp(NOW + 720, UTC).isoformat()
    queue = {"position": 3, "estimated_start": start}
    assert lines(view("IN_QUEUE", stage="training", step=None, queue=queue)) == [
        "waiting in line, number 3",
        f"starts in about 12 min, at {clock(NOW + 720, NOW)}",
    ]
    unknown = {"position": 3, "estimated_start": None}
    assert lines(view("IN_QUEUE", stage="training", queue=unknown)) == ["waiting in line, number 3"]
    assert lines(view("IN_QUEUE", stage="training")) == ["waiting in line"]


def test_a_job_whose_pictures_are_prepared_shows_that_though_it_is_in_the_queue() -> None:
    checking = view("IN_QUEUE", stage="staging", phase="checking images", images=12, of=40)
    assert lines(checking) == [
        "preparing the pictures: checking images",
        "[#######-----------------]  30 %  12 of 40 pictures",
    ]
    arriving = view(
        "IN_QUEUE", stage="staging", phase="pulling the base model", bytes=10**9,
        bytes_total=4 * 10**9, eta_seconds=90,
    )  # fmt: skip
    assert lines(arriving)[0] == "preparing the pictures: pulling the base model"
    assert lines(arriving)[1] == "[######------------------]  25 %  1.0 GB of 4.0 GB"


def test_between_two_stages_a_job_waits_for_a_worker() -> None:
    waiting = view("IN_PROGRESS", stage="generation")
    assert lines(waiting) == ["drawing the images: waiting for a worker"]
    assert lines(view("IN_PROGRESS", stage=None)) == ["waiting for a worker"]


@pytest.mark.parametrize("phase", ["saving a checkpoint", "drawing the last samples"])
def test_a_phase_is_named(phase: str) -> None:
    output = {**TRAINING, "phase": phase}
    assert lines(view("IN_PROGRESS", **output))[0] == f"training: {phase}"
    assert (
        screen_of(view("IN_PROGRESS", **output), NOW)
        .line()
        .startswith(f"training: {phase}, step 120 of 1000")
    )


def test_every_stage_has_words() -> None:
    assert STAGES_IN_WORDS.keys() == {*STAGES}


def test_a_gateway_that_does_not_answer_is_said_after_a_while_in_place_of_the_time_left() -> None:
    silent = view("IN_PROGRESS", since=NOW - 12, **TRAINING)
    assert lines(silent)[-1] == "no answer from 127.0.0.1:8080 for 12 s, trying again"
    assert "left" in lines(view("IN_PROGRESS", since=NOW - 1, **TRAINING))[-1]
    long = "http://a-very-long-name.of-a-machine.example.com:8080"
    shown = screen_of(View(silent.status, NOW, long, NOW - 500), NOW).lines(60)
    assert shown[-1] == "no answer from a-very-long-name... for 8 min, trying again"


RETRY = {"stage": "staging", "number": 2, "tries": 3, "reason": "answers\n500", "next_at": None}


def test_a_stage_that_waits_to_be_tried_again_says_which_try_when_and_why() -> None:
    due = datetime.fromtimestamp(NOW + 30, UTC).isoformat().replace("+00:00", "Z")
    waiting = view(
        "IN_QUEUE", stage="staging", phase="staging it", retries=[{**RETRY, "next_at": due}]
    )
    assert lines(waiting) == [
        "preparing the pictures: waiting for try 2 of 3",
        "the last one failed: answers 500",
        f"next try in 30 s, at {clock(NOW + 30, NOW)}",
    ]


def test_a_stage_that_is_tried_again_says_which_try() -> None:
    trying = view("IN_QUEUE", stage="staging", phase="staging it", retries=[RETRY])
    assert lines(trying) == ["preparing the pictures: staging it, try 2 of 3"]
    elsewhere = view("IN_PROGRESS", stage="training", step=1, retries=[RETRY])
    assert lines(elsewhere)[0] == "training"


def test_before_the_first_answer_it_connects() -> None:
    assert screen_of(View(None, NOW, URL, NOW), NOW).lines(WIDE) == ["connecting"]


def test_a_transfer_shows_bytes_speed_and_time_left() -> None:
    half = transfer_screen("uploading photos", 50_000_000, 100_000_000, 10.0)
    assert half.lines(WIDE) == [
        "uploading photos",
        "[############------------]  50 %  50 MB of 100 MB",
        "5.0 MB/s",
        "10 s left",
    ]
    assert transfer_screen("uploading nothing", 0, 0, 0.0).fraction == 1.0


NUMBERS = st.one_of(st.none(), st.integers(0, 2**60))


@given(
    status=st.sampled_from(["IN_QUEUE", "IN_PROGRESS"]),
    words=st.dictionaries(st.sampled_from(["stage", "phase"]), st.text(max_size=300)),
    numbers=st.dictionaries(
        st.sampled_from(["step", "steps", "epoch", "epochs", "bytes", "bytes_total", "images",
                         "of", "files", "eta_seconds", "loss", "images_per_second"]),
        NUMBERS,
    ),
    since=st.one_of(st.none(), st.floats(NOW - 1e6, NOW)),
    width=st.integers(60, 200),
)  # fmt: skip
def test_whatever_the_status_there_are_at_most_four_lines_that_no_terminal_wraps(
    status: str, words: dict[str, str], numbers: dict[str, int | None], since: float, width: int
) -> None:
    shown = lines(view(status, since=since, **words, **_plausible(numbers)), width=width)

    assert 1 <= len(shown) <= 4
    assert all(cell_len(line) <= min(width, 60) - 2 for line in shown)
    assert all(line.isprintable() for line in shown)


def _plausible(numbers: dict[str, int | None]) -> dict[str, Any]:
    """A time that a clock can show."""
    return {
        name: value and value % 10**9 if name == "eta_seconds" else value
        for name, value in numbers.items()
    }


def test_wide_letters_count_twice() -> None:
    screen = Screen(heading="\u753b" * 40)
    assert cell_len(screen.lines(60)[0]) <= 58
    assert screen.lines(60)[0].endswith("...")


def test_times_of_another_day_name_the_day() -> None:
    assert clock(NOW, NOW) == time.strftime("%H:%M", time.localtime(NOW))
    assert clock(NOW + 2 * 86400, NOW).startswith(
        time.strftime("%a ", time.localtime(NOW + 2 * 86400))
    )
    assert clock(NOW + 30 * 86400, NOW).startswith("2026-")
