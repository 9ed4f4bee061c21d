"""What is known of a run of the product once it is quiet, as data.

:mod:`tests.faults.evidence` gathers it, :mod:`tests.faults.ledger` judges it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """A job whose submission was answered with an id, and what it owes to its user."""

    id: str
    published: bool = False
    """It has a bucket of the user's."""
    webhook: bool = False
    """It has a webhook, of its end alone."""


@dataclass(frozen=True, kw_only=True)
class End:
    """A fact heard on the exchange that ends a run; ``body`` is the message as it came."""

    job: str
    run: int
    status: str
    body: bytes


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A status that the record was given, in the order of the record's versions."""

    job: str
    run: int
    status: str


@dataclass(frozen=True, kw_only=True)
class File:
    """An artifact that a job's output names; ``url`` without its query."""

    name: str
    bytes: int
    sha256: str
    url: str


@dataclass(frozen=True, kw_only=True)
class Record:
    """A job as it stands at last; ``told`` is the status by HTTP, ``files`` those of the output."""

    id: str
    run: int
    status: str
    told: str
    files: tuple[File, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Stored:
    """An object in the users' bucket."""

    key: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Post:
    """A webhook as the receiver saw it; ``answer`` is the status it gave, None: never a word."""

    job: str
    status: str
    """Of the job, in the body."""
    webhook_id: str
    body: bytes
    answer: int | None


@dataclass(frozen=True, kw_only=True)
class Depth:
    """A queue of the broker, in messages."""

    queue: str
    ready: int
    unacked: int


@dataclass(frozen=True, kw_only=True)
class Buried:
    """A dead letter; ``sha256`` of the body as it came."""

    queue: str
    reason: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Left:
    """Something that should have gone with its job, and has not."""

    what: str
    where: str


@dataclass(frozen=True, kw_only=True)
class Text:
    """Something durable that is searched for secrets, and where it stands."""

    place: str
    content: bytes


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that is known of a run of the product, gathered once it is quiet."""

    accepted: tuple[Accepted, ...] = ()
    ends: tuple[End, ...] = ()
    history: tuple[Turn, ...] = ()
    records: tuple[Record, ...] = ()
    bucket: tuple[Stored, ...] = ()
    posts: tuple[Post, ...] = ()
    queues: tuple[Depth, ...] = ()
    """All but the witness's."""
    outbox: tuple[str, ...] = ()
    """Ids of messages that have not left."""
    left: tuple[Left, ...] = ()
    """Of jobs that have ended, although they had time to go."""
    dead_letters: tuple[Buried, ...] = ()
    planted: tuple[bytes, ...] = ()
    """Bodies that the test put on the broker to be buried."""
    secrets: Mapping[str, str] = field(default_factory=dict)
    """What must stand nowhere, by what it is."""
    texts: tuple[Text, ...] = ()
