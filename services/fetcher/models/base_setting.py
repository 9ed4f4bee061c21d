"""Check EVERYDREAM_BASE_MODEL at the start, so that a wrong one fails no job."""

from __future__ import annotations

from pathlib import Path

from services.fetcher.model_files import LFS_ADVICE, LFS_POINTER, WEIGHTS, lacks, weights_at
from services.fetcher.models.configured_model import EXPECTED, TINY, local_path
from services.fetcher.models.hub import hub_model
from shared.errors import Refused, SettingsError
from shared.settings import Settings

FILE_ENDINGS = (".safetensors", ".ckpt", ".zip", ".pt", ".pth", ".bin")
"""What ends so is meant as a file, although it may have the form of a hub id."""
MAX_HEADER_BYTES = 32 << 20
"""Of a safetensors file."""


def check_base_model(settings: Settings) -> None:
    """Check that the setting names a folder or file that looks like a model, or can be a hub id.

    Whether the hub has that model, and whether training can start from it, is found out when a job
    needs it.

    Raises:
        SettingsError: it does not; says why, and what is expected.
    """
    try:
        problem = _problem(settings.base_model)
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error})"
    if problem:
        raise SettingsError(
            f"EVERYDREAM_BASE_MODEL is {settings.base_model!r}, which {problem};"
            f" expected {EXPECTED}"
        )


def _problem(configured: str) -> str | None:
    """What is wrong; None: nothing."""
    if configured == TINY:
        return None
    if path := local_path(configured):
        return _problem_of_folder(path) if path.is_dir() else _problem_of_file(path)
    if configured.lower().endswith(FILE_ENDINGS) and "://" not in configured:
        return "is no file here"
    try:
        is_hub_model = hub_model(configured) is not None
    except Refused:  # a page's folder that cannot be one
        is_hub_model = False
    return None if is_hub_model else "is neither a folder or file here nor the id of a hub model"


def _problem_of_folder(folder: Path) -> str | None:
    if missing := lacks(folder):
        return f"is a folder that lacks {missing}"
    for file in filter(None, (weights_at(folder / stem) for stem in WEIGHTS.values())):
        if _beginning(file).startswith(LFS_POINTER):
            return f"has {file.relative_to(folder)} as {LFS_ADVICE}"
    return None


def _problem_of_file(file: Path) -> str | None:
    beginning = _beginning(file)
    if beginning.startswith(LFS_POINTER):
        return f"is {LFS_ADVICE}"
    is_safetensors = (
        0 < int.from_bytes(beginning[:8], "little") <= MAX_HEADER_BYTES and beginning[8:9] == b"{"
    )
    if is_safetensors or beginning.startswith(b"PK\x03\x04"):
        return None
    return "is a file, but neither safetensors nor a .ckpt in torch's zip format (1.6 or later)"


def _beginning(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(len(LFS_POINTER))
