"""Whatever a person gives in a dataset is used, or named where the person looks."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pillow_heif
import pytest
from msgspec.structs import replace
from PIL import Image, features

from services.fetcher.parsing.datasets.archive import unpack
from services.fetcher.parsing.datasets.camera_names import is_camera_name
from services.fetcher.parsing.datasets.check import check_images
from services.fetcher.parsing.datasets.edited import apply_edits
from services.fetcher.parsing.datasets.report import build_report, with_tokens
from services.trainer.training.batches import read_pixels
from shared.dataset.buckets import Box, Size
from shared.dataset.edits import PictureEdit
from shared.dataset.manifest import LISTED, Duplicate, Manifest, Report, TrainedPicture
from shared.dataset.plan import Augmentation
from shared.errors import Refused
from shared.request import Train, Validation
from tests.support.corpora.archives import Entry, archive
from tests.support.corpora.images import chunk, packed_zeros, png
from tests.support.in_process_parser import ignored

SHOWN = "https://example.com/data.zip"
TRAIN = Train(data_url="u", batch_size=1, max_epochs=1)


def drawn(width: int = 600, height: int = 600, kind: str = "JPEG", **options: Any) -> bytes:
    """An image whose left half is red and whose right half is blue."""
    image = Image.new("RGB", (width, height), (200, 30, 30))
    image.paste((20, 30, 200), (width // 2, 0, width, height))
    buffer = io.BytesIO()
    if kind == "HEIF":  # ours reads it alone; registered, this one would read it too
        pillow_heif.from_pillow(image).save(buffer, **options)
    else:
        image.save(buffer, kind, **options)
    return buffer.getvalue()


J = drawn()


def z(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    return buffer.getvalue()


class Seen:
    """What the person sees of a zip, and what is trained on."""

    def __init__(self, data: bytes, folder: Path, train: Train = TRAIN) -> None:
        self.folder = folder / "out"
        self.folder.mkdir()
        (folder / "a.zip").write_bytes(data)
        unpacked = unpack(folder / "a.zip", self.folder, shown=SHOWN, reading=ignored)
        self.checked = check_images(
            unpacked, self.folder, shown=SHOWN, pixels=10**9, reading=ignored,
            checked=lambda _done, _of: None,
        )  # fmt: skip
        self.manifest: Manifest
        self.report: Report
        self.manifest, self.report, _ = build_report(self.checked, train, 555, SHOWN)

    @property
    def captions(self) -> dict[str, str]:
        return {picture.name: picture.caption for picture in self.manifest.pictures}

    @property
    def caption(self) -> str:
        (caption,) = self.captions.values()
        return caption

    @property
    def warnings(self) -> list[str]:
        return self.report.warnings

    def picture(self, name: str) -> TrainedPicture:
        (found,) = [each for each in self.report.pictures if each.file == name]
        return found

    def color(self, at: tuple[int, int] = (0, 0)) -> list[int]:
        """A pixel of the only image, as the trainer sees it."""
        (picture,) = self.manifest.pictures
        size = Size(picture.width, picture.height)
        augment = Augmentation(crop=Box(0, 0, *size), caption="", flip=False)
        pixels = read_pixels(self.folder / picture.file, augment, size)
        return [round(float(value)) for value in (pixels[:, at[1], at[0]] + 1) * 127.5]


def one(lines: Sequence[str], *words: str) -> str:
    """The only line with all these words."""
    (found,) = [line for line in lines if all(word in line for word in words)]
    return found


# --- Texts and their images -----------------------------------------------------------------------


def test_texts_find_their_images_by_full_name_and_in_other_capitals(tmp_path: Path) -> None:
    seen = Seen(
        z(
            {
                "IMG_1.jpg": J,
                "IMG_1.jpg.txt": b"a red cat",
                "IMG_2.JPG": J,
                "img_2.txt": b"a dog",
                "g/Multiply.txt": b"3",
                "g/a_1.jpg": J,
            }
        ),
        tmp_path,
    )

    assert seen.captions == {"IMG_1.jpg": "a red cat", "IMG_2.JPG": "a dog", "g/a_1.jpg": "a"}
    assert [picture.multiply for picture in seen.manifest.pictures] == [1, 1, 3]
    assert seen.warnings == []


def test_every_text_that_no_image_uses_is_named_with_the_reason(tmp_path: Path) -> None:
    seen = Seen(z({
        "images/x.jpg": J, "captions/x.txt": b"a cat", "readme.txt": b"hello",
        "images/multi_ply.txt": b"2", "captions/multiply.txt": b"2",
        "broken.jpg": b"no", "broken.txt": b"a caption",
        "s/a.jpg": J, "s/A.png": J, "s/a.TXT": b"small", "s/A.caption": b"large",
        "t/a.jpg": J, "t/A.png": J, "t/a.CAPTION": b"small", "t/ordinary.txt": b"",
    }), tmp_path)  # fmt: skip

    assert "images/x.jpg has its name, but is not in the same folder" in one(
        seen.warnings, "captions/x.txt: "
    )
    assert one(seen.warnings, "readme.txt: no image uses it")
    assert one(seen.warnings, "images/multi_ply.txt: ", "did you mean multiply.txt?")
    assert one(seen.warnings, "captions/multiply.txt: ", "there is none in its folder")
    assert one(seen.warnings, "broken.txt: not used, because its image broken.jpg is left out")
    assert one(seen.warnings, "t/ordinary.txt: no image uses it")
    assert (seen.captions["s/a.jpg"], seen.captions["s/A.png"]) == ("small", "large")
    assert (seen.captions["t/a.jpg"], seen.captions["t/A.png"]) == ("small", "A")
    assert seen.report.warnings_count == len(seen.warnings) == 7  # one is for broken.jpg


def test_a_text_that_fits_two_images_but_for_capitals_is_given_to_none(tmp_path: Path) -> None:
    seen = Seen(z({"cat.jpg": J, "CAT.jpg": J, "Cat.txt": b"whose?"}), tmp_path)

    assert set(seen.captions.values()) == {"cat", "CAT"}
    assert one(seen.warnings, "Cat.txt: no image uses it", "fits cat.jpg")


def test_a_second_main_prompt_of_an_image_is_named(tmp_path: Path) -> None:
    seen = Seen(z({"x.jpg": J, "x.txt": b"a cat, old", "x.yaml": b"main_prompt: a dog"}), tmp_path)

    assert seen.caption == "a dog, old"
    assert one(seen.picture("x.jpg").remarks, "x.txt: its 'a cat' is left out", "x.yaml")
    assert seen.picture("x.jpg").source == "yaml"
    assert seen.picture("x.jpg").files == ["x.yaml", "x.txt"]


# --- Values of a yaml -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("multiply: '2,5'", ["multiply: '2,5'", "expected a number from 0 to 1000"]),
        ("flip_p: 50", ["flip_p: '50'", "expected a number from 0 to 1"]),
        ("flip_p: 50%", ["flip_p: '50%'", "expected a number from 0 to 1"]),
        ("tags: [{tag: red, weight: heavy}, old]", ["tags[0].weight: 'heavy'", "expected a num"]),
        ("tags: [red, [a], old]", ["tags[1]: ['a']", "expected a text or {tag, weight}"]),
        ("multi_ply: 3", ["multi_ply: ", "did you mean multiply?"]),
        ("Tags: [red, old]", ["Tags: read as tags"]),
        ("colour: red", ["colour: no option of this name", "known are caption, main_prompt"]),
        ("tags: [x]\ntags: [red, old]", ["tags: given twice; the last one is used"]),
        ("caption: a dog, red", ["caption: 'a dog' is left out", "main_prompt says 'a cat'"]),
        ("caption: {flip_p: 1, Color: x}", ["caption.Color: no option of this name"]),
        ("tags: !mine [red, old]", ["tags: the YAML tag !mine means nothing here"]),
        ("tags: [!!python/name:os.system red]", ["tags: the YAML tag python/name:os.system"]),
        ("flip_p: 1\ncaption: {flip_p: 0}", ["flip_p: left out, because caption.flip_p is given"]),
    ],
)
def test_only_the_wrong_field_of_a_yaml_goes_and_is_named(
    line: str, named: list[str], tmp_path: Path
) -> None:
    seen = Seen(
        z({"IMG_1.jpg": J, "IMG_1.yaml": f"main_prompt: a cat\n{line}\n".encode()}), tmp_path
    )

    assert seen.caption.startswith("a cat")
    assert ("red" in seen.caption) == ("red" in line and "colour" not in line)
    assert one(seen.warnings, "IMG_1.yaml: ", *named)
    assert len(seen.warnings) == 1


def test_a_zero_that_counts_as_one_is_named(tmp_path: Path) -> None:
    yaml = b"multiply: 0.0\nrating: 0\ntags: [{tag: x, weight: 0}]\ncond_dropout: 0\nloss_scale: 0"
    seen = Seen(z({"a.jpg": J, "a.yaml": yaml, "f/b.jpg": J, "f/multiply.txt": b"0"}), tmp_path)

    assert [picture.multiply for picture in seen.manifest.pictures] == [1, 1]
    for field in ("a.yaml: multiply", "a.yaml: rating", "a.yaml: tags[0].weight", "f/multiply.txt"):
        one(seen.warnings, field, "0 counts as 1")
    assert len(seen.warnings) == 4


def test_a_rating_that_the_request_does_not_use_is_named(tmp_path: Path) -> None:
    files = z({"a.jpg": J, "a.yaml": b"rating: 2"})
    (tmp_path / "used").mkdir()

    one(Seen(files, tmp_path).warnings, "rating has no effect without rated_dataset", "a.jpg")
    rated = replace(TRAIN, rated_dataset=True)
    assert Seen(files, tmp_path / "used", rated).warnings == []


def test_of_a_list_as_main_prompt_the_first_is_used_and_the_others_are_named(
    tmp_path: Path,
) -> None:
    seen = Seen(z({"x.jpg": J, "x.yaml": b"main_prompt: [a cat, a dog]\nflip_p: 0.5"}), tmp_path)

    assert seen.caption == "a cat"
    assert seen.manifest.pictures[0].flip_p == 0.5
    assert one(seen.warnings, "x.yaml: main_prompt: ['a cat', 'a dog']", "its first, 'a cat'")


def test_a_yaml_may_be_as_large_as_any_caption_file(tmp_path: Path) -> None:
    tags = "".join(f"  - {{tag: tag number {n}, weight: {n}}}\n" for n in range(1, 1101))

    seen = Seen(z({"x.jpg": J, "x.yaml": f"main_prompt: a cat\ntags:\n{tags}".encode()}), tmp_path)

    assert seen.caption.startswith("a cat, tag number 1100, tag number 1099")
    assert seen.warnings == [one(seen.warnings, "1 caption cut to max_caption_length: x.jpg")]


def test_texts_in_a_yaml_stay_texts(tmp_path: Path) -> None:
    text = b"main_prompt: 007\ntags:\n - no\n - 16:9\n - 1_000\n - 2023-02-20\n - 'null'\n"

    seen = Seen(z({"x.jpg": J, "x.yaml": text}), tmp_path)

    assert seen.caption == "007, no, 16:9, 1_000, 2023-02-20, null"
    assert seen.warnings == []


def test_an_empty_shuffle_tags_file_is_on_by_its_presence(tmp_path: Path) -> None:
    seen = Seen(
        z({"a/x.jpg": J, "a/shuffle_tags.txt": b"", "b/y.jpg": J, "b/flip_p.txt": b" \n"}), tmp_path
    )

    assert [picture.shuffle_tags for picture in seen.manifest.pictures] == [True, None]
    assert one(seen.warnings, "b/flip_p.txt: '': expected a number from 0 to 1")


def test_of_two_files_of_a_folder_that_differ_in_capitals_one_is_named_as_not_used(
    tmp_path: Path,
) -> None:
    seen = Seen(
        z({"x.jpg": J, "global.yaml": b"flip_p: 0.1", "Global.yaml": b"flip_p: 0.9"}), tmp_path
    )

    said = "Global.yaml: not used, because global.yaml has the same name but for its capitals"
    assert one(seen.warnings, said)


@pytest.mark.parametrize("number", ["1_0", "１０", "٣", "0x2", "nan", "infinity"])  # noqa: RUF001
@pytest.mark.parametrize("file", ["multiply.txt", "IMG_1.yaml", "local.yaml"])
def test_a_number_is_written_in_plain_digits_wherever_one_is_read(
    file: str, number: str, tmp_path: Path
) -> None:
    text = number if file == "multiply.txt" else f"multiply: {number}"
    seen = Seen(z({"IMG_1.jpg": drawn(), file: text.encode()}), tmp_path)

    assert seen.manifest.pictures[0].multiply == 1
    assert one(seen.warnings, f"{file}: ", repr(number), "expected a number from 0 to 1000")


# --- Several files of one rank --------------------------------------------------------------------


def test_of_two_yamls_of_an_image_the_second_is_named_with_what_it_says_otherwise(
    tmp_path: Path,
) -> None:
    seen = Seen(z({
        "a.jpg": J,
        "a.yaml": b"main_prompt: a cat\nmultiply: 2\nflip_p: 0.5\ntags: [{tag: red, weight: 2}]",
        "a.yml": b"main_prompt: a dog\nmultiply: 3\nflip_p: 0.5\nrating: 1\ntags: [red, old]",
    }), tmp_path)  # fmt: skip

    assert (seen.caption, seen.manifest.pictures[0].multiply) == ("a cat, red, old", 2)
    remarks = seen.picture("a.jpg").remarks
    assert one(remarks, "a.yml: its 'a dog' is left out, because a.yaml has a main prompt")
    assert one(remarks, "a.yml: its multiply 3.0 is left out, because a.yaml says 2.0")
    assert one(remarks, "a.yml: its weight of 'red' 1.0 is left out, because a.yaml says 2.0")
    assert len(remarks) == 3


def test_of_two_settings_of_a_folder_the_farther_is_named_once(tmp_path: Path) -> None:
    seen = Seen(z({
        "f/a cat.jpg": J, "f/a dog.jpg": drawn(610),
        "f/local.yaml": b"flip_p: 0.1\nbatch_id: x", "f/local.yml": b"flip_p: 0.2",
        "f/batch_id.txt": b"y",
        "global.yaml": b"cond_dropout: 0.1\nflip_p: 0.9", "global.yml": b"cond_dropout: 0.2",
    }), tmp_path)  # fmt: skip

    assert {picture.flip_p for picture in seen.manifest.pictures} == {0.1}
    assert one(seen.warnings, "f/local.yml: its flip_p 0.2 is left out, because f/local.yaml")
    assert one(seen.warnings, "f/local.yaml: its batch_id 'x' is left out, because f/batch_id.txt")
    assert one(seen.warnings, "global.yml: its cond_dropout 0.2 is left out, because global.yaml")
    assert len(seen.warnings) == 3  # that a nearer folder says otherwise is how it is meant


@pytest.mark.parametrize(
    ("image", "file", "text"),
    [("local.jpg", "local.yaml", "main_prompt: a cat"), ("flip_p.png", "flip_p.txt", "0.5"),
     ("Global.jpg", "global.yml", "main_prompt: a cat")],
)  # fmt: skip
def test_an_image_called_like_its_folder_s_settings_does_not_own_them(
    image: str, file: str, text: str, tmp_path: Path
) -> None:
    seen = Seen(z({image: J, "a dog.jpg": drawn(610), file: text.encode()}), tmp_path)

    assert one(seen.warnings, f"{file}: read as its folder's settings", f"not as {image}'s own")
    if "main_prompt" in text:
        assert set(seen.captions.values()) == {"a cat"}
        assert seen.picture(image).source == "folder"
    else:
        assert [picture.flip_p for picture in seen.manifest.pictures] == [0.5, 0.5]


def test_a_tag_that_is_there_twice_is_named_wherever_it_is(tmp_path: Path) -> None:
    seen = Seen(z({
        "a.jpg": J, "a.yaml": b"main_prompt: a\ntags: [red, {tag: red, weight: 3}, old]",
        "b.jpg": drawn(610), "b.txt": b"b, red, old, red", "c, red, red_1.jpg": drawn(620),
        "d.jpg": drawn(630), "d.txt": b"d,, red,,",
        "e.jpg": drawn(640), "e.yaml": b"caption: e, red, red",
        "f.jpg": drawn(650), "f.yaml": b"main_prompt: f\ntags: red\ncaption: f, red",
    }), tmp_path)  # fmt: skip

    assert seen.captions["a.jpg"] == "a, red, old"
    assert one(seen.warnings, "a.yaml: tags: 'red' is given twice; weight 3 is used")
    assert one(
        seen.warnings, "4 captions have a tag twice", "b.txt, c, red, red_1.jpg, e.yaml, f.yaml"
    )
    assert one(seen.warnings, "1 caption with an empty tag", "d.jpg")
    assert len(seen.warnings) == 3


@pytest.mark.parametrize(
    ("name", "more", "caption"),
    [
        ("a.jpg", {"a.txt": b"main,, t , t, u,"}, "main, , t, u"),
        ("a.jpg", {"a.txt": b"a, b,"}, "a, b, "),
        ("a.jpg", {"a.yaml": b"caption: a, , b"}, "a, , b"),
        ("a,, b_1.jpg", {}, "a, , b"),
    ],
)
def test_an_empty_tag_is_trained_on_as_everydream2_does_and_is_named(
    name: str, more: dict[str, bytes], caption: str, tmp_path: Path
) -> None:
    others = {"c.jpg": drawn(610), "c.yaml": b"main_prompt: 'c, , c'\ntags: d"}
    seen = Seen(z({name: J, **more, **others}), tmp_path)

    assert seen.captions[name] == caption
    assert "a tag of its caption is empty" in " ".join(seen.picture(name).remarks)
    assert seen.picture("c.jpg").remarks == []
    assert one(seen.warnings, "1 caption with an empty tag", f"take the comma out: {name}")


def test_how_often_a_picture_is_trained_on_is_told_and_listed_before_the_usual(
    tmp_path: Path,
) -> None:
    others = {f"a cat, {number}_1.jpg": drawn(600 + number) for number in range(60)}
    seen = Seen(z({**others, "z/a dog_1.jpg": J, "z/multiply.txt": b"2.5"}), tmp_path)

    assert len(seen.report.pictures) == 50
    first, *rest = seen.report.pictures
    assert (first.file, first.multiply) == ("z/a dog_1.jpg", 2.5)
    assert {each.multiply for each in rest} == {1.0}


# --- What nobody sees -----------------------------------------------------------------------------


NOBODY_SEES = ["", " \n", ",", " , ,", "\u200b", "\ufeff\u200b,\u2060", "\u3164", "\0", "\x7f\x01"]


@pytest.mark.parametrize("text", NOBODY_SEES)
def test_a_caption_of_which_nothing_is_seen_counts_as_empty(text: str, tmp_path: Path) -> None:
    seen = Seen(
        z({"a cat.jpg": J, "a cat.txt": text.encode(), "x.jpg": drawn(610), "x.txt": b"x"}),
        tmp_path,
    )

    assert seen.captions["a cat.jpg"] == "a cat"
    assert seen.report.empty_captions == ["a cat.jpg"]
    assert "its caption file is empty" in seen.picture("a cat.jpg").remarks


@pytest.mark.parametrize(
    "text",
    ["", "# to do", "main_prompt: ''", "caption: ','", 'tags: ["\u200b"]', 'main_prompt: "\\0"'],
)
def test_a_yaml_without_a_caption_that_is_seen_counts_as_empty(text: str, tmp_path: Path) -> None:
    seen = Seen(z({"a cat.jpg": J, "a cat.yaml": text.encode()}), tmp_path)

    assert (seen.caption, seen.report.empty_captions) == ("a cat", ["a cat.jpg"])


def test_a_yaml_of_options_alone_is_no_empty_caption(tmp_path: Path) -> None:
    seen = Seen(z({"a cat.jpg": J, "a cat.yaml": b"flip_p: 0.5"}), tmp_path)

    assert (seen.report.empty_captions, seen.warnings) == ([], [])


def test_control_characters_are_taken_out_of_captions_and_named(tmp_path: Path) -> None:
    seen = Seen(z({
        "a.jpg": J, "a.txt": b"a\0 red\x0bcat, old\x1b[31m",
        "b.jpg": drawn(610), "b.yaml": b'main_prompt: "a\\0 dog"\ntags: ["\\a x"]',
        "a\x01 bird_1.jpg": drawn(620), "d/e.jpg": drawn(630), "d/batch_id.txt": b"x\0y",
    }), tmp_path)  # fmt: skip

    assert list(seen.captions.values()) == ["a red cat, old[31m", "a dog, x", "a bird", "e"]
    assert one(seen.warnings, "a.txt: control characters are taken out: U+0000, U+000B, U+001B")
    assert one(seen.warnings, "b.yaml: main_prompt: control characters are taken out: U+0000")
    assert one(seen.warnings, "b.yaml: tags: control characters are taken out: U+0007")
    assert one(seen.warnings, "d/batch_id.txt: control characters are taken out: U+0000")
    assert one(seen.picture("a\x01 bird_1.jpg").remarks, "taken out: U+0001")


def test_a_changed_caption_is_read_like_one_in_a_file(tmp_path: Path) -> None:
    seen = Seen(z({"a.jpg": J, "b.jpg": drawn(610)}), tmp_path)
    edits = {1: PictureEdit(caption="a\0 cat, x, x"), 2: PictureEdit(caption="\u200b,")}

    changed = apply_edits(seen.checked, edits, seen.folder, ignored)

    assert [picture.caption for picture in changed.pictures] == ["a cat, x", ""]
    first, second = changed.notes
    assert one(first.remarks, "in its changed caption, control characters are taken out: U+0000")
    assert one(first.remarks, "a tag of its changed caption is there twice")
    assert (second.source, second.doubts) == ("missing", ("no_caption",))


# --- What else people have in their zips ----------------------------------------------------------


def test_the_caption_of_a_file_that_is_not_read_says_so(tmp_path: Path) -> None:
    seen = Seen(z({
        "a.jpg": J, "d/b.gif": b"GIF89a", "d/B.txt": b"x", "c.tif": b"", "c.tif.caption": b"y",
        "e.gif": b"", "d/e.txt": b"z",
    }), tmp_path)  # fmt: skip

    assert one(seen.warnings, "d/B.txt: not used, because its image d/b.gif is left out")
    assert one(seen.warnings, "c.tif.caption: not used, because its image c.tif is left out")
    assert one(seen.warnings, "d/e.txt: no image uses it")


def test_an_empty_image_and_a_name_of_two_lines_are_called_so(tmp_path: Path) -> None:
    seen = Seen(z({"a.jpg": J, "b.jpg": b"", "batch_id.txt": b"x\ny"}), tmp_path)

    assert one(seen.warnings, "b.jpg (an empty file, of 0 bytes)")
    assert one(
        seen.warnings, "batch_id.txt: 'x\\ny': expected a name of 1 to 100 characters on one"
    )


def test_names_that_differ_in_capitals_or_normal_form_alone_are_told_apart(
    tmp_path: Path,
) -> None:
    composed, parts = "\u00c5 boat.jpg", "A\u030a boat.jpg"
    seen = Seen(z({"Cat.jpg": J, "cat.jpg": drawn(610), composed: J, parts: J}), tmp_path)

    assert set(seen.captions) == {"Cat.jpg", "cat.jpg", composed}
    assert one(seen.warnings, f"{composed} (the archive has this name twice)")


# --- Options that do nothing with the pictures that there are -------------------------------------


@pytest.mark.parametrize(
    ("train", "files", "words"),
    [
        ({"keep_tags": 1}, {}, "keep_tags 1 has no effect: shuffle_tags is not set"),
        ({"keep_tags": 1}, {"shuffle_tags.txt": b""}, ""),
        ({"keep_tags": 1, "shuffle_tags": True}, {}, ""),
        ({"keep_tags": 2, "shuffle_tags": True}, {}, "has two tags behind the 2 of keep_tags"),
        ({"shuffle_tags": True}, {"a.txt": b"a, b"}, "shuffle_tags true has no effect: no caption"),
        ({}, {"a.txt": b"a, b", "a.yaml": b"shuffle_tags: true"}, "two tags: a.jpg"),
        ({"sample_steps": 5}, {}, ""),
        (
            {"rated_dataset": True, "max_epochs": 4},
            {"multiply.txt": b"2"},
            "multiply has no",
        ),
        ({"rated_dataset": True, "max_epochs": 4}, {"a.yaml": b"rating: 2"}, ""),
    ],
)
def test_an_option_that_these_pictures_have_no_use_for_is_named(
    train: dict[str, Any], files: dict[str, bytes], words: str, tmp_path: Path
) -> None:
    every = {"a.jpg": J, "a.txt": b"a, b, c, d", **files}
    seen = Seen(z(every), tmp_path, replace(TRAIN, **train))

    assert bool(words) == bool(seen.warnings)
    assert all(words in warning for warning in seen.warnings)


def test_samples_without_prompts_and_captions_are_named(tmp_path: Path) -> None:
    seen = Seen(z({"_1.jpg": J}), tmp_path, replace(TRAIN, sample_steps=5))

    assert one(seen.warnings, "sample_steps 5 has no effect: there are no sample_prompts")


# --- Images ---------------------------------------------------------------------------------------


def damaged_exif() -> bytes:
    """Orientation 6, and a resolution whose number does not fit its type."""
    tags = struct.pack("<HHIHH", 0x112, 3, 1, 6, 0) + struct.pack("<HHII", 0x11A, 10, 1, 38)
    head = b"Exif\0\0II*\0\x08\0\0\0\x02\0"
    return head + tags + b"\0" * 4 + struct.pack("<ii", -1, 0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_data_cost_neither_the_picture_nor_its_orientation(
    kind: str, tmp_path: Path
) -> None:
    seen = Seen(z({"a cat.jpg": drawn(60, 40, kind, exif=damaged_exif())}), tmp_path)

    (picture,) = seen.manifest.pictures
    assert (picture.width, picture.height) == (40, 60)
    assert seen.warnings == []
    red, _, blue = seen.color((20, 5))
    assert red > blue  # the left half is on top


def with_metadata(*chunks: bytes) -> bytes:
    """A PNG of 600 x 600 with these chunks after its header."""
    whole = drawn(kind="PNG")
    header = 8 + 25
    return whole[:header] + b"".join(chunks) + whole[header:]


@pytest.mark.parametrize(
    "chunks",
    [
        [chunk(b"iCCP", b"icc\0\0" + packed_zeros(2))],
        [chunk(b"iTXt", b"XML\0\1\0\0\0" + packed_zeros(2))],
        [chunk(b"zTXt", b"Comment\0\0" + packed_zeros(2))],
        [chunk(b"tEXt", b"Comment\0" + bytes([120]) * (2 << 20)), chunk(b"tEXt", b"a\0b")],
        [chunk(b"zTXt", b"%d\0\0" % number + packed_zeros(1)) for number in range(70)],
    ],
    ids=["a profile", "international text", "packed text", "plain text", "many texts"],
)
def test_large_metadata_cost_no_picture(chunks: list[bytes], tmp_path: Path) -> None:
    seen = Seen(z({"a cat.png": with_metadata(*chunks)}), tmp_path)

    assert (seen.captions, seen.warnings) == ({"a cat.png": "a cat"}, [])
    assert seen.color() == [200, 30, 30]


@pytest.mark.filterwarnings("ignore")
def test_a_camera_s_data_in_a_text_of_a_png_still_turn_it(tmp_path: Path) -> None:
    exif = damaged_exif()
    raw = b"\nexif\n%8d\n" % len(exif) + exif.hex().encode() + b"\n"
    text = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw))
    whole = drawn(60, 40, "PNG")

    seen = Seen(
        z({"a.png": whole[:33] + chunk(b"iCCP", b"icc\0\0" + packed_zeros(2)) + text + whole[33:]}),
        tmp_path,
    )

    (picture,) = seen.manifest.pictures
    assert (picture.width, picture.height) == (40, 60)


@pytest.mark.parametrize(("kind", "suffix"), [("HEIF", "heic"), ("HEIF", "jpg"), ("AVIF", "avif")])
def test_pictures_of_phones_are_read_and_stored_as_the_trainer_reads_them(
    kind: str, suffix: str, tmp_path: Path
) -> None:
    seen = Seen(z({f"a cat_1.{suffix}": drawn(256, 192, kind)}), tmp_path)

    (picture,) = seen.manifest.pictures
    assert (picture.caption, picture.width, picture.height) == ("a cat", 256, 192)
    assert [path.name for path in seen.folder.iterdir()] == [picture.file] == ["000000.png"]
    assert seen.color((20, 20)) == pytest.approx([200, 30, 30], abs=6)
    assert seen.warnings == []


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_pictures_of_phones_are_set_upright_once(kind: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 6

    seen = Seen(z({"a.heic": drawn(256, 192, kind, exif=exif.tobytes())}), tmp_path)

    (picture,) = seen.manifest.pictures
    assert (picture.width, picture.height) == (192, 256)
    assert seen.color((96, 20)) == pytest.approx([200, 30, 30], abs=6)


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_a_picture_of_a_phone_that_is_cut_off_is_named_and_the_others_are_used(
    kind: str, tmp_path: Path
) -> None:
    whole = drawn(256, 192, kind)

    seen = Seen(z({"a.jpg": J, "b.heic": whole[: len(whole) - 99], "b.txt": b"b"}), tmp_path)

    assert list(seen.captions) == ["a.jpg"]
    assert one(seen.warnings, "not used, 1 file: b.heic (broken or cut off")
    assert [path.name for path in seen.folder.iterdir()] == ["000000.jpg"]


@pytest.mark.parametrize("kind", ["AVIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_used_and_the_picture_says_so(
    kind: str, tmp_path: Path
) -> None:
    second = Image.new("RGB", (256, 192), "green")
    animated = drawn(256, 192, kind, save_all=True, append_images=[second])

    seen = Seen(z({"a cat.avif": animated}), tmp_path)

    assert seen.color((20, 20)) == pytest.approx([200, 30, 30], abs=6)
    assert one(seen.picture("a cat.avif").remarks, "the first of its 2 frames is used")


def test_avif_and_heic_are_there_wherever_the_fetcher_is() -> None:
    assert features.check("avif")
    assert {"HEIF", "AVIF"} <= set(Image.OPEN)


def test_kinds_that_are_not_read_are_named(tmp_path: Path) -> None:
    seen = Seen(
        z({"a.jpg": J, "b.gif": b"GIF89a", "c.tiff": b"", "d.jxl": b"", "d.txt": b"d"}), tmp_path
    )

    line = one(seen.warnings, "not used, 3 files: b.gif")
    assert "c.tiff" in line
    assert "d.jxl" in line
    assert one(seen.warnings, "d.txt: not used, because its image d.jxl is left out")


def test_a_transparent_grey_of_16_bits_is_white(tmp_path: Path) -> None:
    rows = b"".join(
        b"\0" + struct.pack(">8H", *[1000] * 4, *[1001] * 2, *[65535, 256]) for _ in range(8)
    )
    packed = chunk(b"IDAT", zlib.compress(rows))
    data = png(chunk(b"tRNS", struct.pack(">H", 1000)), depth=16, color=0)
    plain = chunk(b"IDAT", zlib.compress((b"\0" + bytes(24)) * 8))

    seen = Seen(z({"a cat.png": data.replace(plain, packed)}), tmp_path)

    assert [seen.color((x, 0))[0] for x in (0, 3, 4, 6, 7)] == [255, 255, 4, 255, 1]
    assert one(seen.picture("a cat.png").remarks, "its transparent areas are white")


# --- Names ----------------------------------------------------------------------------------------


def camera_dataset(names: Sequence[str], **more: bytes) -> bytes:
    return z({name: drawn(512 + number) for number, name in enumerate(names)} | more)


@pytest.mark.parametrize(
    ("names", "count"),
    [
        (["1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg", "6.jpg"], 6),
        (["IMG_2042.jpg", "IMG_2043.jpg", "IMG_2050.jpg", "IMG_2051.jpg", "20230220_1.jpg"], 5),
    ],
)
@pytest.mark.parametrize("macos", [False, True])
def test_captions_that_a_camera_or_a_counter_gave_are_counted_and_named_with_what_to_do(
    names: list[str], count: int, tmp_path: Path, *, macos: bool
) -> None:
    hidden = {f"__MACOSX/._{name}": b"\0\5\x16\7" for name in names if macos}
    seen = Seen(camera_dataset(names, **hidden), tmp_path)

    assert len(seen.captions) == count
    line = one(seen.warnings, f"{count} captions from a name that a camera or a counter gave")
    assert "a photo of ted_1.jpg" in line
    assert f"{names[0]} ('{names[0].split('.')[0].split('_')[0]}')" in line
    assert len(seen.warnings) == 1


def test_only_names_that_nobody_would_write_count_as_a_camera_s() -> None:
    taken = [
        "IMG_2042",
        "DSC_0001",
        "20230220_1",
        "image (3)",
        "17",
        "P1030442",
        "IMG_E2042",
        "WhatsApp Image 2023-02-20 at 10.11.12",
        "IMG-20230220-WA0001",
        "SAM_0001",
        "3f2a9c00-1111-2222-3333-444455556666",
        "Screenshot 2023-02-20 at 10.11.12",
    ]
    given = ["sam_1", "a cat_1", "photo of ted_1", "1girl_3", "R2D2_1", "defaced", "x", "_1",
             "S500 car_1", "IMG-1 a red cat", "imgur cat_1",
             "VIDEO TED_1", "IMAGE TED_1", "Pano Everest_1"]  # fmt: skip

    assert all(is_camera_name(f"{name}.jpg") for name in taken)
    assert not any(is_camera_name(f"{name}.jpg") for name in given)


def test_a_camera_s_name_beside_a_caption_is_no_trouble(tmp_path: Path) -> None:
    seen = Seen(z({"IMG_1.jpg": J, "IMG_1.txt": b"a cat"}), tmp_path)

    assert (seen.caption, seen.warnings) == ("a cat", [])


@pytest.mark.parametrize(
    ("encoding", "stem"),
    [("cp932", "ソファの猫"), ("gbk", "红色的猫"), ("cp866", "рыжий кот"), ("cp932", "表示")],
)
def test_names_in_another_encoding_find_their_texts_and_make_no_caption_in_silence(
    encoding: str, stem: str, tmp_path: Path
) -> None:
    with_text, without = stem.encode(encoding), f"{stem} b".encode(encoding)
    data = archive([
        Entry(name=with_text + b".jpg", packed=J, flags=0),
        Entry(name=with_text + b".txt", packed=b"a cat", flags=0),
        Entry(name=without + b".jpg", packed=J, flags=0),
    ])  # fmt: skip

    seen = Seen(data, tmp_path)

    assert next(iter(seen.captions.values())) == "a cat"
    assert one(seen.warnings, "1 caption from a name in an unknown encoding")
    assert not any("/" in name for name in seen.captions)


def test_a_name_in_the_unicode_path_field_is_honoured(tmp_path: Path) -> None:
    raw, name = "рыжий кот_1.jpg".encode("cp866"), "рыжий кот_1.jpg".encode()
    field = b"\1" + struct.pack("<I", zlib.crc32(raw)) + name
    other = b"\1" + struct.pack("<I", zlib.crc32(b"another name")) + b"false.jpg"
    extra = struct.pack("<HH", 0x7075, len(field)) + field
    stale = struct.pack("<HH", 0x7075, len(other)) + other

    seen = Seen(
        archive([
            Entry(name=raw, packed=J, flags=0, extra=extra),
            Entry(name=b"a dog_1.jpg", packed=J, flags=0, extra=stale),
        ]),
        tmp_path,
    )  # fmt: skip

    assert list(seen.captions.values()) == ["рыжий кот", "a dog"]
    assert seen.warnings == []


def test_western_names_of_old_programs_are_read_without_a_warning(tmp_path: Path) -> None:
    seen = Seen(archive([Entry(name="grün.jpg".encode("cp437"), packed=J, flags=0)]), tmp_path)

    assert (seen.caption, seen.warnings) == ("grün", [])


def test_backslashes_are_folders_only_where_they_are_no_part_of_a_name(tmp_path: Path) -> None:
    windows = archive([
        Entry(name=b"cats\\IMG_1.jpg", packed=J), Entry(name=b"cats\\IMG_1.txt", packed=b"a cat"),
        Entry(name=b"cats\\multiply.txt", packed=b"2"),
    ])  # fmt: skip
    seen = Seen(windows, tmp_path)
    assert seen.captions == {"cats/IMG_1.jpg": "a cat"}
    assert seen.manifest.pictures[0].multiply == 2

    (tmp_path / "unix").mkdir()
    unix = archive([Entry(name=rb"d/artist \(x\), old_1.jpg", packed=J)])
    assert Seen(unix, tmp_path / "unix").captions == {
        r"d/artist \(x\), old_1.jpg": "artist (x), old"
    }


def test_equal_pictures_are_named_when_the_first_of_them_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(z({f"{name}.jpg": J for name in "abcd"}))
    unpacked = unpack(tmp_path / "a.zip", tmp_path, shown=SHOWN, reading=ignored)
    checked = check_images(
        unpacked, tmp_path, shown=SHOWN, pixels=10**9, reading=ignored,
        checked=lambda _done, _of: None,
    )  # fmt: skip

    left = apply_edits(checked, {1: PictureEdit(use=False)}, tmp_path, ignored)

    assert left.duplicates == [
        Duplicate(file=f"{name}.jpg", same_as="b.jpg") for name in ("c", "d")
    ]
    same = ("the same pixels as b.jpg",)
    assert [notes.remarks for notes in left.notes] == [(), same, same]


# --- Encodings of captions ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "encoding", ["utf-16-le", "utf-16-be", "utf-16", "utf-32-le", "utf-32-be", "utf-32"]
)
@pytest.mark.parametrize("caption", ["a café, red", "一匹の猫, old"])
def test_captions_in_utf_16_and_32_are_read_with_and_without_a_mark(
    encoding: str, caption: str, tmp_path: Path
) -> None:
    seen = Seen(z({"IMG_1.jpg": J, "IMG_1.txt": caption.encode(encoding)}), tmp_path)

    assert (seen.caption, seen.warnings) == (caption, [])


@pytest.mark.parametrize(
    ("encoding", "caption"), [("shift-jis", "赤い猫"), ("gbk", "红色的猫"), ("cp1251", "кот")]
)
def test_a_caption_that_a_guess_makes_garbage_of_is_named(
    encoding: str, caption: str, tmp_path: Path
) -> None:
    seen = Seen(z({"IMG_1.jpg": J, "IMG_1.txt": caption.encode(encoding)}), tmp_path)

    assert one(seen.warnings, "IMG_1.txt: its text may be garbage", "save it as UTF-8")


def test_a_caption_that_may_be_in_another_encoding_is_named_and_taken_as_it_stands(
    tmp_path: Path,
) -> None:
    raw = "赤い猫".encode("utf-7")
    seen = Seen(z({"IMG_1.jpg": J, "IMG_1.txt": raw}), tmp_path)

    assert seen.caption == raw.decode()
    assert one(seen.warnings, "IMG_1.txt: its text is taken as it stands", "'赤い猫'", "as UTF-8")


def test_a_western_caption_of_windows_is_read_without_a_warning(tmp_path: Path) -> None:
    text = "größer “café” — naïve, 20 €"
    seen = Seen(z({"IMG_1.jpg": J, "IMG_1.txt": text.encode("cp1252")}), tmp_path)

    assert (seen.caption, seen.warnings) == (text, [])


def test_lines_of_a_caption_file_are_joined_and_the_report_says_so_once(tmp_path: Path) -> None:
    two = b"a cat, red\na dog, old\n"
    seen = Seen(
        z({"a.jpg": J, "a.txt": two, "b.jpg": J, "b.txt": two, "c.jpg": J, "c.txt": b"one\n"}),
        tmp_path,
    )

    assert seen.captions["a.jpg"] == "a cat, red\na dog, old"
    assert seen.warnings == [one(seen.warnings, "2 caption files of several lines", "a.txt, b.txt")]


@pytest.mark.parametrize(
    "files",
    [{"x.txt": rb"artist \(name\), tag \(series\)"},
     {"x.yaml": rb"caption: artist \(name\), tag \(series\)"},
     {"x.yaml": b"main_prompt: 'artist \\(name\\)'\ntags: ['tag \\(series\\)']"}],
)  # fmt: skip
def test_escaped_parentheses_are_plain_in_training_as_in_prompts(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    assert Seen(z({"x.jpg": J, **files}), tmp_path).caption == "artist (name), tag (series)"


# --- The report -----------------------------------------------------------------------------------


def test_the_report_shows_how_each_picture_is_trained(tmp_path: Path) -> None:
    seen = Seen(z({
        "a cat_1.jpg": J, "d/x.jpg": drawn(900, 500),
        "d/local.yaml": b"main_prompt: a dog\ntags: [red]",
        "t.jpg": drawn(64, 64), "t.txt": b"a bird", "_1.jpg": drawn(700, 700), "again.jpg": J,
    }), tmp_path)  # fmt: skip

    def shown(name: str) -> tuple[str, str, list[str], str, list[str]]:
        each = seen.picture(name)
        return each.caption, each.source, each.files, each.bucket, each.remarks

    assert shown("a cat_1.jpg") == ("a cat", "name", [], "512x512", [])
    assert shown("d/x.jpg") == ("a dog, red", "folder", ["d/local.yaml"], "640x384", [])
    small = ["64x64: enlarged, and less sharp for it"]
    assert shown("t.jpg") == ("a bird", "text", ["t.txt"], "512x512", small)
    without = ["no caption: trained on without words"]
    assert shown("_1.jpg") == ("", "missing", [], "512x512", without)
    assert seen.picture("again.jpg").remarks == ["the same pixels as a cat_1.jpg"]
    assert [bool(each.remarks) for each in seen.report.pictures] == [True, True, True, False, False]


def test_a_panorama_says_how_much_of_it_is_cut_off(tmp_path: Path) -> None:
    seen = Seen(z({"wide.jpg": drawn(6000, 600), "usual.jpg": drawn(1500, 640)}), tmp_path)

    one(seen.picture("wide.jpg").remarks, "60% of it are cut off")
    assert seen.picture("usual.jpg").remarks == []


def test_held_out_and_over_long_pictures_have_a_remark(tmp_path: Path) -> None:
    train = Train(data_url="u", batch_size=1, validation=Validation(val_split_proportion=0.5))
    seen = Seen(z({"a.jpg": J, "b.jpg": drawn(700)}), tmp_path, train)

    held_out = [each for each in seen.report.pictures if each.remarks]
    assert [each.remarks for each in held_out] == [["held out for validation: not trained on"]]
    long = with_tokens(seen.report, seen.manifest, [76, 75])
    (named,) = [each.file for each in long.pictures if "75 tokens" in str(each.remarks)]
    assert named == "a.jpg"


def test_a_report_of_very_many_stays_bounded_and_says_what_it_cuts(tmp_path: Path) -> None:
    files = {f"{number}/{'x' * 300}.txt": b"" for number in range(80)}
    files |= {f"cat {number}.jpg": J for number in range(60)}

    seen = Seen(z(files), tmp_path)

    assert len(seen.report.pictures) == LISTED
    assert (len(seen.warnings), seen.report.warnings_count) == (LISTED, 80)
    assert seen.warnings[-1] == "and 31 more warnings; mend these, and check again"
    assert max(map(len, seen.warnings)) < 700


# --- Steps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr_scheduler": "linear", "lr_warmup_steps": 10}, ["lr_warmup_steps 10: the run has 10"]),
        ({"lr_scheduler": "linear", "lr_warmup_steps": 1000}, ["it ends at 0.9 % of it"]),
        ({"lr_scheduler": "cosine", "lr_decay_steps": 5}, ["lr_decay_steps 5: ", "from step 5 on"]),
        ({"ema_decay_rate": 0.9999}, ["after 10 updates", "100 % of the average"]),
        ({"ema_decay_rate": 0.9, "grad_accum": 2}, ["after 5 updates", "59 %", "0.3981"]),
        ({"lr_scheduler": "linear", "lr_warmup_steps": 9}, None),
        ({"lr_scheduler": "linear", "lr_decay_steps": 10}, None),
        ({"ema_decay_rate": 0.5}, None),
        ({}, None),
    ],
)
def test_schedules_that_do_not_fit_the_steps_are_named_before_training(
    options: dict[str, Any], words: list[str] | None, tmp_path: Path
) -> None:
    train = Train(data_url="u", batch_size=1, max_epochs=5, **options)

    seen = Seen(z({"a cat.jpg": J, "a dog.jpg": drawn(700)}), tmp_path, train)

    assert seen.report.steps == 10
    assert seen.warnings == ([] if words is None else [one(seen.warnings, *words)])


def test_an_average_of_900_updates_at_0_9999_is_91_percent_the_base_model(tmp_path: Path) -> None:
    train = Train(data_url="u", batch_size=1, max_epochs=900, ema_decay_rate=0.9999)

    seen = Seen(z({"a cat.jpg": J}), tmp_path, train)

    assert one(seen.warnings, "ema_decay_rate 0.9999", "900 updates", "91 %", "0.9949")


# --- Finder's zips --------------------------------------------------------------------------------


def finder_zip(path: Path, gap: int, *, in_order: bool = True) -> None:
    """Two images with ``gap`` bytes between them; offsets modulo 4 GiB, without zip64."""
    first, second = (Entry(name=name, packed=J) for name in (b"a cat.jpg", b"a dog.jpg"))
    with path.open("wb") as file:
        file.write(first.local() + first.packed)
        at = file.seek(gap, io.SEEK_CUR)
        file.write(second.local() + second.packed)
        directory_at = file.tell()
        entries = [first.central(0), second.central(at % (1 << 32))]
        directory = b"".join(entries if in_order else reversed(entries))
        end = struct.pack("<HHHHIIH", 0, 0, 2, 2, len(directory), directory_at % (1 << 32), 0)
        file.write(directory + b"PK\x05\x06" + end)


@pytest.mark.parametrize("gap", [0, (1 << 32) - 100, (1 << 32) + 12345, (1 << 33) + 7])
def test_a_zip_of_over_4_gib_as_finder_makes_it_is_read(gap: int, tmp_path: Path) -> None:
    """A sparse file: the gap takes no room on the disk."""
    finder_zip(tmp_path / "a.zip", gap)
    (tmp_path / "out").mkdir()

    found = unpack(tmp_path / "a.zip", tmp_path / "out", shown=SHOWN, reading=ignored)

    assert [image.name for image in found.images] == ["a cat.jpg", "a dog.jpg"]
    assert all((tmp_path / "out" / image.file).read_bytes() == J for image in found.images)


def test_a_finder_zip_whose_entries_cannot_be_told_apart_says_what_to_do(tmp_path: Path) -> None:
    finder_zip(tmp_path / "a.zip", 1 << 32, in_order=False)

    with pytest.raises(Refused, match=r"more than 4 GB .* without zip64.* make several zips"):
        unpack(tmp_path / "a.zip", tmp_path, shown=SHOWN, reading=ignored)
