"""What the parsing child does: one function for each order."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from services.fetcher.limits import Limits
from services.fetcher.order import (
    DescribeModel,
    ModelDescription,
    ParseDataset,
    ParsedDataset,
    ParsedModel,
    ParseModelFile,
    ParseModelFolder,
    Result,
    Task,
)
from services.fetcher.parsing.datasets.archive import unpack
from services.fetcher.parsing.datasets.report import (
    build_report,
    captions_of,
    check_images,
    with_tokens,
)
from services.fetcher.parsing.models.diffusers_folder import validate_diffusers_folder
from services.fetcher.parsing.models.model_file import NeedsBase, open_model
from services.fetcher.parsing.models.tokenizer_and_size import count_parameters, count_tokens
from shared.dataset.manifest import MANIFEST, Manifest


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
        case ParseModelFile():
            return _parse_model_file(task, reports)
        case ParseModelFolder(folder=folder, shown=shown):
            files = validate_diffusers_folder(Path(folder), shown, reports.reading)
            return ParsedModel(files=tuple(files))
        case DescribeModel():
            return _describe_model(task, reports)


def _parse_dataset(task: ParseDataset, limits: Limits, reports: Reports) -> ParsedDataset:
    archive, folder = Path(task.archive), Path(task.folder)
    reports.progress(phase="unpacking")
    unpacked = unpack(archive, folder, shown=task.shown, reading=reports.reading)
    archive.unlink()
    checked = check_images(
        unpacked,
        folder,
        shown=task.shown,
        pixels=limits.pixels,
        reading=reports.reading,
        checked=lambda done, of: reports.progress(phase="checking images", images=done, of=of),
    )
    reports.reading(task.shown)
    manifest, report = build_report(checked, task.train, task.seed, task.shown)
    manifest.write(folder)
    files = (MANIFEST, *(picture.file for picture in manifest.pictures))
    return ParsedDataset(files=files, report=report)


def _parse_model_file(task: ParseModelFile, reports: Reports) -> ParsedModel:
    try:
        files = open_model(
            Path(task.file),
            Path(task.folder),
            base=Path(task.base) if task.base else None,
            subfolder=task.subfolder or "",
            shown=task.shown,
            reading=reports.reading,
        )
    except NeedsBase:
        return ParsedModel(files=(), needs_base=True)
    return ParsedModel(files=tuple(files))


def _describe_model(task: DescribeModel, reports: Reports) -> ModelDescription:
    folder, manifest = Path(task.folder), Manifest.read(Path(task.dataset))
    parameters = None
    if task.has_weights:
        reports.reading("the base model's weights")
        parameters = count_parameters(folder)
    reports.reading("the base model's tokenizer/")
    counts = count_tokens(folder, captions_of(manifest))
    return ModelDescription(
        parameters=parameters, report=with_tokens(task.report, manifest, counts)
    )
