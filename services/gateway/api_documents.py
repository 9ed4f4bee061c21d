"""OpenAPI and AsyncAPI; ``python -m services.gateway.api_documents FOLDER`` writes them."""

from __future__ import annotations

import json
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path

from services.gateway.api_docs import asyncapi, openapi
from services.gateway.api_docs.schemas import Schema
from services.gateway.endpoints.routes import ROUTE_CLASSES


@cache
def documents() -> dict[str, Schema]:
    """By file name."""
    release = version("everydream-service")
    return {
        "openapi.json": openapi.document(ROUTE_CLASSES, release),
        "asyncapi.json": asyncapi.document(release),
    }


def text_of(document: Schema) -> str:
    """As it is written, the same every time."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def main(folder: Path) -> None:
    for name, document in documents().items():
        (folder / name).write_text(text_of(document), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
