"""An object store in a folder: one file per key.

A key cannot be stored if it is also a folder of other keys (``a`` beside ``a/b``).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote, urlencode

from shared.adapters.files import atomic
from shared.adapters.object_keys import check_deletable, check_key, check_prefix, check_seconds
from shared.concurrency import in_thread
from shared.disk import (
    FULL,
    SPARE,
    Room,
    free_bytes,
    free_files,
    require_room,
    total_room,
    translate_disk_full,
)
from shared.errors import Full, NotFound, Refused, Unavailable, not_for_users
from shared.keys import link_signature
from shared.ports import StoredObject, no_keepalive
from shared.scratch import locked_folder, remove_abandoned, remove_old

INCOMING = ".incoming"
"""Holds half-written files, on the objects' file system: a rename moves them into place."""
MOVE_ATTEMPTS = 100


class FolderStore:
    """Objects as files under ``root``; links are signed and lead to the gateway's ``/files/``."""

    def __init__(
        self, root: Path, *, public_url: str, key: str, clock: Callable[[], float] = time.time
    ) -> None:
        """Create the folder if it is missing.

        Args:
            root: the folder.
            public_url: where clients reach the gateway.
            key: signs links.
            clock: seconds since the epoch, for the expiry of links.

        Raises:
            Unavailable: it cannot be created.
        """
        self._root = Path(os.path.realpath(root))
        self._incoming = self._root / INCOMING
        self._public_url = public_url.rstrip("/")
        self._key = key
        self._clock = clock
        with _translated_write("the store's folder"):
            self._incoming.mkdir(parents=True, exist_ok=True)
            remove_abandoned(self._incoming)
            remove_old(self._incoming)

    def path_of(self, key: str) -> Path:
        """The file that holds an object; never one outside the store, even through symlinks.

        Raises:
            NotFound: no such object.
            Refused: not a valid key.
        """
        path = Path(os.path.realpath(self._target(key)))
        if not path.is_relative_to(self._root) or not path.is_file():
            raise NotFound(f"no object {key!r} in the store")
        return path

    def total(self) -> Room:
        """What fits on the disk, with what is on it. Raises Unavailable."""
        with _translated_write("the store's folder"):
            return total_room(self._root)

    def free_bytes(self) -> int:
        """How much more can be stored. Raises Unavailable."""
        with _translated_write("the store's folder"):
            return max(free_bytes(self._root) - SPARE, 0)

    def free_files(self) -> int | None:
        """How many more files fit; None: there is no limit. Raises Unavailable."""
        with _translated_write("the store's folder"):
            return free_files(self._root)

    async def put(self, key: str, data: bytes) -> None:
        def fill(temporary: Path) -> None:
            require_room(self._root, len(data) + SPARE, f"keep {key!r} in the store")
            _write_bytes(temporary, data)

        await in_thread(self._write, key, fill)

    async def get(self, key: str) -> bytes:
        return await in_thread(self._read, key)

    async def upload(
        self,
        path: Path,
        key: str,
        *,
        keepalive: Callable[[], None] = no_keepalive,
        immutable: bool = False,
    ) -> None:
        await in_thread(self._upload, key, path, may_link=immutable)
        keepalive()

    async def download(
        self,
        key: str,
        path: Path,
        *,
        keepalive: Callable[[], None] = no_keepalive,
        immutable: bool = False,
    ) -> None:
        await in_thread(self._download, key, path, may_link=immutable)
        keepalive()

    async def exists(self, key: str) -> bool:
        try:
            await asyncio.to_thread(self.path_of, key)
        except NotFound:
            return False
        return True

    async def list(self, prefix: str) -> AsyncIterator[StoredObject]:
        for entry in await in_thread(self._entries, prefix):
            yield entry

    async def delete(self, prefix: str) -> int:
        check_deletable(prefix)
        return await in_thread(self._delete, prefix)

    async def link(self, key: str, *, seconds: int, filename: str | None = None) -> str:
        self._target(key)
        expires = int(self._clock()) + check_seconds(seconds)
        query = {"expires": str(expires), "signature": link_signature(self._key, key, expires)}
        if filename:
            query["filename"] = filename
        return f"{self._public_url}/files/{quote(key)}?{urlencode(query)}"

    async def close(self) -> None:
        """Nothing is held open."""

    def _target(self, key: str) -> Path:
        if check_key(key).split("/", 1)[0] == INCOMING:
            raise Refused(f"{key!r} cannot be a store key: {INCOMING} is the store's own")
        return self._root / key

    def _read(self, key: str) -> bytes:
        with _translated_read(key):
            return self.path_of(key).read_bytes()

    def _download(self, key: str, path: Path, *, may_link: bool) -> None:
        source = self.path_of(key)
        doing = f"fetch {key!r} from the store"
        with _translated_read(key), translate_disk_full(doing), atomic(path) as temporary:
            if not (may_link and _link(source, temporary)):
                require_room(path.parent, source.stat().st_size, doing)
                shutil.copyfile(source, temporary)

    def _upload(self, key: str, path: Path, *, may_link: bool) -> None:
        with _translated_write(key):
            size = path.stat().st_size

        def fill(temporary: Path) -> None:
            if not (may_link and _link(path, temporary)):
                require_room(self._root, size + SPARE, f"keep {key!r} in the store")
                shutil.copyfile(path, temporary)
            _sync(temporary)

        self._write(key, fill)

    def _write(self, key: str, fill: Callable[[Path], None]) -> None:
        target = self._target(key)
        with _translated_write(key), locked_folder(self._incoming, "object") as folder:
            temporary = folder / "object"
            fill(temporary)
            self._move_into_place(temporary, target)

    def _move_into_place(self, temporary: Path, target: Path) -> None:
        """Rename; again if a concurrent deletion has just removed the emptied folder."""
        for _ in range(MOVE_ATTEMPTS):
            with suppress(FileNotFoundError):
                _create_folder(target.parent)
                temporary.replace(target)
                self._sync_folders(target.parent)
                return
        raise not_for_users(
            Unavailable(f"{target} cannot be put in place: its folder does not stay")
        )

    def _sync_folders(self, folder: Path) -> None:
        """A new name survives a power failure only once its folder is synced."""
        while folder.is_relative_to(self._root):
            with suppress(FileNotFoundError):
                _sync(folder)
            folder = folder.parent

    def _entries(self, prefix: str) -> Sequence[StoredObject]:
        base = check_prefix(prefix).rpartition("/")[0]
        with _translated_write(prefix):
            entries = _walk(self._root / base, f"{base}/" if base else "", prefix)
            return [entry for entry in entries if not entry.key.startswith(f"{INCOMING}/")]

    def _delete(self, prefix: str) -> int:
        with _translated_write(prefix):
            return sum(self._remove(self._root / entry.key) for entry in self._entries(prefix))

    def _remove(self, path: Path) -> bool:
        """Whether it existed; folders left empty are removed too."""
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        for folder in path.parents:
            if folder == self._root or not _remove_empty(folder):
                break
        return True


