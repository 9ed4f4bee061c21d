"""Authenticate API keys, of which only hashes are stored."""

from __future__ import annotations

import asyncio
import hmac
import os
import secrets
import time
import tomllib
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import msgspec
import structlog
from msgspec import Struct

from services.gateway.key_ports import KeyStore, StoredKey
from shared.settings import Settings

SERVER_FILE = "keys.json"
CLIENT_FILE = "client.toml"


Scope = Literal["read", "submit", "admin", "operate"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
"""Read own jobs; submit and change them; delete them for good; look after the whole service."""
CLIENT_SCOPES: tuple[Scope, ...] = ("read", "submit", "admin")
"""What concerns a key's own jobs alone."""
LOOKUPS = 4
"""At a time: whoever sends ever other keys, none of them valid, leaves connections to others."""
USED_SECONDS = 60.0
"""A key's last use is recorded at most this often."""

log = structlog.get_logger()


class Caller(NamedTuple):
    """The owner of jobs that a key stands for, and the key's scopes."""

    owner: str
    scopes: tuple[str, ...]


class Keys:
    """The accepted keys: configured ones, with all scopes, and those in the database."""

    def __init__(
        self, digests: Iterable[str], store: KeyStore, clock: Callable[[], float] = time.time
    ) -> None:
        """``digests`` are the SHA-256 of the configured keys; ``clock`` gives seconds."""
        self._digests = tuple(digests)
        self._store = store
        self._clock = clock
        self._used: dict[str, float] = {}
        self._lookups = asyncio.Semaphore(LOOKUPS)

    async def caller(self, header: str | None) -> Caller | None:
        """The caller of an ``Authorization`` header; None: the key is not valid.

        ``Bearer KEY`` and the bare key, which old samples send, mean the same.

        Raises:
            Unavailable: the key is not a configured one, and the database does not answer.
        """
        return await self.caller_of(owner_of(header or ""))

    async def caller_of(self, digest: str) -> Caller | None:
        """The same of a key's SHA-256.

        Raises:
            Unavailable: as above.
        """
        # All are compared, each in constant time, so that the time taken reveals nothing.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if any(matches):
            return Caller(digest, SCOPES)
        async with self._lookups:
            found = await self._store.find(digest)
        if found is None or found.disabled_at is not None:
            return None
        await self._record_use(found)
        return Caller(digest, found.scopes)

    async def _record_use(self, key: StoredKey) -> None:
        now = self._clock()
        if now - self._used.get(key.digest, key.last_used_at or 0.0) >= USED_SECONDS:
            self._used[key.digest] = now
            await self._store.used(key.digest, now)


def owner_of(header: str) -> str:
    """The owner whose key an ``Authorization`` header gives, valid or not."""
    scheme, _, key = header.strip().partition(" ")
    return digest_of(key.strip() if scheme.lower() == "bearer" else header.strip())


def digest_of(key: str) -> str:
    """A key's SHA-256 in hexadecimal, which is the owner of its jobs."""
    return sha256(key.encode(errors="surrogateescape")).hexdigest()


def configured_keys(settings: Settings) -> tuple[str, ...]:
    """The digests of the configured keys, or of the key made at the first start."""
    if settings.api_keys:
        return tuple(digest_of(key) for key in settings.api_keys)
    return first_key(settings.home, settings.public_url)


def new_key() -> str:
    """A new random key."""
    return f"ed_{secrets.token_urlsafe(32)}"


class _KeyFile(Struct, frozen=True):
    sha256: tuple[str, ...]


def first_key(home: Path, url: str) -> tuple[str, ...]:
    """Make a key at the first start, print it once, and write it to ``home/client.toml``.

    Later starts read its hash from ``home/keys.json``. Delete that file to get a new key.

    Args:
        home: the folder of local state.
        url: of the gateway, for ``client.toml``.
    """
    kept = home / SERVER_FILE
    if not kept.exists():
        key = new_key()
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_client_file(home, url, key)
        _write_privately(kept, msgspec.json.encode(_KeyFile((digest_of(key),))))
        print(f"API key, shown only now and kept in {home / CLIENT_FILE}: {key}", flush=True)  # noqa: T201
    return msgspec.json.decode(kept.read_bytes(), type=_KeyFile).sha256


def keep_address(settings: Settings) -> None:
    """Put the gateway's URL into ``client.toml`` if another one stands beside this gateway's key.

    To be called by a gateway that listens: one that cannot start leaves the address of another.
    """
    file, url = settings.home / CLIENT_FILE, settings.public_url
    try:
        kept = tomllib.loads(file.read_text(encoding="utf-8"))
        key, before = str(kept["key"]), str(kept["url"])
    except (OSError, ValueError, KeyError):
        return  # the command line says it to whom it concerns
    if before == url or settings.api_keys or digest_of(key) not in configured_keys(settings):
        return
    try:
        _write_client_file(settings.home, url, key)
        log.info("client_address_changed", file=str(file), url=url, before=before)
    except OSError as error:
        log.warning("client_address_kept", file=str(file), url=before, reason=str(error))


def _write_client_file(home: Path, url: str, key: str) -> None:
    _write_privately(home / CLIENT_FILE, f'url = "{url}"\nkey = "{key}"\n'.encode())


def _write_privately(path: Path, content: bytes) -> None:
    """Write atomically, with mode 600."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    temporary.replace(path)
