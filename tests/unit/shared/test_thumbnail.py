"""Small images beside the large ones."""

from pathlib import Path

import pytest
from PIL import Image

from shared.thumbnail import SIDE, write_thumbnail


@pytest.mark.parametrize(
    ("size", "small"),
    [
        ((1024, 512), (SIDE, SIDE // 2)),
        ((300, 900), (85, SIDE)),
        ((SIDE, SIDE), (SIDE, SIDE)),
        ((40, 30), (40, 30)),
    ],
)
def test_a_thumbnail_is_a_webp_whose_longer_side_is_256_pixels_and_that_is_never_enlarged(
    tmp_path: Path, size: tuple[int, int], small: tuple[int, int]
) -> None:
    write_thumbnail(Image.new("RGB", size, (200, 30, 30)), tmp_path / "small.webp")

    with Image.open(tmp_path / "small.webp") as drawn:
        assert (drawn.format, drawn.size) == ("WEBP", small)
        assert drawn.convert("RGB").getpixel((5, 5)) == pytest.approx((200, 30, 30), abs=8)
