"""The documents of this service; ``python -m services.gateway.documents FOLDER`` writes them."""

from __future__ import annotations

import json
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path

from services.gateway import asyncapi, openapi
from services.gateway.alive import Alive
from services.gateway.docs_routes import DocsRoutes
from services.gateway.endpoint import Endpoint
from services.gateway.events import Events
from services.gateway.files import Files
from services.gateway.listing import Listing
from services.gateway.ready import Ready
from services.gateway.removal import Removal
from services.gateway.schemas import Schema
from services.gateway.tus import UploadRoutes
from services.gateway.webhooks import Webhooks

PARTS = (
    Endpoint,
    Events,
    Listing,
    Webhooks,
    Removal,
    UploadRoutes,
    Files,
    Alive,
    Ready,
    DocsRoutes,
)
"""Every class whose methods answer over HTTP."""


@cache
def documents() -> dict[str, Schema]:
    """By file name."""
    ours = version("everydream-service")
    return {
        "openapi.json": openapi.document(PARTS, ours),
        "asyncapi.json": asyncapi.document(ours),
    }


def text_of(document: Schema) -> str:
    """As it is written, the same every time."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def main(folder: Path) -> None:
    for name, document in documents().items():
        (folder / name).write_text(text_of(document), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
