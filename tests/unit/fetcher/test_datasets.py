"""Image checks, captions and the pre-flight report."""

import io
import struct
import zipfile
import zlib
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from PIL import Image as Pillow

from services.fetcher.limits import Limits
from services.fetcher.order import ParseDataset
from services.fetcher.parsing.datasets import image_check, report
from services.fetcher.parsing.datasets.archive import ImageFile, Unpacked, unpack
from services.fetcher.parsing.datasets.check import check_images
from services.fetcher.parsing.datasets.checked import CheckedDataset
from services.fetcher.parsing.datasets.image_check import (
    MAX_SCANS,
    UnusableImage,
    inspect,
)
from services.fetcher.parsing.datasets.report import build_report, with_tokens
from services.fetcher.parsing.datasets.sidecar_values import ImageOptions
from services.fetcher.parsing.datasets.sidecars import Sidecars
from services.fetcher.parsing.tasks import perform
from shared.dataset.captions import parse
from shared.dataset.manifest import (
    MANIFEST_BYTES,
    Captions,
    Duplicate,
    Manifest,
    Picture,
    Report,
    Skipped,
)
from shared.errors import Refused
from shared.request import Train, Validation
from tests.support.in_process_parser import ignored

SHOWN = "https://example.com/data.zip"
TRAIN = Train(data_url="u")
NO_IMAGE = "not a JPEG, PNG, BMP, WebP, HEIC or AVIF image"


