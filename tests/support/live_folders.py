"""List folders that running services change meanwhile: ``Path.rglob`` raises if a folder goes."""

from __future__ import annotations

import os
from pathlib import Path


def files_below(folder: Path) -> list[Path]:
    """Every file, links to files included, in the order of their paths."""
    paths = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
    return sorted(path for path in paths if path.is_file())
