"""Held-out images and their batches."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.dataset.buckets import nearest
from shared.dataset.manifest import Picture
from shared.dataset.plan import EpochConfig, augment
from shared.dataset.validation import (
    held_out_config,
    plan_held_out,
    split,
)
from shared.errors import Refused
from shared.request import Validation

CONFIG = EpochConfig(
    resolution=512, batch_size=4, seed=9, cond_dropout=1.0, flip_p=1.0, shuffle_tags=True
)


def pictures(count: int, shape: tuple[int, int] = (600, 600)) -> list[Picture]:
    return [
        Picture(
            file=f"{number}.png",
            caption="a cat, sitting, red",
            width=shape[0],
            height=shape[1],
            multiply=3.0,
            flip_p=1.0,
            cond_dropout=1.0,
            shuffle_tags=True,
            batch_id="cats",
        )
        for number in range(count)
    ]


@pytest.mark.parametrize(
    ("images", "proportion", "held_out"),
    [
        (100, 0.15, 15),
        (100, 0.07, 7),
        (20, 0.15, 3),
        (21, 0.15, 4),
        (2, 0.15, 1),
        (30, 0.1, 3),
        (10, 0.001, 1),
    ],
)
def test_a_share_is_held_out_rounded_up_and_the_rest_is_trained_on(
    images: int, proportion: float, held_out: int
) -> None:
    parts = split(pictures(images), Validation(val_split_proportion=proportion))

    assert (len(parts.training), len(parts.held_out)) == (images - held_out, held_out)
    files = {one.file for one in (*parts.training, *parts.held_out)}
    assert files == {one.file for one in pictures(images)}
    assert parts.training == tuple(
        one for one in pictures(images) if one.file in {kept.file for kept in parts.training}
    )


@pytest.mark.parametrize(("images", "proportion"), [(1, 0.15), (4, 0.9)])
def test_a_dataset_that_would_leave_nothing_to_train_on_is_refused_with_advice(
    images: int, proportion: float
) -> None:
    with pytest.raises(
        Refused, match=rf"of {images} images? and leaves none .*add images, or leave"
    ):
        split(pictures(images), Validation(val_split_proportion=proportion))


def test_without_validation_all_is_trained_on() -> None:
    parts = split(pictures(3), None)

    assert (parts.training, parts.held_out) == (tuple(pictures(3)), ())


def test_the_seed_decides_who_is_held_out_alike_in_every_process() -> None:
    code = (
        "from tests.unit.shared.test_validation import *;"
        "print([p.file for p in split(pictures(50), Validation(seed=7)).held_out])"
    )

    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            check=True,
            text=True,
            env={"PYTHONHASHSEED": seed},
        ).stdout.strip()
        for seed in ("1", "2")
    }

    here = [one.file for one in split(pictures(50), Validation(seed=7)).held_out]
    assert said == {str(here)}
    assert here != [one.file for one in split(pictures(50), Validation(seed=8)).held_out]


def test_a_held_out_picture_is_always_seen_alike_in_its_middle_with_its_caption_whole() -> None:
    (one, *_) = split(pictures(4, (1200, 800)), Validation()).held_out
    size = nearest(1200, 800, 512)
    epoch_config = held_out_config(CONFIG, Validation())

    draws = {augment(one, 0, size, epoch_config, epoch=0, position=place) for place in range(50)}

    (seen,) = draws
    assert (seen.caption, seen.flip) == ("a cat, sitting, red", False)
    assert seen.crop == (0, 40, 1200, 760)
    assert one.multiply == 1.0


@given(st.lists(st.sampled_from([(600, 600), (900, 500), (500, 900)]), min_size=1, max_size=30))
@settings(deadline=None)
def test_every_held_out_picture_is_in_one_batch_of_its_shape_and_none_is_repeated(
    shapes: list[tuple[int, int]],
) -> None:
    held_out = [pictures(1, shape)[0] for shape in shapes]

    batches = plan_held_out(held_out, CONFIG)

    assert sorted(index for batch in batches for index in batch.pictures) == list(
        range(len(shapes))
    )
    for number, batch in enumerate(batches):
        assert (batch.first, batch.loss_factor) == (number * 4, 1.0)
        assert len(batch.pictures) <= 4
        assert {nearest(*shapes[index], 512) for index in batch.pictures} == {batch.size}
