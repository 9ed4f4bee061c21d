"""An object store in a folder: one file per key.

A key that is the beginning of another one's path (``a`` beside ``a/b``) cannot be kept.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote, urlencode

from shared.adapters.files import beside
from shared.adapters.object_keys import check_doomed, check_key, check_prefix, check_seconds
from shared.concurrency import in_thread
from shared.disk import FULL, SPARE, free_bytes, require_room, told_when_full
from shared.errors import Full, NotFound, Refused, Unavailable
from shared.keys import link_signature
from shared.ports import StoredObject, no_keepalive

INCOMING = ".incoming"
"""Half-written files live here: beside the objects, so that a rename puts them in place."""
LEFTOVER_SECONDS = 24 * 3600.0
"""A half-written file this old belongs to a process that died."""
PLACING_ATTEMPTS = 100


class FolderStore:
    """Objects as files under ``root``; links lead to the gateway's ``/files/``, signed by us."""

    def __init__(self, root: Path, *, public_url: str, key: str) -> None:
        """Make the folder if it is missing.

        Raises:
            Unavailable: it cannot be made.
        """
        self._root = Path(os.path.realpath(root))
        self._incoming = self._root / INCOMING
        self._public_url = public_url.rstrip("/")
        self._key = key
        with _writing("the store's folder"):
            self._incoming.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(self._incoming)

    def path_of(self, key: str) -> Path:
        """The file that holds an object; it never lies outside the store, whatever links there are.

        Raises:
            NotFound: no such object.
            Refused: that cannot be a key.
        """
        path = Path(os.path.realpath(self._target(key)))
        if not path.is_relative_to(self._root) or not path.is_file():
            raise NotFound(f"no object {key!r} in the store")
        return path

    def free_bytes(self) -> int:
        """What can still be kept here. Raises Unavailable."""
        with _writing("the store's folder"):
            return max(free_bytes(self._root) - SPARE, 0)

    async def put(self, key: str, data: bytes) -> None:
        await in_thread(self._write, key, len(data), lambda path: _write_bytes(path, data))

    async def get(self, key: str) -> bytes:
        return await in_thread(self._read, key)

    async def upload(
        self, path: Path, key: str, *, keepalive: Callable[[], None] = no_keepalive
    ) -> None:
        await in_thread(self._upload, key, path)
        keepalive()

    async def download(
        self, key: str, path: Path, *, keepalive: Callable[[], None] = no_keepalive
    ) -> None:
        await in_thread(self._fetch, key, path)
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
        check_doomed(prefix)
        return await in_thread(self._delete, prefix)

    async def link(self, key: str, *, seconds: int, filename: str | None = None) -> str:
        self._target(key)
        expires = int(time.time()) + check_seconds(seconds)
        query = {"expires": str(expires), "signature": link_signature(self._key, key, expires)}
        named = {"filename": filename} if filename else {}
        return f"{self._public_url}/files/{quote(key)}?{urlencode(query | named)}"

    async def close(self) -> None:
        """Nothing is held open."""

    def _target(self, key: str) -> Path:
        if check_key(key).split("/", 1)[0] == INCOMING:
            raise Refused(f"{key!r} cannot be a store key: {INCOMING} is the store's own")
        return self._root / key

    def _read(self, key: str) -> bytes:
        with _reading(key):
            return self.path_of(key).read_bytes()

    def _fetch(self, key: str, path: Path) -> None:
        source = self.path_of(key)
        doing = f"fetch {key!r} from the store"
        with _reading(key), told_when_full(doing), beside(path) as temporary:
            require_room(path.parent, source.stat().st_size, doing)
            shutil.copyfile(source, temporary)

    def _upload(self, key: str, path: Path) -> None:
        with _writing(key):
            size = path.stat().st_size
        self._write(key, size, lambda temporary: _copy(path, temporary))

    def _write(self, key: str, size: int, fill: Callable[[Path], None]) -> None:
        target = self._target(key)
        temporary = self._incoming / uuid.uuid4().hex
        try:
            with _writing(key):
                require_room(self._root, size + SPARE, f"keep {key!r} in the store")
                fill(temporary)
                self._place(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def _place(self, temporary: Path, target: Path) -> None:
        """Rename, again where a deletion has just taken the folder that it emptied."""
        for _ in range(PLACING_ATTEMPTS):
            with suppress(FileNotFoundError):
                _make_folder(target.parent)
                temporary.replace(target)
                self._sync_folders(target.parent)
                return
        raise Unavailable(f"{target} cannot be put in place: its folder does not stay")

    def _sync_folders(self, folder: Path) -> None:
        """A new name is safe from a power failure once its folder is on disk."""
        while folder.is_relative_to(self._root):
            with suppress(FileNotFoundError):
                _sync(folder)
            folder = folder.parent

    def _entries(self, prefix: str) -> Sequence[StoredObject]:
        base = check_prefix(prefix).rpartition("/")[0]
        with _writing(prefix):
            entries = _walk(self._root / base, f"{base}/" if base else "", prefix)
            return [entry for entry in entries if not entry.key.startswith(f"{INCOMING}/")]

    def _delete(self, prefix: str) -> int:
        with _writing(prefix):
            return sum(self._remove(self._root / entry.key) for entry in self._entries(prefix))

    def _remove(self, path: Path) -> bool:
        """Whether it was there; folders left empty go too."""
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        for folder in path.parents:
            if folder == self._root or not _remove_empty(folder):
                break
        return True


def _walk(folder: Path, base: str, prefix: str) -> Iterator[StoredObject]:
    """The files below a folder in order of their keys; what vanishes meanwhile is left out."""
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
            return sorted(items, key=_place_among_keys)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _place_among_keys(item: os.DirEntry[str]) -> str:
    """``a-b`` comes before ``a/c`` though ``a`` comes before ``a-b``."""
    return f"{item.name}/" if item.is_dir(follow_symlinks=False) else item.name


def _write_bytes(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    _sync(target)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    """One that a deletion takes while it is looked at is said to exist and is not there."""
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


def _remove_leftovers(folder: Path) -> None:
    for item in folder.iterdir():
        with suppress(FileNotFoundError):
            if item.stat().st_mtime < time.time() - LEFTOVER_SECONDS:
                item.unlink()


@contextmanager
def _reading(key: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise NotFound(f"no object {key!r} in the store") from None
    except OSError as error:
        raise Unavailable(f"reading {key!r} from the store's folder failed: {error}") from error


@contextmanager
def _writing(key: str) -> Iterator[None]:
    try:
        yield
    except (FileExistsError, IsADirectoryError, NotADirectoryError):
        raise Refused(f"{key!r} cannot be kept: another object's key lies above or below") from None
    except OSError as error:
        kind = Full if error.errno in FULL else Unavailable
        raise kind(f"writing {key!r} to the store's folder failed: {error}") from error