def drawn(
    width: int = 64, height: int = 48, kind: str = "PNG", orientation: int = 1, **options: Any
) -> bytes:
    image = Pillow.new("RGB", (width, height), (200, 30, 30))
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, kind, **(options if kind == "BMP" else {"exif": exif, **options}))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_the_size_of_every_kind_of_image_is_known(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a").write_bytes(drawn(64, 48, kind))

    assert inspect(tmp_path / "a").size == (64, 48)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_that_lies_on_its_side_is_set_upright(tmp_path: Path, orientation: int) -> None:
    (tmp_path / "a.jpg").write_bytes(drawn(1200, 800, "JPEG", orientation))

    assert inspect(tmp_path / "a.jpg").size == ((800, 1200) if orientation >= 5 else (1200, 800))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_an_image_that_is_cut_off_is_found_out(tmp_path: Path, kind: str) -> None:
    whole = drawn(300, 300, kind)
    (tmp_path / "a").write_bytes(whole[: len(whole) * 2 // 3])

    with pytest.raises(UnusableImage, match="broken or cut off"):
        inspect(tmp_path / "a")


def test_what_is_no_image_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"<html>")
    Pillow.new("RGB", (9, 9)).save(tmp_path / "b.png", "GIF")

    for name in ("a.png", "b.png"):
        with pytest.raises(UnusableImage, match="not a JPEG, PNG, BMP, WebP, HEIC or AVIF image"):
            inspect(tmp_path / name)


@pytest.mark.parametrize("side", [9_500, 60_000])
def test_a_huge_image_is_never_decoded(tmp_path: Path, side: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )

    with pytest.raises(UnusableImage, match="more than 89 million pixels"):
        inspect(tmp_path / "a.png")


def test_an_image_just_over_the_cap_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(drawn(64, 48))
    monkeypatch.setattr(image_check, "MAX_PIXELS", 64 * 48)
    assert inspect(tmp_path / "a.png").size == (64, 48)

    monkeypatch.setattr(image_check, "MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(UnusableImage, match="64 x 48: more than"):
        inspect(tmp_path / "a.png")


def test_a_film_behind_a_photo_is_no_part_of_it(tmp_path: Path) -> None:
    film = b"\x00\x00\x00\x18ftypmp42" + b"\xff\xda" * 1000
    photo = drawn(64, 48, "JPEG", exif=b"Exif\x00\x00" + b"\xff\xda" * 1000)
    (tmp_path / "motion.jpg").write_bytes(photo + film)

    assert inspect(tmp_path / "motion.jpg").size == (64, 48)


def test_an_image_of_more_scans_than_encoders_write_is_not_decoded(tmp_path: Path) -> None:
    whole = drawn(64, 48, "JPEG", progressive=True)
    *begin, last = whole.split(b"\xff\xda")
    scans, end = len(begin), last.removesuffix(b"\xff\xd9")

    for number, name in ((MAX_SCANS, "many.jpg"), (MAX_SCANS + 1, "more.jpg")):
        again = b"\xff\xda".join([*begin, *[end] * (number - scans + 1)])
        (tmp_path / name).write_bytes(again + b"\xff\xd9")

    assert inspect(tmp_path / "many.jpg").size == (64, 48)
    with pytest.raises(UnusableImage, match="more than 64 scans"):
        inspect(tmp_path / "more.jpg")


def checked(files: dict[str, bytes], folder: Path) -> CheckedDataset:
    with zipfile.ZipFile(folder / "a.zip", "w") as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    (folder / "out").mkdir()
    unpacked = unpack(folder / "a.zip", folder / "out", shown=SHOWN, reading=ignored)
    return check_images(
        unpacked,
        folder / "out",
        shown=SHOWN,
        pixels=10**9,
        reading=ignored,
        checked=lambda _done, _of: None,
    )


def test_a_broken_image_is_reported_by_its_name_and_the_others_are_used(
    tmp_path: Path,
) -> None:
    files = {
        "x/good one_1.png": drawn(),
        "x/bad.png": drawn()[:60],
        "x/good two.jpg": drawn(kind="JPEG"),
    }

    found = checked(files, tmp_path)

    assert [picture.caption for picture in found.pictures] == ["good one", "good two"]
    assert [entry.file for entry in found.skipped] == ["x/bad.png"]
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".jpg", ".png"]


def test_no_usable_image_ends_the_job_with_the_archive_and_the_reasons(
    tmp_path: Path,
) -> None:
    with pytest.raises(Refused) as refused:
        checked({"a.png": b"no", "b.gif": b"no"}, tmp_path)

    text = str(refused.value)
    assert text.startswith(f"{SHOWN}: no usable image in the archive")
    assert "a.png: not a JPEG, PNG, BMP, WebP, HEIC or AVIF image" in text
    assert "b.gif: neither an image" in text


def test_an_empty_archive_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(
        Refused, match=r"it needs images \(\.avif, \.bmp, \.heic, \.heif, \.hif, \.jfif, "
    ):
        checked({"folder/": b""}, tmp_path)


def test_captions_come_from_texts_and_else_from_names(tmp_path: Path) -> None:
    files = {
        "a_1.png": drawn(),
        "a_1.txt": "a café, red".encode(),
        "named well_2.png": drawn(),
        "named well_2.txt": b"  \n",
        "_3.png": drawn(),
        "d.PNG": drawn(),
        "d.TXT": b"from upper case",
    }

    found = checked(files, tmp_path)

    assert [picture.caption for picture in found.pictures] == [
        "a café, red", "named well", "", "from upper case",
    ]  # fmt: skip
    assert found.captions == Captions(from_names=1, from_files=2, missing=1, empty=1)


def sidecars(**texts: str) -> Sidecars:
    return Sidecars(
        {name.replace("__", "/").replace("_dot_", "."): t.encode() for name, t in texts.items()}
    )


def test_all_texts_beside_an_image_add_up_by_rank() -> None:
    beside = Sidecars({
        "a.txt": b"from txt, t1",
        "a.caption": b"from caption, t2",
        "a.yaml": b"main_prompt: from yaml\ntags: [y1, {tag: y2, weight: 2}]",
    })  # fmt: skip

    found = beside.of("a.png")
    options, from_file = found.options, found.source != "name"

    assert options.caption.text == "from yaml, y2, y1, t2, t1"
    assert from_file


def test_tags_alone_leave_the_main_prompt_to_the_name() -> None:
    found = Sidecars({"a cat_1.yaml": b"tags: one, two"}).of("a cat_1.png")
    options, from_file = found.options, found.source != "name"

    assert (options.caption.text, from_file) == ("a cat, one, two", False)


def test_folders_have_their_say_the_nearest_first() -> None:
    beside = Sidecars({
        "global.yaml": b"main_prompt: GP\ntags: [G]\nmultiply: 3",
        "d/local.yaml": b"tags: [L]\nflip_p: 0.5",
        "d/a.txt": b"mine, m1",
        "d/multiply.txt": b"2.5",
        "d/cond_dropout.txt": b"0",
        "d/loss_scale.txt": b"0.5",
        "d/shuffle_tags.txt": b"true",
    })  # fmt: skip

    mine = beside.of("d/a.png").options
    other = beside.of("d/e/b.png").options

    assert mine.caption.text == "mine, m1, L, G"
    assert (mine.multiply, mine.flip_p, mine.cond_dropout) == (2.5, 0.5, 0.0)
    assert (mine.loss_scale, mine.shuffle_tags) == (0.5, True)
    assert other.caption.text == "GP, G"
    assert (other.multiply, other.flip_p) == (3.0, None)


def test_a_caption_that_names_a_file_is_only_a_caption(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    path = str(tmp_path / "secret.txt")

    beside = Sidecars({"a.txt": path.encode(), "b.yaml": f"main_prompt: {path}".encode()})
    options = beside.of("a.png").options

    assert options.caption.text == path


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"[", "not YAML that can be read"),
        (b"- a\n- b", "expected a mapping"),
        (b"multiply: many", "'many': expected a number from 0 to 1000"),
        (b"cond_dropout: 1.5", "expected a number from 0 to 1"),
        (b"flip_p: .nan", "expected a number from 0 to 1"),
        (b"main_prompt: {a: b}", "main_prompt: {'a': 'b'}: expected a text"),
        (b"a: &a [x, x]\nb: &b [*a, *a]\nmain_prompt: *b", "YAML aliases are not taken"),
        (b"- " * 2000, "more than 20 levels of YAML"),
        (b"[" * 60_000, "more than 20 levels of YAML"),
        (b"a: b: c", "not YAML that can be read (mapping values are not allowed here"),
        (b"!!python/object/apply:os.system ['true']", "the YAML tag python/object/apply"),
    ],
)
def test_a_text_that_cannot_be_understood_is_left_out_and_reported(
    text: bytes, reason: str
) -> None:
    beside = Sidecars({"a.yaml": text})

    options = beside.of("a.png").options

    assert options.caption.text == "a"
    assert options.multiply is None
    assert beside.warnings[0].startswith("a.yaml: ")
    assert reason in beside.warnings[0]


