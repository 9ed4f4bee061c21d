"""The plan of an epoch, and augmentation."""

import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.dataset.buckets import Size, nearest
from shared.dataset.manifest import Picture
from shared.dataset.plan import (
    Augmentation,
    Batch,
    EpochConfig,
    augment,
    caption_of,
    job_seed,
    multiplied,
    plan_epoch,
    rated_count,
    seed_of,
    steps_per_epoch,
    total_steps,
    totals,
)
from shared.request import Train

SQUARE, LANDSCAPE = (600, 600), (900, 500)


def pictures(*shapes: tuple[int, int], **more: Any) -> list[Picture]:
    return [
        Picture(file=f"{number}.png", caption="a cat, sitting, red", width=w, height=h, **more)
        for number, (w, h) in enumerate(shapes)
    ]


def epoch_config(**more: Any) -> EpochConfig:
    return EpochConfig(**{"resolution": 512, "batch_size": 4, "seed": 555, **more})


shapes = st.lists(st.tuples(st.integers(64, 3000), st.integers(64, 3000)), min_size=1, max_size=40)


def test_a_lone_landscape_fills_its_batch_with_repeats_and_counts_for_an_eighth() -> None:
    batches = plan_epoch(pictures(*[SQUARE] * 5, LANDSCAPE), epoch_config(), 0)

    assert len(batches) == 3
    assert sum(len(batch.pictures) for batch in batches) == 12
    (lone,) = (batch for batch in batches if batch.size == (640, 384))
    assert lone.pictures == (5, 5, 5, 5)
    assert (lone.real, lone.loss_factor) == (1, 0.125)


@pytest.mark.parametrize(
    ("images", "batch_size", "factor"),
    [(1, 4, 0.125), (2, 4, 0.353553), (3, 4, 0.649519), (4, 4, 1.0), (1, 2, 0.353553)],
)
def test_a_short_batch_weighs_its_real_share_to_the_power_of_one_and_a_half(
    images: int, batch_size: int, factor: float
) -> None:
    (batch,) = plan_epoch(pictures(*[SQUARE] * images), epoch_config(batch_size=batch_size), 0)

    assert batch.loss_factor == pytest.approx(factor, abs=1e-6)


@given(shapes, st.integers(1, 9), st.integers(), st.integers(0, 50))
@settings(deadline=None)
def test_every_epoch_shows_every_picture_once_in_full_batches_of_one_shape(
    sizes: list[tuple[int, int]], batch_size: int, seed: int, epoch: int
) -> None:
    dataset = pictures(*sizes)

    batches = plan_epoch(dataset, epoch_config(batch_size=batch_size, seed=seed), epoch)

    real = [index for batch in batches for index in batch.pictures[: batch.real]]
    assert sorted(real) == list(range(len(sizes)))
    for number, batch in enumerate(batches):
        assert len(batch.pictures) == batch_size
        assert batch.first == number * batch_size
        assert set(batch.pictures[batch.real :]) <= set(batch.pictures[: batch.real])
        for index in batch.pictures:
            assert nearest(*sizes[index], 512) == batch.size


def test_epochs_and_seeds_differ_in_order_and_equal_ones_do_not() -> None:
    dataset = pictures(*[SQUARE] * 30, *[LANDSCAPE] * 30)

    first = plan_epoch(dataset, epoch_config(), 0)

    assert plan_epoch(dataset, epoch_config(), 0) == first
    assert plan_epoch(dataset, epoch_config(), 1) != first
    assert plan_epoch(dataset, epoch_config(seed=556), 0) != first


