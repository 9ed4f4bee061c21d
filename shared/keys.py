"""The deployment's secret key and what is derived from it: link signatures and sealed secrets."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shared.errors import Refused
from shared.request import S3Config

NONCE_BYTES = 12


def secret_key(configured: str | None, home: Path) -> str:
    """The configured key, or one made once and kept in ``home/secret.key`` with mode 600."""
    return configured or _kept(home / "secret.key")


def _kept(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    with os.fdopen(descriptor, "w") as file:
        file.write(key := secrets.token_urlsafe(48))
    return key


def derive(key: str, purpose: str) -> bytes:
    """32 bytes for one purpose only (HMAC-SHA256 of the purpose under the key)."""
    return hmac.digest(key.encode(), purpose.encode(), "sha256")


def webhook_secret(configured: str | None, key: str) -> str:
    """The configured webhook secret, or one derived from the deployment's key."""
    return configured or "whsec_" + base64.b64encode(derive(key, "webhooks")).decode()


def link_signature(key: str, path: str, expires: int) -> str:
    """Hex signature of a path and the second at which its link ends."""
    text = f"{expires}\n{path}".encode()
    return hmac.new(derive(key, "links"), text, hashlib.sha256).hexdigest()


def link_holds(key: str, path: str, expires: int, signature: str, now: float) -> bool:
    """Whether a link is ours and has not ended."""
    expected, given = link_signature(key, path, expires), signature.encode(errors="replace")
    return hmac.compare_digest(expected.encode(), given) and now < expires


def seal(key: str, s3: S3Config) -> str:
    """The user's bucket secrets under authenticated encryption (AES-256-GCM), as text."""
    nonce = os.urandom(NONCE_BYTES)
    sealed = AESGCM(derive(key, "s3Config")).encrypt(nonce, msgspec.json.encode(s3), None)
    return base64.b64encode(nonce + sealed).decode()


def unseal(key: str, text: str) -> S3Config:
    """Open what :func:`seal` closed.

    Raises:
        Refused: it was sealed under another key, or is damaged.
    """
    raw = base64.b64decode(text)
    try:
        plain = AESGCM(derive(key, "s3Config")).decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], None)
    except InvalidTag:
        raise Refused(
            "s3Config cannot be opened: gateway and notifier have different EVERYDREAM_SECRET_KEY"
        ) from None
    return msgspec.json.decode(plain, type=S3Config)
