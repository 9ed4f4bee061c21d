"""Packs a folder of photos into a zip and uploads it."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath, PurePosixPath
from zipfile import is_zipfile

from everydream.client import Client, with_retries
from services.fetcher.parsing.datasets.archive import IMAGE_SUFFIXES, TEXT_SUFFIXES, too_large
from services.fetcher.parsing.zip_reader import checked_members, is_hidden, open_zip
from shared.errors import Refused
from shared.storage.folders import sha256_of

CHUNK_BYTES = 64 << 20
"""Size of one request; small enough for common proxies."""
SHOWN = 10
"""Files that are named in one refusal."""


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
    _expect_images(folder, kept)
    return kept


def expect_usable(data: Path) -> None:
    """Find what a server would not take, before it is uploaded.

    Raises:
        Refused: neither a zip nor a folder with images; or an image, or a caption, is too large.
    """
    if data.is_file() and is_zipfile(data):
        with open_zip(data, str(data)) as zipped:
            members = checked_members(zipped, data, str(data))
        sizes = {each.name: each.entry.file_size for each in members}
        _expect_images(data, map(PurePosixPath, sizes))
    else:
        names = dataset_files(data)
        sizes = {name.as_posix(): (data / name).stat().st_size for name in names}
    too_large_ones = [f"{name}: {reason}" for name, reason in _too_large(sizes)]
    if too_large_ones:
        named = "\n  - ".join(too_large_ones[:SHOWN])
        more = len(too_large_ones) - SHOWN
        rest = f"\n  and {more} more" if more > 0 else ""
        raise Refused(f"{data}: make these smaller, or leave them out:\n  - {named}{rest}")


def _too_large(sizes: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Images that are too large, and texts of images; another text is none of the dataset's."""
    images = {name for name in sizes if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES}
    stems = {str(PurePosixPath(name).with_suffix("")).casefold() for name in images}
    owners = stems | {name.casefold() for name in images}
    for name, size in sizes.items():
        path = PurePosixPath(name)
        is_caption = path.suffix.lower() in TEXT_SUFFIXES
        belongs = is_caption and str(path.with_suffix("")).casefold() in owners
        if (name in images or belongs) and (reason := too_large(path.suffix.lower(), size)):
            yield name, reason


def _expect_images(data: Path, names: Iterable[PurePath]) -> None:
    if not any(name.suffix.lower() in IMAGE_SUFFIXES for name in names):
        raise Refused(
            f"{data}: no image in it; these are images: {', '.join(sorted(IMAGE_SUFFIXES))}"
        )


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
