"""A check's report and pictures as a person has changed them: what will be trained on.

The fetcher finds the same again when it stages a job on the check, from the pictures themselves.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from shared.dataset.captions import bounded, has_empty_tag, parse
from shared.dataset.edits import PictureEdit
from shared.dataset.manifest import (
    LISTED,
    Captions,
    Duplicate,
    Report,
    Skipped,
    TrainedPicture,
    first_entries,
    first_lines,
    first_names,
    is_inconspicuous,
    line,
)
from shared.dataset.remarks import (
    ENLARGED,
    HELD_OUT,
    NO_CAPTION,
    SAME_PIXELS,
    TOO_LONG,
    Doubt,
    has_doubt,
    is_about_caption,
    remark_on,
    remarks_on_edit,
    same_pixels,
    summaries,
)
from shared.dataset.validation import held_out_indices
from shared.request import Validation

LEFT_OUT = "left out by a change of the checked dataset"
SIZES_AS_FOUND = (
    "sizes, steps, minutes and bytes are those of all pictures that the check found; the job that"
    " is trained on fewer reports its own"
)
CAPTIONS_AS_FOUND = (
    "captions were changed since the check: what other warnings say of tags and caption files may"
    " be on those before"
)
FROM_FILES = ("text", "yaml", "folder")


class SplitNumbers(NamedTuple):
    """Which pictures are held out, of those that are used."""

    left_out: tuple[int, ...]
    """Sorted numbers."""
    held_out: frozenset[int]
    """Among the others, counted from 0."""

    def holds_out(self, number: int) -> bool:
        return number - 1 - bisect_left(self.left_out, number) in self.held_out


def split_of(
    pictures: int, edits: Mapping[int, PictureEdit], validation: Validation | None
) -> SplitNumbers:
    """What becomes of the validation: other pictures are held out if some are left out."""
    left_out = tuple(sorted(number for number, edit in edits.items() if not edit.use))
    used = pictures - len(left_out)
    return SplitNumbers(left_out, held_out_indices(used, validation) if validation else frozenset())


def edited_picture(
    found: TrainedPicture, edit: PictureEdit, report: Report, split: SplitNumbers
) -> TrainedPicture:
    """A picture as it is trained on after all changes.

    Args:
        found: as the check has found it.
        edit: its own change.
        report: the check's after all changes, or before them if none is left out.
        split: of the changed dataset.
    """
    remarks = [each for each in found.remarks if not each.startswith((SAME_PIXELS, HELD_OUT))]
    picture = replace(found, remarks=[*remarks, *_duplicate(found, report)])
    if edit.use and split.holds_out(found.number):
        picture.remarks.append(HELD_OUT)
    return picture if edit.caption is None else _captioned(picture, edit.caption)


def _duplicate(found: TrainedPicture, report: Report) -> Iterator[str]:
    """The remark that it is the same as another; the report lists only the first of many."""
    same_as = next((each.same_as for each in report.duplicates if each.file == found.file), None)
    if same_as is not None:
        yield same_pixels(same_as)
    elif report.duplicates_count > len(report.duplicates):
        yield from (each for each in found.remarks if each.startswith(SAME_PIXELS))


def _captioned(picture: TrainedPicture, text: str) -> TrainedPicture:
    whole, limit = parse(text).text, picture.max_caption_length
    caption = bounded(whole, 1, limit)
    kept = (each for each in picture.remarks if not is_about_caption(each))
    cut = [remark_on("cut", limit)] if len(whole) > limit else []
    empty = [remark_on("empty_tag", limit)] if has_empty_tag(whole, 1) else []
    remarks = [*kept, *remarks_on_edit(text), *cut, *empty]
    return replace(
        picture,
        caption=caption,
        source="edit" if caption else "missing",
        remarks=remarks if caption else [NO_CAPTION, *remarks],
    )


def edited_report(
    report: Report,
    found: Sequence[TrainedPicture],
    edits: Mapping[int, PictureEdit],
    validation: Validation | None,
) -> Report:
    """The report on the dataset as it is trained on after all changes.

    What depends on the batches stays as the check found it, which a warning says; so do warnings
    on tags and caption files. The tokens of
    changed captions are counted when a job is trained on them.

    Args:
        report: the check's.
        found: all its pictures, by their numbers.
        edits: by the pictures' numbers, from 1.
        validation: the check's.
    """
    split = split_of(len(found), edits, validation)
    gone = [found[number - 1] for number in split.left_out]
    fewer = _without(report, gone)
    every = {each.number: edits.get(each.number, PictureEdit()) for each in found}
    used = [each for each in found if every[each.number].use]
    pictures = [edited_picture(each, every[each.number], fewer, split) for each in used]
    has_new_captions = any(every[each.number].caption is not None for each in used)
    warnings = _warnings(report, found, fewer, pictures, has_new_captions=has_new_captions)
    return replace(
        fewer,
        images=len(used) - len(split.held_out),
        held_out=len(split.held_out),
        captions=_captions(pictures),
        missing_captions=first_names(each.file for each in pictures if not each.caption),
        empty_captions=first_names(_doubtful(pictures, "empty_file")),
        over_long_captions=first_names(each.file for each in pictures if TOO_LONG in each.remarks),
        pictures=_listed(pictures),
        warnings=first_lines(*warnings),
        warnings_count=warnings[1],
    )


def _without(report: Report, gone: Sequence[TrainedPicture]) -> Report:
    """The report's lists of files and pairs when some pictures are left out."""
    names = {each.file for each in gone}
    duplicates = duplicates_without(report.duplicates, names)
    skipped = [*report.skipped, *(Skipped(file=each.file, reason=LEFT_OUT) for each in gone)]
    return replace(
        report,
        skipped=first_entries(skipped),
        skipped_count=report.skipped_count + len(gone),
        undersized=[each for each in report.undersized if each not in names],
        undersized_count=report.undersized_count - sum(map(_is_enlarged, gone)),
        duplicates=duplicates,
        duplicates_count=report.duplicates_count - len(report.duplicates) + len(duplicates),
    )


