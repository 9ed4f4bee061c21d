"""What the parsing child does: one function for each order."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from services.fetcher.limits import Limits
from services.fetcher.order import (
    DescribeModel,
    ModelDescription,
    ParseDataset,
    ParsedDataset,
    ParsedLora,
    ParsedModel,
    ParseEditedDataset,
    ParseLora,
    ParseModelFile,
    ParseModelFolder,
    Result,
    Task,
)
from services.fetcher.parsing.datasets.archive import unpack
from services.fetcher.parsing.datasets.check import check_images
from services.fetcher.parsing.datasets.checked import CHECKED, CheckedDataset
from services.fetcher.parsing.datasets.edited import apply_edits
from services.fetcher.parsing.datasets.pages import (
    Previews,
    add_remark,
    write_pages,
    write_previews,
)
from services.fetcher.parsing.datasets.report import (
    build_report,
    captions_of,
    check_size,
    with_tokens,
)
from services.fetcher.parsing.models.diffusers_folder import (
    OpenedModel,
    validate_diffusers_folder,
)
from services.fetcher.parsing.models.lora import stage_lora
from services.fetcher.parsing.models.model_file import IsLora, open_model
from services.fetcher.parsing.models.single_file import NeedsBase
from services.fetcher.parsing.models.tokenizer_and_size import count_parameters, count_tokens
from shared.dataset.captions import MAX_TOKENS
from shared.dataset.manifest import MANIFEST, Manifest
from shared.dataset.remarks import TOO_LONG


class Reports(Protocol):
    """Takes what is reported meanwhile."""

    def reading(self, file: str) -> None:
        """Report that a file is opened next, or is still being read."""

    def progress(self, **numbers: object) -> None:
        """Report numbers for ``/status``."""


def perform(task: Task, limits: Limits, reports: Reports) -> Result:
    """Carry out an order.

    Raises:
        Refused: the files cannot be used; names the file.
        Full: the disk has no room.
        MemoryError, OSError: a limit was met.
    """
    match task:
        case ParseDataset():
            return _parse_dataset(task, limits, reports)
        case ParseEditedDataset():
            return _parse_edited_dataset(task, limits, reports)
        case ParseModelFile():
            return _parse_model_file(task, reports)
        case ParseModelFolder(folder=folder, shown=shown):
            return _parsed(validate_diffusers_folder(Path(folder), shown, reports.reading))
        case ParseLora():
            return _parse_lora(task, reports)
        case DescribeModel():
            return _describe_model(task, reports)


def _parse_dataset(task: ParseDataset, limits: Limits, reports: Reports) -> ParsedDataset:
    archive, folder = Path(task.archive), Path(task.folder)
    reports.progress(phase="unpacking")
    unpacked = unpack(archive, folder, shown=task.shown, reading=reports.reading)
    archive.unlink()
    previews = Previews(Path(task.pages))
    checked = check_images(
        unpacked,
        folder,
        shown=task.shown,
        pixels=limits.pixels,
        stored_bytes=limits.stored_bytes,
        masked=task.train.masked_loss,
        previews=previews,
        reading=reports.reading,
        checked=lambda done, of: reports.progress(phase="checking images", images=done, of=of),
    )
    return _planned(task, checked, previews.names, limits, reports)


def _parse_edited_dataset(
    task: ParseEditedDataset, limits: Limits, reports: Reports
) -> ParsedDataset:
    folder = Path(task.folder)
    checked = apply_edits(CheckedDataset.read(folder), task.edits, folder, reports.reading)
    reports.progress(phase="drawing previews")
    previews = write_previews(Path(task.pages), folder, checked.pictures, reports.reading)
    return _planned(task, checked, previews, limits, reports)


def _planned(
    task: ParseDataset | ParseEditedDataset,
    checked: CheckedDataset,
    previews: Sequence[str],
    limits: Limits,
    reports: Reports,
) -> ParsedDataset:
    """Write what the trainer needs, what a later job may start from, and what people look at.

    ``previews`` are the names of files that are drawn already.
    """
    folder, pages = Path(task.folder), Path(task.pages)
    reports.reading(task.shown)
    manifest, report, pictures = build_report(checked, task.train, task.seed, task.shown)
    check_size(manifest, limits.manifest_bytes, task.shown)
    manifest.write(folder)
    checked.write(folder)
    names = (*write_pages(pages, pictures), *previews)
    masks = (picture.mask for picture in manifest.pictures if picture.mask)
    files = (MANIFEST, CHECKED, *(picture.file for picture in manifest.pictures), *masks)
    return ParsedDataset(files=files, pages=names, report=report)


def _parse_model_file(task: ParseModelFile, reports: Reports) -> ParsedModel:
    try:
        opened = open_model(
            Path(task.file),
            Path(task.folder),
            base=Path(task.base) if task.base else None,
            subfolder=task.subfolder or "",
            shown=task.shown,
            reading=reports.reading,
        )
    except IsLora:
        return ParsedModel(files=(), is_lora=True)
    except NeedsBase as needs:
        return ParsedModel(files=(), needs_base=True, vocab_size=needs.vocab_size)
    return _parsed(opened)


def _parse_lora(task: ParseLora, reports: Reports) -> ParsedLora:
    reports.reading(task.shown)
    read = stage_lora(
        Path(task.file),
        Path(task.base),
        Path(task.folder),
        task.shown,
        partial(reports.reading, task.shown),
    )
    return ParsedLora(shape=read.shape, warnings=tuple(read.warnings))


def _parsed(model: OpenedModel) -> ParsedModel:
    return ParsedModel(files=tuple(model.files), warnings=tuple(model.warnings))


def _describe_model(task: DescribeModel, reports: Reports) -> ModelDescription:
    folder, manifest = Path(task.folder), Manifest.read(Path(task.dataset))
    parameters = None
    if task.has_weights:
        reports.reading("the base model's weights")
        parameters = count_parameters(folder)
    reports.reading("the base model's tokenizer/")
    counts = count_tokens(folder, captions_of(manifest))
    if long := {number for number, count in enumerate(counts, start=1) if count > MAX_TOKENS}:
        add_remark(Path(task.pages), long, TOO_LONG)
    return ModelDescription(
        parameters=parameters, report=with_tokens(task.report, manifest, counts)
    )
