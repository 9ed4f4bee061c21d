"""Which release of the project runs here."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version

PACKAGE = "everydream-service"


@cache
def release() -> str:
    """The version that is installed; empty: it runs from a folder without being installed."""
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return ""
