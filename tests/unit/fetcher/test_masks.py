"""Which files are masks, and how they are stored."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from services.fetcher.parsing.datasets.archive import unpack
from services.fetcher.parsing.datasets.check import check_images
from services.fetcher.parsing.datasets.checked import CheckedDataset
from services.fetcher.parsing.datasets.edited import apply_edits
from services.fetcher.parsing.datasets.pages import Previews, write_previews
from services.fetcher.parsing.datasets.unused_options import unused_options
from shared.dataset.edits import PictureEdit
from shared.dataset.pages import preview_name
from shared.request import Train
from tests.support.in_process_parser import ignored

SIZE = (64, 48)


def encoded(image: Image.Image, kind: str = "PNG", orientation: int = 1) -> bytes:
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    image.save(buffer, kind, exif=exif)
    return buffer.getvalue()


PICTURE = encoded(Image.new("RGB", SIZE, "red"), "JPEG")


def half(size: tuple[int, int] = SIZE) -> Image.Image:
    """White on the left, black on the right."""
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


def checked(files: dict[str, bytes], folder: Path, *, masked: bool = True) -> CheckedDataset:
    with zipfile.ZipFile(folder / "a.zip", "w") as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    (folder / "out").mkdir()
    unpacked = unpack(folder / "a.zip", folder / "out", shown="the zip", reading=ignored)
    return check_images(
        unpacked, folder / "out", shown="the zip", pixels=10**9, masked=masked,
        previews=Previews(folder), reading=ignored, checked=lambda *_: None,
    )  # fmt: skip


def pixel(folder: Path, file: str, place: tuple[int, int]) -> object:
    with Image.open(folder / "out" / file) as image:
        assert (image.mode, image.size) == ("L", SIZE)
        return image.getpixel(place)


@pytest.mark.parametrize("name", ["x/ted_mask.png", "x/ted_MASK.jpg"])
def test_a_mask_beside_its_picture_is_stored_with_it_and_is_no_picture(
    name: str, tmp_path: Path
) -> None:
    kind = "PNG" if name.endswith("png") else "JPEG"
    files = {"x/ted.jpg": PICTURE, name: encoded(half(), kind), "y/ted.jpg": PICTURE}

    found = checked(files, tmp_path)

    assert [each.name for each in found.pictures] == ["x/ted.jpg", "y/ted.jpg"]
    first, other = found.pictures
    assert other.mask == ""
    assert pixel(tmp_path, first.mask, (3, 20)) == pytest.approx(255, abs=3)
    assert pixel(tmp_path, first.mask, (60, 20)) == pytest.approx(0, abs=3)
    assert "its mask keeps 50% of it" in found.notes[0].remarks
    assert len(list((tmp_path / "out").iterdir())) == 3, "the file as it came is gone"


def test_a_mask_of_another_size_is_scaled_which_is_said(tmp_path: Path) -> None:
    files = {"ted.jpg": PICTURE, "ted_mask.png": encoded(half((32, 24)))}

    found = checked(files, tmp_path)

    assert pixel(tmp_path, found.pictures[0].mask, (3, 20)) == 255
    assert "its mask of 32 x 24 is scaled to its size" in found.notes[0].remarks[0]


def test_a_mask_of_another_shape_is_stretched_which_is_said(tmp_path: Path) -> None:
    files = {"ted.jpg": PICTURE, "ted_mask.png": encoded(half((48, 64)))}

    found = checked(files, tmp_path)

    assert pixel(tmp_path, found.pictures[0].mask, (3, 20)) == 255
    assert "its mask of 48 x 64 is of another shape, and str" in found.notes[0].remarks[0]


def test_transparent_areas_are_masked_out_and_turn_as_the_picture_does(tmp_path: Path) -> None:
    turned = (SIZE[1], SIZE[0])
    image = Image.new("RGBA", turned, "red")
    top = Image.new("L", turned, 255)
    top.paste(0, (0, 0, turned[0], turned[1] // 2))
    image.putalpha(top)

    found = checked({"ted.png": encoded(image, orientation=6)}, tmp_path)

    # Orientation 6: its top is the picture's right.
    assert pixel(tmp_path, found.pictures[0].mask, (3, 20)) == 255
    assert pixel(tmp_path, found.pictures[0].mask, (60, 20)) == 0


def across() -> tuple[bytes, Image.Image]:
    """A picture that lies on its side in its file, and a mask of its right half as one sees it."""
    turned = Image.new("RGB", (SIZE[1], SIZE[0]), "red")
    return encoded(turned, "JPEG", orientation=6), ImageOps.mirror(half())


@pytest.mark.parametrize("upright", [True, False])
def test_a_mask_of_a_turned_picture_may_be_upright_or_lie_as_the_file_does(
    tmp_path: Path, *, upright: bool
) -> None:
    picture, mask = across()
    if not upright:  # orientation 6 is undone by a quarter turn to the left
        mask = mask.transpose(Image.Transpose.ROTATE_90)

    found = checked({"ted.jpg": picture, "ted_mask.png": encoded(mask)}, tmp_path)

    assert pixel(tmp_path, found.pictures[0].mask, (3, 20)) == 0
    assert pixel(tmp_path, found.pictures[0].mask, (60, 20)) == 255
    assert ("turned" in found.notes[0].remarks[0]) != upright


def in_16_bits() -> Image.Image:
    twice = b"".join(bytes((value, value)) for value in half().tobytes())
    return Image.frombytes("I;16", SIZE, twice)


def on_nothing(colour: str) -> Image.Image:
    """Painted on the left half of a sheet of nothing."""
    image = Image.new("RGBA", SIZE)
    image.paste(colour, (0, 0, SIZE[0] // 2, SIZE[1]))
    return image


@pytest.mark.parametrize(
    "mask",
    [
        half().convert("1"), half().convert("P"), half().convert("CMYK"), on_nothing("white"),
        in_16_bits(), half().convert("LA"),
    ],
    ids=["1 bit", "palette", "CMYK", "white on nothing", "16 bits", "with alpha"],
)  # fmt: skip
def test_a_mask_may_be_of_any_kind_and_what_is_transparent_of_it_is_black(
    mask: Image.Image, tmp_path: Path
) -> None:
    kind = "JPEG" if mask.mode == "CMYK" else "PNG"
    found = checked({"ted.jpg": PICTURE, "ted_mask.png": encoded(mask, kind)}, tmp_path)

    assert pixel(tmp_path, found.pictures[0].mask, (3, 20)) == pytest.approx(255, abs=3)
    assert pixel(tmp_path, found.pictures[0].mask, (60, 20)) == pytest.approx(0, abs=3)


def test_a_16_bit_picture_with_a_transparent_grey_is_masked_by_it(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    in_16_bits().save(buffer, "PNG", transparency=0)

    found = checked({"ted.png": buffer.getvalue()}, tmp_path)

    assert pixel(tmp_path, found.pictures[0].mask, (3, 20)) == 255
    assert pixel(tmp_path, found.pictures[0].mask, (60, 20)) == 0


def test_masks_that_leave_out_everything_or_nothing_are_warned_of(tmp_path: Path) -> None:
    black, white = (encoded(Image.new("L", SIZE, level)) for level in (1, 255))
    files = {"ann.jpg": PICTURE, "ann_mask.png": white}
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()

    (idle,) = checked(files, tmp_path / "1").warnings
    (empty,) = checked(files | {"ted.jpg": PICTURE, "ted_mask.png": black}, tmp_path / "2").warnings

    assert idle == "masked_loss has no effect: every mask is white all over"
    assert empty.startswith("1 mask of hardly anything but black, which counts unmasked_weight")
    assert empty.endswith(": ted.jpg")


def test_pictures_of_one_name_share_its_mask_and_capitals_do_not_matter_where_it_is_clear(
    tmp_path: Path,
) -> None:
    files = {
        "ted.jpg": PICTURE, "ted.png": encoded(Image.new("RGB", SIZE, "blue")),
        "Ted_mask.png": encoded(half()), "Ann.jpg": PICTURE, "ann.jpg": PICTURE,
        "ANN_mask.png": encoded(half()),
    }  # fmt: skip

    found = checked(files, tmp_path)

    masks = {each.name: each.mask for each in found.pictures}
    assert masks["ted.jpg"] != masks["ted.png"]
    assert pixel(tmp_path, masks["ted.jpg"], (3, 20)) == 255
    assert pixel(tmp_path, masks["ted.png"], (60, 20)) == 0
    assert masks["Ann.jpg"] == masks["ann.jpg"] == ""
    assert [each.file for each in found.skipped] == ["ANN_mask.png"]


def test_a_mask_of_nothing_and_a_broken_one_are_left_out_by_name(tmp_path: Path) -> None:
    files = {
        "ted.jpg": PICTURE, "ben_mask.png": encoded(half()), "masks/ted_mask.png": encoded(half()),
        "__MACOSX/._ted_mask.png": b"of a Mac", "ann.jpg": PICTURE, "ann_mask.png": b"no image",
        "eve.jpg": b"no image", "eve_mask.png": encoded(half()),
    }  # fmt: skip

    found = checked(files, tmp_path)

    left_out = {each.file for each in found.skipped}
    assert left_out == {"ben_mask.png", "masks/ted_mask.png", "ann_mask.png", "eve.jpg"}
    assert [each.mask for each in found.pictures] == ["", ""]
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_without_masked_loss_they_are_pictures_and_it_is_warned_of_them(tmp_path: Path) -> None:
    found = checked({"ted.jpg": PICTURE, "ted_mask.png": encoded(half())}, tmp_path, masked=False)

    assert len(found.pictures) == 2
    assert "1 picture named like a mask of another" in found.warnings[0]


def test_masked_loss_without_any_mask_has_no_effect_which_is_said(tmp_path: Path) -> None:
    asked = Train(data_url="u", masked_loss=True)
    plain = checked({"ted.jpg": PICTURE}, tmp_path)

    (warning,) = unused_options(asked, plain.pictures)

    assert warning.startswith("masked_loss true has no effect: no picture has a mask")


def test_a_picture_that_is_left_out_after_its_check_takes_its_mask_along(tmp_path: Path) -> None:
    files = {"ann.jpg": PICTURE, "ted.jpg": PICTURE, "ted_mask.png": encoded(half())}
    found = checked(files, tmp_path)

    apply_edits(found, {2: PictureEdit(use=False)}, tmp_path / "out", ignored)

    assert [each.name for each in (tmp_path / "out").iterdir()] == [found.pictures[0].file]


@pytest.mark.parametrize("anew", [False, True], ids=["while it is checked", "after edits"])
def test_a_preview_shows_what_the_mask_leaves_out_in_grey(tmp_path: Path, *, anew: bool) -> None:
    found = checked({"ted.jpg": PICTURE, "ted_mask.png": encoded(half())}, tmp_path)

    if anew:
        (tmp_path / preview_name(1)).unlink()
        write_previews(tmp_path, tmp_path / "out", found.pictures, ignored)

    with Image.open(tmp_path / preview_name(1)) as preview:
        left, right = (preview.convert("RGB").getpixel((x, 20)) for x in (5, 58))
    assert left == pytest.approx((254, 0, 0), abs=12)
    assert right == pytest.approx((160, 96, 96), abs=12)
