"""How many jobs are released at a time, so that the next one's turn is decided late.

What waits in a worker's queue is done in the queue's order, whoever it belongs to. So only a few
jobs of a line are there: enough that no worker waits for them, and of no owner so many that the
others find no place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import inf
from time import monotonic

from services.gateway.ports import LINES, Held, Line, TurnStore
from services.gateway.turns.workers import Workers
from shared.messaging.messages import Stage

WORKERS_STAGE: Mapping[Line, Stage] = {
    "train": "training",
    "draw": "generation",
    "check": "staging",
}
"""Whose workers the jobs of a line wait for."""
MIN_PLACES = 8
"""In a line; with more workers there are two for each."""
MIN_SLOTS = 4
"""That fetchers, or notifiers, are taken to have while fewer are seen."""
KEPT_SECONDS = 60.0
"""For which an entry is remembered: longer than any reading of rows takes."""
BUCKET_STAGES: tuple[Stage, ...] = ("bucket_check", "model_publication", "image_publication")


@dataclass
class Entry:
    """A place that a job takes without having to wait."""

    held: Held
    written_at: float = inf
    """By the process's monotonic clock; who read the rows before does not know of it by them."""


class Places:
    """Counts, from the jobs' rows, the places in each line that are free, and for whom."""

    def __init__(self, turns: TurnStore, workers: Workers) -> None:
        self._turns = turns
        self._workers = workers
        self._entries: list[Entry] = []
        """Jobs that are being admitted here, or were a short time ago."""

    @asynccontextmanager
    async def entering(self, line: Line, owner: str) -> AsyncIterator[bool]:
        """Whether the turn of a new run is now: nobody waits, and there is a place for its owner.

        The place is kept while the block writes the job. Raises Unavailable.
        """
        its_turn = False
        if not await self._turns.is_waited_in(line):
            rooms = await self._rooms()
            its_turn = rooms.is_free(line) and owner not in rooms.barred(line)
        if not its_turn:
            yield False
            return
        entry = Entry(Held(line, owner, jobs=1, staging=1))
        self._entries.append(entry)
        try:
            yield True
        finally:
            entry.written_at = monotonic()

    async def next(self, line: Line, skipped: Collection[str] = ()) -> tuple[str, str] | None:
        """The job whose turn is now, and its owner; None: none, or no place.

        Jobs of the owners to be skipped have to wait. Raises Unavailable.
        """
        if not await self._turns.is_waited_in(line):
            return None
        rooms = await self._rooms()
        if not rooms.is_free(line):
            return None
        return await self._turns.next(line, rooms.barred(line).union(skipped))

    async def crowding(self) -> frozenset[str]:
        """Owners with three quarters of the slots for users' buckets. Raises Unavailable."""
        claims = await self._turns.claims_of(BUCKET_STAGES)
        slots = self._workers.last_seen("bucket_check")
        return _with_three_quarters(Counter(claims), max(MIN_SLOTS, slots))

    async def _rooms(self) -> Rooms:
        """Nothing is waited for after the rows were read, so that nobody else decides meanwhile."""
        began = monotonic()
        held = await self._turns.held()
        self._entries = [each for each in self._entries if each.written_at > began - KEPT_SECONDS]
        unread = [each.held for each in self._entries if each.written_at > began]
        seen = {line: self._workers.last_seen(stage) for line, stage in WORKERS_STAGE.items()}
        return Rooms(seen, [*held, *unread])


class Rooms:
    """The places in each line, and who has how many."""

    def __init__(self, workers: Mapping[Line, int], held: Sequence[Held]) -> None:
        """``workers`` are those seen for a line; ``held`` may name an owner more than once."""
        self._places = {line: max(MIN_PLACES, 2 * workers[line]) for line in LINES}
        self._downloads = max(MIN_SLOTS, workers["check"])
        self._taken: Counter[Line] = Counter()
        self._of_owner: Counter[tuple[Line, str]] = Counter()
        self._staging: Counter[str] = Counter()
        for each in held:
            self._taken[each.line] += each.jobs
            self._of_owner[each.line, each.owner] += each.jobs
            self._staging[each.owner] += each.staging

    def is_free(self, line: Line) -> bool:
        return self._taken[line] < self._places[line]

    def barred(self, line: Line) -> frozenset[str]:
        """Owners with half of the line's places, or three quarters of the downloads."""
        share = self._places[line] // 2
        full = frozenset(
            owner for (of, owner), jobs in self._of_owner.items() if of == line and jobs >= share
        )
        return full | _with_three_quarters(self._staging, self._downloads)


def _with_three_quarters(used: Counter[str], slots: int) -> frozenset[str]:
    return frozenset(owner for owner, number in used.items() if 4 * number >= 3 * slots)
