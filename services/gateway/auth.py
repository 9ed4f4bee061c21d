"""Bearer keys: who may ask, and whose a job is. Only hashes of keys are kept here."""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

import msgspec
from msgspec import Struct

from shared.settings import Settings

SERVER_FILE = "keys.json"
CLIENT_FILE = "client.toml"


class Keys:
    """The keys that are let in, by their SHA-256."""

    def __init__(self, digests: Iterable[str]) -> None:
        self._digests = tuple(digests)

    def owner(self, header: str | None) -> str | None:
        """The owner that an ``Authorization`` header stands for; None: nobody we know.

        ``Bearer KEY`` and the bare key, which old samples send, are the same.
        """
        digest = digest_of(_key_in(header or ""))
        # All are compared, each in constant time, so that time tells nothing.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return digest if any(matches) else None


def digest_of(key: str) -> str:
    """A key's SHA-256 in hexadecimal: the owner of the jobs that it submits."""
    return sha256(key.encode(errors="surrogateescape")).hexdigest()


def _key_in(header: str) -> str:
    scheme, _, key = header.strip().partition(" ")
    return key.strip() if scheme.lower() == "bearer" else header.strip()


def open_keys(settings: Settings) -> Keys:
    """The configured keys, or the one that this home's first start has made."""
    if settings.api_keys:
        return Keys(digest_of(key) for key in settings.api_keys)
    return make_key(settings.home, settings.public_url)


class _Kept(Struct, frozen=True):
    sha256: tuple[str, ...]


def make_key(home: Path, url: str) -> Keys:
    """Make a key at the first start, print it once, and write it to ``home/client.toml``.

    Later starts find its hash in ``home/keys.json``. To get a new key, delete that file.

    Args:
        home: the folder of local state.
        url: where clients reach the gateway; goes into ``client.toml`` beside the key.
    """
    kept = home / SERVER_FILE
    if not kept.exists():
        key = f"ed_{secrets.token_urlsafe(32)}"
        home.mkdir(parents=True, exist_ok=True)
        _write_privately(home / CLIENT_FILE, f'url = "{url}"\nkey = "{key}"\n'.encode())
        _write_privately(kept, msgspec.json.encode(_Kept((digest_of(key),))))
        print(f"API key, shown only now and kept in {home / CLIENT_FILE}: {key}", flush=True)  # noqa: T201
    return Keys(msgspec.json.decode(kept.read_bytes(), type=_Kept).sha256)


def _write_privately(path: Path, content: bytes) -> None:
    """Write with mode 600, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    temporary.replace(path)
