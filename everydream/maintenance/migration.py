"""The schema of the database, as ``everydream migrate`` looks at it and upgrades it."""

from __future__ import annotations

from typing import Any

from services.gateway.database.connection import Database
from services.gateway.database.schema import Schema
from shared.service_process import closing
from shared.settings import Settings


async def look(settings: Settings) -> Schema:
    """How the database stands to this version; nothing is changed.

    Raises:
        SettingsError: it is of a newer version, beside which this one cannot work.
        Unavailable: it does not answer.
    """
    async with closing(Database.open(settings.database_url)) as database:
        found = await database.schema()
    found.check()
    return found


async def upgrade(settings: Settings) -> Schema:
    """Upgrade it; how it stood before. Raises as :func:`look` does."""
    async with closing(Database.open(settings.database_url)) as database:
        return await database.migrate()


def document(found: Schema, *, applied: bool) -> dict[str, Any]:
    """What ``--json`` prints."""
    lacking = [revision._asdict() for revision in found.lacking]
    return {
        "revision": found.newest if applied and not found.is_newer else found.current,
        "newest": found.newest,
        "is_newer": found.is_newer,
        "pending": [] if applied else lacking,
        "applied": lacking if applied else [],
    }


def lines(found: Schema, *, applied: bool) -> list[str]:
    """What people read."""
    verb = "had" if applied and found.lacking else "has"
    has = f"The database {verb} revision {found.current or 0}"
    if found.is_newer:
        return [f"{has} of a newer version, and this one works beside it: nothing to do."]
    if not found.lacking:
        return [f"{has}, the newest that this version knows: nothing to do."]
    what = f"Upgraded to {found.newest}:" if applied else f"To be applied, up to {found.newest}:"
    return [f"{has}. {what}", *(f"  {each.id}  {each.about}" for each in found.lacking)]
