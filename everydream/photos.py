"""A folder of photos as one zip, and its way to the gateway."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from everydream.client import Client, patiently
from services.fetcher.datasets.archive import IMAGE_SUFFIXES, TEXT_SUFFIXES
from services.fetcher.zip_reader import is_hidden
from shared.errors import Refused
from shared.storage.folders import sha256_of

CHUNK_BYTES = 64 << 20
"""Of one request: what goes through the proxies that people have in front of things."""


@contextmanager
def as_zip(data: Path) -> Iterator[Path]:
    """The zip itself, or one of what a folder holds, which goes afterwards.

    Raises:
        Refused: it is neither, or there is no image in it.
    """
    if data.is_file():
        yield data
        return
    files = dataset_files(data)
    with tempfile.TemporaryDirectory(prefix="everydream-") as folder:
        archive = Path(folder) / "dataset.zip"
        write_zip(archive, data, files)
        yield archive


def dataset_files(folder: Path) -> list[Path]:
    """The images and caption files at any depth, in order; hidden ones are passed over.

    Raises:
        Refused: there is no image among them, or no such folder.
    """
    if not folder.is_dir():
        raise Refused(f"{folder}: expected a folder of images, a zip, or a URL")
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    kept = [
        name
        for name in names
        if name.suffix.lower() in IMAGE_SUFFIXES | TEXT_SUFFIXES and not is_hidden(name.as_posix())
    ]
    if not any(name.suffix.lower() in IMAGE_SUFFIXES for name in kept):
        raise Refused(
            f"{folder}: no image in it; these are images: {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    return kept


def write_zip(archive: Path, folder: Path, names: list[Path]) -> None:
    """The same bytes for the same files: in order, dated 1980, and stored, not deflated."""
    with zipfile.ZipFile(archive, "w") as zipped:
        for name in names:
            entry = zipfile.ZipInfo(name.as_posix())
            entry.file_size = (folder / name).stat().st_size
            with (folder / name).open("rb") as file, zipped.open(entry, "w") as target:
                shutil.copyfileobj(file, target, 1 << 20)


async def upload(client: Client, path: Path, on_bytes: Callable[[int], None]) -> str:
    """Upload a file and return its ``data_url``; a broken connection costs what was in the air.

    ``on_bytes`` is told how many bytes have left.

    Raises:
        aiohttp.ClientError: the gateway refuses it, or stays away.
        TimeoutError: it stays away.
    """
    size, digest = (await asyncio.to_thread(path.stat)).st_size, await sha256_of(path)
    upload_id = await patiently(lambda: client.begin_upload(size, digest))

    async def go_on() -> int:
        offset = await client.upload_offset(upload_id)
        chunk = min(CHUNK_BYTES, size - offset)
        if chunk == 0:
            return offset
        return await client.send_chunk(
            upload_id, path, offset=offset, size=chunk, on_bytes=on_bytes
        )

    while await patiently(go_on) < size:
        pass
    facts = await patiently(lambda: client.upload_facts(upload_id))
    return str(facts["data_url"])
