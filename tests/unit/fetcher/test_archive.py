"""Unpacking a user's zip: what is used, skipped and refused."""

import io
import re
import struct
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import pytest

from services.fetcher.parsing import zip_reader
from services.fetcher.parsing.datasets import archive
from services.fetcher.parsing.datasets.archive import Unpacked, unpack
from shared.errors import Refused
from tests.support.in_process_parser import ignored

SHOWN = "https://example.com/data.zip"


def zip_of(path: Path, files: dict[str, bytes] | list[tuple[str, bytes]], **more: Any) -> Path:
    entries = files.items() if isinstance(files, dict) else files
    with zipfile.ZipFile(path, "w", **more) as zipped:
        for name, content in entries:
            zipped.writestr(name, content)
    return path


def names_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def unpacked(path: Path) -> Unpacked:
    folder = path.parent / "out"
    folder.mkdir()
    return unpack(path, folder, shown=SHOWN, reading=ignored)


def refusal(path: Path) -> str:
    with pytest.raises(Refused) as refused:
        unpacked(path)
    assert str(refused.value).startswith(SHOWN)
    return str(refused.value)


def test_images_and_texts_are_taken_from_any_folder_under_safe_names(tmp_path: Path) -> None:
    path = zip_of(
        tmp_path / "a.zip", {"cats/a cat_1.PNG": b"1", "dogs/deep/b.jpeg": b"22", "b.txt": b"x"}
    )

    found = unpacked(path)

    assert [image.name for image in found.images] == ["cats/a cat_1.PNG", "dogs/deep/b.jpeg"]
    assert [(tmp_path / "out" / image.file).read_bytes() for image in found.images] == [b"1", b"22"]
    assert all(re.fullmatch(r"\d{6}\.(png|jpeg)", image.file) for image in found.images)
    assert found.texts == {"b.txt": b"x"}
    assert found.skipped == []


@pytest.mark.parametrize(
    "name",
    ["../../evil.png", "/etc/evil.png", "C:\\temp\\evil.png", "..\\evil.png", "a/../../evil.png"],
)
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    found = unpacked(zip_of(tmp_path / "a.zip", {name: b"1"}))

    assert [image.file for image in found.images] == ["000000.png"]
    assert names_below(tmp_path) == {"a.zip", "out", "out/000000.png"}


def test_what_macos_adds_and_hides_is_passed_over_in_silence(tmp_path: Path) -> None:
    files = {
        "__MACOSX/._a.png": b"",
        "._a.png": b"",
        ".hidden/b.png": b"",
        "a.png": b"1",
        "d/": b"",
    }

    found = unpacked(zip_of(tmp_path / "a.zip", files))

    assert [image.name for image in found.images] == ["a.png"]
    assert found.skipped == []


def test_other_files_links_and_repeated_names_are_reported(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        for name in ("a.png", "b.png", "readme.docx"):
            zipped.writestr(name, b"1")
        zipped.writestr(link, b"/etc/passwd")
    raw = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(raw.replace(b"b.png", b"a.png"))

    found = unpacked(tmp_path / "a.zip")

    assert [image.name for image in found.images] == ["a.png"]
    assert {entry.file: entry.reason for entry in found.skipped} == {
        "a.png": "the archive has this name twice",
        "readme.docx": (
            "neither an image (.avif, .bmp, .heic, .heif, .hif, .jfif, .jpeg, .jpg, .png, .webp)"
            " nor a caption file"
        ),
        "link.png": "a link, not a file",
    }


def test_an_entry_without_a_name_costs_only_itself(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", {"a.png": b"1", "b.png": b"2"})
    whole = bytearray(path.read_bytes())
    directory = whole.rindex(b"PK\x01\x02")
    whole[directory + 28 : directory + 30] = b"\0\0"  # the length of its name
    whole[directory + 32 : directory + 34] = struct.pack("<H", len("b.png"))  # of its comment
    path.write_bytes(whole)

    found = unpacked(path)

    assert [image.name for image in found.images] == ["a.png"]
    assert [skipped.file for skipped in found.skipped] == ["(no name)"]


def test_names_in_undeclared_utf_8_and_in_parts_are_made_plain(tmp_path: Path) -> None:
    name = unicodedata.normalize("NFD", "ein großer Bär.png")
    path = zip_of(tmp_path / "a.zip", {name: b"1"})
    plain = path.read_bytes()
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = plain.index(signature) + at
        flags = struct.unpack_from("<H", plain, start)[0] & ~0x800
        plain = plain[:start] + struct.pack("<H", flags) + plain[start + 2 :]
    path.write_bytes(plain)

    found = unpacked(path)

    assert found.images[0].name == "ein großer Bär.png"


def test_an_entry_that_is_damaged_costs_only_itself(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", {"a.png": b"first" * 9, "b.png": b"second" * 9})
    path.write_bytes(path.read_bytes().replace(b"first", b"worst", 1))

    found = unpacked(path)

    assert [image.name for image in found.images] == ["b.png"]
    assert found.skipped[0].file == "a.png"
    assert "damaged in the archive (Bad CRC-32" in found.skipped[0].reason
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_an_entry_that_declares_less_than_it_holds_is_cut_and_reported(
    tmp_path: Path,
) -> None:
    path = zip_of(tmp_path / "a.zip", {"a.png": bytes(5000)}, compression=zipfile.ZIP_DEFLATED)
    lie = path.read_bytes().replace(struct.pack("<I", 5000), struct.pack("<I", 10))
    path.write_bytes(lie)

    found = unpacked(path)

    assert found.images == []
    assert "damaged in the archive" in found.skipped[0].reason


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"<!DOCTYPE html><html>Sign in to download</html>", "an HTML page"),
        (b"\n <html>", "an HTML page"),
        (b"Rar!\x1a\x07", "a RAR archive"),
        (b"\xff\xd8\xff\xe0", "a single JPEG image"),
        (b"", "empty"),
        (b"PK\x03\x04 and then nothing", "or only a part of a zip"),
    ],
)
def test_what_is_no_zip_is_called_by_its_name(tmp_path: Path, content: bytes, kind: str) -> None:
    (tmp_path / "a.zip").write_bytes(content)

    text = refusal(tmp_path / "a.zip")

    assert "not a zip file" in text
    assert kind in text


