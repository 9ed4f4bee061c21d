"""The ledger: what must be true of every accepted job once all is quiet, whatever was done to it.

``check(evidence)`` says in sentences what is wrong, nothing if all is well; ``totals(evidence)``
counts. Both are pure: :mod:`tests.faults.evidence` gathers what they look at.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal, NamedTuple, TypeVar

from tests.faults.facts import End, Evidence, File, Post, Record, Stored

ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")
SHOWN = 80
"""Letters of a body that stand in a sentence."""

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
Kind = Literal["lost", "doubled", "left over", "leaked"]


# --- What comes out ---------------------------------------------------------------------------


class Wrong(NamedTuple):
    """Something that must not be: of which kind, whose, and a sentence about it."""

    kind: Kind
    job: str
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What a ledger comes to."""

    accepted: int
    runs: int
    completed: int
    failed: int
    cancelled: int
    timed_out: int
    files: int
    """In the users' bucket."""
    posts: int
    """Webhooks posted, those that were not taken among them."""
    buried: int
    searched: int
    """Bytes that were searched for secrets."""
    lost: int
    """Jobs of which something is missing."""
    doubled: int
    """Jobs of which something is there twice, or that ended twice."""
    wrong: int


def check(evidence: Evidence) -> list[str]:
    """A sentence for everything that is wrong."""
    return [wrong.sentence for wrong in wrongs(evidence)]


def totals(evidence: Evidence) -> Totals:
    found = wrongs(evidence)
    told = Counter(record.status for record in evidence.records)
    return Totals(
        accepted=len(evidence.accepted),
        runs=sum(record.run for record in evidence.records),
        completed=told["COMPLETED"],
        failed=told["FAILED"],
        cancelled=told["CANCELLED"],
        timed_out=told["TIMED_OUT"],
        files=len(evidence.bucket),
        posts=len(evidence.posts),
        buried=len(evidence.dead_letters),
        searched=sum(len(text.content) for text in evidence.texts),
        lost=len({wrong.job for wrong in found if wrong.kind == "lost"}),
        doubled=len({wrong.job for wrong in found if wrong.kind == "doubled"}),
        wrong=len(found),
    )


def wrongs(evidence: Evidence) -> list[Wrong]:
    """Everything that is wrong, rule by rule."""
    return [wrong for rule in RULES for wrong in rule(evidence)]


# --- Every job ends exactly once per run ------------------------------------------------------


def records_have_ended(evidence: Evidence) -> Iterator[Wrong]:
    """Every accepted id has one record, which has ended and is told as it is."""
    counted = Counter(record.id for record in evidence.records)
    for job in evidence.accepted:
        if counted[job.id] != 1:
            yield Wrong("lost", job.id, f"{job.id}: it has {counted[job.id]} records, not one")
    for record in evidence.records:
        if record.status not in ENDS:
            yield Wrong("lost", record.id, f"{record.id}: it has not ended, it is {record.status}")
        if record.told != record.status:
            said = f"its record is {record.status}, but a client is told {record.told}"
            yield Wrong("lost", record.id, f"{record.id}: {said}")


def ends_are_said_once(evidence: Evidence) -> Iterator[Wrong]:
    """One end per run is heard, the recorded one; the same message may come again."""
    heard = _grouped(evidence.ends, lambda end: (end.job, end.run))
    for record in _ended(evidence):
        for run in range(1, record.run + 1):
            ends = heard.pop((record.id, run), [])
            wanted = record.status if run == record.run else None
            yield from _of_run(record.id, run, ends, wanted)
    for job, run in heard:
        yield Wrong("doubled", job, f"{job}: an end was heard of run {run}, which never was")


def _of_run(job: str, run: int, ends: list[End], wanted: str | None) -> Iterator[Wrong]:
    statuses = sorted({end.status for end in ends})
    if not ends:
        yield Wrong("lost", job, f"{job}: no end was heard of run {run}")
    elif len({end.body for end in ends}) > 1:
        yield Wrong("doubled", job, f"{job}: different ends were heard of run {run}: {statuses}")
    elif wanted and statuses != [wanted]:
        said = f"run {run} ended {wanted} by its record, but {statuses[0]} was heard"
        yield Wrong("lost", job, f"{job}: {said}")


