"""What reading hostile files may cost at most: time and memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import process_time

MEMORY = 80 << 20
"""Bytes: the longest list of entries or header, and some pieces."""
SECONDS = 10.0
"""Of processors, so that a busy machine does not count: far more than any of it takes."""
OWN = Path("/proc/self")
FORGET_THE_PEAK = "5"


@contextmanager
def within_bounds(seconds: float = SECONDS, memory: int = MEMORY) -> Iterator[None]:
    """Fail when what is done inside takes longer, or more bytes at its worst moment."""
    (OWN / "clear_refs").write_text(FORGET_THE_PEAK)
    before, began = _resident("VmRSS"), process_time()
    yield
    assert process_time() - began < seconds
    assert _resident("VmHWM") - before < memory


def _resident(field: str) -> int:
    """Bytes of this process in memory: now, or at most so far."""
    lines = (OWN / "status").read_text().splitlines()
    (kibibytes,) = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return int(kibibytes) << 10


def written(folder: Path) -> dict[str, int]:
    """Every file below a folder, and its bytes; links count as what they are."""
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(folder).as_posix(): path.lstat().st_size for path in files}
