"""Remove what killed workers left on a machine."""

from __future__ import annotations

from shared.concurrency import in_thread
from shared.scratch import remove_abandoned, remove_old
from shared.settings import Settings


async def remove_leftovers(settings: Settings) -> None:
    """Remove the files of workers that were killed; live ones lose nothing."""
    await in_thread(remove_abandoned, settings.scratch)
    await in_thread(remove_old, settings.scratch)
    await in_thread(remove_abandoned, settings.cache)
