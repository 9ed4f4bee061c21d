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
from tests.support.training import RecordingCallbacks, make_dataset, training_order, whole_model

pytestmark = pytest.mark.usefixtures("small_pictures")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "set", images=3)


def rows(callbacks: RecordingCallbacks) -> list[int]:
    return [step for kind, _, step, _ in callbacks.saves if kind == "snapshot"]


# --- Stopping


def test_a_run_that_is_stopped_ends_with_the_weights_that_the_whole_run_has_at_that_step(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    """Updates come after 2, 3, 5, 6 and more steps; the command comes in that of 4 and 5."""
    settings: dict[str, Any] = {
        "dataset": dataset, "base": base, "max_epochs": 4, "grad_accum": 2,
        "lr_scheduler": "cosine", "cond_dropout": 0.3, "flip_p": 0.5, "save_full_precision": True,
    }  # fmt: skip
    whole = RecordingCallbacks(stop_when=lambda steps: steps == 5)
    with pytest.raises(Interrupted):
        train(training_order(tmp_path / "whole", **settings), whole)
    kind, point, step, _ = whole.saves[-1]
    assert (kind, step) == ("resume_point", 5)

    stopped = train(
        training_order(tmp_path / "stopped", **settings), RecordingCallbacks(commands={"stop": [4]})
    )

    assert (stopped.steps, stopped.updates, stopped.epochs, stopped.images) == (5, 3, 1, 5)
    assert stopped.warnings == ["stopped on request after step 5 of 12"]
    parts = load(whole_model(stopped))
    for name in ("unet", "text_encoder"):
        theirs = load_file(point / f"{name}.safetensors")
        ours = getattr(parts, name).state_dict()
        assert [each for each in theirs if not torch.equal(theirs[each], ours[each])] == []


def test_a_run_that_is_stopped_reports_and_measures_its_last_step_once(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    """The clock stands still, so that nothing else is reported but the first step."""
    callbacks = RecordingCallbacks(commands={"stop": [3]})
    order = training_order(
        tmp_path, dataset=dataset, base=base, max_epochs=9, validation=Validation(every_n_epochs=9)
    )

    outcome = train(order, callbacks, clock=lambda: 1.0)

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

    first = train(order("first"), RecordingCallbacks(commands={"stop": [0]}))
    interrupted = RecordingCallbacks(stop_when=lambda steps: steps == 4)
    with pytest.raises(Interrupted):
        train(order("begun"), interrupted)
    again = train(
        order("again", resume=interrupted.saves[-1][1]), RecordingCallbacks(commands={"stop": [0]})
    )

    assert (first.steps, first.loss) == (0, None)
    assert first.warnings == ["stopped on request after step 0 of 6"]
    untrained, saved = load(base).unet.state_dict(), load(whole_model(first)).unet.state_dict()
    assert all(torch.equal(untrained[name].half(), saved[name].half()) for name in untrained)
    assert again.steps == 4
    assert again.warnings == ["stopped on request after step 4 of 6"]


# --- Saving


def test_a_commanded_checkpoint_is_saved_after_the_current_update(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    """Two commands at once are carried out by one save; each later one by another."""
    callbacks = RecordingCallbacks(commands={"save": [1, 1, 4]})
    order = training_order(tmp_path, dataset=dataset, base=base, max_epochs=3, grad_accum=2)

    outcome = train(order, callbacks)

    assert [(kind, step) for kind, _, step, _ in callbacks.saves] == [
        ("checkpoint", 2), ("checkpoint", 5)
    ]  # fmt: skip
    assert callbacks.commands_done == [("checkpoint", 2, 2), ("checkpoint", 5, 3)]
    assert outcome.steps == 9


# --- Samples


class Drawing(RecordingCallbacks):
    """Snapshots stand until a step, at which the oldest is drawn."""

    def __init__(self, drawn_at: int, **more: Any) -> None:
        super().__init__(**more)
        self._drawn_at = drawn_at

    def should_stop(self) -> bool:
        if self.steps_begun == self._drawn_at:
            shutil.rmtree(next(path for kind, path, *_ in self.saves if kind == "snapshot"))
        return super().should_stop()


def test_a_commanded_row_is_taken_from_the_weights_as_they_are(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    callbacks = RecordingCallbacks(commands={"sample": [2]})
    order = training_order(tmp_path, dataset=dataset, base=base, sample_every=100)

    train(order, callbacks)

    assert rows(callbacks) == [0, 2]
    assert callbacks.commands_done == [("snapshot", 2, 1)]


def test_a_row_that_is_due_anyway_fulfils_the_command(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    callbacks = RecordingCallbacks(commands={"sample": [3]})
    order = training_order(tmp_path, dataset=dataset, base=base, sample_every=3)

    train(order, callbacks)

    assert rows(callbacks) == [0, 3]
    assert callbacks.commands_done == [("snapshot", 3, 1)]


def test_a_commanded_row_waits_while_two_are_not_yet_drawn(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    callbacks = Drawing(4, commands={"sample": [1, 2]})
    order = training_order(tmp_path, dataset=dataset, base=base, sample_every=100)

    outcome = train(order, callbacks)

    assert rows(callbacks) == [0, 1, 5]
    assert callbacks.commands_done == [("snapshot", 1, 1), ("snapshot", 5, 2)]
    assert outcome.warnings == []


def test_where_there_is_nothing_to_draw_the_command_is_answered_by_one_warning(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    callbacks = RecordingCallbacks(commands={"sample": [1]})

    outcome = train(training_order(tmp_path, dataset=dataset, base=base), callbacks)

    assert rows(callbacks) == []
    assert outcome.warnings == [NOTHING_TO_DRAW]