def test_nought_counts_as_one_where_it_would_mean_never() -> None:
    options = Sidecars({"a.yaml": b"multiply: 0\nrating: 0\ncond_dropout: 0"}).of("a.png").options

    assert (options.multiply, options.rating, options.cond_dropout) == (1.0, 1.0, 0.0)


def test_the_report_has_the_numbers_that_matter_before_training(tmp_path: Path) -> None:
    files = {f"square {number}.png": drawn(600, 600) for number in range(5)}
    files |= {"wide.png": drawn(900, 500), "small.png": drawn(64, 64), "broken.png": b"no"}

    found = checked(files, tmp_path)
    manifest, report, _ = build_report(
        found, Train(data_url="u", batch_size=4, max_epochs=10), 555, SHOWN
    )

    assert report == Report(
        images=7,
        captions=Captions(from_names=7),
        skipped=[Skipped(file="broken.png", reason=NO_IMAGE)],
        skipped_count=1,
        undersized=["small.png"],
        undersized_count=1,
        duplicates=[
            Duplicate(file=f"square {number}.png", same_as="square 0.png") for number in range(1, 5)
        ],
        duplicates_count=4,
        buckets={"512x512": 6, "640x384": 1},
        short_buckets={"512x512": 2, "640x384": 1},
        repeats=5,
        steps_per_epoch=3,
        steps=30,
        megapixels=round(10 * 4 * (2 * 512 * 512 + 640 * 384) / 1e6, 3),
        pictures=report.pictures,
        warnings=[f"not used, 1 file: broken.png ({NO_IMAGE})"],
        warnings_count=1,
    )
    assert [picture.file for picture in report.pictures] == [
        *(f"square {number}.png" for number in range(1, 5)),
        "small.png", "square 0.png", "wide.png",
    ]  # fmt: skip
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest
    assert msgspec.json.decode(msgspec.json.encode(report.plain())) == report.plain()


