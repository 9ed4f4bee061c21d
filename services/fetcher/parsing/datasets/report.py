"""Build the manifest and the pre-flight report of a checked dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from fractions import Fraction
from typing import Any

import msgspec
from msgspec.structs import replace

from services.fetcher.parsing.datasets.checked import CheckedDataset, Notes
from services.fetcher.parsing.datasets.schedule_warnings import schedule_warnings
from services.fetcher.parsing.datasets.unused_options import unused_options
from shared.dataset.buckets import Size, is_undersized
from shared.dataset.captions import MAX_TOKENS, bounded, has_empty_tag
from shared.dataset.manifest import (
    LISTED,
    Manifest,
    Picture,
    Report,
    TrainedPicture,
    first_entries,
    first_lines,
    first_names,
    is_inconspicuous,
    line,
    short,
)
from shared.dataset.plan import (
    Batch,
    EpochConfig,
    Totals,
    bucket_of,
    plan_epoch,
    totals,
    totals_of_equal_epochs,
)
from shared.dataset.remarks import ENLARGED, HELD_OUT, TOO_LONG, Doubt, remark_on
from shared.dataset.validation import split
from shared.errors import Refused
from shared.request import Train

MAX_IMAGES_PER_EPOCH = 1_000_000
"""The sum of all multipliers."""
MAX_PLANNED_IMAGES = 2_000_000
"""Images of all epochs that are planned exactly for the report; takes less than a minute."""
CUT_OFF = 0.25
"""A remark names a larger share of a picture that is cut off, as of a panorama's."""


def build_report(
    checked: CheckedDataset, train: Train, seed: int, shown: str
) -> tuple[Manifest, Report, list[TrainedPicture]]:
    """The manifest, the report that ``/status`` shows before training begins, and every picture.

    ``seed`` is the job's, at least 0. Fields that depend on the base model are added later.

    Raises:
        Refused: the multipliers give no image or too many, or the validation leaves no image to
            train on.
    """
    epoch_config = EpochConfig.of(train, seed=seed)
    parts = split(checked.pictures, train.validation)
    _check_multipliers(parts.training, shown)
    report = Report(
        images=len(parts.training),
        held_out=len(parts.held_out),
        **_file_fields(checked, epoch_config),
        **_plan_fields(parts.training, epoch_config),
    )
    held_out = {picture.file for picture in parts.held_out}
    pictures = _trained_pictures(checked, epoch_config, held_out)
    warnings = [
        *schedule_warnings(train, report),
        *unused_options(train, parts.training),
        *checked.summaries(),
        *checked.warnings,
    ]
    report = replace(
        report,
        pictures=sorted(pictures, key=is_inconspicuous)[:LISTED],
        warnings=first_lines(warnings),
        warnings_count=len(warnings),
    )
    return Manifest(pictures=tuple(checked.pictures)), report, pictures


def _trained_pictures(
    checked: CheckedDataset, epoch_config: EpochConfig, held_out: Collection[str]
) -> list[TrainedPicture]:
    return [
        TrainedPicture(
            number=number,
            file=short(picture.name),
            caption=line(_caption(picture)),
            source=notes.source,
            files=[short(name) for name in notes.files],
            bucket=str(bucket_of(picture, epoch_config)),
            max_caption_length=picture.max_caption_length,
            multiply=picture.multiply,
            remarks=_remarks(picture, notes, epoch_config, held_out),
        )
        for number, (picture, notes) in enumerate(
            zip(checked.pictures, checked.notes, strict=True), start=1
        )
    ]


def _remarks(
    picture: Picture, notes: Notes, epoch_config: EpochConfig, held_out: Collection[str]
) -> list[str]:
    remarks = [*notes.remarks]
    doubts: list[Doubt] = [*notes.doubts]
    doubts += ["empty_tag"] if has_empty_tag(picture.caption, picture.main_parts) else []
    remarks += [remark_on(doubt, picture.max_caption_length) for doubt in doubts]
    if is_undersized(picture.width, picture.height, bucket_of(picture, epoch_config)):
        remarks.append(f"{picture.width}x{picture.height}{ENLARGED}")
    if (cut := _cut_off(picture, bucket_of(picture, epoch_config))) > CUT_OFF:
        remarks.append(f"{cut:.0%} of it are cut off: no size to train at is as long or as narrow")
    if picture.file in held_out:
        remarks.append(HELD_OUT)
    return remarks


def _cut_off(picture: Picture, bucket: Size) -> float:
    """The share of a picture that does not fit into its bucket's shape."""
    shapes = picture.width / picture.height, bucket.width / bucket.height
    return 1 - min(shapes) / max(shapes)


