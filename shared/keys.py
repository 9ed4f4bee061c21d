"""The deployment's secret key, and what is derived from it: link signatures and sealed secrets."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shared.errors import Refused, SettingsError
from shared.request import S3Config

NONCE_BYTES = 12
MIN_KEY_LENGTH = 32
"""Shortest key, in characters; anyone could sign with an empty one."""


def secret_key(configured: str | None, home: Path) -> str:
    """The configured key, or one created once and kept in ``home/secret.key`` with mode 600.

    Raises:
        SettingsError: that file exists, but holds no key.
    """
    if configured:
        return configured
    path = home / "secret.key"
    if not path.exists():
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        _create(path)
    key = path.read_text().strip()
    if len(key) < MIN_KEY_LENGTH:
        raise SettingsError(f"{path} holds no key; remove it, and a new one is made")
    return key


def _create(path: Path) -> None:
    """Write a new key to a temporary file and link it: readers see a whole key or none."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(48))
        with suppress(FileExistsError):  # another process was faster; its key counts
            path.hardlink_to(temporary)
    finally:
        Path(temporary).unlink()


def derive(key: str, purpose: str) -> bytes:
    """32 bytes for one purpose (HMAC-SHA256 of the purpose under the key)."""
    return hmac.digest(key.encode(), purpose.encode(), "sha256")


def webhook_secret(configured: str | None, key: str) -> str:
    """The configured webhook secret, or one derived from the deployment's key."""
    return configured or "whsec_" + base64.b64encode(derive(key, "webhooks")).decode()


def link_signature(key: str, path: str, expires: int) -> str:
    """Hex signature of a path and of its link's expiry, in seconds since the epoch."""
    text = f"{expires}\n{path}".encode()
    return hmac.new(derive(key, "links"), text, hashlib.sha256).hexdigest()


def link_holds(key: str, path: str, expires: int, signature: str, now: float) -> bool:
    """Whether a link's signature is ours and it has not expired."""
    expected, given = link_signature(key, path, expires), signature.encode(errors="replace")
    return hmac.compare_digest(expected.encode(), given) and now < expires


def digest(key: str, body: Any) -> str:
    """Keyed digest of a decoded JSON body: shows whether two are equal, and nothing else; hex."""
    text = msgspec.json.encode(body, order="deterministic")
    return hmac.digest(derive(key, "requests"), text, "sha256").hex()


def seal(key: str, s3: S3Config, job: str) -> str:
    """Encrypt the user's bucket secrets (AES-256-GCM, authenticated), bound to this job.

    Returns:
        Nonce, ciphertext and tag, as base64.
    """
    nonce = os.urandom(NONCE_BYTES)
    sealed = AESGCM(derive(key, "s3Config")).encrypt(nonce, msgspec.json.encode(s3), job.encode())
    return base64.b64encode(nonce + sealed).decode()


def unseal(key: str, text: str, job: str) -> S3Config:
    """Decrypt what :func:`seal` has encrypted.

    Raises:
        Refused: sealed under another key or for another job, or damaged.
    """
    try:
        raw = base64.b64decode(text)
        nonce, sealed = raw[:NONCE_BYTES], raw[NONCE_BYTES:]
        plain = AESGCM(derive(key, "s3Config")).decrypt(nonce, sealed, job.encode())
    except (InvalidTag, ValueError):  # ValueError: not base64, or too short
        raise Refused(
            "s3Config cannot be opened: gateway and notifier have different EVERYDREAM_SECRET_KEY"
        ) from None
    return msgspec.json.decode(plain, type=S3Config)
