"""Packs a folder of photos into a zip and uploads it."""

from __future__ import annotations

import asyncio
import os
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePath, PurePosixPath
from typing import NamedTuple

from everydream.client import PIECE, Client, with_retries
from everydream.outcome import reason_of
from everydream.terminal import words
from everydream.terminal.display import Display
from services.fetcher.parsing.datasets.archive import (
    IMAGE_SUFFIXES,
    IMAGES,
    TEXT_SUFFIXES,
    too_large,
)
from services.fetcher.parsing.zip_reader import checked_members, is_hidden, open_zip
from shared.concurrency import ended, in_thread
from shared.disk import FULL, free_bytes
from shared.errors import Refused
from shared.storage.folders import sha256_of

CHUNK_BYTES = 64 << 20
"""Size of one request; small enough for common proxies."""
NAMED = 20
"""Files that are named of those that are not uploaded."""
SHOWN = 10
"""Files that are named in one refusal."""
HIDDEN = "hidden"


async def as_zip(data: Path, folder: Path, display: Display) -> Path:
    """The zip itself, or a zip of a folder's images and captions, made in ``folder``.

    Raises:
        Refused: neither a zip nor a folder with images, or no room for the zip.
    """
    if await in_thread(data.is_file):
        return data
    names = await in_thread(dataset_files, data)
    archive = folder / "dataset.zip"
    total = sum((data / name).stat().st_size for name in names)
    if (free := free_bytes(folder)) < total:
        needs = f"it needs {words.size(total)}, and {words.size(free)} are free"
        raise Refused(f"{_no_room(data, folder)}: {needs}")
    is_over = threading.Event()
    with display.transfer(f"packing {data.name or data}", total) as on_bytes:

        def on_piece(done: int) -> None:
            if is_over.is_set():
                raise InterruptedError
            on_bytes(done)

        writing = asyncio.create_task(asyncio.to_thread(write_zip, archive, data, names, on_piece))
        try:
            await asyncio.shield(writing)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise Refused(f"{_no_room(data, folder)}: {error.strerror}") from None
        finally:
            is_over.set()
            await ended(writing)
    return archive


def _no_room(data: Path, folder: Path) -> str:
    return (
        f"{data}: no room in {folder.parent} for the zip that is uploaded (TMPDIR names another"
        " folder)"
    )


def dataset_files(folder: Path) -> list[Path]:
    """The images and caption files at any depth, in order; hidden ones are skipped.

    Raises:
        Refused: no image in it, or a folder that is not there or cannot be read.
    """
    if not folder.is_dir():
        lack = "" if folder.exists() else "there is no such file or folder; "
        raise Refused(
            f"{folder}: {lack}expected a folder of images, a zip, a URL, or the id of a check"
        )
    kept = [name for name in _contents(folder).files if not _left_out_as(name)]
    _expect_images(folder, kept)
    return kept


def expect_usable(data: Path) -> None:
    """Find what a server would not take, before it is uploaded.

    Raises:
        Refused: neither a zip nor a folder with images; or an image, or a caption, is too large.
    """
    if data.is_file():
        if data.suffix.lower() in IMAGE_SUFFIXES:
            raise Refused(f"{data}: a single picture; give the folder that it is in, or a zip")
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
        raise Refused(f"{data}: no image in it; these are images: {IMAGES}")


class _Contents(NamedTuple):
    """What a folder has at any depth, in order."""

    files: list[Path]
    """Relative to it."""
    links: list[Path]
    """Links to folders and to nothing, which are not followed; one to a file is that file."""


def _contents(folder: Path) -> _Contents:
    """Raises Refused: a folder in it cannot be read, so that its pictures would be left out."""

    def refuse(error: OSError) -> None:
        if not is_hidden(Path(error.filename).relative_to(folder).as_posix()):
            raise Refused(f"{reason_of(error)}; make it readable, or take it out of {folder}")

    files, links = [], []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        for path in (Path(parent, name) for name in (*folders, *names)):
            if path.is_file():
                files.append(path.relative_to(folder))
            elif path.is_symlink():
                links.append(path.relative_to(folder))
    return _Contents(sorted(files), sorted(links))


def _left_out_as(name: Path) -> str:
    """As what it is counted that is not uploaded; empty: it is uploaded."""
    if is_hidden(name.as_posix()):
        return HIDDEN
    suffix = name.suffix.lower()
    return "" if suffix in IMAGE_SUFFIXES | TEXT_SUFFIXES else suffix or "without a suffix"


def left_out_lines(folder: Path) -> list[str]:
    """What of a folder is not uploaded, counted by suffix; a zip is uploaded whole."""
    if not folder.is_dir():
        return []
    files, links = _contents(folder)
    kinds = Counter(filter(None, map(_left_out_as, files)))
    hidden = kinds.pop(HIDDEN, 0)
    counts = [f"{number} {kind}" for kind, number in kinds.most_common()]
    counts += [f"{hidden} {HIDDEN}"] if hidden else []
    lines = [f"not uploaded: {link}: a link that is not followed" for link in links]
    if not counts:
        return lines
    known = f" (pictures are {IMAGES})" if kinds else ""
    names = [str(name) for name in files if _left_out_as(name) not in ("", HIDDEN)]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    named = [f"  {', '.join(names[:NAMED])}{more}"] if names else []
    return [f"not uploaded: {', '.join(counts)}{known}", *named, *lines]


def write_zip(
    archive: Path, folder: Path, names: list[Path], on_bytes: Callable[[int], None]
) -> None:
    """Write the same bytes for the same files: in order, dated 1980, stored, not deflated.

    ``on_bytes`` is called with the number of bytes read; what it raises ends the writing.
    """
    done = 0
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
                while piece := file.read(PIECE):
                    target.write(piece)
                    done += len(piece)
                    on_bytes(done)


async def upload(client: Client, path: Path, on_bytes: Callable[[int], None]) -> str:
    """Upload a file and return its ``data_url``; a broken connection costs only one chunk.

    ``on_bytes`` is called with the number of bytes sent.

    Raises:
        aiohttp.ClientError: the gateway refuses it, or does not answer.
        TimeoutError: the gateway does not answer.
    """
    total, digest = (await asyncio.to_thread(path.stat)).st_size, await sha256_of(path)
    upload_id = await with_retries(lambda: client.begin_upload(total, digest))

    async def send_next() -> int:
        offset = await client.upload_offset(upload_id)
        chunk = min(CHUNK_BYTES, total - offset)
        if chunk == 0:
            return offset
        return await client.send_chunk(
            upload_id, path, offset=offset, size=chunk, on_bytes=on_bytes
        )

    while await with_retries(send_next) < total:
        pass
    facts = await with_retries(lambda: client.upload_facts(upload_id))
    return str(facts["data_url"])
