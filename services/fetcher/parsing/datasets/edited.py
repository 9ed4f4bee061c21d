"""Apply what a person has changed in a dataset that was checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from msgspec.structs import replace

from services.fetcher.parsing.datasets.checked import CheckedDataset, Notes, Source
from shared.dataset.captions import MAX_CHARACTERS, bounded, parse
from shared.dataset.edited_report import CAPTIONS_AS_FOUND, LEFT_OUT, duplicates_without
from shared.dataset.edits import PictureEdit
from shared.dataset.manifest import Picture, Skipped, short
from shared.dataset.remarks import Doubt, is_about_caption, remarks_on_edit, same_pixels
from shared.errors import Refused


def apply_edits(
    checked: CheckedDataset,
    edits: Mapping[int, PictureEdit],
    folder: Path,
    reading: Callable[[str], None],
) -> CheckedDataset:
    """The dataset with other captions, and without the pictures that are left out.

    Args:
        checked: as the check found it.
        edits: by the pictures' numbers, from 1.
        folder: with the pictures; those that are left out are removed.
        reading: called with each picture's name.

    Raises:
        Refused: no picture is left.
    """
    pictures, notes, skipped = [], [], list(checked.skipped)
    every = zip(checked.pictures, checked.notes, strict=True)
    for number, (picture, of_it) in enumerate(every, start=1):
        reading(picture.name)
        edit = edits.get(number, PictureEdit())
        if not edit.use:
            skipped.append(Skipped.of(picture.name, LEFT_OUT))
            for file in filter(None, (picture.file, picture.mask)):
                (folder / file).unlink()
            continue
        pictures.append(picture if edit.caption is None else _captioned(picture, edit.caption))
        notes.append(of_it if edit.caption is None else _edited(of_it, picture, edit.caption))
    if not pictures:
        raise Refused("the checked dataset: every picture of it is left out")
    left_out = {each.file for each in skipped[len(checked.skipped) :]}
    duplicates = duplicates_without(checked.duplicates, left_out)
    same = {each.file: (same_pixels(each.same_as),) for each in duplicates}
    before = {same_pixels(each.same_as) for each in checked.duplicates}
    notes = [
        replace(of_it, remarks=(*(r for r in of_it.remarks if r not in before),
                                *same.get(short(picture.name), ())))
        for picture, of_it in zip(pictures, notes, strict=True)
    ]  # fmt: skip
    warnings = checked.warnings
    if warnings and any(edit.caption is not None and edit.use for edit in edits.values()):
        warnings = [CAPTIONS_AS_FOUND, *warnings]
    return replace(
        checked,
        pictures=pictures,
        notes=notes,
        skipped=skipped,
        duplicates=duplicates,
        warnings=warnings,
    )


def _captioned(picture: Picture, text: str) -> Picture:
    """With a caption that is read like a caption file's text."""
    caption = bounded(parse(text).text, 1, MAX_CHARACTERS)
    return replace(picture, caption=caption, main_parts=1, weights=())


def _edited(notes: Notes, picture: Picture, caption: str) -> Notes:
    text = parse(caption).text
    doubts: list[Doubt] = [] if text else ["no_caption"]
    if len(text) > picture.max_caption_length:
        doubts.append("cut")
    source: Source = "edit" if text else "missing"
    kept = (remark for remark in notes.remarks if not is_about_caption(remark))
    remarks = (*kept, *remarks_on_edit(caption))
    return replace(notes, source=source, remarks=remarks, doubts=tuple(doubts))
