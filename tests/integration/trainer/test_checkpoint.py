"""Checkpoints as a training leaves them: names, formats, and no result that is damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.fetcher.parsing.models.pickle_reader import read_checkpoint
from services.trainer.training.train import train
from shared.errors import Passing
from tests.support.models import make_random_model
from tests.support.training import RecordingCallbacks, make_dataset, training_order

pytestmark = pytest.mark.usefixtures("small_pictures")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("dataset") / "data", images=1)


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_every_checkpoint_is_of_the_format_asked_for_and_named_by_what_is_done(
    base: Path, dataset: Path, tmp_path: Path, suffix: str
) -> None:
    minutes = iter(range(0, 10_000, 90))  # more than a minute between any two looks
    callbacks = RecordingCallbacks()
    order = training_order(
        tmp_path, dataset=dataset, base=base, checkpoint_format=suffix, ckpt_every_n_minutes=1,
        save_optimizer=True,
    )  # fmt: skip

    outcome = train(order, callbacks, clock=lambda: float(next(minutes)))

    saved = [path.name for kind, path, _, _ in callbacks.saves if kind == "checkpoint"]
    assert saved == [f"job1-ep01-gs00001.{suffix}", f"job1-ep02-gs00002.{suffix}"]
    assert Path(outcome.checkpoint).name == f"last-job1-ep02-gs00002.{suffix}"
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {
        *saved, Path(outcome.checkpoint).name,
        "job1-ep01-gs00001.optimizer", "job1-ep02-gs00002.optimizer",
    }  # fmt: skip


def test_both_formats_hold_the_same(base: Path, dataset: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"dataset": dataset, "base": base, "max_epochs": 1}
    plain = train(training_order(tmp_path / "one", **settings), RecordingCallbacks())
    pickled = train(
        training_order(tmp_path / "two", checkpoint_format="ckpt", **settings), RecordingCallbacks()
    )

    first = load_file(plain.checkpoint)
    second = torch.load(pickled.checkpoint, weights_only=True)["state_dict"]
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    with ZipFile(pickled.checkpoint) as zipped:
        assert read_checkpoint(zipped).tensors.keys() == first.keys()


def test_a_result_that_was_damaged_on_its_way_to_the_disk_ends_the_training_without_one(
    base: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(tensors: dict[str, torch.Tensor], path: Path, **how: Any) -> None:
        kept = dict(tensors)
        kept.pop("first_stage_model.quant_conv.bias")
        save_file(kept, path, **how)

    monkeypatch.setattr("shared.diffusion.single_file.save_file", forgetful)

    with pytest.raises(Passing, match=r"last-job1-.*\.safetensors does not read back .* missing"):
        train(
            training_order(tmp_path, dataset=dataset, base=base, max_epochs=1), RecordingCallbacks()
        )

    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert not (tmp_path / "model").exists()
