"""Images are looked at before they are trained on."""

import io
import struct
import zipfile
import zlib
from pathlib import Path

import msgspec
import pytest
from PIL import Image as Pillow

from services.fetcher import pictures
from services.fetcher.archive import Image, Unpacked, unpack
from services.fetcher.dataset import Checked, check, course_of, report_on
from services.fetcher.pictures import Unusable, inspect
from services.fetcher.sidecars import Sidecars
from shared.dataset.manifest import Captions, Manifest, Report, Skipped
from shared.errors import Refused
from shared.request import Train

SHOWN = "https://example.com/data.zip"


def drawn(width: int = 64, height: int = 48, kind: str = "PNG", orientation: int = 1) -> bytes:
    image = Pillow.new("RGB", (width, height), (200, 30, 30))
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, kind, exif=exif) if kind != "BMP" else image.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_the_size_of_every_kind_of_image_is_known(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a").write_bytes(drawn(64, 48, kind))

    assert inspect(tmp_path / "a") == (64, 48)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_that_lies_on_its_side_is_set_upright(tmp_path: Path, orientation: int) -> None:
    (tmp_path / "a.jpg").write_bytes(drawn(1200, 800, "JPEG", orientation))

    assert inspect(tmp_path / "a.jpg") == ((800, 1200) if orientation >= 5 else (1200, 800))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_an_image_that_is_cut_off_is_found_out(tmp_path: Path, kind: str) -> None:
    whole = drawn(300, 300, kind)
    (tmp_path / "a").write_bytes(whole[: len(whole) * 2 // 3])

    with pytest.raises(Unusable, match="broken or cut off"):
        inspect(tmp_path / "a")


def test_what_is_no_image_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"<html>")
    Pillow.new("RGB", (9, 9)).save(tmp_path / "b.png", "GIF")

    for name in ("a.png", "b.png"):
        with pytest.raises(Unusable, match="not a JPEG, PNG, BMP or WebP image"):
            inspect(tmp_path / name)


@pytest.mark.parametrize("side", [9_500, 60_000])
def test_a_huge_image_is_never_decoded(tmp_path: Path, side: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )

    with pytest.raises(Unusable, match="more than 89 million pixels"):
        inspect(tmp_path / "a.png")


def test_an_image_just_over_the_cap_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(drawn(64, 48))
    monkeypatch.setattr(pictures, "PIXELS", 64 * 48)
    assert inspect(tmp_path / "a.png") == (64, 48)

    monkeypatch.setattr(pictures, "PIXELS", 64 * 48 - 1)
    with pytest.raises(Unusable, match="64 x 48: more than"):
        inspect(tmp_path / "a.png")


async def checked(files: dict[str, bytes], folder: Path) -> Checked:
    with zipfile.ZipFile(folder / "a.zip", "w") as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    (folder / "out").mkdir()
    unpacked = await unpack(folder / "a.zip", folder / "out", shown=SHOWN, heard=lambda: None)
    return await check(unpacked, folder / "out", shown=SHOWN, heard=lambda _done, _of: None)


async def test_a_broken_image_is_reported_by_its_name_and_the_others_are_used(
    tmp_path: Path,
) -> None:
    files = {
        "x/good one_1.png": drawn(),
        "x/bad.png": drawn()[:60],
        "x/good two.jpg": drawn(kind="JPEG"),
    }

    found = await checked(files, tmp_path)

    assert [picture.caption for picture in found.pictures] == ["good one", "good two"]
    assert [entry.file for entry in found.skipped] == ["x/bad.png"]
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".jpg", ".png"]


async def test_no_usable_image_ends_the_job_with_the_archive_and_the_reasons(
    tmp_path: Path,
) -> None:
    with pytest.raises(Refused) as refused:
        await checked({"a.png": b"no", "b.gif": b"no"}, tmp_path)

    text = str(refused.value)
    assert text.startswith(f"{SHOWN}: no usable image in the archive")
    assert "a.png: not a JPEG, PNG, BMP or WebP image" in text
    assert "b.gif: neither an image" in text


async def test_an_empty_archive_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="it needs jpg, jpeg, jfif, png, bmp or webp files"):
        await checked({"folder/": b""}, tmp_path)


async def test_captions_come_from_texts_and_else_from_names(tmp_path: Path) -> None:
    files = {
        "a_1.png": drawn(),
        "a_1.txt": "a café, red".encode(),
        "named well_2.png": drawn(),
        "named well_2.txt": b"  \n",
        "_3.png": drawn(),
        "d.PNG": drawn(),
        "d.TXT": b"from upper case",
    }

    found = await checked(files, tmp_path)

    assert [picture.caption for picture in found.pictures] == [
        "a café, red", "named well", "", "from upper case",
    ]  # fmt: skip
    assert found.captions == Captions(from_names=1, from_files=2, missing=1)


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

    wishes, from_file = beside.wishes("a.png")

    assert wishes.caption.text == "from yaml, y2, y1, t2, t1"
    assert from_file


