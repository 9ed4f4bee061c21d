"""What a user may want of a training at work: a row of samples, a checkpoint, an early end."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from services.trainer.order import TrainingOrder
from services.trainer.training.saving.metrics import read_lines
from services.trainer.training.saving.snapshot_writer import NOTHING_TO_DRAW
from services.trainer.training.train import train
from shared.diffusion.loading import load
from shared.errors import Interrupted
from shared.request import Validation
from tests.support.models import make_random_model
from tests.support.training import Notes, make_dataset, training_order


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "set", images=3)


def rows(notes: Notes) -> list[int]:
    return [step for kind, _, step, _ in notes.kept if kind == "snapshot"]


# --- Stopping


def test_a_run_that_is_stopped_ends_with_the_weights_that_the_whole_run_has_at_that_step(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    """Updates come after 2, 3, 5, 6 and more steps; the wish comes within the group of 4 and 5."""
    settings: dict[str, Any] = {
        "dataset": dataset, "base": base, "max_epochs": 4, "grad_accum": 2,
        "lr_scheduler": "cosine", "cond_dropout": 0.3, "flip_p": 0.5, "save_full_precision": True,
    }  # fmt: skip
    whole = Notes(stop_when=lambda asked: asked == 5)
    with pytest.raises(Interrupted):
        train(training_order(tmp_path / "whole", **settings), whole)
    kind, point, step, _ = whole.kept[-1]
    assert (kind, step) == ("resume_point", 5)

    stopped = train(training_order(tmp_path / "stopped", **settings), Notes(commands={"stop": [4]}))

    assert (stopped.steps, stopped.updates, stopped.epochs, stopped.images) == (5, 3, 1, 5)
    assert stopped.warnings == ["stopped on request after step 5 of 12"]
    parts = load(Path(stopped.model))
    for name in ("unet", "text_encoder"):
        theirs = load_file(point / f"{name}.safetensors")
        ours = getattr(parts, name).state_dict()
        assert [each for each in theirs if not torch.equal(theirs[each], ours[each])] == []


def test_a_run_that_is_stopped_reports_and_measures_its_last_step_once(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    """The clock stands still, so that nothing else is reported but the first step."""
    notes = Notes(commands={"stop": [3]})
    order = training_order(
        tmp_path, dataset=dataset, base=base, max_epochs=9, validation=Validation(every_n_epochs=9)
    )

    outcome = train(order, notes, clock=lambda: 1.0)

    assert outcome.steps == 3
    assert outcome.validation is not None
    assert (outcome.validation.before.step, outcome.validation.last.step) == (0, 3)
    lines = list(read_lines(Path(outcome.metrics)))
    assert [(line["step"], "loss" in line) for line in lines] == [
        (0, False), (1, True), (3, True), (3, False)
    ]  # fmt: skip


def test_a_run_that_is_stopped_before_its_first_step_or_just_where_it_goes_on_does_none(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    def order(name: str, **more: Any) -> TrainingOrder:
        return training_order(tmp_path / name, dataset=dataset, base=base, **more)

    first = train(order("first"), Notes(commands={"stop": [0]}))
    begun = Notes(stop_when=lambda asked: asked == 4)
    with pytest.raises(Interrupted):
        train(order("begun"), begun)
    again = train(order("again", resume=begun.kept[-1][1]), Notes(commands={"stop": [0]}))

    assert (first.steps, first.loss) == (0, None)
    assert first.warnings == ["stopped on request after step 0 of 6"]
    untrained, saved = load(base).unet.state_dict(), load(Path(first.model)).unet.state_dict()
    assert all(torch.equal(untrained[name].half(), saved[name].half()) for name in untrained)
    assert again.steps == 4
    assert again.warnings == ["stopped on request after step 4 of 6"]


# --- Saving


def test_a_checkpoint_that_is_wanted_is_saved_after_the_update_under_way(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    """Two wishes at once are granted by one; each later one by another."""
    notes = Notes(commands={"save": [1, 1, 4]})
    order = training_order(tmp_path, dataset=dataset, base=base, max_epochs=3, grad_accum=2)

    outcome = train(order, notes)

    assert [(kind, step) for kind, _, step, _ in notes.kept] == [
        ("checkpoint", 2), ("checkpoint", 5)
    ]  # fmt: skip
    assert notes.granted == [("checkpoint", 2, 2), ("checkpoint", 5, 3)]
    assert outcome.steps == 9


# --- Samples


class Drawing(Notes):
    """Snapshots stand until a step, at which the oldest is drawn."""

    def __init__(self, drawn_at: int, **more: Any) -> None:
        super().__init__(**more)
        self._drawn_at = drawn_at

    def should_stop(self) -> bool:
        if self.asked == self._drawn_at:
            shutil.rmtree(next(path for kind, path, *_ in self.kept if kind == "snapshot"))
        return super().should_stop()


def test_a_row_that_is_wanted_is_taken_from_the_weights_as_they_are(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    notes = Notes(commands={"sample": [2]})
    order = training_order(tmp_path, dataset=dataset, base=base, sample_every=100)

    train(order, notes)

    assert rows(notes) == [0, 2]
    assert notes.granted == [("snapshot", 2, 1)]


def test_a_row_that_is_due_anyway_grants_the_command(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    notes = Notes(commands={"sample": [3]})
    order = training_order(tmp_path, dataset=dataset, base=base, sample_every=3)

    train(order, notes)

    assert rows(notes) == [0, 3]
    assert notes.granted == [("snapshot", 3, 1)]


def test_a_row_that_is_wanted_waits_while_two_stand_undrawn(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    notes = Drawing(4, commands={"sample": [1, 2]})
    order = training_order(tmp_path, dataset=dataset, base=base, sample_every=100)

    outcome = train(order, notes)

    assert rows(notes) == [0, 1, 5]
    assert notes.granted == [("snapshot", 1, 1), ("snapshot", 5, 2)]
    assert outcome.warnings == []


def test_where_there_is_nothing_to_draw_the_command_is_answered_by_one_warning(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    notes = Notes(commands={"sample": [1]})

    outcome = train(training_order(tmp_path, dataset=dataset, base=base), notes)

    assert rows(notes) == []
    assert outcome.warnings == [NOTHING_TO_DRAW]
