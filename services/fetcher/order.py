"""What the fetcher's parent orders from its parsing child, and what comes back."""

from __future__ import annotations

from msgspec import Struct

from services.fetcher.limits import Limits
from shared.dataset.edits import PictureEdit
from shared.dataset.manifest import Report
from shared.request import LoraShape, Train

RESULT_BYTES = 16 << 20
"""Of the result file: names of at most 50,000 files."""


class ParseDataset(Struct, frozen=True, kw_only=True, tag="dataset"):
    """Unpack and check an archive."""

    archive: str
    folder: str
    """An empty folder, for the usable images and the manifest."""
    train: Train
    seed: int
    """The job's, at least 0."""
    pages: str
    """An empty folder, for what people look at."""
    shown: str
    """The archive's name in messages, as in the other orders."""


class ParseEditedDataset(Struct, frozen=True, kw_only=True, tag="edited_dataset"):
    """Apply changes to a dataset that a check has staged."""

    folder: str
    """With its images and what the check has noted."""
    edits: dict[int, PictureEdit]
    """By the pictures' numbers, from 1."""
    train: Train
    seed: int
    pages: str
    shown: str


class ParsedDataset(Struct, frozen=True, kw_only=True):
    """What is in the folders now."""

    files: tuple[str, ...]
    pages: tuple[str, ...]
    report: Report


class ParseModelFile(Struct, frozen=True, kw_only=True, tag="model_file"):
    """Open a single file or a zipped diffusers folder; its content decides which it is."""

    file: str
    folder: str
    """Where the model's files are to be written; it does not exist yet."""
    base: str | None
    """A diffusers folder whose tokenizer a single file gets; None: not fetched yet."""
    subfolder: str | None
    shown: str


class ParseModelFolder(Struct, frozen=True, kw_only=True, tag="model_folder"):
    """Check a diffusers folder."""

    folder: str
    shown: str


class ParsedModel(Struct, frozen=True, kw_only=True):
    """The model's files in its folder."""

    files: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    """What of it is left out or taken from elsewhere, for whoever has named it."""
    is_lora: bool = False
    """It is a LoRA, and nothing is written: see :class:`ParseLora`."""
    needs_base: bool = False
    """It is a single file, and no base was given; nothing is written."""
    vocab_size: int = 0
    """Words that the tokenizer of this base must have."""


class ParseLora(Struct, frozen=True, kw_only=True, tag="lora"):
    """Check a LoRA's file, and write it as the project's own are."""

    file: str
    folder: str
    """Where it is to be written; it does not exist yet."""
    base: str
    """A folder with the configurations of the model that it is for."""
    shown: str


class ParsedLora(Struct, frozen=True, kw_only=True):
    """The LoRA in its folder."""

    shape: LoraShape
    warnings: tuple[str, ...]


class DescribeModel(Struct, frozen=True, kw_only=True, tag="description"):
    """Count what the report says of dataset and base model together."""

    folder: str
    has_weights: bool
    """False: only its ``tokenizer/`` is there, and the parameters are not counted."""
    dataset: str
    """The folder with the manifest."""
    pages: str
    """The folder of the pages, which tell of captions that are too long, too."""
    report: Report


class ModelDescription(Struct, frozen=True, kw_only=True):
    """The report with its captions' tokens, and the number of parameters of each network."""

    parameters: dict[str, int] | None
    report: Report


Task = (
    ParseDataset
    | ParseEditedDataset
    | ParseModelFile
    | ParseModelFolder
    | ParseLora
    | DescribeModel
)
Result = ParsedDataset | ParsedModel | ParsedLora | ModelDescription


class ParsingOrder(Struct, frozen=True, kw_only=True):
    """One order; a child gets all those of one job."""

    task: Task
    limits: Limits
    result: str
    """The file for the result."""
