"""KEDA as it is played: the examples of its documentation, and what they mean for us."""

from __future__ import annotations

import pytest

from tests.support.keda import ScaledJob, value_at

METRICS = """\
# HELP everydream_stage_open_jobs Jobs that a stage's workers are needed for.
# TYPE everydream_stage_open_jobs gauge
everydream_stage_open_jobs{stage="staging"} 7.0
everydream_stage_open_jobs{stage="training"} 2.0
up 1.0
"""
TRAINING = 'everydream_stage_open_jobs{stage="training"}'


def scaled_job(strategy: str, *, most: int = 100, target: float = 1.0) -> ScaledJob:
    return ScaledJob(strategy=strategy, most=most, target=target, value_location=TRAINING)


@pytest.mark.parametrize(
    ("waiting", "most", "target", "running", "started"),
    [(10, 3, 1, 0, 3), (10, 3, 2, 0, 3), (10, 3, 1, 1, 2), (10, 100, 1, 0, 10), (4, 3, 5, 0, 1)],
)
def test_the_table_of_the_documentation_is_met(
    waiting: int, most: int, target: float, running: int, started: int
) -> None:
    assert (
        scaled_job("default", most=most, target=target).starts(waiting, running=running) == started
    )


def test_the_value_is_that_of_the_sample_with_the_labels() -> None:
    assert value_at(TRAINING, METRICS) == 2
    assert value_at("up", METRICS) == 1
    with pytest.raises(LookupError, match="generation"):
        value_at(TRAINING.replace("training", "generation"), METRICS)


@pytest.mark.parametrize("busy", [1, 4, 9])
def test_by_the_default_a_busy_worker_is_the_one_that_its_claimed_job_needs(busy: int) -> None:
    default = scaled_job("default")
    assert default.starts(busy, running=busy) == 0
    assert default.starts(busy + 2, running=busy) == 2
    assert default.starts(busy - 1, running=busy) == 0, "one is about to end"


def test_by_accurate_each_busy_worker_is_given_a_second_one_at_every_look() -> None:
    """It is right for a number that leaves out the claimed jobs; ours has them."""
    accurate = scaled_job("accurate")
    assert accurate.starts(4, running=4) == 4
    assert accurate.starts(4, running=8) == 4
    assert accurate.starts(0, running=4) == 0, "for a number without the claimed jobs"


def test_no_more_than_the_most_are_started() -> None:
    for strategy in ("default", "accurate"):
        assert scaled_job(strategy, most=4).starts(30, running=3) == 1
        assert scaled_job(strategy, most=4).starts(30, running=4) == 0