def test_a_bomb_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    zeros = {f"{number}.png": bytes(16 << 20) for number in range(8)}
    path = zip_of(tmp_path / "a.zip", zeros, compression=zipfile.ZIP_DEFLATED)

    assert "times its size; at most 200 times" in refusal(path)
    assert list((tmp_path / "out").iterdir()) == []


def test_too_large_too_many_and_too_much_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = zip_of(tmp_path / "a.zip", {"a.png": bytes(2000), "b.png": bytes(10)})

    with monkeypatch.context() as patch:
        patch.setattr(archive, "MAX_IMAGE_BYTES", 1000)
        found = unpacked(path)
        assert [image.name for image in found.images] == ["b.png"]
        assert found.skipped[0].reason == "2000 bytes; at most 1000 are taken"
    (tmp_path / "out" / "000001.png").unlink()
    (tmp_path / "out").rmdir()
    for cap, value, reason in (
        ("MAX_TOTAL_BYTES", 2009, "unpacks to"),
        ("MAX_ENTRIES", 1, "2 entries; at most 1"),
        ("MAX_DIRECTORY_BYTES", 50, "its list of entries takes"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(zip_reader, cap, value)
            assert reason in refusal(path)
        (tmp_path / "out").rmdir()


def test_the_size_of_a_zip64_list_is_seen_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    path = zip_of(tmp_path / "a.zip", {"a.png": b"1", "b.png": b"2"})
    assert b"PK\x06\x06" in path.read_bytes()

    assert zip_reader._end_record(path).directory_bytes == 2 * (46 + 5)


def test_entries_that_share_bytes_are_refused(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", {"a.png": b"1" * 100, "b.png": b"2" * 100})
    with zipfile.ZipFile(path) as zipped:
        second = zipped.infolist()[1].header_offset
    raw = path.read_bytes()
    directory = raw.index(b"PK\x01\x02", raw.index(b"PK\x01\x02") + 4)
    path.write_bytes(raw[: directory + 42] + struct.pack("<I", second - 60) + raw[directory + 46 :])

    assert "its entries overlap" in refusal(path)


def test_an_encrypted_entry_is_refused_by_name(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", {"secret.png": b"1"})
    raw = bytearray(path.read_bytes())
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        raw[raw.index(signature) + at] |= 1
    path.write_bytes(raw)

    assert "secret.png is encrypted; make the zip without a password" in refusal(path)


def test_a_packing_that_nobody_knows_costs_only_its_entry(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        zipped.writestr("a.png", b"1")
    raw = bytearray(buffer.getvalue())
    for signature, at in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        raw[raw.index(signature) + at] = 97
    (tmp_path / "a.zip").write_bytes(raw)

    found = unpacked(tmp_path / "a.zip")

    assert "packed in a way that is not supported" in found.skipped[0].reason
