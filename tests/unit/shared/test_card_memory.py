"""The arithmetic of a card's memory, against a count of every allocation on meta tensors."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from shared.dataset.card_memory import (
    DECODED_BYTES,
    DRAWN_BYTES,
    ENCODED_BYTES,
    GIB,
    SD1,
    SD2,
    SPARE,
    TrainingMemory,
    drawing_memory,
    drawing_weights,
    images_at_once,
    in_gib,
    kind_of,
    smaller,
    training_memory,
)
from shared.request import Train
from tests.support.counted_memory import Counted, Networks, count_call, count_step, networks

KINDS = {1: SD1, 2: SD2}


def asked(**settings: Any) -> Train:
    return Train(data_url="u", **settings)


def memory(train: Train | None = None, number: int = 1, **known: Any) -> TrainingMemory:
    found = training_memory(train or asked(), KINDS[number].parameters, **known)
    assert found is not None
    return found


full_size = cache(networks)


def counted(number: int, train: Train) -> Counted:
    of: Networks = full_size(number)
    assert of.parameters == KINDS[number].parameters
    return count_step(of, train)


def assert_is_counted(said: TrainingMemory, found: Counted) -> None:
    """A little too much does no harm."""
    assert -0.015 < said.at_once / found.peak - 1 < 0.04
    assert said.casts == pytest.approx(found.casts, rel=0.01)
    assert said.gradients == found.gradients


# --- Counted ----------------------------------------------------------------------------------


def test_a_step_takes_what_it_is_said_to_take() -> None:
    train = asked(resolution=256, batch_size=4)

    assert_is_counted(memory(train), counted(1, train))


@pytest.mark.long
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(
    "settings",
    [
        {}, {"batch_size": 8}, {"batch_size": 1, "resolution": 1024},
        {"batch_size": 1}, {"disable_textenc_training": True},
        {"gradient_checkpointing": True}, {"gradient_checkpointing": True, "batch_size": 4},
        {"gradient_checkpointing": True, "batch_size": 16},
        {"gradient_checkpointing": True, "resolution": 1024},
        {"gradient_checkpointing": True, "disable_textenc_training": True},
        {"amp": False}, {"amp": False, "batch_size": 1}, {"amp": False, "resolution": 1024},
        {"amp": False, "gradient_checkpointing": True, "batch_size": 16},
    ],
    ids=str,
)  # fmt: skip
def test_any_step_takes_what_it_is_said_to_take(number: int, settings: dict[str, Any]) -> None:
    train = asked(**settings)

    assert_is_counted(memory(train, number), counted(number, train))


@pytest.mark.long
def test_with_the_unet_frozen_a_step_takes_less_than_it_is_said_to_take() -> None:
    train = asked(disable_unet_training=True)
    found = counted(1, train)

    assert 0.85 < found.peak / memory(train).at_once < 1


@pytest.mark.long
def test_encoding_and_drawing_take_what_they_are_said_to_take() -> None:
    side, vae, unet = 512, full_size(1).vae, full_size(2).unet
    images = torch.empty(1, 3, side, side, device="meta")
    assert count_call(vae, lambda: vae.encode(images)) == pytest.approx(
        ENCODED_BYTES * side**2, rel=0.01
    )
    latents = torch.empty(2, 4, side // 8, side // 8, device="meta").half()
    hidden = torch.empty(2, 77, 1024, device="meta").half()
    vae.half(), unet.half()
    try:
        decoded = count_call(vae, lambda: vae.decode(latents[:1], return_dict=False))
        drawn = count_call(unet, lambda: unet(latents, torch.zeros(2), hidden).sample)
    finally:
        vae.float(), unet.float()
    assert decoded == pytest.approx(DECODED_BYTES * side**2, rel=0.01)
    assert drawn == pytest.approx(DRAWN_BYTES * side**2, rel=0.01)


# --- By the settings --------------------------------------------------------------------------


def test_of_the_defaults_each_part_is_known() -> None:
    said = memory()
    parts = (said.weights, said.gradients, said.moments, said.casts, said.activations)

    assert [round(part / GIB, 2) for part in parts] == [3.97, 3.66, 1.86, 1.76, 2.41]
    assert said.averages == 0
    assert in_gib(said.total) == "11.0 GiB"


@pytest.mark.parametrize(
    ("settings", "more"),
    [
        ({"useadam8bit": False}, 5.46),
        ({"ema_decay_rate": 0.999}, 3.66),
        ({"grad_accum": 2}, 3.66),
        ({"disable_textenc_training": True}, -0.47),
        ({"gradient_checkpointing": True}, -0.52),
        ({"batch_size": 4}, 2.41),
        ({"resolution": 1024}, 7.00),
    ],
    ids=str,
)
def test_each_setting_takes_its_part(settings: dict[str, Any], more: float) -> None:
    assert (memory(asked(**settings)).total - memory().total) / GIB == pytest.approx(more, abs=0.02)


def test_a_machine_without_the_8_bit_optimizer_needs_more_and_is_not_told_to_use_it() -> None:
    fp32 = memory(asked(useadam8bit=False)).total

    assert memory(has_8bit=False).total == fp32
    found = smaller(asked(), SD1.parameters, fp32 - 1, has_8bit=False)
    assert found is not None
    assert found.changes(asked()) == "gradient_checkpointing true"


def test_a_single_file_of_stable_diffusion_2_has_a_layer_more_and_is_known() -> None:
    whole = {"unet": 865_910_724, "text_encoder": 354_032_641, "vae": 83_653_863}

    assert kind_of(whole) is SD2
    assert kind_of({**SD1.parameters, "text_encoder": 123_060_557}) is SD1


def test_of_networks_that_were_not_counted_nothing_is_said() -> None:
    tiny = {"unet": 2_000_000, "text_encoder": 300_000, "vae": 300_000}

    assert training_memory(asked(), tiny) is None
    assert smaller(asked(), tiny, GIB) is None
    assert kind_of({}) is None


# --- Settings that need less ------------------------------------------------------------------


def advice(room: float, number: int = 1, **settings: Any) -> str | None:
    train = asked(**settings)
    found = smaller(train, KINDS[number].parameters, int(room * GIB))
    if found is None:
        return None
    assert found.needed == memory(found.train, number).total <= room * GIB
    return found.changes(train)


@pytest.mark.parametrize(
    ("room", "settings", "changes"),
    [
        (10.7, {}, "gradient_checkpointing true"),
        (14.7, {"batch_size": 8, "useadam8bit": False},
         "useadam8bit true, gradient_checkpointing true"),
        (14.7, {"batch_size": 8, "optimizer": "adamw"},
         "optimizer adamw8bit, gradient_checkpointing true"),
        (16.0, {"batch_size": 64, "gradient_checkpointing": True}, "batch_size 16, grad_accum 4"),
        (10.7, {"ema_decay_rate": 0.9}, "gradient_checkpointing true, no ema_decay_rate"),
        (10.2, {}, "gradient_checkpointing true, disable_textenc_training true"),
        (7.4, {}, "lora_rank 16"),
        (5.0, {}, "gradient_checkpointing true, lora_rank 16"),
        (10.7, {"resolution": 1024, "batch_size": 4},
         "gradient_checkpointing true, resolution 512"),
    ],
)  # fmt: skip
def test_the_mildest_changes_with_which_a_training_fits_are_named(
    room: float, settings: dict[str, Any], changes: str
) -> None:
    assert advice(room, **settings) == changes


def test_where_nothing_fits_nothing_is_proposed() -> None:
    assert advice(3.0) is None


# --- Drawing ----------------------------------------------------------------------------------


def test_as_many_are_drawn_at_once_as_what_is_free_has_room_for() -> None:
    pixels = 512 * 512

    assert images_at_once(pixels, 100 * GIB, 8) == 8
    assert images_at_once(pixels, drawing_memory(pixels, 5), 8) == 5
    assert images_at_once(pixels, 0, 8) == 1
    assert in_gib(drawing_weights(SD1.parameters)) == "2.0 GiB"


def test_a_single_image_needs_more_to_be_decoded_than_to_be_drawn() -> None:
    assert drawing_memory(512 * 512, 1) == drawing_memory(512 * 512, 2)
    assert drawing_memory(512 * 512, 1) == SPARE + DECODED_BYTES * 512 * 512