def test_another_process_makes_the_same_plan() -> None:
    code = "from shared.dataset.plan import seed_of; print(seed_of(555, 3, 'order'))"

    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            check=True,
            text=True,
            env={"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]

    assert said == [f"{seed_of(555, 3, 'order')}\n"] * 2
    assert (
        seed_of(555, 3, "order") == 6214497740513498240
    )  # pinned: a new value would break every resume point


def test_batches_of_different_shapes_come_mixed() -> None:
    sizes = [
        batch.size
        for batch in plan_epoch(pictures(*[SQUARE] * 80, *[LANDSCAPE] * 80), epoch_config(), 0)
    ]

    changes = sum(one != other for one, other in pairwise(sizes))
    assert changes > 8


def test_steps_are_batches_and_add_up_over_the_epochs() -> None:
    dataset = pictures(*[SQUARE] * 12)

    assert steps_per_epoch(dataset, epoch_config(batch_size=2)) == 6
    assert total_steps(dataset, epoch_config(batch_size=2, epochs=300)) == 1800


@pytest.mark.parametrize(
    ("multipliers", "total"),
    [
        ([2.5] * 4, 10),
        ([0.5] * 3, 1),
        ([1.1] * 10, 11),
        ([0.1] * 10, 1),
        ([2, 0.25, 0.25, 0.25], 2),
    ],
)
def test_multipliers_add_up_exactly_and_the_sum_is_rounded_down(
    multipliers: Sequence[float], total: int
) -> None:
    assert len(multiplied(multipliers, Random(1))) == total


def test_a_multiplier_of_two_and_a_half_means_two_or_three() -> None:
    for seed in range(50):
        counts = Counter(multiplied([2.5] * 4, Random(seed)))
        assert sorted(counts.values()) == [2, 2, 3, 3]


def test_a_fraction_is_the_exact_chance_of_one_more() -> None:
    random = Random(4)

    seen = Counter(index for _ in range(10_000) for index in multiplied([0.2, 0.5, 1.3], random))

    odds = [seen[index] / 10_000 for index in range(3)]
    assert odds == pytest.approx([0.2, 0.5, 1.3], abs=0.015)


@pytest.mark.parametrize(
    ("images", "epochs", "percent", "counts"),
    [
        (100, 10, 50, [100, 100, 95, 90, 85, 80, 75, 70, 65, 60]),
        (10, 4, 50, [10, 10, 9, 8]),
        (10, 2, 50, [10, 10]),
        (20, 5, 0, [20, 20, 16, 12, 8]),
        (20, 5, 100, [20] * 5),
        (10, 3, 10, [10, 10, 7]),
    ],
)
def test_a_rated_dataset_shrinks_epoch_by_epoch(
    images: int, epochs: int, percent: int, counts: list[int]
) -> None:
    rated = epoch_config(epochs=epochs, rated_percent=percent)

    assert [rated_count(images, rated, epoch) for epoch in range(epochs)] == counts


def test_a_late_epoch_of_a_rated_dataset_has_each_picture_once_and_prefers_the_good_ones() -> None:
    good = pictures(*[SQUARE] * 20, rating=5.0, multiply=3.0)
    poor = pictures(*[SQUARE] * 20, rating=0.2)
    rated = epoch_config(epochs=10, rated_percent=50, batch_size=1)

    late = [batch.pictures[0] for batch in plan_epoch(good + poor, rated, 9)]

    assert len(late) == len(set(late)) == 24
    assert sum(index < 20 for index in late) >= 18
    assert steps_per_epoch(good + poor, rated, 0) == 80
    assert total_steps(good + poor, rated) == sum(
        len(plan_epoch(good + poor, rated, epoch)) for epoch in range(10)
    )


def draws(one: Picture, job: EpochConfig, count: int = 4000) -> list[Augmentation]:
    size = nearest(one.width, one.height, 512)
    return [augment(one, 0, size, job, epoch=0, position=position) for position in range(count)]


def test_a_dropped_caption_is_the_empty_one_and_as_frequent_as_asked() -> None:
    (cat,) = pictures(SQUARE)

    dropped = sum(one.caption == "" for one in draws(cat, epoch_config(cond_dropout=0.25)))

    assert dropped / 4000 == pytest.approx(0.25, abs=0.02)
    assert {one.caption for one in draws(cat, epoch_config(cond_dropout=0.0), 100)} == {cat.caption}
    assert {one.caption for one in draws(cat, epoch_config(cond_dropout=1.0), 100)} == {""}


def test_a_picture_is_mirrored_as_often_as_asked() -> None:
    (cat,) = pictures(SQUARE)

    flipped = sum(one.flip for one in draws(cat, epoch_config(flip_p=0.5)))

    assert flipped / 4000 == pytest.approx(0.5, abs=0.03)
    assert all(one.flip for one in draws(cat, epoch_config(flip_p=1.0), 100))


def test_settings_of_a_picture_override_the_job() -> None:
    (cat,) = pictures(SQUARE, cond_dropout=0.0, flip_p=0.0, shuffle_tags=False)
    job = epoch_config(cond_dropout=1.0, flip_p=1.0, shuffle_tags=True)

    assert {(one.caption, one.flip) for one in draws(cat, job, 50)} == {(cat.caption, False)}


def test_tags_are_shuffled_per_picture_and_epoch_and_otherwise_left_alone() -> None:
    (cat,) = pictures(SQUARE)
    job = epoch_config(shuffle_tags=True)

    orders = Counter(caption_of(cat, 0, job, epoch) for epoch in range(400))

    assert set(orders) == {"a cat, sitting, red", "a cat, red, sitting"}
    assert 140 < orders["a cat, sitting, red"] < 260
    assert len({caption_of(cat, index, job, 0) for index in range(20)}) == 2
    assert caption_of(cat, 0, job, 7) == caption_of(cat, 0, job, 7)
    assert caption_of(cat, 0, epoch_config(), 7) == "a cat, sitting, red"


def test_a_draw_depends_on_seed_epoch_and_position_alone() -> None:
    (cat,) = pictures((1000, 1000))
    job = epoch_config(cond_dropout=0.5, flip_p=0.5)

    assert draws(cat, job, 50) == draws(cat, job, 50)
    assert len({one.crop for one in draws(cat, job, 50)}) > 30
    assert draws(cat, epoch_config(seed=1, cond_dropout=0.5, flip_p=0.5), 50) != draws(cat, job, 50)


def test_an_images_crops_come_again_after_so_many_epochs_and_all_else_goes_on() -> None:
    (cat,) = pictures((1000, 700))
    job = epoch_config(crops_per_image=3, flip_p=0.5)
    drawn = [augment(cat, 0, Size(64, 64), job, epoch=each, position=0) for each in range(60)]

    assert [one.crop for one in drawn] == [one.crop for one in drawn[:3]] * 20
    assert len({one.crop for one in drawn}) == 3
    assert len({tuple(one.flip for one in drawn[start::3]) for start in range(3)}) == 3
    other = augment(cat, 1, Size(64, 64), job, epoch=0, position=0)
    assert other.crop != drawn[0].crop


def named(name: str, count: int, shape: tuple[int, int] = SQUARE, **more: Any) -> list[Picture]:
    return pictures(*[shape] * count, batch_id=name, **more)


def owners(batch: Batch, dataset: Sequence[Picture]) -> set[str]:
    return {dataset[index].batch_id for index in batch.pictures}


def test_pictures_of_one_name_are_batched_with_their_own_kind() -> None:
    dataset = named("ted", 8) + named("sue", 4) + named("", 8)

    batches = plan_epoch(dataset, epoch_config(), 0)

    assert Counter(batch.name for batch in batches) == {"ted": 2, "sue": 1, "": 2}
    assert all(owners(batch, dataset) == {batch.name} for batch in batches)
    assert all(batch.loss_factor == 1.0 for batch in batches)


def test_what_fills_no_named_batch_goes_to_the_default_group_of_its_size() -> None:
    dataset = named("ted", 5) + named("ted", 1, LANDSCAPE) + named("", 3) + named("sue", 2)

    batches = plan_epoch(dataset, epoch_config(), 0)

    assert Counter(batch.name for batch in batches) == {"ted": 1, "": 3}
    rest = [batch for batch in batches if not batch.name]
    assert Counter((batch.size, batch.real) for batch in rest) == {
        ((512, 512), 4): 1,
        ((512, 512), 2): 1,
        ((640, 384), 1): 1,
    }


def test_a_name_without_a_full_batch_is_like_no_name() -> None:
    assert [batch.name for batch in plan_epoch(named("ted", 3), epoch_config(), 0)] == [""]


@pytest.mark.parametrize("epoch", range(5))
def test_batches_of_one_name_share_an_update_and_default_ones_fill_the_gaps(epoch: int) -> None:
    dataset = named("ted", 8) + named("ted", 4, LANDSCAPE) + named("sue", 8) + named("", 16)

    batches = plan_epoch(dataset, epoch_config(grad_accum=4), epoch)

    updates = [[batch.name for batch in batches[start : start + 4]] for start in range(0, 9, 4)]
    assert [len(update) for update in updates] == [4, 4, 1]
    assert sorted(map(sorted, updates[:2])) == [["", "", "sue", "sue"], ["", "ted", "ted", "ted"]]
    assert [batch.first for batch in batches] == list(range(0, 36, 4))


@pytest.mark.parametrize("epoch", range(5))
def test_the_short_update_comes_last_so_that_the_others_stay_whole(epoch: int) -> None:
    dataset = named("ted", 8) + named("sue", 12)

    batches = plan_epoch(dataset, epoch_config(grad_accum=3), epoch)

    assert [batch.name for batch in batches] == ["sue", "sue", "sue", "ted", "ted"]


def test_without_accumulation_named_batches_come_mixed() -> None:
    dataset = named("ted", 80) + named("sue", 80)

    names = [batch.name for batch in plan_epoch(dataset, epoch_config(), 0)]

    assert sum(one != other for one, other in pairwise(names)) > 8


datasets = st.lists(
    st.builds(
        Picture,
        file=st.just("x.png"),
        caption=st.just("x"),
        width=st.sampled_from([600, 900]),
        height=st.sampled_from([600, 900]),
        batch_id=st.sampled_from(["", "ted", "sue"]),
        multiply=st.sampled_from([1.0, 1.0, 2.0, 1.5, 0.7]),
        rating=st.floats(0.1, 9.0),
    ),
    min_size=2,
    max_size=40,
)


@given(
    datasets, st.integers(1, 5), st.integers(1, 4), st.integers(0, 9), st.sampled_from([None, 50])
)
@settings(deadline=None)
def test_whatever_is_asked_for_every_draw_is_in_a_full_batch_and_the_plan_repeats(
    dataset: list[Picture], batch_size: int, grad_accum: int, epoch: int, percent: int | None
) -> None:
    job = epoch_config(
        batch_size=batch_size,
        grad_accum=grad_accum,
        epochs=10,
        rated_percent=percent,
    )

    batches = plan_epoch(dataset, job, epoch)

    thinned = percent is not None and epoch > 1
    wanted = (
        rated_count(len(dataset), job, epoch)
        if thinned
        else len(multiplied([one.multiply for one in dataset], Random(0)))
    )
    real = [index for batch in batches for index in batch.pictures[: batch.real]]
    assert len(real) == wanted
    if not thinned and all(one.multiply == 1 for one in dataset):
        assert sorted(real) == list(range(len(dataset)))
    for number, batch in enumerate(batches):
        assert len(batch.pictures) == batch_size
        assert batch.first == number * batch_size
        if batch.name:
            assert owners(batch, dataset) == {batch.name}
            assert batch.real == batch_size
        for index in batch.pictures:
            assert nearest(dataset[index].width, dataset[index].height, 512) == batch.size
    assert plan_epoch(dataset, job, epoch) == batches


def test_four_times_three_pictures_are_twelve_until_the_ratings_thin_them_out() -> None:
    dataset = pictures(*[SQUARE] * 4, multiply=3.0)
    rated = epoch_config(batch_size=1, epochs=5, rated_percent=60)

    counts = [steps_per_epoch(dataset, rated, epoch) for epoch in range(5)]

    assert counts == [12, 12, 4, 4, 4]
    assert totals(dataset, rated).pixels == 36 * 512 * 512


def test_the_last_of_many_epochs_ends_just_above_the_share_aimed_at() -> None:
    assert rated_count(100, epoch_config(epochs=300, rated_percent=50), 299) == 51


def test_some_tags_are_kept_and_the_caption_never_outgrows_its_bound() -> None:
    long = Picture(
        file="0.png", caption="main, keep, aa, bb, cc", width=600, height=600, max_caption_length=18
    )
    job = epoch_config(shuffle_tags=True, keep_tags=1)

    seen = {caption_of(long, 0, job, epoch) for epoch in range(60)}

    assert seen == {f"main, keep, {one}, {other}" for one, other in pairs("aa", "bb", "cc")}
    assert caption_of(long, 0, epoch_config(), 0) == "main, keep, aa, bb"


def pairs(*names: str) -> list[tuple[str, str]]:
    return [(one, other) for one in names for other in names if one != other]


def test_weighted_tags_are_drawn_until_the_caption_is_full() -> None:
    heavy = Picture(
        file="0.png",
        caption="main, heavy, light",
        weights=(9.0, 1.0),
        width=600,
        height=600,
        max_caption_length=12,
    )

    seen = Counter(
        caption_of(heavy, 0, epoch_config(shuffle_tags=True), epoch) for epoch in range(2000)
    )

    assert set(seen) == {"main, heavy", "main, light"}
    assert seen["main, heavy"] / 2000 == pytest.approx(0.9, abs=0.03)


def test_without_a_command_a_caption_ends_at_2048_characters() -> None:
    (cat,) = pictures(SQUARE)
    endless = msgspec.structs.replace(cat, caption=", ".join(f"tag {n:04}" for n in range(1000)))

    for job in (epoch_config(), epoch_config(shuffle_tags=True)):
        caption = caption_of(endless, 0, job, 0)
        assert 2038 <= len(caption) <= 2048
        assert caption.rsplit(", ", 1)[1].startswith("tag ")


def test_an_epoch_config_is_made_from_the_request() -> None:
    train = Train(
        data_url="u",
        batch_size=3,
        grad_accum=5,
        max_epochs=7,
        shuffle_tags=True,
        keep_tags=2,
        crops_per_image=2,
        flip_p=0.5,
        cond_dropout=0.1,
        resolution=640,
        rated_dataset=True,
        rated_dataset_target_dropout_percent=30,
    )

    assert EpochConfig.of(train, seed=11) == EpochConfig(
        resolution=640,
        batch_size=3,
        grad_accum=5,
        seed=11,
        epochs=7,
        rated_percent=30,
        cond_dropout=0.1,
        flip_p=0.5,
        shuffle_tags=True,
        keep_tags=2,
        crops_per_image=2,
    )
    assert EpochConfig.of(Train(data_url="u"), seed=1).rated_percent is None


def test_a_job_without_a_seed_draws_one_that_every_attempt_and_service_shares() -> None:
    asked, free = Train(data_url="u", seed=3), Train(data_url="u", seed=-1)

    assert job_seed("a", asked) == job_seed("b", asked) == 3
    assert job_seed("a", free) == job_seed("a", free) != job_seed("b", free)
    assert 0 <= job_seed("a", free) < 2**30
