"""What must hold while one key is rude, and a sentence for everything that did not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tests.hostile.acts import SIBLING
from tests.hostile.measure import Peak
from tests.hostile.other import JOBS, Run

SLOWER = 2.5
"""Times as long as alone the ten jobs may take, without the turns that the rude key's own
trainings take. On two cores, which everything shares."""
TURNS = 2
"""Of the rude key's trainings for each of the other's while one of those waits."""
WEBHOOK_SECONDS = 60.0
"""From a job's end, at most."""
GIB = 1 << 30
MEMORY: Mapping[str, int] = {
    "gateway": GIB,
    "fetcher": 14 * GIB,
    "trainer": 24 * GIB,
    "inferencer": 12 * GIB,
    "notifier": GIB,
}
"""Bytes that their containers get in deploy/compose.yaml."""


@dataclass(frozen=True)
class Outcome:
    """All that was seen."""

    alone: Run
    beside: Run
    """The ten jobs beside the rude key."""
    turns: tuple[float, ...]
    """Seconds of each of the rude key's turns at the trainer for which the ten had to wait."""
    quiet_peaks: Mapping[str, Peak]
    peaks: Mapping[str, Peak]
    pids: Mapping[str, tuple[int, int | None]]
    """Of each service: before, and in the end."""
    restarts: Mapping[str, int]
    answers: Mapping[str, Mapping[str, int]]
    """What the rude key got, by act and status."""
    jobs: Mapping[str, tuple[int, int]]
    """How many jobs of each act were accepted, and how many of these were begun."""
    producer_end: str | None
    """How the job of the other's producer ended."""
    stray_replies: int
    """Messages in the queue of the other's producer, which expects none."""
    left: tuple[str, ...]
    last_words: tuple[str, ...] = field(default=())

    @property
    def own_seconds(self) -> float:
        """Of the ten jobs, without the rude key's turns."""
        return self.beside.seconds - sum(self.turns)


def missed(outcome: Outcome) -> list[str]:
    """Every bar that was missed."""
    return [
        *_services(outcome),
        *_jobs("alone", outcome.alone),
        *_jobs("beside the rude key", outcome.beside),
        *_times(outcome),
        *_answers(outcome),
        *(f"left behind: {each}" for each in outcome.left),
    ]


def _services(outcome: Outcome) -> Iterator[str]:
    for name, number in outcome.restarts.items():
        yield f"{name} died {number} times"
    for name, (before, after) in outcome.pids.items():
        if before != after:
            yield f"{name} is another process in the end: {after}, not {before}"
    for name, peak in outcome.peaks.items():
        if peak.bytes > MEMORY[name]:
            yield f"{name} takes {peak.bytes} bytes; its container has {MEMORY[name]}"
        if peak.files >= peak.files_allowed:
            yield f"{name} has {peak.files} descriptors open, as many as it may"


def _jobs(when: str, run: Run) -> Iterator[str]:
    if run.ends != Counter({"COMPLETED": JOBS}):
        yield f"{when}, of {JOBS} jobs {run.ends['COMPLETED']} completed: {dict(run.ends)}"
    if len(run.webhooks) != JOBS:
        yield f"{when}, of {JOBS} webhooks {len(run.webhooks)} came"
    if (late := max(run.webhooks.values(), default=0.0)) > WEBHOOK_SECONDS:
        most = f"{WEBHOOK_SECONDS:g} at most"
        yield f"{when}, a webhook came {late:.0f} s after its job's end; {most}"
    if run.unanswered:
        yield f"{when}, requests of the other key were not answered: {dict(run.unanswered)}"


def _times(outcome: Outcome) -> Iterator[str]:
    times = outcome.own_seconds / outcome.alone.seconds
    if times > SLOWER:
        yield (
            f"the ten jobs take {times:.1f} times as long as alone, the rude key's turns left"
            f" out; {SLOWER:g} at most"
        )
    if len(outcome.turns) > TURNS * JOBS:
        yield f"the rude key had {len(outcome.turns)} turns while the ten waited; {TURNS} for each"


def _answers(outcome: Outcome) -> Iterator[str]:
    for act, answers in outcome.answers.items():
        for status in ("500", SIBLING):
            if number := answers.get(status):
                yield f"{act}: {number} times {status}"
        if not answers:
            yield f"{act}: nothing was asked"
    if outcome.producer_end != "COMPLETED":
        yield f"the job of the other's producer is {outcome.producer_end}"
    if outcome.stray_replies:
        yield f"{outcome.stray_replies} messages came to the other's producer"