def test_a_report_of_many_stays_short(tmp_path: Path) -> None:
    files = {"good.png": drawn()} | {f"{number}.png": b"" for number in range(80)}

    found = checked(files, tmp_path)
    _, report, _ = build_report(found, Train(data_url="u"), 555, SHOWN)

    assert (len(report.skipped), report.skipped_count) == (50, 80)


@pytest.mark.parametrize(
    ("multiplier", "reason"), [("0.1", "add up to 0.2; at least 1"), ("1000", None)]
)
def test_multipliers_that_leave_no_image_end_the_job(
    tmp_path: Path, multiplier: str, reason: str | None
) -> None:
    found = checked(
        {"a.png": drawn(), "b.png": drawn(), "multiply.txt": multiplier.encode()}, tmp_path
    )

    if reason is None:
        assert build_report(found, TRAIN, 555, SHOWN)[1].steps_per_epoch == 1000
        return
    with pytest.raises(Refused, match=reason):
        build_report(found, TRAIN, 555, SHOWN)


def test_a_damaged_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="cannot be read"):
        Manifest.read(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(Refused, match="cannot be read"):
        Manifest.read(tmp_path)


def test_a_manifest_larger_than_a_fetcher_writes_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b'{"pictures":[]}' + b" " * MANIFEST_BYTES)

    with pytest.raises(Refused, match="takes more than 67108864 bytes"):
        Manifest.read(tmp_path)


def test_captions_that_fill_more_than_a_manifest_are_refused_with_what_takes_the_room() -> None:
    pictures = tuple(
        Picture(file=f"{n}.png", name=f"{n}.png", caption="é" * 4000, width=9, height=9)
        for n in range(10)
    )

    report.check_size(Manifest(pictures=pictures), 90_000, SHOWN)
    with pytest.raises(Refused) as refused:
        report.check_size(Manifest(pictures=pictures), 80_000, SHOWN)

    assert str(refused.value).startswith(
        f"{SHOWN}: what is told to the trainer of its 10 images takes 0.1 MB, and at most 0.1 MB"
        " are taken (captions 0.1 MB, file names 0.0 MB, weights of tags 0.0 MB);"
    )


