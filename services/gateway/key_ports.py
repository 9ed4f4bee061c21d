"""API keys, as the gateway keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct


class StoredKey(Struct, frozen=True, kw_only=True):
    """An API key; only its digest is stored."""

    digest: str
    """Its SHA-256, hexadecimal."""
    name: str
    scopes: tuple[str, ...]
    created_at: float
    """Seconds since the epoch, like the next two."""
    disabled_at: float | None = None
    last_used_at: float | None = None
    """To the minute."""


class KeyStore(Protocol):
    """API keys made by the command line.

    All calls raise ``Unavailable`` when the database does not answer.
    """

    async def add(self, key: StoredKey) -> bool:
        """Add a new key; False when its name or digest exists already."""

    async def find(self, digest: str) -> StoredKey | None: ...

    async def all(self) -> Sequence[StoredKey]:
        """Every key, disabled ones too, oldest first."""

    async def disable(self, name: str, at: float) -> bool:
        """Disable a key for good; False when there is no enabled key with this name."""

    async def used(self, digest: str, at: float) -> None:
        """Record when a key was last used."""
