"""What the services take, whether they live, and who has the trainer when."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import aio_pika
import msgspec
import psutil

from shared.concurrency import cancelled, in_thread
from shared.messaging.messages import (
    CheckpointFinal,
    DatasetStaged,
    StagingStarted,
    TrainingProgressed,
    TrainingStarted,
    decode,
)
from shared.messaging.topology import EXCHANGE
from tests.support.services import ServiceProcess, Services

LOOK_SECONDS = 1.0
FORGET_THE_PEAK = "5"
"""To the kernel, of a process's memory."""
FACTS = ("staging.started", "dataset.staged", "training.started", "training.progressed",
         "checkpoint.final")  # fmt: skip
WORKED = TrainingProgressed | CheckpointFinal
"""Facts that no refused claim has; a short training says nothing before its end."""
Interval = tuple[float, float]


# --- Processes ----------------------------------------------------------------------------------


@dataclass
class Peak:
    """The most that a service has taken."""

    own_bytes: int = 0
    children_bytes: int = 0
    """The peaks of all children that it has at one time."""
    bytes: int = 0
    """Of both together."""
    files: int = 0
    """Open descriptors, of the service or any of its children."""
    files_allowed: int = 0

    def add(self, own: int, children: int, files: int) -> None:
        self.own_bytes = max(self.own_bytes, own)
        self.children_bytes = max(self.children_bytes, children)
        self.bytes = max(self.bytes, own + children)
        self.files = max(self.files, files)


@dataclass
class Watch:
    """Looks at every service, each second, and starts again what has died."""

    services: Services
    peaks: dict[str, Peak] = field(default_factory=dict)
    restarts: Counter[str] = field(default_factory=Counter)
    last_words: list[str] = field(default_factory=list)
    """Of those that died."""

    async def run(self) -> None:
        """For ever."""
        while True:
            await in_thread(self.look)
            await asyncio.sleep(LOOK_SECONDS)

    def look(self) -> None:
        at_work = defaultdict(list)
        for each in psutil.process_iter(["cwd"]):
            at_work[each.info["cwd"]].append(each)
        for process in list(self.services.all):
            if process.alive:
                self._measure(process, at_work.get(str(process.folder), []))
            elif not process.ended:
                process.ended = True
                process.end(signal.SIGKILL)  # what stands by to end it
                self.restarts[process.name] += 1
                self.last_words.append(f"{process.name}, status {process.status}: "
                                       f"{process.last_words}")  # fmt: skip
                self.services.begin(process.name)

    def begin_anew(self) -> dict[str, Peak]:
        """Measure from now on; the peaks so far."""
        for process in self.services.all:
            if process.alive:
                for pid in (process.pid, *(child.pid for child in process.children)):
                    with suppress(OSError):  # one that has just ended
                        Path(f"/proc/{pid}/clear_refs").write_text(FORGET_THE_PEAK)
        so_far, self.peaks = self.peaks, {}
        return so_far

    def _measure(self, process: ServiceProcess, at_work: list[psutil.Process]) -> None:
        """Its children are those who work in its folder, whoever has started them."""
        with suppress(psutil.NoSuchProcess):
            itself = psutil.Process(process.pid)
            own, files = _peak_bytes(process.pid), itself.num_fds()
            others = 0
            for child in (each for each in at_work if each.pid != process.pid):
                with suppress(psutil.NoSuchProcess):
                    others += _peak_bytes(child.pid)
                    files = max(files, child.num_fds())
            peak = self.peaks.setdefault(process.name, Peak())
            peak.add(own, others, files)
            peak.files_allowed = itself.rlimit(psutil.RLIMIT_NOFILE)[0]

    def pids(self) -> dict[str, int]:
        """Of each service that lives."""
        return {each.name: each.pid for each in self.services.all if each.alive}


def _peak_bytes(pid: int) -> int:
    """The most that a process has had in memory; 0 of one that has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    return 0


@asynccontextmanager
async def watched(services: Services) -> AsyncIterator[Watch]:
    watch = Watch(services)
    looking = asyncio.create_task(watch.run())
    try:
        yield watch
    finally:
        await cancelled(looking)


# --- Turns --------------------------------------------------------------------------------------


@dataclass
class Turns:
    """Who has the trainer when, as the services' own facts say."""

    begun: set[str] = field(default_factory=set)
    """Jobs whose staging has begun."""
    staged: dict[str, float] = field(default_factory=dict)
    trained: dict[str, float] = field(default_factory=dict)
    """When a job was taken by the trainer first."""
    claimed: dict[str, tuple[float, str]] = field(default_factory=dict)
    """When the trainer claimed which job, by the claim, in order."""
    worked: set[str] = field(default_factory=set)
    """Claims under which it worked: those of a job that was cancelled meanwhile are refused."""

    def add(self, fact: object, at: float) -> None:
        if isinstance(fact, StagingStarted):
            self.begun.add(fact.job)
        elif isinstance(fact, DatasetStaged):
            self.staged.setdefault(fact.job, at)
        elif isinstance(fact, TrainingStarted):
            self.claimed.setdefault(fact.claim, (at, fact.job))
        elif isinstance(fact, WORKED) and fact.claim in self.claimed:
            self.worked.add(fact.claim)
            self.trained.setdefault(fact.job, self.claimed[fact.claim][0])

    @property
    def taken(self) -> list[tuple[float, str]]:
        """Every turn of the trainer, in order."""
        return [turn for claim, turn in self.claimed.items() if claim in self.worked]

    def way(self, job: str, since: float) -> str:
        """When a job was staged, claimed and trained first, in seconds since then."""
        times = {
            "staged": self.staged.get(job),
            "claimed": min((at for at, its in self.claimed.values() if its == job), default=None),
            "trained": self.trained.get(job),
        }
        known = {what: at - since for what, at in times.items() if at is not None}
        return ", ".join(f"{what} {seconds:.1f} s" for what, seconds in known.items())

    def of_others(self, jobs: Collection[str], until: float) -> list[float]:
        """Seconds of each turn of somebody else while one of these jobs waited for the trainer.

        A turn lasts until the trainer takes the next job.
        """
        waits = _merged(
            (self.staged[job], self.trained.get(job, until)) for job in jobs if job in self.staged
        )
        taken = self.taken
        ends = [*(at for at, _ in taken[1:]), until]
        turns = [
            sum(max(min(end, to) - max(at, since), 0.0) for since, to in waits)
            for (at, job), end in zip(taken, ends, strict=True)
            if job not in jobs
        ]
        return [seconds for seconds in turns if seconds]


def _merged(intervals: Iterable[Interval]) -> list[Interval]:
    """The same times without overlaps."""
    merged: list[Interval] = []
    for since, to in sorted(intervals):
        if merged and since <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], to))
        else:
            merged.append((since, to))
    return merged


@asynccontextmanager
async def turns_told(url: str) -> AsyncIterator[Turns]:
    """Turns from now on, heard at the broker."""
    turns = Turns()
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(exclusive=True)
        for key in FACTS:
            await queue.bind(EXCHANGE, key)

        async def heard(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            with suppress(msgspec.DecodeError, UnicodeDecodeError):
                turns.add(decode(message.body), monotonic())

        await queue.consume(heard, no_ack=True)
        yield turns


def percentile(values: Collection[float], of: int) -> float:
    """0 of none."""
    return sorted(values)[min(len(values) * of // 100, len(values) - 1)] if values else 0.0


Tell = Callable[[str], object]
