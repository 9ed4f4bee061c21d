"""The training loop on a random model with next to no weights: what moves, stays, returns."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from PIL import Image
from safetensors.torch import load_file

from services.trainer.order import Outcome, TrainingOrder
from services.trainer.training import train as loop
from services.trainer.training.latents import Key, LatentCache
from services.trainer.training.loss import DiffusionLoss
from services.trainer.training.recipe import Choices
from services.trainer.training.saving.metrics import read_lines
from services.trainer.training.state import State
from services.trainer.training.train import train
from shared.diffusion.loading import Parts, load
from shared.errors import Interrupted, Passing, Refused
from shared.request import Validation
from tests.support.models import make_random_model
from tests.support.training import RecordingCallbacks, make_dataset, training_order, whole_model

pytestmark = pytest.mark.usefixtures("one_thread", "models_in_memory", "small_pictures")

PREFIXES = {
    "unet": "model.diffusion_model.",
    "text_encoder": "cond_stage_model.",
    "vae": "first_stage_model.",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("dataset") / "data", images=3)


@pytest.fixture(scope="module")
def untrained(base: Path) -> dict[str, torch.Tensor]:
    from shared.diffusion.single_file import original_layout  # noqa: PLC0415

    return original_layout(load(base))


def unchanged(before: dict[str, torch.Tensor], outcome: Outcome, network: str) -> set[str]:
    """Names of the network's weights in the single file that are what they were, to the bit."""
    after = load_file(outcome.checkpoint)
    assert after.keys() == before.keys()
    return {name for name in weights_of(network, before) if torch.equal(before[name], after[name])}


def weights_of(network: str, names: Iterable[str]) -> set[str]:
    return {name for name in names if name.startswith(PREFIXES[network])}


