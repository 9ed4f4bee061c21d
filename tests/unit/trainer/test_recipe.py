"""Learning rates, steps and choices: the original's numbers, and ours where it was wrong."""

import math
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from services.trainer.training.recipe import (
    Choices,
    Device,
    Recipe,
    accumulation_groups,
    choose,
    peak_lr,
    recipe_for,
    to_need_less_memory,
)
from shared.request import LrScheduler, Train


def train(**fields: Any) -> Train:
    return Train(data_url="https://example.com/x.zip", **fields)


def schedule(name: LrScheduler, *, decay: int = 1500, warmup: int = 30, lr: float = 2e-6) -> Recipe:
    return Recipe(
        lr=lr, lr_scheduler=name, warmup_steps=warmup, decay_steps=decay, total_steps=1000
    )


@pytest.mark.parametrize(
    ("per_epoch", "epochs", "decay", "warmup"),
    [(6, 300, 2700, 54), (1, 10, 15, 0), (1, 1, 1, 0), (10, 100, 1500, 30)],
)
def test_decay_reaches_half_again_beyond_the_end_and_warm_up_takes_a_fiftieth_of_it(
    per_epoch: int, epochs: int, decay: int, warmup: int
) -> None:
    request = train(max_epochs=epochs, lr_scheduler="linear")

    recipe = recipe_for(request, steps_per_epoch=per_epoch, total_steps=per_epoch * epochs)

    assert (recipe.decay_steps, recipe.warmup_steps) == (decay, warmup)
    assert recipe.total_steps == per_epoch * epochs


def test_steps_asked_for_are_taken_as_they_are() -> None:
    request = train(lr_decay_steps=7, lr_warmup_steps=0)

    recipe = recipe_for(request, steps_per_epoch=10, total_steps=3000)

    assert (recipe.decay_steps, recipe.warmup_steps) == (7, 0)


@pytest.mark.parametrize(
    ("name", "step", "factor"),
    [
        ("linear", 0, 0.0),
        ("cosine", 15, 0.5),
        ("polynomial", 30, 1.0),
        ("linear", 500, 0.680272),
        ("cosine", 500, 0.768274),
        ("polynomial", 500, 0.696259),
        ("linear", 999, 0.340816),
        ("cosine", 999, 0.260248),
        ("polynomial", 999, 0.373776),
        ("constant", 0, 1.0),
        ("constant", 999, 1.0),
    ],
)
def test_the_learning_rate_follows_the_original(
    name: LrScheduler, step: int, factor: float
) -> None:
    assert schedule(name).lr_factor(step) == pytest.approx(factor, abs=1e-6)


@pytest.mark.parametrize("step", [500, 750, 990, 10**6])
@pytest.mark.parametrize(
    ("name", "floor"), [("linear", 0.0), ("cosine", 0.0), ("polynomial", 0.05)]
)
def test_a_decayed_rate_stays_at_its_floor(name: LrScheduler, floor: float, step: int) -> None:
    assert schedule(name, decay=500).lr_factor(step) == pytest.approx(floor)


@pytest.mark.parametrize("lr", [1e-7, 1e-8])
def test_polynomial_decay_from_at_or_under_its_floor_stays_where_it_is(lr: float) -> None:
    recipe = schedule("polynomial", decay=500, lr=lr)

    assert [recipe.lr_at(step) for step in (30, 250, 900)] == pytest.approx([lr] * 3)


def test_warm_up_longer_than_decay_ends_at_the_floor_without_a_step_at_the_peak() -> None:
    recipe = schedule("linear", decay=50, warmup=200)

    assert [recipe.lr_factor(step) for step in (100, 200, 201)] == [0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    ("fields", "lr"),
    [
        ({}, 2e-6),
        ({"lr": 3e-6}, 3e-6),
        ({"batch_size": 4, "grad_accum": 2}, 2e-6),
        ({"scale_lr": True, "batch_size": 4, "grad_accum": 2}, 6.27667e-6),
        ({"scale_lr": True, "lr": 2e-6, "batch_size": 2}, 2.92817e-6),
        ({"scale_lr": True, "batch_size": 1}, 2e-6),
    ],
)
def test_the_peak_is_the_one_asked_for_or_the_default_scaled_where_asked(
    fields: dict[str, Any], lr: float
) -> None:
    request = train(**fields)

    assert peak_lr(request, request.lr) == pytest.approx(lr, rel=1e-5)


@pytest.mark.parametrize(
    ("steps", "epochs", "size", "updates_after"),
    [
        (5, 3, 3, [3, 5, 8, 10, 13, 15]),
        (6, 2, 4, [4, 6, 10, 12]),
        (3, 2, 2, [2, 3, 5, 6]),
        (2, 2, 1, [1, 2, 3, 4]),
    ],
)
def test_accumulation_starts_anew_at_each_epoch(
    steps: int, epochs: int, size: int, updates_after: list[int]
) -> None:
    groups = accumulation_groups(steps, size)

    after = [epoch * steps + group.stop for epoch in range(epochs) for group in groups]

    assert after == updates_after
    assert [step for group in groups for step in group] == list(range(steps))


# --- What holds for every schedule and every group --------------------------------------------

