"""Packs a folder of photos into a zip and uploads it."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from everydream.client import Client, with_retries
from services.fetcher.parsing.datasets.archive import IMAGE_SUFFIXES, TEXT_SUFFIXES
from services.fetcher.parsing.zip_reader import is_hidden
from shared.errors import Refused
from shared.storage.folders import sha256_of

CHUNK_BYTES = 64 << 20
"""Size of one request; small enough for common proxies."""


@contextmanager
def as_zip(data: Path) -> Iterator[Path]:
    """The zip itself, or a temporary zip of a folder's images and captions.

    Raises:
        Refused: neither a zip nor a folder with images.
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
    """The images and caption files at any depth, in order; hidden ones are skipped.

    Raises:
        Refused: no image in it, or no such folder.
    """
    if not folder.is_dir():
        raise Refused(f"{folder}: expected a folder of images, a zip, a URL, or the id of a check")
    kept = [name for name in _names(folder) if _is_uploaded(name)]
    if not any(name.suffix.lower() in IMAGE_SUFFIXES for name in kept):
        raise Refused(
            f"{folder}: no image in it; these are images: {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    return kept


def _names(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def _is_uploaded(name: Path) -> bool:
    known = name.suffix.lower() in IMAGE_SUFFIXES | TEXT_SUFFIXES
    return known and not is_hidden(name.as_posix())


def left_out_lines(folder: Path) -> list[str]:
    """What of a folder is not uploaded, counted by suffix; a zip is uploaded whole."""
    if not folder.is_dir():
        return []
    left_out = [name for name in _names(folder) if not _is_uploaded(name)]
    hidden = [name for name in left_out if is_hidden(name.as_posix())]
    suffixes = Counter(
        name.suffix.lower() or "without a suffix"
        for name in left_out
        if not is_hidden(name.as_posix())
    )
    counts = [f"{number} {suffix}" for suffix, number in suffixes.most_common()]
    counts += [f"{len(hidden)} hidden"] if hidden else []
    links = sorted(str(each.relative_to(folder)) for each in folder.rglob("*") if _leads_away(each))
    lines = [f"not uploaded: {link}: a link that is not followed" for link in links]
    if not counts:
        return lines
    known = f" (pictures are {', '.join(sorted(IMAGE_SUFFIXES))})" if suffixes else ""
    return [f"not uploaded: {', '.join(counts)}{known}", *lines]


def _leads_away(path: Path) -> bool:
    """Whether it is a link to a folder or to nothing; one to a file is uploaded as that file."""
    return path.is_symlink() and not path.is_file()


def write_zip(archive: Path, folder: Path, names: list[Path]) -> None:
    """Write the same bytes for the same files: in order, dated 1980, stored, not deflated."""
    with zipfile.ZipFile(archive, "w") as zipped:
        for name in names:
            try:
                name.as_posix().encode()
            except UnicodeEncodeError:
                shown = os.fsencode(name).decode(errors="replace")
                raise Refused(f"{shown}: its name is no UTF-8; give it another one") from None
            entry = zipfile.ZipInfo(name.as_posix())
            entry.file_size = (folder / name).stat().st_size
            with (folder / name).open("rb") as file, zipped.open(entry, "w") as target:
                shutil.copyfileobj(file, target, 1 << 20)


async def upload(client: Client, path: Path, on_bytes: Callable[[int], None]) -> str:
    """Upload a file and return its ``data_url``; a broken connection costs only one chunk.

    ``on_bytes`` is called with the number of bytes sent.

    Raises:
        aiohttp.ClientError: the gateway refuses it, or does not answer.
        TimeoutError: the gateway does not answer.
    """
    size, digest = (await asyncio.to_thread(path.stat)).st_size, await sha256_of(path)
    upload_id = await with_retries(lambda: client.begin_upload(size, digest))

    async def send_next() -> int:
        offset = await client.upload_offset(upload_id)
        chunk = min(CHUNK_BYTES, size - offset)
        if chunk == 0:
            return offset
        return await client.send_chunk(
            upload_id, path, offset=offset, size=chunk, on_bytes=on_bytes
        )

    while await with_retries(send_next) < size:
        pass
    facts = await with_retries(lambda: client.upload_facts(upload_id))
    return str(facts["data_url"])