def ends_are_final(evidence: Evidence) -> Iterator[Wrong]:
    """In the record's history each run ends once, and nothing follows its end but the next run."""
    told = _grouped(evidence.history, lambda turn: (turn.job, turn.run))
    for record in _ended(evidence):
        for run in range(1, record.run + 1):
            statuses = [turn.status for turn in told.get((record.id, run), [])]
            yield from _of_history(record.id, run, statuses)


def _of_history(job: str, run: int, statuses: list[str]) -> Iterator[Wrong]:
    ends = [status for status in statuses if status in ENDS]
    if not ends:
        yield Wrong("lost", job, f"{job}: the history of run {run} has no end: {statuses}")
    elif len(ends) > 1 or statuses[-1] not in ENDS:
        said = f"the history of run {run} goes on after its end: {statuses}"
        yield Wrong("doubled", job, f"{job}: {said}")


# --- A completed job has exactly one effect set -----------------------------------------------


def artifacts_are_there(evidence: Evidence) -> Iterator[Wrong]:
    """Every file of a completed output lies at its link in the users' bucket, whole."""
    there = {stored.key: stored for stored in evidence.bucket}
    for job, record in _completed_and_published(evidence):
        if not record.files:
            yield Wrong("lost", job, f"{job}: it has completed, and its output names no file")
        for file in record.files:
            yield from _of_file(job, file, there)


def _of_file(job: str, file: File, there: Mapping[str, Stored]) -> Iterator[Wrong]:
    found = [stored for key, stored in there.items() if file.url.endswith(f"/{key}")]
    if not found:
        yield Wrong("lost", job, f"{job}: {file.name} is not in the bucket at {file.url}")
    elif (found[0].bytes, found[0].sha256) != (file.bytes, file.sha256):
        yield Wrong("lost", job, f"{job}: {file.name} in the bucket is not the file of the output")


def outputs_name_each_file_once(evidence: Evidence) -> Iterator[Wrong]:
    for record in evidence.records:
        for name, times in Counter(file.name for file in record.files).items():
            if times > 1:
                said = f"{name} is {times} times in the output"
                yield Wrong("doubled", record.id, f"{record.id}: {said}")


def nothing_else_is_there(evidence: Evidence) -> Iterator[Wrong]:
    """Under a completed job lies only its output, under one without a bucket nothing."""
    links = {
        job: {file.url for file in record.files}
        for job, record in _completed_and_published(evidence)
    }
    links |= {job.id: set() for job in evidence.accepted if not job.published}
    for stored in evidence.bucket:
        for job in (job for job in links if job in stored.key):
            if not any(link.endswith(f"/{stored.key}") for link in links[job]):
                said = f"{stored.key} is in the bucket, and not in the output"
                yield Wrong("doubled", job, f"{job}: {said}")


# --- Each webhook is accepted, under one id ---------------------------------------------------


def webhooks_are_accepted(evidence: Evidence) -> Iterator[Wrong]:
    """Each run's end was accepted at least once; a cancelled run's is not told."""
    taken = _grouped(
        (post for post in _end_posts(evidence) if _is_taken(post)), lambda post: post.job
    )
    ends = _grouped((end for end in evidence.ends if _is_told(end)), lambda end: end.job)
    for job in (job.id for job in evidence.accepted if job.webhook):
        owed = len({end.run for end in ends.get(job, [])})
        accepted = len({post.webhook_id for post in taken.get(job, [])})
        if accepted < owed:
            said = f"{owed} webhooks were owed, and {accepted} were accepted"
            yield Wrong("lost", job, f"{job}: {said}")


def webhooks_have_one_id(evidence: Evidence) -> Iterator[Wrong]:
    """All posts of a run's end carry one id; who has no webhook gets none."""
    posts = _grouped(_end_posts(evidence), lambda post: post.job)
    ends = _grouped((end for end in evidence.ends if _is_told(end)), lambda end: end.job)
    owed = {job.id for job in evidence.accepted if job.webhook}
    for job, theirs in posts.items():
        ids = len({post.webhook_id for post in theirs})
        runs = len({end.run for end in ends.get(job, [])}) if job in owed else 0
        if ids > runs:
            said = f"webhooks of an end came under {ids} ids, and {runs} were owed"
            yield Wrong("doubled", job, f"{job}: {said}")