def _file_fields(checked: CheckedDataset, epoch_config: EpochConfig) -> dict[str, Any]:
    """The report's fields about files, by name."""
    undersized = [
        picture.name
        for picture in checked.pictures
        if is_undersized(picture.width, picture.height, bucket_of(picture, epoch_config))
    ]
    return {
        "captions": checked.captions,
        "missing_captions": first_names(
            picture.name for picture in checked.pictures if not picture.caption
        ),
        "empty_captions": first_names(picture.name for picture in checked.doubtful("empty_file")),
        "skipped": first_entries(checked.skipped),
        "skipped_count": len(checked.skipped),
        "undersized": first_names(undersized),
        "undersized_count": len(undersized),
        "duplicates": first_entries(checked.duplicates),
        "duplicates_count": len(checked.duplicates),
    }


def _plan_fields(pictures: Sequence[Picture], epoch_config: EpochConfig) -> dict[str, Any]:
    """The report's fields about batches and steps, by name."""
    batches = plan_epoch(pictures, epoch_config, 0)
    all_epochs = _all_epochs(pictures, batches, epoch_config)
    return {
        "buckets": _counts(str(bucket_of(picture, epoch_config)) for picture in pictures),
        "short_buckets": {
            str(batch.size): batch.real for batch in batches if batch.real < epoch_config.batch_size
        },
        "repeats": sum(len(batch.pictures) - batch.real for batch in batches),
        "named_batches": _counts(batch.name for batch in batches if batch.name),
        "steps_per_epoch": len(batches),
        "steps": all_epochs.steps,
        "megapixels": round(all_epochs.pixels / 1e6, 3),
    }


def check_size(manifest: Manifest, limit: int, shown: str) -> None:
    """Raises Refused: the manifest takes more bytes; says how many, and what takes most of them."""
    size = len(msgspec.json.encode(manifest))
    if size <= limit:
        return
    parts = {
        "captions": sum(len(picture.caption.encode()) for picture in manifest.pictures),
        "file names": sum(len(picture.name.encode()) for picture in manifest.pictures),
        "weights of tags": sum(
            len(msgspec.json.encode(picture.weights)) for picture in manifest.pictures
        ),
    }
    told = ", ".join(f"{what} {number / 1e6:.1f} MB" for what, number in parts.items())
    raise Refused(
        f"{shown}: what is told to the trainer of its {len(manifest.pictures)} images takes"
        f" {size / 1e6:.1f} MB, and at most {limit / 1e6:.1f} MB are taken ({told}); a caption or"
        " tag of local.yaml or global.yaml counts for each of its images. Shorten them, or make"
        " several archives"
    )


def captions_of(manifest: Manifest) -> list[str]:
    """Every image's caption as it is trained on without shuffling."""
    return [_caption(picture) for picture in manifest.pictures]


def _caption(picture: Picture) -> str:
    return bounded(picture.caption, picture.main_parts, picture.max_caption_length)


def with_tokens(report: Report, manifest: Manifest, tokens: Sequence[int]) -> Report:
    """Add the captions that are too long; ``tokens`` has the number of tokens of each image."""
    long = [
        picture.name
        for picture, count in zip(manifest.pictures, tokens, strict=True)
        if count > MAX_TOKENS
    ]
    names = {short(name) for name in long}
    return replace(
        report,
        captions=replace(report.captions, over_long=len(long)),
        over_long_captions=first_names(long),
        pictures=[
            replace(each, remarks=[*each.remarks, TOO_LONG]) if each.file in names else each
            for each in report.pictures
        ],
    )


def _all_epochs(
    pictures: Sequence[Picture], batches: Sequence[Batch], epoch_config: EpochConfig
) -> Totals:
    """Exact totals; if planning would take long, as if all epochs were like the first."""
    images = epoch_config.epochs * len(batches) * epoch_config.batch_size
    if images <= MAX_PLANNED_IMAGES:
        return totals(pictures, epoch_config)
    return totals_of_equal_epochs(batches, epoch_config)


def _counts(names: Iterable[str]) -> dict[str, int]:
    """How often each name occurs, most frequent first, cut to :data:`LISTED`."""
    return {short(name): count for name, count in Counter(names).most_common(LISTED)}


def _check_multipliers(pictures: Sequence[Picture], shown: str) -> None:
    total = sum(Fraction(str(picture.multiply)) for picture in pictures)
    if total < 1:
        raise Refused(
            f"{shown}: the multipliers of all images add up to {float(total):g};"
            " at least 1 is needed"
        )
    if total > MAX_IMAGES_PER_EPOCH:
        raise Refused(
            f"{shown}: {float(total):.0f} images per epoch by their multipliers;"
            f" at most {MAX_IMAGES_PER_EPOCH}"
        )