SCHEDULES = st.builds(
    schedule,
    st.sampled_from(["constant", "linear", "cosine", "polynomial"]),
    decay=st.integers(1, 5000),
    warmup=st.integers(0, 6000),
    lr=st.floats(1e-9, 1.0),
)


@given(SCHEDULES, st.integers(0, 10_000))
def test_a_rate_rises_to_its_peak_then_falls_and_never_rises_again(
    recipe: Recipe, step: int
) -> None:
    now, then = recipe.lr_factor(step), recipe.lr_factor(step + 1)

    assert 0.0 <= now <= 1.0
    if step + 1 == recipe.warmup_steps >= recipe.decay_steps:
        assert then == recipe.lr_factor(step + 2), "no peak: it goes to its floor at once"
    else:
        assert now <= then if step + 1 <= recipe.warmup_steps else now >= then


@given(SCHEDULES)
def test_a_rate_has_its_peak_when_warm_up_ends_before_the_decay(recipe: Recipe) -> None:
    assume(recipe.warmup_steps < recipe.decay_steps)

    assert recipe.lr_at(recipe.warmup_steps) == pytest.approx(recipe.lr)


@given(SCHEDULES, st.integers(1, 10_000))
def test_a_rate_stays_where_its_decay_ended(recipe: Recipe, later: int) -> None:
    end = max(recipe.decay_steps, recipe.warmup_steps + 1)

    assert recipe.lr_at(end + later) == recipe.lr_at(end)


@given(SCHEDULES, st.floats(1e-9, 1.0), st.integers(0, 10_000))
def test_a_text_encoders_own_peak_takes_the_same_course(
    recipe: Recipe, own: float, step: int
) -> None:
    both = msgspec.structs.replace(recipe, text_encoder_lr=own)

    assert both.lrs_at(step) == {
        "unet": recipe.lr_at(step),
        "text_encoder": msgspec.structs.replace(recipe, lr=own).lr_at(step),
    }
    assert set(recipe.lrs_at(step).values()) == {recipe.lr_at(step)}


@given(st.integers(0, 500), st.integers(1, 600))
def test_groups_are_whole_but_for_the_last_and_hold_every_step_once(steps: int, size: int) -> None:
    groups = accumulation_groups(steps, size)

    assert [step for group in groups for step in group] == list(range(steps))
    assert len(groups) == math.ceil(steps / size)
    assert all(len(group) == size for group in groups[:-1])
    assert all(0 < len(group) <= size for group in groups)


def test_the_text_encoders_rate_is_scaled_like_the_other() -> None:
    request = train(lr=1e-6, text_encoder_lr=1e-7, scale_lr=True, batch_size=4)

    recipe = recipe_for(request, steps_per_epoch=1, total_steps=1)

    assert recipe.lr == pytest.approx(1e-6 * 4**0.55)
    assert recipe.text_encoder_lr == pytest.approx(1e-7 * 4**0.55)


CPU = Device(kind="cpu", bitsandbytes=True, fused=True)
OLD_CARD = Device(kind="cuda", name="T4", xformers=True, bitsandbytes=True, fused=True)
NEW_CARD = Device(kind="cuda", name="H100", bf16=True, bitsandbytes=True, fused=True)
BARE_CARD = Device(kind="cuda", name="H100", bf16=True)


@pytest.mark.parametrize(
    ("fields", "device", "precision", "optimizer", "attention"),
    [
        ({}, CPU, "fp32", "adamw8bit", "sdpa"),
        ({"useadam8bit": False}, CPU, "fp32", "adamw_fused", "sdpa"),
        ({}, OLD_CARD, "fp16", "adamw8bit", "xformers"),
        ({"disable_xformers": True}, OLD_CARD, "fp16", "adamw8bit", "sdpa"),
        ({}, NEW_CARD, "bf16", "adamw8bit", "sdpa"),
        ({"amp": False}, NEW_CARD, "fp32", "adamw8bit", "sdpa"),
        ({}, BARE_CARD, "bf16", "adamw", "sdpa"),
    ],
)
def test_the_device_and_the_request_choose_together(
    fields: dict[str, Any], device: Device, precision: str, optimizer: str, attention: str
) -> None:
    chosen = choose(train(**fields), device)

    assert chosen == Choices(
        precision=precision,  # type: ignore[arg-type]
        optimizer=optimizer,  # type: ignore[arg-type]
        attention=attention,  # type: ignore[arg-type]
    )


def test_advice_after_memory_ran_out_names_settings_until_none_is_left() -> None:
    assert to_need_less_memory(train(batch_size=4, resolution=768, useadam8bit=False)) == (
        "batch_size 2 with grad_accum 2, gradient_checkpointing true, useadam8bit true,"
        " resolution 512, or a LoRA (lora_rank 16)"
    )
    assert to_need_less_memory(train(batch_size=1, lora_rank=4)) == "gradient_checkpointing true"
    assert to_need_less_memory(train(batch_size=1, lora_rank=4, optimizer="lion")) == (
        "gradient_checkpointing true, optimizer lion8bit"
    )
    assert to_need_less_memory(train(batch_size=1, gradient_checkpointing=True)) is None


def test_a_lora_learns_at_a_rate_of_its_own_unless_one_is_given() -> None:
    assert peak_lr(train(lora_rank=4, lr=None), None) == 1e-4
    assert peak_lr(train(lora_rank=4), 3e-5) == 3e-5