def _walk(folder: Path, base: str, prefix: str) -> Iterator[StoredObject]:
    """The files below a folder in order of their keys; files deleted meanwhile are left out."""
    for item in _sorted(folder):
        key = base + item.name
        if item.is_dir(follow_symlinks=False):
            if f"{key}/".startswith(prefix) or prefix.startswith(f"{key}/"):
                yield from _walk(folder / item.name, f"{key}/", prefix)
        elif key.startswith(prefix) and item.is_file(follow_symlinks=False):
            with suppress(FileNotFoundError):
                found = item.stat()
                yield StoredObject(key, found.st_size, found.st_mtime)


def _sorted(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as items:
            return sorted(items, key=_sort_key)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _sort_key(item: os.DirEntry[str]) -> str:
    """``a-b`` comes before ``a/c`` though ``a`` comes before ``a-b``."""
    return f"{item.name}/" if item.is_dir(follow_symlinks=False) else item.name


def _write_bytes(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _link(source: Path, target: Path) -> bool:
    """Whether both are one file now; never on two file systems, nor where the system forbids it."""
    try:
        target.hardlink_to(os.path.realpath(source))
    except OSError:
        return False
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create_folder(folder: Path) -> None:
    """Create it; ``mkdir`` fails with FileExistsError if it is deleted in between."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        if any(path.is_file() for path in (folder, *folder.parents)):
            raise


def _remove_empty(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


@contextmanager
def _translated_read(key: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise NotFound(f"no object {key!r} in the store") from None
    except OSError as error:
        failure = Unavailable(f"reading {key!r} from the store's folder failed: {error}")
        raise not_for_users(failure) from error


@contextmanager
def _translated_write(key: str) -> Iterator[None]:
    try:
        yield
    except (FileExistsError, IsADirectoryError, NotADirectoryError):
        raise Refused(f"{key!r} cannot be kept: another object's key lies above or below") from None
    except OSError as error:
        kind = Full if error.errno in FULL else Unavailable
        failure = kind(f"writing {key!r} to the store's folder failed: {error}")
        raise (failure if kind is Full else not_for_users(failure)) from error