def _is_enlarged(picture: TrainedPicture) -> bool:
    return any(remark.endswith(ENLARGED) for remark in picture.remarks)


def duplicates_without(found: Iterable[Duplicate], left_out: Collection[str]) -> list[Duplicate]:
    """Those of the other pictures; where the first of its like is left out, the next stands for it.

    ``left_out`` are names as a report has them.
    """
    first: dict[str, str] = {}
    duplicates = []
    for each in found:
        if each.file in left_out:
            continue
        same_as = first.get(each.same_as) if each.same_as in left_out else each.same_as
        first.setdefault(each.same_as, each.file)
        if same_as is not None:
            duplicates.append(Duplicate(file=each.file, same_as=same_as))
    return duplicates


def _captions(pictures: Sequence[TrainedPicture]) -> Captions:
    sources = Counter(each.source for each in pictures)
    return Captions(
        from_names=sources["name"],
        from_files=sum(sources[each] for each in FROM_FILES),
        edited=sources["edit"],
        missing=sources["missing"],
        empty=sum(has_doubt(each.remarks, "empty_file") for each in pictures),
        over_long=sum(TOO_LONG in each.remarks for each in pictures),
    )


def _doubtful(pictures: Iterable[TrainedPicture], doubt: Doubt) -> list[str]:
    return [each.file for each in pictures if has_doubt(each.remarks, doubt)]


def _listed(pictures: Iterable[TrainedPicture]) -> list[TrainedPicture]:
    """Those with remarks first, then those with a multiplier, then those that were changed."""
    first = sorted(pictures, key=lambda each: (*is_inconspicuous(each), each.source != "edit"))
    return [replace(each, caption=line(each.caption)) for each in first[:LISTED]]


def _warnings(
    report: Report,
    found: Sequence[TrainedPicture],
    fewer: Report,
    pictures: Sequence[TrainedPicture],
    *,
    has_new_captions: bool,
) -> tuple[list[str], int]:
    """The check's warnings with those on captions and files as they are now; how many there are."""
    before, now = _summaries(report, found), _summaries(fewer, pictures)
    is_cut = report.warnings_count > len(report.warnings)
    known = report.warnings[: len(report.warnings) - is_cut]
    others = [each for each in known if each not in before]
    place = next((number for number, each in enumerate(known) if each in before), 0)
    gone = [SIZES_AS_FOUND] if fewer.skipped_count > report.skipped_count else []
    gone += [CAPTIONS_AS_FOUND] if others and has_new_captions else []
    lines = [*gone, *others[:place], *now, *others[place:]]
    return lines, report.warnings_count + len(lines) - len(known)


def _summaries(report: Report, pictures: Sequence[TrainedPicture]) -> list[str]:
    skipped = [(each.file, each.reason) for each in report.skipped]

    def doubtful(doubt: Doubt) -> list[tuple[str, str]]:
        return [(each.file, each.caption) for each in pictures if has_doubt(each.remarks, doubt)]

    return [line(each) for each in summaries(skipped, report.skipped_count, doubtful)]
