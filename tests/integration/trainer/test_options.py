"""Training options beyond the page: each does something, and just what it says."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from PIL import Image
from safetensors.torch import load_file
from tensorboardX.proto.event_pb2 import Event
from torch import Tensor

from services.trainer.order import Outcome
from services.trainer.training import train as loop
from services.trainer.training.batches import BatchLoader
from services.trainer.training.latents import LatentCache
from services.trainer.training.loss import DiffusionLoss, image_errors
from services.trainer.training.recipe import Choices
from services.trainer.training.saving.metrics import read_lines
from services.trainer.training.state import State, prepare
from services.trainer.training.train import train
from shared.dataset.manifest import Manifest
from shared.dataset.plan import EpochConfig, plan_epoch
from shared.dataset.validation import split
from shared.diffusion.loading import load
from shared.errors import Interrupted, Refused
from shared.request import Validation
from shared.storage.manifest import SINGLE_FILE
from tests.support.models import make_random_model
from tests.support.training import (
    SIDE,
    RecordingCallbacks,
    make_dataset,
    training_order,
    whole_model,
)

pytestmark = pytest.mark.usefixtures("models_in_memory", "small_pictures")

CPU = Choices(precision="fp32", optimizer="adamw", attention="sdpa")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def v_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("v") / "model"
    return make_random_model(folder, prediction_type="v_prediction")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("dataset") / "data", images=4)


def first_loss(base: Path, dataset: Path, out: Path, **options: Any) -> float:
    """The loss of the first batch, before anything is learnt."""
    order = training_order(out, dataset=dataset, base=base, batch_size=4, **options)
    state = prepare(loop.base_model(order), order.train, CPU, torch.device("cpu"))
    latents = LatentCache(state.parts.vae, out)
    pictures, epoch_config = (
        Manifest.read(dataset).pictures,
        EpochConfig.of(order.train, seed=order.seed),
    )
    objective = DiffusionLoss(state, order, CPU, latents)
    loader = BatchLoader(dataset, pictures, epoch_config, latents)
    (batch,) = plan_epoch(pictures, epoch_config, 0)
    with torch.no_grad():
        return float(objective.loss(loader.load(batch, 0, partial(objective.inputs, epoch=0))))


@pytest.fixture(scope="module")
def plain_loss(v_base: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    return first_loss(v_base, dataset, tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize(
    "option",
    [
        {"min_snr_gamma": 1.0},
        {"zero_frequency_noise_ratio": 0.1},
        {"pyramid_noise_discount": 0.5},
        {"loss_type": "huber"},
        {"loss_type": "mse_huber"},
        {"loss_type": "huber_mse"},
        {"timestep_start": 900},
        {"timestep_end": 100},
        {"enable_zero_terminal_snr": True},
    ],
    ids=str,
)
def test_an_option_changes_the_loss(
    option: dict[str, Any], plain_loss: float, v_base: Path, dataset: Path, tmp_path: Path
) -> None:
    assert first_loss(v_base, dataset, tmp_path, **option) != pytest.approx(plain_loss, rel=1e-4)


def test_timesteps_come_from_the_range_asked_for_and_no_other(
    base: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[int] = set()
    real = DiffusionLoss._predict

    def spy(objective: DiffusionLoss, *arguments: Any) -> Any:
        seen.update(arguments[-1].timesteps.tolist())
        return real(objective, *arguments)

    monkeypatch.setattr(DiffusionLoss, "_predict", spy)
    train(
        training_order(
            tmp_path, dataset=dataset, base=base, max_epochs=3, timestep_start=7, timestep_end=9
        ),
        RecordingCallbacks(),
    )

    assert seen == {7, 8}


def test_the_text_encoder_has_its_own_rate_on_the_same_schedule(
    base: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four steps of a linear decay over ten; both rates grow by the same factor for scale_lr."""
    rates: list[list[float]] = []
    real = loop.update

    def spy(state: State, **settings: Any) -> None:
        real(state, **settings)
        rates.append([each.param_groups[0]["lr"] for each in state.optimizers.values()])

    monkeypatch.setattr(loop, "update", spy)
    order = training_order(
        tmp_path, dataset=dataset, base=base, max_epochs=1, lr=1e-3, text_encoder_lr=1e-4,
        lr_scheduler="linear", lr_decay_steps=10, lr_warmup_steps=0, scale_lr=True, grad_accum=2,
    )  # fmt: skip
    callbacks = RecordingCallbacks()

    train(order, callbacks, clock=lambda: float(callbacks.steps_begun))

    scale = 2**0.55
    assert [lr for rate in rates for lr in rate] == pytest.approx(
        [0.9e-3 * scale, 0.9e-4 * scale, 0.7e-3 * scale, 0.7e-4 * scale]
    )
    assert callbacks.reports[1]["text_encoder_lr"] == pytest.approx(0.9e-4 * scale)


