"""Hostile archives: refused with a reason, or rid of the bad entry; never more than was allowed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from services.fetcher.parsing.datasets.archive import Unpacked, unpack
from services.fetcher.parsing.datasets.check import Checker
from services.fetcher.parsing.datasets.sidecars import Sidecars
from shared.errors import Refused
from tests.security.bounds import within_bounds, written
from tests.support.corpora.archives import (
    CONTENT,
    GOOD,
    HIDDEN_NAMES,
    MIB,
    NO_ZIP,
    OTHER_NAME,
    REFUSED,
    SAME_NAME,
    SPARED,
    TAKEN,
    TAKEN_NAMES,
    Entry,
    archive,
    beside_a_good_one,
    honest,
    nested,
)
from tests.support.in_process_parser import ignored

SHOWN = "https://example.com/data.zip"
REASON = 1000
"""Characters that are enough for any reason."""


def unpacked(data: bytes, tmp_path: Path) -> Unpacked:
    """What is taken of an archive; whatever it says, its images are all that it leaves behind."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/data.zip").write_bytes(data)
    folder = tmp_path / "in/staging/dataset"
    folder.mkdir(parents=True)
    try:
        with within_bounds():
            found = unpack(tmp_path / "in/data.zip", folder, shown=SHOWN, reading=ignored)
    except Refused:
        assert written(folder) == {}
        raise
    assert set(written(folder)) == {image.file for image in found.images}
    assert set(written(tmp_path)) - {"in/data.zip"} == {
        f"in/staging/dataset/{image.file}" for image in found.images
    }
    return found


def refusal(data: bytes, tmp_path: Path) -> str:
    with pytest.raises(Refused) as refused:
        unpacked(data, tmp_path)
    text = str(refused.value)
    assert text.startswith(f"{SHOWN}: ")
    assert len(text) < REASON
    return text


@pytest.mark.parametrize("name", list(REFUSED))
def test_an_archive_that_lies_is_refused_whole_with_the_reason(name: str, tmp_path: Path) -> None:
    make, reason = REFUSED[name]

    assert reason in refusal(make(), tmp_path)


@pytest.mark.parametrize("name", list(NO_ZIP))
def test_what_is_no_zip_is_called_what_it_is(name: str, tmp_path: Path) -> None:
    content, kind = NO_ZIP[name]

    text = refusal(content, tmp_path)

    assert "not a zip file" in text
    assert kind in text


@pytest.mark.parametrize("name", list(SPARED))
def test_a_bad_entry_is_reported_and_the_good_one_is_taken(name: str, tmp_path: Path) -> None:
    make, reason = SPARED[name]

    found = unpacked(beside_a_good_one(make()), tmp_path)

    assert [image.name for image in found.images] == [GOOD]
    assert written(tmp_path / "in/staging") == {"dataset/000000.png": len(CONTENT)}
    (skipped,) = found.skipped
    assert reason in skipped.reason
    assert 0 < len(skipped.file) <= 203


@pytest.mark.parametrize("number", range(len(TAKEN_NAMES)))
def test_no_name_leads_anywhere(number: int, tmp_path: Path) -> None:
    found = unpacked(archive([Entry(name=TAKEN_NAMES[number].encode())]), tmp_path)

    (image,) = found.images
    assert image.file in {"000000.png", "000000.jpeg"}
    Checker(found, tmp_path / "in/staging/dataset").check(image)


def test_names_that_begin_with_dots_are_passed_over_as_hidden(tmp_path: Path) -> None:
    entries = [Entry(name=name.encode()) for name in HIDDEN_NAMES]

    found = unpacked(archive(entries), tmp_path)

    assert (found.images, found.skipped) == ([], [])


@pytest.mark.parametrize("name", list(SAME_NAME))
def test_two_spellings_of_a_name_are_one_name(name: str, tmp_path: Path) -> None:
    first, second = SAME_NAME[name]

    found = unpacked(archive([Entry(name=first.encode()), Entry(name=second.encode())]), tmp_path)

    assert [image.name for image in found.images] == [first]
    assert [skipped.reason for skipped in found.skipped] == ["the archive has this name twice"]


@pytest.mark.parametrize("name", list(OTHER_NAME))
def test_names_that_collide_elsewhere_do_not_overwrite_each_other(
    name: str, tmp_path: Path
) -> None:
    pair = OTHER_NAME[name]
    contents = (b"the first", b"the second")

    found = unpacked(
        archive(Entry(name=n.encode(), packed=c) for n, c in zip(pair, contents, strict=True)),
        tmp_path,
    )

    folder = tmp_path / "in/staging/dataset"
    assert [image.name for image in found.images] == [*pair]
    assert tuple((folder / image.file).read_bytes() for image in found.images) == contents


@pytest.mark.parametrize("name", list(TAKEN))
def test_a_strange_archive_that_does_no_harm_is_read(name: str, tmp_path: Path) -> None:
    make: Callable[[], bytes] = TAKEN[name]

    found = unpacked(make(), tmp_path)

    (image,) = found.images
    assert image.name == "bad.png"
    assert (tmp_path / "in/staging/dataset" / image.file).read_bytes() == CONTENT
    assert found.skipped == []


def test_an_archive_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    whole = honest()
    for length in range(len(whole)):
        (tmp_path / str(length)).mkdir()

        assert "not a zip file" in refusal(whole[:length], tmp_path / str(length))


def test_a_zip_that_holds_itself_is_not_opened_again(tmp_path: Path) -> None:
    found = unpacked(nested(30), tmp_path)

    assert found.images == []
    assert [skipped.file for skipped in found.skipped] == ["inner.zip"]


def test_looking_for_captions_in_deep_folders_remembers_nothing_that_is_not_there() -> None:
    beside = Sidecars({})

    with within_bounds(memory=24 * MIB):
        for number in range(60):
            beside.of(f"{number}/{'a/' * 500}b.png")