def test_a_manifest_is_not_written_beyond_the_limit(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        zipped.writestr("a.png", drawn())
        zipped.writestr("a.txt", b"x" * 8000)
    for folder in ("images", "pages"):
        (tmp_path / folder).mkdir()
    task = ParseDataset(
        archive=str(tmp_path / "a.zip"), folder=str(tmp_path / "images"), train=TRAIN, seed=1,
        pages=str(tmp_path / "pages"), shown=SHOWN,
    )  # fmt: skip
    reports = SimpleNamespace(reading=ignored, progress=lambda **_: None)

    with pytest.raises(Refused, match=r"captions 0\.0 MB"):
        perform(task, Limits(processor_seconds=1.0, manifest_bytes=5000), reports)
    assert not (tmp_path / "images" / "manifest.json").exists()


def test_every_image_looked_at_is_a_sign_of_life(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(drawn())
    (tmp_path / "1.png").write_bytes(b"")
    reported: list[tuple[int, int]] = []
    opened: list[str] = []
    images = [ImageFile(name=f"{number}.png", file=f"{number}.png") for number in (0, 1)]

    check_images(
        Unpacked(images=images),
        tmp_path,
        shown=SHOWN,
        pixels=10**9,
        reading=opened.append,
        checked=lambda done, of: reported.append((done, of)),
    )

    assert reported == [(1, 2), (2, 2)]
    assert opened == ["0.png", "1.png"]


def test_an_archive_of_more_pixels_than_its_bytes_can_honestly_hold_is_refused(
    tmp_path: Path,
) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(drawn())
    images = [ImageFile(name=f"{number}.png", file=f"{number}.png") for number in range(3)]
    each = 64 * 48
    found = partial(
        check_images, Unpacked(images=images), tmp_path,
        shown=SHOWN, reading=ignored, checked=lambda _done, _of: None,
    )  # fmt: skip

    assert len(found(pixels=3 * each).pictures) == 3
    with pytest.raises(Refused, match="pixels together"):
        found(pixels=3 * each - 1)


def test_an_archive_whose_pictures_become_far_larger_than_they_came_is_refused(
    tmp_path: Path,
) -> None:
    """An AVIF that asks for noise over a grey picture is a thousand times as large as PNG."""
    buffer = io.BytesIO()
    grey = Pillow.new("RGB", (512, 512), "grey")
    grey.save(buffer, "AVIF", speed=10, quality=30, codec="aom", advanced={"film-grain-test": "8"})
    images = [ImageFile(name=f"{number}.avif", file=f"{number}.avif") for number in range(3)]
    for each in images:
        (tmp_path / each.file).write_bytes(buffer.getvalue())
    found = partial(
        check_images, Unpacked(images=images), tmp_path,
        shown=SHOWN, pixels=10**9, reading=ignored, checked=lambda _done, _of: None,
    )  # fmt: skip

    assert len(buffer.getvalue()) < 2000
    with pytest.raises(Refused, match="its HEIC and AVIF images take more than 0 MB as PNG"):
        found(stored_bytes=400_000)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 600_000


@pytest.mark.parametrize(
    ("nearest_first", "option", "said"),
    [
        (["a.yaml", "batch_id.txt", "local.yaml", "global.yaml"], "batch_id", ["w", "x", "y", "z"]),
        (["a.yaml", "loss_scale.txt", "local.yaml", "global.yaml"], "loss_scale", [1, 2, 3, 4]),
        (["a.yaml", "local.yaml", "multiply.txt", "global.yaml"], "multiply", [1, 2, 3, 4]),
        (["a.yaml", "local.yaml", "cond_dropout.txt", "global.yaml"], "cond_dropout", [0, 1, 0, 1]),
        (["a.yaml", "local.yaml", "flip_p.txt", "global.yaml"], "flip_p", [0, 1, 0, 1]),
        (["a.yaml", "local.yaml", "shuffle_tags.txt", "global.yaml"], "shuffle_tags", [1, 0, 1, 0]),
        (["a.yaml", "a.yml", "local.yaml", "global.yaml"], "rating", [1, 2, 3, 4]),
        (["a.yaml", "local.yml", "global.yml"], "max_caption_length", [10, 20, 30]),
    ],
)
def test_of_several_files_the_nearest_that_says_something_counts(
    nearest_first: list[str], option: str, said: list[object]
) -> None:
    texts = {
        f"d/{name}": (str(value) if name.endswith(".txt") else f"{option}: {value}").encode()
        for name, value in zip(nearest_first, said, strict=True)
    }

    for name, value in zip(nearest_first, said, strict=True):
        options = Sidecars(texts).of("d/a.png").options
        assert getattr(options, option) == value
        del texts[f"d/{name}"]


def test_files_of_one_value_are_for_their_own_folder_alone() -> None:
    beside = Sidecars({
        "multiply.txt": b"2", "cond_dropout.txt": b"0.5", "flip_p.txt": b"0.5",
        "batch_id.txt": b"x", "loss_scale.txt": b"0.5", "shuffle_tags.txt": b"yes",
        "local.yaml": b"rating: 2",
    })  # fmt: skip

    assert beside.of("d/a.png").options == ImageOptions(caption=parse("a"))
    assert beside.of("a.png").options.batch_id == "x"


def test_folders_above_add_up_the_nearer_one_first() -> None:
    beside = Sidecars({
        "global.yaml": b"main_prompt: far\ntags: [f]\nrating: 2\nflip_p: 0.1",
        "d/global.yml": b"main_prompt: near\ntags: [n]\nrating: 3",
        "d/e/a.txt": b", own",
    })  # fmt: skip

    found = beside.of("d/e/a.png")
    options, from_file = found.options, found.source != "name"

    assert (options.caption.text, from_file) == ("near, own, n, f", True)
    assert (options.rating, options.flip_p) == (3.0, 0.1)


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("caption: a cat, red, old", "a cat, red, old"),
        ("caption: {main_prompt: a cat, tags: [red, old]}", "a cat, red, old"),
        ("main_prompt: a cat\ntags: 'red, , old,'", "a cat, red, old"),
        ("main_prompt: a cat\ntags: ['red, old', {tag: big}]", "a cat, red, old, big"),
        ("main_prompt: a cat\ntags: [old, {tag: red, weight: 2}]", "a cat, red, old"),
        ("main_prompt: 7\ntags: [2.5]", "7, 2.5"),
    ],
)
def test_a_caption_in_yaml_is_a_text_or_a_prompt_with_tags(text: str, caption: str) -> None:
    assert Sidecars({"a.yaml": text.encode()}).of("a.png").options.caption.text == caption


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("batch_id: ''", "expected a name of 1 to 100 characters"),
        ("batch_id: [a]", "['a']: expected a name of 1 to 100 characters"),
        (f"batch_id: {'x' * 101}", "expected a name of 1 to 100 characters"),
        ("max_caption_length: 0", "'0': expected a whole number from 1 to 8192"),
        ("max_caption_length: many", "'many': expected a whole number"),
        ("max_caption_length: true", "'true': expected a whole number"),
        ("shuffle_tags: maybe", "'maybe': expected true or false"),
    ],
)
def test_a_picture_setting_that_makes_no_sense_is_reported_with_what_was_expected(
    text: str, reason: str
) -> None:
    beside = Sidecars({"a.yaml": text.encode()})

    beside.of("a.png")

    assert reason in beside.warnings[0]


