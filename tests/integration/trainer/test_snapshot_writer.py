"""Snapshots on the way: when they are written, what is in them, and when they are not."""

from __future__ import annotations

import shutil
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from services.trainer.snapshot_uploads import CAPTION_PROMPTS, prompts_of
from services.trainer.training.ema import ema_weights
from services.trainer.training.saving import disk_space, snapshot_writer
from services.trainer.training.saving.snapshot_writer import NO_ROOM, SKIPPED
from services.trainer.training.train import set_up, train
from shared.dataset.manifest import Picture
from shared.diffusion.loading import Parts, load
from shared.diffusion.saving import save_folder
from shared.diffusion.weights import save_weights
from shared.errors import Interrupted
from tests.support.forms import few
from tests.support.models import make_random_model, random_parts
from tests.support.training import (
    RecordingCallbacks,
    make_dataset,
    train_request,
    training_order,
    whole_model,
)

pytestmark = pytest.mark.usefixtures("small_pictures")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "set", images=3)


class Drawn(RecordingCallbacks):
    """Callbacks by which each row is drawn at once."""

    def saved(
        self,
        kind: str,
        path: Path,
        step: int,
        epoch: int,
        validation_loss: float | None = None,
        *,
        command: int = 0,
    ) -> None:
        super().saved(kind, path, step, epoch, validation_loss, command=command)
        if kind == "snapshot":
            shutil.rmtree(path)


def rows(callbacks: RecordingCallbacks) -> list[tuple[int, int]]:
    """Step and epoch of every snapshot."""
    return [(step, epoch) for kind, _, step, epoch in callbacks.saves if kind == "snapshot"]


