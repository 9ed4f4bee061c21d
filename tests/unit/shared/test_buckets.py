"""Buckets and crops."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.dataset.buckets import (
    LANDSCAPES,
    Size,
    crop_box,
    is_undersized,
    middle_box,
    nearest,
    sizes,
)

sides = st.integers(min_value=1, max_value=6000)
resolutions = st.sampled_from(list(LANDSCAPES))


@pytest.mark.parametrize(
    ("image", "resolution", "bucket"),
    [
        ((1000, 680), 512, (576, 448)),
        ((680, 1000), 512, (384, 640)),
        ((900, 800), 512, (512, 512)),
        ((800, 900), 512, (448, 576)),
        ((1024, 768), 512, (576, 448)),
        ((1920, 1080), 512, (640, 384)),
        ((3000, 600), 512, (1024, 256)),
        ((1200, 800), 512, (640, 384)),
        ((800, 1200), 512, (384, 640)),
        ((1500, 1000), 256, (256, 256)),
        ((1000, 1500), 256, (192, 384)),
        ((1600, 900), 768, (1024, 576)),
        ((1600, 900), 1024, (1344, 768)),
    ],
)
def test_an_image_goes_to_the_bucket_of_the_nearest_ratio(
    image: tuple[int, int], resolution: int, bucket: tuple[int, int]
) -> None:
    assert nearest(*image, resolution) == bucket


@pytest.mark.parametrize(
    ("cut", "wider", "narrower"),
    [
        (0.88889, (512, 512), (448, 576)),
        (1.14286, (576, 448), (512, 512)),
        (1.47619, (640, 384), (576, 448)),
        (2.03333, (768, 320), (640, 384)),
        (2.95, (896, 256), (768, 320)),
        (3.75, (1024, 256), (896, 256)),
        (0.68889, (448, 576), (384, 640)),
        (0.50833, (384, 640), (320, 768)),
        (0.35119, (320, 768), (256, 896)),
        (0.26786, (256, 896), (256, 1024)),
    ],
)
def test_at_512_the_ratios_are_cut_where_the_reference_cuts_them(
    cut: float, wider: tuple[int, int], narrower: tuple[int, int]
) -> None:
    height = 1_000_000

    assert nearest(round(height * (cut + 0.0001)), height, 512) == wider
    assert nearest(round(height * (cut - 0.0001)), height, 512) == narrower


@pytest.mark.parametrize(
    ("resolution", "count"),
    [*zip(LANDSCAPES, (5, 7, 7, 11, 11, 15, 15, 17, 17, 13, 15, 15, 17, 17), strict=True)],
)
def test_every_resolution_of_the_endpoint_has_its_table(resolution: int, count: int) -> None:
    assert len(sizes(resolution)) == len(set(sizes(resolution))) == count
    assert sizes(resolution)[0] == (resolution, resolution)


def test_a_resolution_is_rounded_down_and_a_small_one_has_no_table() -> None:
    assert sizes(500) == sizes(448)
    with pytest.raises(ValueError, match="resolution 255: expected one of 256, 384"):
        sizes(255)


@pytest.mark.parametrize(
    ("image", "bucket", "undersized"),
    [
        ((520, 520), (512, 512), True),
        ((522, 522), (512, 512), True),
        ((523, 523), (512, 512), False),
        ((640, 383), (640, 384), False),
        ((641, 383), (640, 384), True),
    ],
)
def test_an_image_is_undersized_when_it_has_no_pixels_to_spare(
    image: tuple[int, int], bucket: tuple[int, int], *, undersized: bool
) -> None:
    assert is_undersized(*image, Size(*bucket)) is undersized


@pytest.mark.parametrize(("side", "most"), [(1000, 20), (580, 11), (516, 4), (512, 0)])
def test_at_most_a_fiftieth_is_cut_from_each_side(side: int, most: int) -> None:
    boxes = [crop_box(side, side, Size(512, 512), Random(seed)) for seed in range(400)]

    assert max(box.left for box in boxes) <= 2 * most
    assert max(box.top for box in boxes) <= 2 * most
    assert min(box.right - box.left for box in boxes) >= side - 2 * most
    assert (len(set(boxes)) > 1) is (most > 0)


class NoJitter(Random):
    """Random numbers that give no jitter."""

    def uniform(self, a: float, b: float) -> float:  # noqa: ARG002 - the base's signature
        return a


@pytest.mark.parametrize(
    ("image", "trimmed"), [((1200, 800), (1200, 720)), ((1920, 1080), (1800, 1080))]
)
def test_what_is_left_is_trimmed_to_the_shape_of_the_bucket(
    image: tuple[int, int], trimmed: tuple[int, int]
) -> None:
    left, top, right, bottom = crop_box(*image, Size(640, 384), NoJitter(1))

    assert (right - left, bottom - top) == trimmed


def test_the_trim_is_likeliest_in_the_middle() -> None:
    random = NoJitter(5)

    tops = [crop_box(1200, 800, Size(640, 384), random).top for _ in range(4000)]

    middle = sum(20 <= top <= 60 for top in tops)
    assert min(tops) < 5
    assert max(tops) > 75
    assert middle / 4000 == pytest.approx(0.75, abs=0.04)


@given(sides, sides, resolutions, st.integers())
def test_a_crop_lies_inside_its_image_and_is_never_empty(
    width: int, height: int, resolution: int, seed: int
) -> None:
    left, top, right, bottom = crop_box(
        width, height, nearest(width, height, resolution), Random(seed)
    )

    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


@given(sides, sides, resolutions)
def test_no_size_of_the_table_is_nearer_in_shape_than_the_one_chosen(
    width: int, height: int, resolution: int
) -> None:
    chosen = nearest(width, height, resolution)

    def distance(size: Size) -> float:
        return abs(size.width / size.height - width / height)

    assert distance(chosen) == min(map(distance, sizes(resolution)))
    assert chosen == next(size for size in sizes(resolution) if distance(size) == distance(chosen))


@given(st.integers(64, 6000), st.integers(64, 6000), resolutions, st.integers())
def test_a_crop_has_the_shape_of_its_bucket_to_the_pixel_and_wastes_nothing(
    width: int, height: int, resolution: int, seed: int
) -> None:
    bucket = nearest(width, height, resolution)

    for box in (
        crop_box(width, height, bucket, Random(seed)),
        middle_box(width, height, bucket),
    ):
        wide, high = box.right - box.left, box.bottom - box.top
        fits = (high * bucket.width // bucket.height, wide * bucket.height // bucket.width)
        assert wide == fits[0] or high == fits[1]


@given(st.integers(64, 6000), st.integers(64, 6000), resolutions)
def test_the_middle_is_in_the_middle_and_cuts_one_axis_alone(
    width: int, height: int, resolution: int
) -> None:
    left, top, right, bottom = middle_box(width, height, nearest(width, height, resolution))

    assert (left, right) == (0, width) or (top, bottom) == (0, height)
    assert abs(left - (width - right)) <= 1
    assert abs(top - (height - bottom)) <= 1
