"""Opens the object store that the settings name."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote

from shared.adapters.folder import FolderStore
from shared.ports import ObjectStore
from shared.settings import Settings, read_secret


def open_store(settings: Settings, key: str) -> ObjectStore:
    """The deployment's store; ``key`` is its secret key, which signs links to a folder's files.

    Raises:
        SettingsError: the file with the keys cannot be read, or the keys are given twice.
        Unavailable: the folder cannot be created.
    """
    if settings.store_url.startswith("file://"):
        root = Path(unquote(settings.store_url.removeprefix("file://")))
        return FolderStore(root, public_url=settings.public_url, key=key)
    # botocore would take the variable, and silently ignore a file that it cannot read.
    read_secret(os.environ, "AWS_SECRET_ACCESS_KEY", "AWS_SHARED_CREDENTIALS_FILE")
    from shared.adapters.s3 import S3Store  # noqa: PLC0415 - importing it takes a second

    return S3Store.open(settings.store_url, public_endpoint=settings.store_public_endpoint)