def test_a_snapshot_is_due_at_step_0_and_every_so_many_steps_done_but_not_at_the_last(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    """Updates come after 2, 3, 5, 6, 8 and 9 steps: what is due between them is taken before."""
    callbacks = Drawn()
    order = training_order(
        tmp_path, dataset=dataset, base=base, max_epochs=3, grad_accum=2, sample_every=3
    )

    outcome = train(order, callbacks)

    assert rows(callbacks) == [(0, 0), (3, 1), (6, 2)]
    assert outcome.steps == 9
    assert outcome.warnings == []


def test_a_snapshot_holds_the_trained_networks_in_fp16_as_they_are_at_its_step(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    callbacks = RecordingCallbacks()
    order = training_order(
        tmp_path / "out", dataset=dataset, base=base, max_epochs=2, sample_every=3,
        disable_textenc_training=True,
    )  # fmt: skip
    train(order, callbacks)
    short = training_order(
        tmp_path / "short", dataset=dataset, base=base, max_epochs=1, disable_textenc_training=True,
    )  # fmt: skip
    after_3 = load(whole_model(train(short, RecordingCallbacks()))).unet.state_dict()

    _, second = (path for kind, path, *_ in callbacks.saves if kind == "snapshot")

    assert [file.name for file in second.iterdir()] == ["unet.safetensors"]
    trained = load_file(second / "unet.safetensors")
    assert {each.dtype for each in trained.values()} == {torch.float16}
    assert all(torch.equal(trained[name], after_3[name].half()) for name in after_3)


@pytest.mark.parametrize(
    "dtype",
    few(
        torch.float32,
        torch.bfloat16,
        of=[torch.float64, torch.float32, torch.float16, torch.bfloat16],
    ),
)
def test_a_snapshot_at_step_0_has_no_file_since_it_would_be_the_base_model(
    dataset: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    base = tmp_path / "base"
    save_folder(parts_to_round(), base, dtype=dtype)
    callbacks = RecordingCallbacks(stop_when=lambda _: True)
    order = training_order(
        tmp_path / "out", dataset=dataset, base=base, sample_every=3, ema_decay_rate=0.9,
        enable_zero_terminal_snr=True,
    )  # fmt: skip

    with pytest.raises(Interrupted):
        train(order, callbacks)

    ((kind, path, step, epoch),) = callbacks.saves
    assert (kind, step, epoch) == ("snapshot", 0, 0)
    assert [*path.iterdir()] == []
    state = set_up(order, RecordingCallbacks(), monotonic).state
    with ema_weights(state.averages):
        save_weights(state.trained, tmp_path / "would be")
    rounded = load(base, torch.float16)
    for name in ("unet", "text_encoder"):
        held = load_file(tmp_path / "would be" / f"{name}.safetensors")
        direct = getattr(rounded, name).state_dict()
        assert held.keys() == direct.keys()
        assert all(torch.equal(held[each], direct[each]) for each in direct)


def parts_to_round() -> Parts:
    """A model that has to be rounded, and where it matters whether that is done in two steps."""
    parts = random_parts("v_prediction").to(torch.device("cpu"), torch.float64)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name in ("unet", "text_encoder"):
            for weight in getattr(parts, name).parameters():
                weight.add_(torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
        parts.unet.conv_out.bias.fill_(1 + 2**-11 + 2**-40)
    return parts


def test_while_two_stand_undrawn_others_are_skipped_and_one_warning_names_them(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    callbacks = RecordingCallbacks()
    order = training_order(tmp_path, dataset=dataset, base=base, max_epochs=4, sample_every=3)

    outcome = train(order, callbacks)

    assert rows(callbacks) == [(0, 0), (3, 1)]
    assert outcome.warnings == [f"{SKIPPED}6, 9"]


@pytest.mark.parametrize(
    ("spare", "drawn", "warnings"),
    [(0, [(0, 0), (2, 0), (3, 1), (4, 1)], []), (-1, [(0, 0)], [f"{NO_ROOM}2, 4"])],
)
def test_a_row_for_which_the_disk_has_no_room_beside_the_trained_model_is_skipped(
    base: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    spare: int, drawn: list[tuple[int, int]], warnings: list[str],
) -> None:  # fmt: skip
    """One that is due and one by a command; step 0 needs no room, and the training goes on."""
    callbacks = Drawn(commands={"sample": [3]})
    order = training_order(tmp_path, dataset=dataset, base=base, max_epochs=2, sample_every=2)
    state = set_up(order, RecordingCallbacks(), monotonic).state
    needed = disk_space.snapshot_bytes(state) + disk_space.last_bytes(state, order.train)
    monkeypatch.setattr(snapshot_writer, "free_bytes", lambda _: needed + spare)

    outcome = train(order, callbacks)

    assert outcome.steps == 6
    assert (rows(callbacks), outcome.warnings) == (drawn, warnings)


def test_the_warning_stays_short_however_many_are_skipped(
    base: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_writer, "MAX_NAMED", 3)
    order = training_order(tmp_path, dataset=dataset, base=base, max_epochs=3, sample_every=1)

    assert train(order, RecordingCallbacks()).warnings == [f"{SKIPPED}2, 3, 4, and more"]


def test_a_resumed_run_takes_the_rows_that_an_uninterrupted_one_takes_and_none_twice(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    """It is stopped just after a row, and must not take that one again."""
    first = Drawn(stop_when=lambda steps: steps == 4)
    common: dict[str, Any] = {"dataset": dataset, "base": base, "max_epochs": 3, "sample_every": 2}
    with pytest.raises(Interrupted):
        train(training_order(tmp_path / "first", **common), first)
    resume_point = first.saves[-1][1]
    done = tuple(step for step, _ in rows(first))

    second = Drawn()
    again = training_order(tmp_path / "again", resume=resume_point, sampled=done, **common)
    train(again, second)

    assert rows(first) == [(0, 0), (2, 0), (4, 1)]
    assert rows(second) == [(6, 2), (8, 2)]


def test_the_requests_prompts_are_drawn_or_else_a_few_different_captions_by_the_seed() -> None:
    captions = ["a cat", "a dog", "", "a cat", "a cow", "a hen", "a fox", "an owl"]
    pictures = [Picture(file="x.png", caption=each, width=1, height=1) for each in captions]
    train = train_request()

    assert prompts_of(train_request(sample_prompts=["b", "", "a"]), pictures, 1) == ("b", "", "a")
    drawn = {prompts_of(train, pictures, seed) for seed in range(20)}
    assert len(drawn) > 10
    assert all(len(set(each)) == CAPTION_PROMPTS and "" not in each for each in drawn)
    assert prompts_of(train, pictures, 7) == prompts_of(train, pictures[::-1], 7)
    assert prompts_of(train, pictures[:1], 7) == ("a cat",)
    assert prompts_of(train, pictures[2:3], 7) == ()