SIX_KINDS = {
    "one.jpg": "JPEG", "two.JPEG": "JPEG", "three.jfif": "JPEG",
    "four.png": "PNG", "five.bmp": "BMP", "six.WebP": "WEBP",
}  # fmt: skip


def test_a_dataset_as_people_make_it_is_read_whole(tmp_path: Path) -> None:
    files = {f"my cats/deep/er/{name}": drawn(kind=kind) for name, kind in SIX_KINDS.items()}
    files |= {f"__MACOSX/my cats/deep/er/._{name}": b"\0\5\x16\7" for name in SIX_KINDS}
    files |= {"my cats/.DS_Store": b"", "my cats/deep/er/._four.png": b"", "my cats/notes.md": b""}
    files |= {"my cats/global.yaml": b"tags: [cat]", "my cats/deep/er/one.txt": b"first"}

    found = checked(files, tmp_path)

    assert [picture.caption for picture in found.pictures] == [
        "first, cat", "two, cat", "three, cat", "four, cat", "five, cat", "six, cat",
    ]  # fmt: skip
    assert [entry.file for entry in found.skipped] == ["my cats/notes.md"]


def test_all_settings_of_a_picture_reach_the_manifest(tmp_path: Path) -> None:
    settings = (
        b"main_prompt: a cat, asleep\ntags: [{tag: red, weight: 3}, old]\nmultiply: 2\nrating: 4\n"
        b"cond_dropout: 0\nflip_p: 0.5\nshuffle_tags: true\nloss_scale: 0\nbatch_id: cats\n"
        b"max_caption_length: 40"
    )

    (picture,) = (checked({"d/a.png": drawn(), "d/a.yaml": settings}, tmp_path)).pictures

    assert picture == Picture(
        file=picture.file, name="d/a.png", width=64, height=48,
        caption="a cat, asleep, red, old", main_parts=2, weights=(3.0, 1.0),
        multiply=2.0, rating=4.0, cond_dropout=0.0, flip_p=0.5, shuffle_tags=True, loss_scale=0.0,
        batch_id="cats", max_caption_length=40,
    )  # fmt: skip


