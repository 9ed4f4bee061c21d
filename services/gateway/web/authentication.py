"""Bearer keys: who may ask for what, and whose a job is. Only hashes of keys are kept here."""

from __future__ import annotations

import hmac
import os
import secrets
import time
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import msgspec
from msgspec import Struct

from services.gateway.ports import KeyStore, StoredKey
from shared.settings import Settings

SERVER_FILE = "keys.json"
CLIENT_FILE = "client.toml"


Scope = Literal["read", "submit", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
"""Looking at one's own jobs; submitting and changing them; removing them for good."""
USED_SECONDS = 60.0
"""A key's last use is noted this often at most."""


class Caller(NamedTuple):
    """Who asks: the owner of jobs, and what the key is good for."""

    owner: str
    scopes: tuple[str, ...]


class Keys:
    """The keys that are let in: configured ones, good for everything, and those that were made."""

    def __init__(
        self, digests: Iterable[str], made: KeyStore, clock: Callable[[], float] = time.time
    ) -> None:
        """``digests`` are the SHA-256 of the configured ones; ``clock`` gives seconds."""
        self._digests = tuple(digests)
        self._made = made
        self._clock = clock
        self._used: dict[str, float] = {}

    async def caller(self, header: str | None) -> Caller | None:
        """Who an ``Authorization`` header stands for; None: nobody we know.

        ``Bearer KEY`` and the bare key, which old samples send, are the same.

        Raises:
            Unavailable: the key is none of the configured, and the database does not answer.
        """
        digest = digest_of(_key_in(header or ""))
        # All are compared, each in constant time, so that time tells nothing.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if any(matches):
            return Caller(digest, SCOPES)
        found = await self._made.find(digest)
        if found is None or found.disabled_at is not None:
            return None
        await self._note_use(found)
        return Caller(digest, found.scopes)

    async def _note_use(self, key: StoredKey) -> None:
        now = self._clock()
        if now - self._used.get(key.digest, key.last_used_at or 0.0) >= USED_SECONDS:
            self._used[key.digest] = now
            await self._made.used(key.digest, now)


def digest_of(key: str) -> str:
    """A key's SHA-256 in hexadecimal: the owner of the jobs that it submits."""
    return sha256(key.encode(errors="surrogateescape")).hexdigest()


def _key_in(header: str) -> str:
    scheme, _, key = header.strip().partition(" ")
    return key.strip() if scheme.lower() == "bearer" else header.strip()


def configured_keys(settings: Settings) -> tuple[str, ...]:
    """The digests of the configured keys, or of the one that this home's first start has made."""
    if settings.api_keys:
        return tuple(digest_of(key) for key in settings.api_keys)
    return first_key(settings.home, settings.public_url)


def new_key() -> str:
    """A key that nobody can guess."""
    return f"ed_{secrets.token_urlsafe(32)}"


class _Kept(Struct, frozen=True):
    sha256: tuple[str, ...]


def first_key(home: Path, url: str) -> tuple[str, ...]:
    """Make a key at the first start, print it once, and write it to ``home/client.toml``.

    Later starts find its hash in ``home/keys.json``. To get a new key, delete that file.

    Args:
        home: the folder of local state.
        url: where clients reach the gateway; goes into ``client.toml`` beside the key.
    """
    kept = home / SERVER_FILE
    if not kept.exists():
        key = new_key()
        home.mkdir(parents=True, exist_ok=True)
        _write_privately(home / CLIENT_FILE, f'url = "{url}"\nkey = "{key}"\n'.encode())
        _write_privately(kept, msgspec.json.encode(_Kept((digest_of(key),))))
        print(f"API key, shown only now and kept in {home / CLIENT_FILE}: {key}", flush=True)  # noqa: T201
    return msgspec.json.decode(kept.read_bytes(), type=_Kept).sha256


def _write_privately(path: Path, content: bytes) -> None:
    """Write with mode 600, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    temporary.replace(path)