def webhooks_have_one_body(evidence: Evidence) -> Iterator[Wrong]:
    """All posts under one id say the same; the signature of a link may be a new one."""
    posts = _grouped(_end_posts(evidence), lambda post: (post.job, post.webhook_id))
    for (job, webhook), theirs in posts.items():
        bodies = len({_unsigned(post.body) for post in theirs})
        if bodies > 1:
            yield Wrong("doubled", job, f"{job}: the webhook {webhook} came with {bodies} bodies")


def _is_taken(post: Post) -> bool:
    return post.answer is not None and post.answer // 100 == 2


def _is_told(end: End) -> bool:
    return end.status != "CANCELLED"


def _end_posts(evidence: Evidence) -> list[Post]:
    return [post for post in evidence.posts if post.status in ENDS]


def _unsigned(body: bytes) -> bytes:
    """Links are signed when they are shown."""
    return re.sub(rb'(https?://[^"?]*)\?[^"]*', rb"\1", body)


# --- Nothing is left over ---------------------------------------------------------------------


def queues_are_empty(evidence: Evidence) -> Iterator[Wrong]:
    """No message waits, no delivery is in hand, and nothing is still to be said."""
    if not evidence.queues:
        yield Wrong("left over", "", "no queue was looked at")
    for queue in evidence.queues:
        if queue.ready or queue.unacked:
            said = f"{queue.ready} messages wait and {queue.unacked} are in hand"
            yield Wrong("left over", "", f"the queue {queue.queue} is not empty: {said}")
    for message in evidence.outbox:
        yield Wrong("left over", "", f"the outbox still holds {message}")


def nothing_is_left_of_jobs(evidence: Evidence) -> Iterator[Wrong]:
    """No folder, no process and no working file outlives the job that it was for."""
    for left in evidence.left:
        yield Wrong("left over", "", f"{left.what} is left in {left.where}")


def dead_letters_are_explained(evidence: Evidence) -> Iterator[Wrong]:
    """Nothing is buried that was not planted, and what was planted is buried."""
    planted = {sha256(body).hexdigest(): body for body in evidence.planted}
    buried = {letter.sha256 for letter in evidence.dead_letters}
    for letter in evidence.dead_letters:
        if letter.sha256 not in planted:
            said = f"out of {letter.queue}, because of {letter.reason}"
            yield Wrong("left over", "", f"a message was buried that nobody planted: {said}")
    for digest, body in planted.items():
        if digest not in buried:
            yield Wrong("lost", "", f"poison was planted and not buried: {body[:SHOWN]!r}")


# --- No secret stands anywhere ----------------------------------------------------------------


def secrets_stand_nowhere(evidence: Evidence) -> Iterator[Wrong]:
    for name, secret in evidence.secrets.items():
        if not secret:
            yield Wrong("leaked", "", f"the {name} is empty, and cannot be searched for")
            continue
        for text in evidence.texts:
            if secret.encode() in text.content:
                yield Wrong("leaked", "", f"the {name} stands in {text.place}")


# --- Parts ------------------------------------------------------------------------------------


def _ended(evidence: Evidence) -> list[Record]:
    return [record for record in evidence.records if record.status in ENDS]


def _completed_and_published(evidence: Evidence) -> Iterator[tuple[str, Record]]:
    published = {job.id for job in evidence.accepted if job.published}
    for record in evidence.records:
        if record.id in published and record.status == "COMPLETED":
            yield record.id, record


def _grouped(things: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    groups: dict[K, list[T]] = {}
    for thing in things:
        groups.setdefault(key(thing), []).append(thing)
    return groups


RULES: tuple[Callable[[Evidence], Iterable[Wrong]], ...] = (
    records_have_ended,
    ends_are_said_once,
    ends_are_final,
    artifacts_are_there,
    outputs_name_each_file_once,
    nothing_else_is_there,
    webhooks_are_accepted,
    webhooks_have_one_id,
    webhooks_have_one_body,
    queues_are_empty,
    nothing_is_left_of_jobs,
    dead_letters_are_explained,
    secrets_stand_nowhere,
)
