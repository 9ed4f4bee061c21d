"""The bars of the hostile run: a miss that is planted is told, and a clean run misses nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from shared.messaging.messages import (
    Artifact,
    CheckpointFinal,
    DatasetStaged,
    TrainingProgressed,
    TrainingStarted,
)
from shared.request import Train
from tests.hostile import report
from tests.hostile.acts import ACTS, SIBLING
from tests.hostile.bars import MEMORY, SLOWER, Outcome, missed
from tests.hostile.measure import Peak, Turns, percentile
from tests.hostile.other import JOBS, Run
from tests.support.compose import read_compose

GIB = 1 << 30


def run(seconds: float, **others: Any) -> Run:
    """Ten jobs that take so long."""
    names = [f"job-{number}" for number in range(JOBS)]
    clean = Run(
        began=0.0,
        submitted=dict.fromkeys(names, 0.0),
        ended=dict.fromkeys(names, seconds),
        ends=Counter({"COMPLETED": JOBS}),
        looks=[0.01] * 100,
        webhooks=dict.fromkeys(names, 0.5),
    )
    return replace(clean, **others)


CLEAN = Outcome(
    alone=run(40.0),
    beside=run(100.0),
    turns=(5.0, 7.0),
    quiet_peaks={name: Peak(bytes=GIB // 2, files=40, files_allowed=1024) for name in MEMORY},
    peaks={name: Peak(bytes=GIB // 2, files=400, files_allowed=1024) for name in MEMORY},
    pids={name: (number, number) for number, name in enumerate(MEMORY)},
    restarts={},
    answers={act.name: {"200": 7, "429": 3, "503": 1} for act in ACTS},
    jobs={act.name: (7, 3) for act in ACTS},
    producer_end="COMPLETED",
    stray_replies=0,
    left=(),
)
ONE_ACT = ACTS[0].name
PLANTED: dict[str, tuple[Outcome, str]] = {
    "a service that died": (replace(CLEAN, restarts={"fetcher": 1}), "fetcher died 1 times"),
    "a service that is gone": (
        replace(CLEAN, pids={**CLEAN.pids, "gateway": (7, None)}),
        "gateway is another process in the end: None, not 7",
    ),
    "memory over the container's": (
        replace(CLEAN, peaks={"gateway": Peak(bytes=GIB + 1, files_allowed=1024)}),
        "gateway takes 1073741825 bytes; its container has 1073741824",
    ),
    "descriptors used up": (
        replace(CLEAN, peaks={"notifier": Peak(files=1024, files_allowed=1024)}),
        "notifier has 1024 descriptors open, as many as it may",
    ),
    "a job that failed": (
        replace(CLEAN, beside=run(100.0, ends=Counter({"COMPLETED": 9, "FAILED": 1}))),
        "beside the rude key, of 10 jobs 9 completed",
    ),
    "a webhook that did not come": (
        replace(CLEAN, alone=run(40.0, webhooks={"job-0": 1.0})),
        "alone, of 10 webhooks 1 came",
    ),
    "a webhook that came late": (
        replace(CLEAN, beside=run(100.0, webhooks={f"job-{n}": 61.0 for n in range(JOBS)})),
        "beside the rude key, a webhook came 61 s after its job's end; 60 at most",
    ),
    "a request without an answer": (
        replace(CLEAN, beside=run(100.0, unanswered=Counter({"503": 2}))),
        "requests of the other key were not answered: {'503': 2}",
    ),
    "jobs that take too long": (
        replace(CLEAN, beside=run(SLOWER * 40.0 + 12.0 + 4.0)),
        "the ten jobs take 2.6 times as long as alone",
    ),
    "turns without measure": (
        replace(CLEAN, turns=(1.0,) * 21),
        "the rude key had 21 turns while the ten waited",
    ),
    "a fault of ours": (
        replace(CLEAN, answers={**CLEAN.answers, ONE_ACT: {"500": 2}}),
        f"{ONE_ACT}: 2 times 500",
    ),
    "a file that was not asked for": (
        replace(CLEAN, answers={**CLEAN.answers, ONE_ACT: {SIBLING: 1}}),
        f"{ONE_ACT}: 1 times {SIBLING}",
    ),
    "an act that did nothing": (
        replace(CLEAN, answers={**CLEAN.answers, ONE_ACT: {}}),
        f"{ONE_ACT}: nothing was asked",
    ),
    "the producer's job taken over": (
        replace(CLEAN, producer_end=None),
        "the job of the other's producer is None",
    ),
    "a reply to another's queue": (
        replace(CLEAN, stray_replies=3),
        "3 messages came to the other's producer",
    ),
    "a file left behind": (replace(CLEAN, left=("object a",)), "left behind: object a"),
}


def test_a_run_in_which_all_bars_hold_misses_none() -> None:
    assert missed(CLEAN) == []


@pytest.mark.parametrize("name", list(PLANTED))
def test_each_missed_bar_is_told_by_a_sentence(name: str) -> None:
    outcome, sentence = PLANTED[name]

    (told,) = missed(outcome)

    assert sentence in told


def test_the_page_shows_the_rude_keys_turns_apart_and_what_was_missed() -> None:
    page = report.page(CLEAN, 2.0, ["the moon is gone"])

    assert "- Missed: the moon is gone" in page
    assert "| time of the ten jobs | 40 s | 100 s |  |" in page
    assert "| 12 s in 2 turns, the longest 7 s |" in page
    assert "| the rest | 40 s | 88 s, 2.2 times | 2.5 times |" in page
    assert "| `/status`, p99 | 10 ms | 10 ms |  |" in page
    assert f"| {ONE_ACT} | 200: 7, 429: 3, 503: 1 | 7 | 3 |" in page


def test_the_memory_that_is_held_against_a_service_is_its_containers() -> None:
    services = read_compose()["services"]
    for name, size in MEMORY.items():
        entry = services.get(name) or services[f"{name}-cpu"]
        limit = str(entry["mem_limit"]).removeprefix("${").rpartition("-")[2].removesuffix("}")
        assert limit == f"{size // GIB}g", name


# --- Turns


def took(turns: Turns, job: str, at: float) -> None:
    turns.add(TrainingStarted(job=job, stage="training", claim=f"{job} at {at}"), at)
    turns.add(TrainingProgressed(job=job, stage="training", claim=f"{job} at {at}"), at + 0.1)


def staged(turns: Turns, job: str, at: float) -> None:
    fact = DatasetStaged(
        job=job, stage="staging", claim="c", train=Train(data_url="x"), dataset="d",
        base_model="b", report={},
    )  # fmt: skip
    turns.add(fact, at)


def test_a_turn_of_another_counts_as_far_as_one_of_the_ten_waits_for_the_trainer() -> None:
    turns = Turns()
    took(turns, "rude-1", 0.0)
    staged(turns, "mine-1", 4.0)
    staged(turns, "mine-2", 5.0)
    took(turns, "mine-1", 6.0)
    took(turns, "rude-2", 9.0)
    took(turns, "mine-2", 12.0)
    took(turns, "rude-3", 20.0)

    assert turns.of_others({"mine-1", "mine-2"}, until=30.0) == [2.0, 3.0]


def test_a_claim_that_is_repeated_is_one_turn() -> None:
    turns = Turns()
    claim = TrainingStarted(job="rude", stage="training", claim="c")
    for at in (1.0, 2.0, 3.0):
        turns.add(claim, at)
    turns.add(TrainingProgressed(job="rude", stage="training", claim="c"), 4.0)

    assert turns.taken == [(1.0, "rude")]


def test_a_claim_that_was_refused_is_no_turn() -> None:
    turns = Turns()
    took(turns, "rude-1", 0.0)
    staged(turns, "mine", 1.0)
    for number in range(30):
        refused = TrainingStarted(job=f"cancelled-{number}", stage="training", claim=str(number))
        turns.add(refused, 5.0)
    turns.add(TrainingStarted(job="mine", stage="training", claim="refused"), 5.5)
    took(turns, "mine", 6.0)

    assert turns.of_others({"mine"}, until=9.0) == [5.0]


def test_a_training_that_is_over_before_it_has_told_its_progress_is_a_turn() -> None:
    turns = Turns()
    turns.add(TrainingStarted(job="rude", stage="training", claim="c"), 1.0)
    turns.add(
        CheckpointFinal(
            job="rude", stage="training", claim="c", model="m", summary={},
            checkpoint=Artifact(name="n", kind="checkpoint", key="k", bytes=1, sha256="s"),
        ),
        2.0,
    )  # fmt: skip

    assert turns.taken == [(1.0, "rude")]


def test_the_way_of_a_job_tells_what_it_has_come_to() -> None:
    turns = Turns()
    staged(turns, "mine", 4.0)
    assert turns.way("mine", since=1.0) == "staged 3.0 s"

    turns.add(TrainingStarted(job="mine", stage="training", claim="refused"), 5.5)
    took(turns, "mine", 6.0)
    assert turns.way("mine", since=1.0) == "staged 3.0 s, claimed 4.5 s, trained 5.0 s"


def test_a_percentile_is_one_of_the_values_and_nothing_has_none() -> None:
    assert percentile(range(1, 101), 99) == 100
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert percentile([], 99) == 0.0
