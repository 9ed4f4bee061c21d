"""Which checkpoints stay, and which of them is the best."""

from __future__ import annotations

import pytest

from services.trainer.artifact_uploads import best_of, keep_newest_and_best
from services.trainer.work import mark_best
from shared.messaging.messages import Artifact, SavedCheckpoint


def checkpoints(*losses: float | None) -> list[SavedCheckpoint]:
    """One per epoch, with these validation losses."""
    return [
        SavedCheckpoint(
            artifact=Artifact(name="", kind="checkpoint", key=f"{epoch}", bytes=1, sha256=""),
            step=10 * epoch,
            epoch=epoch,
            validation_loss=loss,
        )
        for epoch, loss in enumerate(losses, 1)
    ]


@pytest.mark.parametrize(
    ("losses", "keep", "stay"),
    [
        ((None, None, None), None, [1, 2, 3]),
        ((None, None, None), 2, [2, 3]),
        ((None,), 5, [1]),
        ((0.2, 0.1, 0.3, 0.4), 1, [2, 4]),
        ((0.4, 0.3, 0.2, 0.1), 1, [4]),
        ((0.1, 0.2, 0.3), 2, [1, 2, 3]),
    ],
)
def test_the_newest_stay_and_the_best_is_never_among_those_that_go(
    losses: tuple[float | None, ...], keep: int | None, stay: list[int]
) -> None:
    kept, gone = keep_newest_and_best(checkpoints(*losses), keep)

    assert [each.epoch for each in kept] == stay
    assert {each.epoch for each in gone} == set(range(1, len(losses) + 1)) - set(stay)


def test_of_equally_good_checkpoints_the_first_is_the_best() -> None:
    best = best_of(checkpoints(None, 0.2, 0.1, 0.1))

    assert best is not None
    assert best.epoch == 3
    assert best_of(checkpoints(None, None)) is None


@pytest.mark.parametrize(
    ("losses", "last", "marked", "last_is_best"),
    [
        ((0.2, 0.1), 0.3, [2], False),
        ((0.2, 0.1), 0.1, [2], False),
        ((0.2, 0.1), 0.05, [], True),
        ((), 0.3, [], True),
        ((None, None), None, [], False),
    ],
)
def test_the_last_checkpoint_competes_with_those_before_it(
    losses: tuple[float | None, ...], last: float | None, marked: list[int], *, last_is_best: bool
) -> None:
    shown, wins = mark_best(tuple(checkpoints(*losses)), last)

    assert [each.epoch for each in shown if each.best] == marked
    assert wins is last_is_best
