"""The pixels that are trained on."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shared.dataset.pixels import as_trained, fingerprint

Colour = int | tuple[int, ...]
RED, WHITE = (255, 0, 0), (255, 255, 255)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> Image.Image:
    """The image, saved and opened again."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Image.open(buffer)


def corner(image: Image.Image) -> object:
    seen = as_trained(image)
    assert seen.mode == "RGB"
    return seen.getpixel((0, 0))


def clear_palette() -> Image.Image:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([9, 9, 9, 255, 0, 0])
    return saved(image, transparency=0)


@pytest.mark.parametrize(
    "clear",
    [
        lambda: saved(Image.new("RGBA", (4, 4), (0, 0, 0, 0))),
        lambda: saved(Image.new("RGBA", (4, 4), (9, 200, 7, 0)), "WEBP", lossless=True, exact=True),
        lambda: saved(Image.new("LA", (4, 4), (0, 0))),
        lambda: saved(Image.new("L", (4, 4), 7), transparency=7),
        lambda: saved(Image.new("RGB", (4, 4), RED), transparency=RED),
        clear_palette,
    ],
    ids=["RGBA", "WebP", "grey and alpha", "grey", "RGB", "palette"],
)
def test_what_is_transparent_is_white_whatever_colour_hides_there(
    clear: Callable[[], Image.Image],
) -> None:
    assert corner(clear()) == WHITE


def test_what_is_half_transparent_is_half_white() -> None:
    assert corner(saved(Image.new("RGBA", (4, 4), (0, 0, 0, 128)))) == (127, 127, 127)
    assert corner(saved(Image.new("RGBA", (4, 4), (*RED, 255)))) == RED


@pytest.mark.parametrize(("value", "grey"), [(0, 0), (40_000, 156), (257, 1), (65_535, 255)])
def test_sixteen_bits_of_grey_are_scaled_to_eight(value: int, grey: int) -> None:
    assert corner(saved(Image.fromarray(np.full((4, 4), value, np.uint16)))) == (grey,) * 3


def test_cmyk_and_palettes_become_the_colours_they_stand_for() -> None:
    assert corner(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")) == RED
    assert corner(saved(Image.new("RGB", (4, 4), RED).quantize(2))) == RED
    assert corner(saved(Image.new("1", (4, 4), 1))) == WHITE


@pytest.mark.parametrize(
    ("mode", "dark", "bright"),
    [
        ("RGB", (0, 0, 0), WHITE),
        ("RGBA", (0, 0, 0, 255), (*WHITE, 255)),
        ("L", 0, 255),
        ("I;16", 0, 65_535),
    ],
)
def test_an_image_that_lies_on_its_side_is_turned_in_every_mode(
    mode: str, dark: Colour, bright: Colour
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = Image.new(mode, (8, 4), dark)
    lying.paste(Image.new(mode, (4, 4), bright), (4, 0))

    seen = as_trained(saved(lying, exif=exif))

    assert seen.size == (4, 8)
    assert (seen.getpixel((0, 0)), seen.getpixel((0, 7))) == ((0, 0, 0), WHITE)


def test_a_fingerprint_is_of_pixels_not_files() -> None:
    image = Image.new("RGB", (30, 700), RED)
    other = image.copy()
    other.putpixel((29, 699), (254, 0, 0))

    same = [fingerprint(as_trained(saved(image, kind))) for kind in ("PNG", "BMP")]

    assert set(same) == {fingerprint(image)}
    assert fingerprint(other) != fingerprint(image)
    assert fingerprint(Image.new("RGB", (700, 30), RED)) != fingerprint(image)
