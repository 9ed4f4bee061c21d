"""OpenAPI and AsyncAPI; ``python -m services.gateway.api_documents FOLDER`` writes them."""

from __future__ import annotations

import json
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path

from services.gateway.api_docs import asyncapi, openapi
from services.gateway.api_docs.schemas import Schema
from services.gateway.endpoints.docs import DocsRoutes
from services.gateway.endpoints.files import FileRoutes
from services.gateway.endpoints.health import HealthRoutes
from services.gateway.endpoints.job_list import JobListRoutes
from services.gateway.endpoints.job_removal import JobRemovalRoutes
from services.gateway.endpoints.jobs import JobRoutes
from services.gateway.endpoints.server_sent_events import EventRoutes
from services.gateway.endpoints.uploads import UploadRoutes
from services.gateway.endpoints.webhooks import WebhookRoutes

PARTS = (
    JobRoutes,
    EventRoutes,
    JobListRoutes,
    WebhookRoutes,
    JobRemovalRoutes,
    UploadRoutes,
    FileRoutes,
    HealthRoutes,
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