def test_a_caption_without_end_is_cut_between_tags_and_keeps_its_weights(
    tmp_path: Path,
) -> None:
    tags = ", ".join(f"tag {number:05}" for number in range(5000))
    files = {
        "a.png": drawn(),
        "a.txt": f"main, {tags}".encode(),
        "a.yaml": b"tags: [{tag: heavy, weight: 2}]",
    }

    (picture,) = (checked(files, tmp_path)).pictures

    assert 8180 <= len(picture.caption) <= 8192
    assert picture.caption.startswith("main, heavy, tag 00000, tag 00001")
    assert len(picture.weights) == picture.caption.count(", ")


def test_the_same_pixels_twice_are_reported_once_for_each_copy(tmp_path: Path) -> None:
    files = {
        "a.png": drawn(),
        "b.png": drawn(),
        "c.bmp": drawn(kind="BMP"),
        "d.png": drawn(50, 48),
    }

    found = checked(files, tmp_path)

    assert found.duplicates == [
        Duplicate(file="b.png", same_as="a.png"),
        Duplicate(file="c.bmp", same_as="a.png"),
    ]


def test_captions_that_are_missing_empty_or_too_long_are_counted_and_named(
    tmp_path: Path,
) -> None:
    files = {
        "_1.png": drawn(),
        "good.png": drawn(50),
        "hollow.png": drawn(60),
        "hollow.caption": b" \n",
        "long.png": drawn(70),
    }

    manifest, report, _ = build_report(checked(files, tmp_path), TRAIN, 555, SHOWN)
    report = with_tokens(report, manifest, [0, 1, 75, 76])

    assert report.captions == Captions(from_names=3, missing=1, empty=1, over_long=1)
    assert report.missing_captions == ["_1.png"]
    assert report.empty_captions == ["hollow.png"]
    assert report.over_long_captions == ["long.png"]


def test_named_batches_are_reported_by_name(tmp_path: Path) -> None:
    files = {f"ted/{number}.png": drawn(600 + number, 600) for number in range(5)}
    files |= {"ted/batch_id.txt": b"ted\n", "other.png": drawn(500, 500)}

    _, report, _ = build_report(checked(files, tmp_path), TRAIN, 555, SHOWN)

    assert report.named_batches == {"ted": 2}
    assert (report.steps_per_epoch, report.repeats) == (3, 0)


def test_held_out_images_are_reported_and_take_no_steps(tmp_path: Path) -> None:
    found = checked({f"{number}.png": drawn(100 + number) for number in range(10)}, tmp_path)
    train = Train(data_url="u", batch_size=1, max_epochs=2, validation=Validation())

    manifest, report, _ = build_report(found, train, 555, SHOWN)

    assert len(manifest.pictures) == 10
    assert (report.images, report.held_out) == (8, 2)
    assert (report.steps_per_epoch, report.steps) == (8, 16)
    assert sum(report.buckets.values()) == 8


def test_a_validation_that_leaves_nothing_to_train_on_ends_the_job(tmp_path: Path) -> None:
    found = checked({"a.png": drawn()}, tmp_path)

    with pytest.raises(Refused, match=r"input\.train\.validation: .* leaves none to train on"):
        build_report(found, Train(data_url="u", validation=Validation()), 555, SHOWN)


def test_the_steps_of_a_shrinking_dataset_are_those_of_all_its_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = checked({f"{number}.png": drawn(100 + number) for number in range(10)}, tmp_path)
    train = Train(data_url="u", batch_size=1, max_epochs=4, rated_dataset=True)

    assert build_report(found, train, 555, SHOWN)[1].steps == 10 + 10 + 9 + 8
    monkeypatch.setattr(report, "MAX_PLANNED_IMAGES", 39)
    assert build_report(found, train, 555, SHOWN)[1].steps == 40