def test_tags_alone_leave_the_main_prompt_to_the_name() -> None:
    wishes, from_file = Sidecars({"a cat_1.yaml": b"tags: one, two"}).wishes("a cat_1.png")

    assert (wishes.caption.text, from_file) == ("a cat, one, two", False)


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

    mine, _ = beside.wishes("d/a.png")
    other, _ = beside.wishes("d/e/b.png")

    assert mine.caption.text == "mine, m1, L, G"
    assert (mine.multiply, mine.flip_p, mine.cond_dropout) == (2.5, 0.5, 0.0)
    assert (mine.loss_scale, mine.shuffle_tags) == (0.5, True)
    assert other.caption.text == "GP, G"
    assert (other.multiply, other.flip_p) == (3.0, None)


def test_a_caption_that_names_a_file_is_only_a_caption(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    path = str(tmp_path / "secret.txt")

    wishes, _ = Sidecars(
        {"a.txt": path.encode(), "b.yaml": f"main_prompt: {path}".encode()}
    ).wishes("a.png")

    assert wishes.caption.text == path


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"[", "not YAML that can be read"),
        (b"- a\n- b", "expected a mapping"),
        (b"multiply: many", "'many': expected a number from 0 to 1000"),
        (b"cond_dropout: 1.5", "expected a number from 0 to 1"),
        (b"flip_p: .nan", "expected a number from 0 to 1"),
        (b"main_prompt: [a]", "expected a text"),
        (b"a: &a [x, x]\nb: &b [*a, *a]\nmain_prompt: *b", "YAML aliases are not taken"),
        (b"- " * 2000, "not YAML that can be read"),
        (b"[" * 4000, "more than 4096 characters or 500 brackets"),
        (b"a" * 20_000, "more than 4096 characters"),
        (b"!!python/object/apply:os.system ['true']", "not YAML that can be read"),
    ],
)
def test_a_text_that_cannot_be_understood_is_left_out_and_reported(
    text: bytes, reason: str
) -> None:
    beside = Sidecars({"a.yaml": text})

    wishes, _ = beside.wishes("a.png")

    assert wishes.caption.text == "a"
    assert wishes.multiply is None
    assert beside.warnings[0].startswith("a.yaml: ")
    assert reason in beside.warnings[0]


def test_nought_counts_as_one_where_it_would_mean_never() -> None:
    wishes, _ = Sidecars({"a.yaml": b"multiply: 0\nrating: 0\ncond_dropout: 0"}).wishes("a.png")

    assert (wishes.multiply, wishes.rating, wishes.cond_dropout) == (1.0, 1.0, 0.0)


async def test_the_report_has_the_numbers_that_matter_before_training(tmp_path: Path) -> None:
    files = {f"square {number}.png": drawn(600, 600) for number in range(5)}
    files |= {"wide.png": drawn(900, 500), "small.png": drawn(64, 64), "broken.png": b""}

    found = await checked(files, tmp_path)
    manifest, report = report_on(found, course_of(Train(data_url="u", batch_size=4)), SHOWN)

    assert report == Report(
        images=7,
        captions=Captions(from_names=7),
        skipped=[Skipped(file="broken.png", reason="not a JPEG, PNG, BMP or WebP image")],
        skipped_count=1,
        undersized=["small.png"],
        undersized_count=1,
        buckets={"512x512": 6, "640x384": 1},
        short_buckets={"512x512": 2, "640x384": 1},
        steps_per_epoch=3,
    )
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest
    assert msgspec.json.decode(msgspec.json.encode(report.plain())) == report.plain()


async def test_a_report_of_many_stays_short(tmp_path: Path) -> None:
    files = {"good.png": drawn()} | {f"{number}.png": b"" for number in range(80)}

    found = await checked(files, tmp_path)
    _, report = report_on(found, course_of(Train(data_url="u")), SHOWN)

    assert (len(report.skipped), report.skipped_count) == (50, 80)


@pytest.mark.parametrize(
    ("multiplier", "reason"), [("0.1", "add up to 0.2; at least 1"), ("1000", None)]
)
async def test_multipliers_that_leave_no_image_end_the_job(
    tmp_path: Path, multiplier: str, reason: str | None
) -> None:
    found = await checked(
        {"a.png": drawn(), "b.png": drawn(), "multiply.txt": multiplier.encode()}, tmp_path
    )
    course = course_of(Train(data_url="u"))

    if reason is None:
        assert report_on(found, course, SHOWN)[1].steps_per_epoch == 1000
        return
    with pytest.raises(Refused, match=reason):
        report_on(found, course, SHOWN)


def test_a_damaged_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="cannot be read"):
        Manifest.read(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(Refused, match="cannot be read"):
        Manifest.read(tmp_path)


async def test_every_image_looked_at_is_a_sign_of_life(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(drawn())
    (tmp_path / "1.png").write_bytes(b"")
    heard: list[tuple[int, int]] = []
    images = [Image(name=f"{number}.png", file=f"{number}.png") for number in (0, 1)]

    await check(
        Unpacked(images=images),
        tmp_path,
        shown=SHOWN,
        heard=lambda done, of: heard.append((done, of)),
    )

    assert heard == [(1, 2), (2, 2)]