def test_the_result_is_the_moving_average_of_the_weights(
    base: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "conv_in.weight"
    before = load(base).unet.state_dict()[name]
    weights: list[Tensor] = []
    real = loop.update

    def spy(state: State, **settings: Any) -> None:
        real(state, **settings)
        weights.append(state.parts.unet.state_dict()[name].clone())

    monkeypatch.setattr(loop, "update", spy)
    order = training_order(
        tmp_path, dataset=dataset, base=base, max_epochs=1, ema_decay_rate=0.75,
        save_full_precision=True, save_every_n_epochs=1,
    )  # fmt: skip

    outcome = train(order, RecordingCallbacks())

    average = before
    for each in weights:
        average = 0.75 * average + 0.25 * each
    saved = load_file(outcome.checkpoint)["model.diffusion_model.input_blocks.0.0.weight"]
    torch.testing.assert_close(saved, average)
    torch.testing.assert_close(load(whole_model(outcome)).unet.state_dict()[name], average)
    assert not torch.allclose(average, weights[-1], atol=1e-5)


def test_a_schedule_that_ends_without_signal_is_saved_with_the_model(
    v_base: Path, dataset: Path, tmp_path: Path
) -> None:
    order = training_order(
        tmp_path, dataset=dataset, base=v_base, max_epochs=1, enable_zero_terminal_snr=True
    )

    outcome = train(order, RecordingCallbacks())

    saved = json.loads((Path(outcome.model) / "scheduler" / "scheduler_config.json").read_text())
    assert saved["rescale_betas_zero_snr"] is True
    assert saved["timestep_spacing"] == "trailing"
    assert saved["prediction_type"] == "v_prediction"
    assert outcome.loss is not None
    (warning,) = outcome.warnings
    assert warning.startswith("enable_zero_terminal_snr: draw with DDIM")


def test_an_epsilon_model_is_warned_that_it_cannot_end_without_signal(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    order = training_order(tmp_path, dataset=dataset, base=base, enable_zero_terminal_snr=True)

    with pytest.raises(Refused, match="enable_zero_terminal_snr needs"):
        train(order, RecordingCallbacks())


def test_checkpoints_come_at_the_ends_of_epochs_but_not_beside_the_last(
    base: Path, tmp_path: Path
) -> None:
    two = make_dataset(tmp_path / "two", images=2)
    callbacks = RecordingCallbacks()

    train(
        training_order(
            tmp_path / "out", dataset=two, base=base, max_epochs=6, save_every_n_epochs=2,
            disable_textenc_training=True,
        ),
        callbacks,
    )  # fmt: skip

    assert [(kind, step, epoch) for kind, _, step, epoch in callbacks.saves] == [
        ("checkpoint", 4, 2),
        ("checkpoint", 8, 4),
    ]


# --- Validation -------------------------------------------------------------------------------


def validated(
    base: Path, dataset: Path, out: Path, *, callbacks: RecordingCallbacks, **options: Any
) -> Outcome:
    """A step takes 10 s, so that each is reported; one of four images is held out."""
    order = training_order(out, dataset=dataset, base=base, **options)
    return train(order, callbacks, clock=lambda: 10.0 * callbacks.steps_begun)


def test_the_loss_on_held_out_images_is_measured_before_after_n_epochs_and_at_the_end(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    callbacks = RecordingCallbacks()

    outcome = validated(
        base, dataset, tmp_path, callbacks=callbacks, max_epochs=5,
        validation=Validation(every_n_epochs=2),
    )  # fmt: skip

    losses = {each["step"]: each["validation_loss"] for each in callbacks.reports
              if "validation_loss" in each}  # fmt: skip
    found = outcome.validation
    assert list(losses) == [0, 6, 12, 15]
    assert outcome.images == 15
    assert found is not None
    assert (found.images, found.before.loss, found.last.loss) == (1, losses[0], losses[15])
    assert (found.best.step, found.best.loss) == min(losses.items(), key=lambda each: each[1])
    lines = [line for line in read_lines(Path(outcome.metrics)) if "validation_loss" in line]
    assert {line["step"]: line["validation_loss"] for line in lines} == losses


def test_held_out_images_are_never_trained_on(
    base: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[str] = set()
    real = DiffusionLoss.loss

    def spy(objective: DiffusionLoss, loaded: Any) -> Tensor:
        seen.update(each.picture.file for each in loaded.examples)
        return real(objective, loaded)

    monkeypatch.setattr(DiffusionLoss, "loss", spy)
    validated(
        base,
        dataset,
        tmp_path,
        callbacks=RecordingCallbacks(),
        max_epochs=2,
        validation=Validation(),
    )

    held_out = split(Manifest.read(dataset).pictures, Validation()).held_out
    assert len(seen) == 3
    assert not seen & {each.file for each in held_out}


def test_a_network_that_does_not_learn_always_has_the_same_validation_loss(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    """Whatever training asks for: noise, timesteps, caption and crop of a measurement are fixed."""
    callbacks = RecordingCallbacks()

    validated(
        base, dataset, tmp_path, callbacks=callbacks, max_epochs=3, lr=1e-30, useadam8bit=False,
        validation=Validation(), cond_dropout=1.0, flip_p=1.0, zero_frequency_noise_ratio=0.5,
        loss_type="huber", min_snr_gamma=1.0,
    )  # fmt: skip
    losses = {each["validation_loss"] for each in callbacks.reports if "validation_loss" in each}
    other = RecordingCallbacks()
    validated(base, dataset, tmp_path / "2", callbacks=other, max_epochs=1, validation=Validation())

    assert losses == {other.reports[0]["validation_loss"]}


def test_every_checkpoint_has_the_validation_loss_of_what_it_holds(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    """One is saved in the middle of the third epoch, when its time has come."""
    callbacks = RecordingCallbacks()

    outcome = validated(
        base, dataset, tmp_path, callbacks=callbacks, max_epochs=3, ema_decay_rate=0.5,
        validation=Validation(), ckpt_every_n_minutes=1, save_full_precision=True,
    )  # fmt: skip

    ((_, path, step, _),) = callbacks.saves
    (loss,) = callbacks.validation_losses.values()
    assert step == 7
    measured = [each["step"] for each in callbacks.reports if "validation_loss" in each]
    assert measured == [0, 3, 6, 7, 9]
    again = loss_of(path, Path(outcome.model), dataset, tmp_path / "again")
    assert loss == pytest.approx(again, rel=1e-6)


def loss_of(checkpoint: Path, model: Path, dataset: Path, out: Path) -> float:
    """What a fresh run measures of a single file before it trains."""
    (model / SINGLE_FILE).symlink_to(checkpoint)
    callbacks = RecordingCallbacks()
    validated(model, dataset, out, callbacks=callbacks, max_epochs=1, validation=Validation())
    return float(callbacks.reports[0]["validation_loss"])


def test_a_validation_that_comes_out_as_no_number_ends_the_run(
    base: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan = torch.tensor([float("nan")])
    monkeypatch.setattr(DiffusionLoss, "plain_errors", lambda *_: nan)

    with pytest.raises(Refused, match="nan at step 0"):
        validated(base, dataset, tmp_path, callbacks=RecordingCallbacks(), validation=Validation())


# --- Records ----------------------------------------------------------------------------------


def test_metrics_have_a_line_per_report_and_tensorboard_draws_them(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    callbacks = RecordingCallbacks()

    outcome = validated(
        base, dataset, tmp_path, callbacks=callbacks, max_epochs=2, validation=Validation()
    )

    lines = list(read_lines(Path(outcome.metrics)))
    names = ("step", "epoch", "loss", "lr", "images_per_second", "validation_loss")
    assert [{name: line.get(name) for name in names} for line in lines] == [
        {name: report.get(name) for name in names} for report in callbacks.reports
    ]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 3, 4, 5, 6, 6]
    assert Path(outcome.tensorboard).name == "events.out.tfevents.job1"
    drawn = scalars(Path(outcome.tensorboard))
    assert drawn["loss/validation"] == pytest.approx(
        {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}
    )
    assert list(drawn["loss/training"]) == [2, 3, 4, 5, 6]
    assert drawn["lr/unet"] == pytest.approx(dict.fromkeys(range(1, 7), 1e-3))


def scalars(events: Path) -> dict[str, dict[int, float]]:
    """What an event file draws: by tag, the value at each step.

    A file is records: eight bytes of length, four of check sum, the event, four of check sum.
    """
    data, drawn = events.read_bytes(), dict[str, dict[int, float]]()
    while data:
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        for value in event.summary.value:
            drawn.setdefault(value.tag, {})[event.step] = value.simple_value
        data = data[12 + length + 4 :]
    return drawn


def test_what_was_recorded_after_the_resume_point_is_recorded_once(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    """Updates are after steps 2 and 4; the stop comes when step 3 was reported."""
    callbacks = RecordingCallbacks(stop_when=lambda steps: steps == 3)
    with pytest.raises(Interrupted):
        validated(base, dataset, tmp_path / "1", callbacks=callbacks, max_epochs=1, grad_accum=2)
    (_, point, _, _) = callbacks.saves[-1]

    again = RecordingCallbacks()
    outcome = validated(
        base, dataset, tmp_path / "2", callbacks=again, max_epochs=1, grad_accum=2, resume=point
    )

    assert [report["step"] for report in callbacks.reports] == [1, 2, 3]
    assert [line["step"] for line in read_lines(Path(outcome.metrics))] == [1, 2, 3, 4]
    assert list(scalars(Path(outcome.tensorboard))["lr/unet"]) == [1, 2, 3, 4]


def masked(folder: Path, base_dataset: Path) -> Path:
    """The data set with masks of the left halves."""
    shutil.copytree(base_dataset, folder)
    pictures = []
    for picture in Manifest.read(folder).pictures:
        mask = Image.new("L", (picture.width, picture.height), 0)
        mask.paste(255, (0, 0, picture.width // 2, picture.height))
        mask.save(folder / f"mask-{picture.file}")
        pictures.append(replace(picture, mask=f"mask-{picture.file}"))
    Manifest(pictures=tuple(pictures)).write(folder)
    return folder


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_of_a_masked_image_each_place_pulls_as_its_mask_says_and_the_rest_by_its_weight(
    base: Path, dataset: Path, tmp_path: Path, *, flip: float
) -> None:
    """The gradient at the prediction is 2 w (p - e) / n; flips go along."""
    order = training_order(
        tmp_path, dataset=masked(tmp_path / "data", dataset), base=base, batch_size=4,
        masked_loss=True, unmasked_weight=0.25, flip_p=flip,
        resolution=SIDE,  # of a smaller picture the mask's edge would be soft
    )  # fmt: skip
    state = prepare(loop.base_model(order), order.train, CPU, torch.device("cpu"))
    latents = LatentCache(state.parts.vae, tmp_path)
    config = EpochConfig.of(order.train, seed=order.seed)
    pictures = Manifest.read(Path(order.dataset)).pictures
    objective = DiffusionLoss(state, order, CPU, latents)
    loader = BatchLoader(Path(order.dataset), pictures, config, latents)
    (batch,) = plan_epoch(pictures, config, 0)

    places = loader.load(batch, 0, partial(objective.inputs, epoch=0)).inputs.places

    assert places is not None
    side = places.shape[-1] // 2
    counted, rest = (
        (places[..., side:], places[..., :side])
        if flip
        else (places[..., :side], places[..., side:])
    )
    assert torch.equal(counted, torch.ones_like(counted))
    assert torch.equal(rest, torch.full_like(rest, 0.25))
    predicted = torch.randn(4, 4, *places.shape[2:], requires_grad=True)
    expected = torch.randn(4, 4, *places.shape[2:])
    torch.autograd.backward(image_errors(predicted, expected, "mse", torch.zeros(4), places).mean())
    formula = 2 * places * (predicted - expected).detach() / predicted.numel()
    assert predicted.grad is not None
    assert torch.allclose(predicted.grad, formula)


def test_without_masked_loss_masks_change_nothing_and_with_it_they_do(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    data = masked(tmp_path / "data", dataset)

    plain = first_loss(base, dataset, tmp_path / "plain")
    assert first_loss(base, data, tmp_path / "ignored") == plain
    assert first_loss(base, data, tmp_path / "all", masked_loss=True, unmasked_weight=1.0) == plain
    assert first_loss(base, data, tmp_path / "masked", masked_loss=True) < 0.8 * plain