def test_every_weight_of_both_networks_learns_and_the_vae_stays_bit_equal(
    base: Path, dataset: Path, untrained: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    callbacks = RecordingCallbacks()
    order = training_order(
        tmp_path, dataset=dataset, base=base, max_epochs=8, save_full_precision=True,
        useadam8bit=False,
    )  # fmt: skip

    outcome = train(
        order, callbacks, clock=lambda: float(callbacks.steps_begun)
    )  # every step is reported

    assert unchanged(untrained, outcome, "unet") == set()
    assert unchanged(untrained, outcome, "text_encoder") == set()
    assert unchanged(untrained, outcome, "vae") == weights_of("vae", untrained)
    assert (outcome.steps, outcome.updates, outcome.epochs, outcome.images) == (24, 24, 8, 24)
    assert (outcome.precision, outcome.optimizer) == ("fp32", "adamw_fused")
    assert outcome.loss is not None
    assert outcome.loss < callbacks.reports[1]["loss"]


def test_clip_skip_2_leaves_the_last_layer_out_of_training(
    base: Path, dataset: Path, untrained: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    order = training_order(
        tmp_path, dataset=dataset, base=base, max_epochs=1, save_full_precision=True, clip_skip=2
    )

    outcome = train(order, RecordingCallbacks())

    last = {name for name in weights_of("text_encoder", untrained) if ".layers.2." in name}
    assert unchanged(untrained, outcome, "text_encoder") == last != set()


@pytest.mark.parametrize(
    ("field", "frozen", "learning"),
    [
        ("disable_textenc_training", "text_encoder", "unet"),
        ("disable_unet_training", "unet", "text_encoder"),
    ],
)
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_a_frozen_network_stays_bit_equal_and_gets_no_gradients(
    base: Path, dataset: Path, untrained: dict[str, torch.Tensor], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, field: str, frozen: str, learning: str,
    gradient_checkpointing: bool,  # noqa: FBT001 - a parameter of the test
) -> None:  # fmt: skip
    seen: list[State] = []
    real = loop.update

    def spy(state: State, **settings: Any) -> None:
        network = getattr(state.parts, frozen)
        assert all(each.grad is None for each in network.parameters())
        seen.append(state)
        real(state, **settings)

    monkeypatch.setattr(loop, "update", spy)
    settings: dict[str, Any] = {field: True, "gradient_checkpointing": gradient_checkpointing}
    order = training_order(
        tmp_path, dataset=dataset, base=base, max_epochs=1, save_full_precision=True, **settings
    )

    outcome = train(order, RecordingCallbacks())

    assert unchanged(untrained, outcome, frozen) == weights_of(frozen, untrained)
    assert unchanged(untrained, outcome, learning) == set()
    assert list(seen[0].optimizers) == [learning]


EVERYTHING: dict[str, Any] = {
    "ema_decay_rate": 0.5, "pyramid_noise_discount": 0.5, "zero_frequency_noise_ratio": 0.1,
    "min_snr_gamma": 5.0, "loss_type": "mse_huber", "text_encoder_lr": 1e-4,
    "validation": Validation(), "save_every_n_epochs": 1,
}  # fmt: skip
LORA: dict[str, Any] = {"useadam8bit": True, "lora_rank": 4, "lora_alpha": 3.0, "lora_conv_rank": 2}


@pytest.mark.parametrize(
    ("options", "size", "begun", "kept"),
    [
        ({"useadam8bit": True}, (300, 280), 5, 5),
        pytest.param({"useadam8bit": False}, (256, 256), 5, 5, marks=pytest.mark.long),
        ({"useadam8bit": False, **EVERYTHING}, (300, 280), 4, 3),
        ({**LORA, **EVERYTHING}, (300, 280), 4, 3),
        ({"optimizer": "schedule_free", "validation": Validation()}, (256, 256), 5, 5),
        ({"optimizer": "prodigy", "lr": 1.0, "lora_rank": 2}, (256, 256), 5, 5),
    ],
    ids=[
        "8 bits, cropped",
        "32 bits, whole images whose latents are kept",
        "averages, validation and all that can be asked for, stopped within a group",
        "the same of a LoRA",
        "a schedule-free optimizer",
        "an optimizer that finds its rate",
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    base: Path, tmp_path: Path, *, options: dict[str, Any], size: tuple[int, int], begun: int,
    kept: int,
) -> None:  # fmt: skip
    """Epochs have 3 steps, updated after 2 and 3; a stop in a group goes back to the last update.

    A step takes 10 s, so that each is reported.
    """
    data = make_dataset(tmp_path / "data", images=6 if "validation" in options else 5, size=size)
    settings: dict[str, Any] = {
        "dataset": data, "base": base, "max_epochs": 2, "batch_size": 2, "grad_accum": 2,
        "cond_dropout": 0.3, "flip_p": 0.5, "shuffle_tags": True, "lr_scheduler": "cosine",
        "clip_grad_norm": 1.0, "save_full_precision": True, **options,
    }  # fmt: skip
    whole = run(training_order(tmp_path / "whole", **settings), RecordingCallbacks())
    stopped = RecordingCallbacks(stop_when=lambda steps: steps == begun)

    with pytest.raises(Interrupted):
        run(training_order(tmp_path / "first", **settings), stopped)
    kind, folder, step, _ = stopped.saves[-1]
    resumed = run(
        training_order(tmp_path / "second", resume=folder, **settings), RecordingCallbacks()
    )

    assert (kind, step) == ("resume_point", kept)
    assert without_paths(whole) == without_paths(resumed)
    first, second = load_file(whole.checkpoint), load_file(resumed.checkpoint)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert timeless(whole.metrics) == timeless(resumed.metrics)


@pytest.fixture
def noisy_dataset(tmp_path: Path) -> Path:
    """Two images that look different in each crop."""
    folder = make_dataset(tmp_path / "data", images=2, size=(300, 280))
    for number in range(2):
        Image.effect_noise((300, 280), 99).convert("RGB").save(folder / f"{number}.png")
    return folder


def trained_weights(out: Path, **settings: Any) -> dict[str, torch.Tensor]:
    order = training_order(out, batch_size=2, flip_p=0.5, save_full_precision=True, **settings)
    return load_file(run(order, RecordingCallbacks()).checkpoint)


def different(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> list[str]:
    return [name for name in some if not torch.equal(some[name], others[name])]


def test_latents_in_memory_in_a_file_and_encoded_again_train_the_same_weights(
    base: Path, noisy_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"dataset": noisy_dataset, "base": base, "max_epochs": 4}
    kept = trained_weights(tmp_path / "kept", crops_per_image=2, **settings)

    encode, encoded = LatentCache.encode, []

    def spy(cache: LatentCache, key: Key | None, pixels: torch.Tensor) -> torch.Tensor:
        encoded.append(key)
        return encode(cache, key, pixels)

    monkeypatch.setattr(LatentCache, "encode", spy)
    monkeypatch.setattr(loop, "LatentCache", partial(LatentCache, memory_bytes=0))
    spilled = trained_weights(tmp_path / "spilled", crops_per_image=2, **settings)
    assert len(encoded) == len(set(encoded)) < 8

    monkeypatch.setattr("services.trainer.training.latents.DISK_SHARE", 0)
    again = trained_weights(tmp_path / "again", crops_per_image=2, **settings)
    assert len(encoded) > 8
    assert different(kept, spilled) == different(kept, again) == []

    endless = trained_weights(tmp_path / "endless", crops_per_image=0, **settings)
    assert different(kept, endless) != []


def test_a_run_that_began_with_endless_crops_goes_on_with_them(
    base: Path, noisy_dataset: Path, tmp_path: Path
) -> None:
    """As before crops came again: its resume points say nothing of them."""
    settings: dict[str, Any] = {"dataset": noisy_dataset, "base": base, "max_epochs": 6}
    whole = trained_weights(tmp_path / "whole", crops_per_image=0, **settings)
    stopped = RecordingCallbacks(stop_when=lambda steps: steps == 2)
    order = training_order(
        tmp_path / "first", batch_size=2, flip_p=0.5, crops_per_image=0, **settings
    )
    with pytest.raises(Interrupted):
        run(order, stopped)
    folder = stopped.saves[-1][1]
    position = json.loads((folder / "position.json").read_bytes())
    assert position.pop("crops_per_image") == 0
    (folder / "position.json").write_text(json.dumps(position))

    resumed = trained_weights(tmp_path / "second", resume=folder, **settings)

    assert different(whole, resumed) == []


def run(order: TrainingOrder, callbacks: RecordingCallbacks) -> Outcome:
    return train(order, callbacks, clock=lambda: 10.0 * callbacks.steps_begun)


def without_paths(outcome: Outcome) -> Outcome:
    return replace(outcome, checkpoint="", model="", metrics="", tensorboard="")


def timeless(metrics: str) -> list[dict[str, Any]]:
    return [{**line, "time": 0} for line in read_lines(Path(metrics))]


def test_a_stop_within_a_group_goes_back_to_the_last_update(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    callbacks = RecordingCallbacks(stop_when=lambda steps: steps == 4)

    with pytest.raises(Interrupted):
        train(training_order(tmp_path, dataset=dataset, base=base, grad_accum=2), callbacks)

    assert [(kind, step, epoch) for kind, _, step, epoch in callbacks.saves] == [
        ("resume_point", 3, 1)
    ]


def test_a_card_s_lack_of_room_is_among_the_warnings_before_the_first_update(
    dataset: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_room(parts: Parts, *_: object, has_8bit: bool) -> list[str]:
        assert (parts.unet.device.type, has_8bit) == ("cpu", True)
        return ["little room"]

    monkeypatch.setattr(loop, "find_room", find_room)
    order = training_order(tmp_path, dataset=dataset, base=base)

    begun = loop.set_up(order, RecordingCallbacks(), lambda: 0.0)

    assert begun.state.warnings == ["little room"]


def test_a_stop_before_the_first_update_saves_nothing(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    callbacks = RecordingCallbacks(stop_when=lambda _steps: True)

    with pytest.raises(Interrupted):
        train(training_order(tmp_path, dataset=dataset, base=base), callbacks)

    assert callbacks.saves == []


def test_an_accumulated_update_is_the_mean_over_the_groups_real_steps(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps by twos: after the pair and after the single one, gradients are means alike."""
    data = make_dataset(tmp_path / "data", images=3)
    norms: list[float] = []
    monkeypatch.setattr(DiffusionLoss, "loss", _sum_of_weights)
    monkeypatch.setattr(loop, "update", lambda state, **_: _note_and_forget(state, norms))

    train(training_order(tmp_path / "out", dataset=data, base=base, max_epochs=2, grad_accum=2),
          RecordingCallbacks())  # fmt: skip

    assert norms == pytest.approx([1.0, 1.0, 1.0, 1.0])


def _sum_of_weights(objective: DiffusionLoss, *_: object) -> torch.Tensor:
    return torch.as_tensor(objective._parts.unet.conv_in.weight.sum())


def _note_and_forget(state: State, norms: list[float]) -> None:
    gradient = state.parts.unet.conv_in.weight.grad
    assert gradient is not None
    norms.append(float(gradient.mean()))
    state.optimizers["unet"].zero_grad()


def test_each_network_is_clipped_by_itself(
    base: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []
    real = torch.nn.utils.clip_grad_norm_

    def clip(parameters: Any, most: float) -> torch.Tensor:
        weights = list(parameters)
        before = real(weights, most)
        norms.append(float(real(weights, 1e9)))
        return before

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
    train(
        training_order(tmp_path, dataset=dataset, base=base, max_epochs=1, clip_grad_norm=1e-3),
        RecordingCallbacks(),
    )

    assert norms == pytest.approx([1e-3] * 6, rel=1e-3)


def test_gradient_checkpointing_gives_the_same_gradients(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "dataset": dataset, "base": base, "max_epochs": 1, "save_full_precision": True,
        "useadam8bit": False,
    }  # fmt: skip
    plain = train(training_order(tmp_path / "plain", **settings), RecordingCallbacks())
    spared = train(
        training_order(tmp_path / "spared", gradient_checkpointing=True, **settings),
        RecordingCallbacks(),
    )

    first, second = load_file(plain.checkpoint), load_file(spared.checkpoint)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_a_batch_filled_with_repeats_counts_less(
    base: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three images by twos: the loss of the half-filled batch is multiplied by 0.5 ** 1.5."""
    factors: list[float] = []
    monkeypatch.setattr(
        "services.trainer.training.loss.F.mse_loss",
        lambda predicted, expected, **_: (predicted - expected) * 0 + 1.0,
    )
    real = DiffusionLoss.loss

    def spy(*arguments: Any) -> torch.Tensor:
        loss = real(*arguments)
        factors.append(float(loss.detach()))
        return loss

    monkeypatch.setattr(DiffusionLoss, "loss", spy)
    outcome = train(
        training_order(tmp_path, dataset=dataset, base=base, max_epochs=1, batch_size=2),
        RecordingCallbacks(),
    )

    assert sorted(factors) == pytest.approx([0.353553, 1.0], abs=1e-6)
    assert outcome.images == 3


def test_a_loss_that_is_no_number_ends_the_run_with_its_step_and_advice(
    base: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = DiffusionLoss.loss, []

    def spy(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        return real(*arguments) * (float("nan") if len(calls) == 2 else 1.0)

    monkeypatch.setattr(DiffusionLoss, "loss", spy)

    with pytest.raises(Refused, match=r"nan at step 2\b.*lower lr"):
        train(training_order(tmp_path, dataset=dataset, base=base), RecordingCallbacks())

    assert not list(tmp_path.rglob("*.safetensors"))


def test_checkpoints_and_resume_points_come_when_their_time_has_passed(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    """A step takes 10 s; an interval has passed when more than its length has."""
    order = training_order(
        tmp_path, dataset=dataset, base=base, max_epochs=3, ckpt_every_n_minutes=1, resume_every=30,
        save_optimizer=True,
    )  # fmt: skip
    callbacks = RecordingCallbacks()

    train(order, callbacks, clock=lambda: 10.0 * callbacks.steps_begun)

    checkpoints = [
        (path.name, step) for kind, path, step, _ in callbacks.saves if kind == "checkpoint"
    ]
    points = [step for kind, _, step, _ in callbacks.saves if kind == "resume_point"]
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert checkpoints == [("job1-ep02-gs00007.safetensors", 7)]
    assert points == [4, 8]
    assert names == {
        "job1-ep02-gs00007.safetensors",
        "job1-ep02-gs00007.optimizer",
        "last-job1-ep03-gs00009.safetensors",
    }
    assert (tmp_path / "model" / "optimizer_unet.safetensors").exists()


def test_no_checkpoint_in_between_where_none_is_asked_for(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    order = training_order(tmp_path, dataset=dataset, base=base, ckpt_every_n_minutes=0)
    callbacks = RecordingCallbacks()

    train(order, callbacks, clock=lambda: 1000.0 * callbacks.steps_begun)

    assert callbacks.saves == []


@pytest.mark.parametrize(
    ("what", "options"),
    [
        ("a checkpoint", {"save_every_n_epochs": 1}),
        ("a resume point", {"resume_every": -1.0}),
        ("the trained model", {}),
    ],
)
def test_a_full_disk_ends_the_run_before_anything_is_saved(
    what: str, options: dict[str, Any], base: Path, dataset: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=12_345))
    order = training_order(tmp_path, dataset=dataset, base=base, max_epochs=2, **options)

    with pytest.raises(Passing, match=rf"save {what}: \d+ bytes are needed in {tmp_path}.* 12345"):
        train(order, RecordingCallbacks())

    assert {each.name for each in tmp_path.rglob("*") if each.is_file()} == {"metrics.jsonl"}


def test_a_model_saved_with_its_optimizers_hands_on_their_moments_but_not_their_rate(
    base: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(
        training_order(
            tmp_path / "1", dataset=dataset, base=base, save_optimizer=True, useadam8bit=True
        ),
        RecordingCallbacks(),
    )
    seen: list[tuple[int, float]] = []
    real = loop.update

    def spy(state: State, **settings: Any) -> None:
        optimizer = state.optimizers["unet"]
        step = int(next(iter(optimizer.state.values()))["step"])
        real(state, **settings)
        seen.append((step, optimizer.param_groups[0]["lr"]))

    monkeypatch.setattr(loop, "update", spy)
    again = training_order(
        tmp_path / "2", dataset=dataset, base=whole_model(first), lr=1e-4, useadam8bit=True
    )
    train(again, RecordingCallbacks())

    assert seen == [(step, 1e-4) for step in range(6, 12)]


def test_a_dropped_caption_is_the_empty_one_and_all_images_may_be_mirrored(
    base: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, bool]] = []
    real = DiffusionLoss.loss

    def spy(objective: DiffusionLoss, loaded: Any) -> torch.Tensor:
        seen.extend((each.augmentation.caption, each.augmentation.flip) for each in loaded.examples)
        return real(objective, loaded)

    monkeypatch.setattr(DiffusionLoss, "loss", spy)
    train(
        training_order(
            tmp_path, dataset=dataset, base=base, max_epochs=1, cond_dropout=1.0, flip_p=1.0
        ),
        RecordingCallbacks(),
    )

    assert seen == [("", True)] * 3


def test_mixed_precision_changes_what_is_computed_and_not_what_is_kept(
    base: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a card with bf16: one step from the same weights, noise and timesteps."""
    commands: dict[str, Any] = {"max_epochs": 1, "batch_size": 3, "save_full_precision": True}
    orders = [
        training_order(tmp_path / name, dataset=dataset, base=base, **commands)
        for name in ("fp32", "bf16")
    ]
    full = train(orders[0], RecordingCallbacks())
    chosen = Choices(precision="bf16", optimizer="adamw", attention="sdpa")
    monkeypatch.setattr(loop, "choose", lambda _train, _device: chosen)

    mixed = train(orders[1], RecordingCallbacks())

    assert mixed.precision == "bf16"
    assert full.loss is not None
    assert mixed.loss != full.loss
    assert mixed.loss == pytest.approx(full.loss, rel=0.02)
    kept = load_file(mixed.checkpoint)["model.diffusion_model.out.2.weight"]
    assert not torch.equal(kept, kept.bfloat16().float())


def test_a_v_prediction_model_learns_too(dataset: Path, tmp_path: Path) -> None:
    base = make_random_model(tmp_path / "base", prediction_type="v_prediction")
    callbacks = RecordingCallbacks()

    order = training_order(
        tmp_path / "out", dataset=dataset, base=base, max_epochs=6,
        validation=Validation(val_split_proportion=0.5),
    )  # fmt: skip

    outcome = train(order, callbacks)

    assert outcome.validation is not None
    assert outcome.validation.last.loss < outcome.validation.before.loss


def test_an_image_that_cannot_be_read_is_named(base: Path, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", images=2)
    (data / "1.png").write_bytes((data / "1.png").read_bytes()[:-300])

    with pytest.raises(Refused, match=r"1\.png cannot be read"):
        train(training_order(tmp_path / "out", dataset=data, base=base), RecordingCallbacks())
