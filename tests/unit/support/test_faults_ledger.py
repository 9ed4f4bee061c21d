"""The ledger finds each loss that is planted in it, and nothing in a clean one."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest

from tests.faults.facts import (
    Accepted,
    Buried,
    Depth,
    End,
    Evidence,
    File,
    Left,
    Post,
    Record,
    Stored,
    Text,
    Turn,
)
from tests.faults.ledger import check, totals

DONE, BROKE, GONE, PLAIN = "job-done", "job-broke", "job-gone", "job-plain"
"""Completed into a bucket; failed, retried and completed; cancelled; without bucket or webhook."""
LINK = "https://s3.example.com/theirs"
POISON = b'{"type": "no.such"}'
SECRETS = {
    "API key": "the-api-key",
    "secret key": "the-secret-key",
    "s3 secret": "the-s3-secret",
    "webhook secret": "the-webhook-secret",
    "broker's password": "the-amqp-password",
    "database's password": "the-database-password",
}
PLACES = ("the log of gateway 0", "message job.completed", "row of jobs", "artifact a/model")


def end(job: str, status: str = "COMPLETED", run: int = 1, body: bytes = b"") -> End:
    return End(job=job, run=run, status=status, body=body or f"{job} {run} {status}".encode())


def turns(job: str, *statuses: str, run: int = 1) -> tuple[Turn, ...]:
    return tuple(Turn(job=job, run=run, status=status) for status in statuses)


def file(job: str, name: str = "last.safetensors") -> File:
    digest = sha256(f"{job}{name}".encode()).hexdigest()
    return File(name=name, bytes=9, sha256=digest, url=f"{LINK}/{job}/{name}")


def stored(of: File) -> Stored:
    key = of.url.removeprefix(f"{LINK}/")
    return Stored(key=key, bytes=of.bytes, sha256=of.sha256)


def post(job: str, status: str = "COMPLETED", run: int = 1, **others: Any) -> Post:
    body = f'{{"id": "{job}", "url": "{LINK}/{job}?signature=1"}}'.encode()
    given: dict[str, Any] = {"webhook_id": f"{job}-{run}", "body": body, "answer": 200}
    return Post(job=job, status=status, **(given | others))


def record(job: str, status: str = "COMPLETED", run: int = 1, *files: File) -> Record:
    return Record(id=job, run=run, status=status, told=status, files=files)


FILES = (file(DONE), file(DONE, "image-0.png"), file(BROKE))
CLEAN = Evidence(
    accepted=(
        Accepted(id=DONE, published=True, webhook=True),
        Accepted(id=BROKE, published=True, webhook=True),
        Accepted(id=GONE, published=True, webhook=True),
        Accepted(id=PLAIN),
    ),
    ends=(
        end(DONE), end(DONE), end(BROKE, "FAILED"), end(BROKE, run=2),
        end(GONE, "CANCELLED"), end(PLAIN),
    ),
    history=(
        *turns(DONE, "IN_QUEUE", "IN_PROGRESS", "COMPLETED"),
        *turns(BROKE, "IN_QUEUE", "FAILED"), *turns(BROKE, "IN_QUEUE", "COMPLETED", run=2),
        *turns(GONE, "IN_QUEUE", "CANCELLED"),
        *turns(PLAIN, "IN_QUEUE", "IN_PROGRESS", "COMPLETED"),
    ),
    records=(
        record(DONE, "COMPLETED", 1, *FILES[:2]), record(BROKE, "COMPLETED", 2, FILES[2]),
        record(GONE, "CANCELLED"), record(PLAIN, "COMPLETED", 1, file(PLAIN)),
    ),
    bucket=(*map(stored, FILES), Stored(key=f"{GONE}/last.safetensors", bytes=1, sha256="")),
    posts=(
        post(DONE, answer=500), post(DONE, answer=None), post(DONE),
        post(BROKE, "FAILED"), post(BROKE, run=2), post(DONE, "IN_PROGRESS", webhook_id="begun"),
    ),
    queues=(Depth(queue="trainer", ready=0, unacked=0),),
    dead_letters=(Buried(queue="fetcher", reason="?", sha256=sha256(POISON).hexdigest()),),
    planted=(POISON,),
    secrets=SECRETS,
    texts=tuple(Text(place=place, content=b"the-api of the secret") for place in PLACES),
)  # fmt: skip


def found(**planted: Any) -> str:
    """The one sentence about what is planted in a clean ledger."""
    (sentence,) = check(replace(CLEAN, **planted))
    return sentence


def without(things: tuple[Any, ...], *gone: Any) -> tuple[Any, ...]:
    return tuple(thing for thing in things if thing not in gone)


def swapped(things: tuple[Any, ...], old: Any, new: Any) -> tuple[Any, ...]:
    assert old in things
    return tuple(new if thing == old else thing for thing in things)


def test_a_clean_ledger_comes_out_clean() -> None:
    assert check(CLEAN) == []


def test_the_totals_count_every_job_every_run_and_what_is_wrong() -> None:
    clean = totals(CLEAN)
    assert (clean.accepted, clean.runs, clean.completed, clean.cancelled) == (4, 5, 3, 1)
    assert (clean.files, clean.posts, clean.buried) == (4, 6, 1)
    assert (clean.lost, clean.doubled, clean.wrong) == (0, 0, 0)
    twice = (*CLEAN.ends, end(DONE, "FAILED"))
    bad = totals(replace(CLEAN, bucket=CLEAN.bucket[1:], ends=twice))
    assert (bad.lost, bad.doubled, bad.wrong) == (1, 1, 2)


# --- Ends -------------------------------------------------------------------------------------


def test_a_job_without_a_record_is_lost() -> None:
    records = CLEAN.records[:3]
    ends = without(CLEAN.ends, end(PLAIN))
    assert found(records=records, ends=ends) == f"{PLAIN}: it has 0 records, not one"


def test_a_job_that_has_not_ended_is_lost() -> None:
    waiting = swapped(CLEAN.records, record(GONE, "CANCELLED"), record(GONE, "IN_QUEUE"))
    ends = without(CLEAN.ends, end(GONE, "CANCELLED"))
    said = f"{GONE}: it has not ended, it is IN_QUEUE"
    assert found(records=waiting, ends=ends) == said


def test_a_client_that_sees_another_end_than_the_recorded_one_is_misinformed() -> None:
    told = replace(record(GONE, "CANCELLED"), told="COMPLETED")
    records = swapped(CLEAN.records, record(GONE, "CANCELLED"), told)
    assert "its record is CANCELLED, but a client is told COMPLETED" in found(records=records)


def test_an_end_that_was_not_received_is_lost() -> None:
    ends = without(CLEAN.ends, end(PLAIN))
    assert found(ends=ends) == f"{PLAIN}: no end was heard of run 1"


def test_the_end_of_an_earlier_run_must_have_been_received_too() -> None:
    no_keepalive = without(CLEAN.ends, end(BROKE, "FAILED"))
    posts = without(CLEAN.posts, post(BROKE, "FAILED"))
    assert found(ends=no_keepalive, posts=posts) == f"{BROKE}: no end was heard of run 1"


def test_two_ends_of_one_run_are_one_too_many() -> None:
    ends = (*CLEAN.ends, end(DONE, "FAILED"))
    said = f"{DONE}: different ends were heard of run 1: ['COMPLETED', 'FAILED']"
    assert found(ends=ends) == said


def test_one_status_with_two_outputs_is_two_ends() -> None:
    ends = (*CLEAN.ends, end(DONE, body=b"another output"))
    assert "different ends were heard of run 1" in found(ends=ends)


def test_an_end_that_is_received_but_not_recorded_is_wrong() -> None:
    ends = swapped(CLEAN.ends, end(PLAIN), end(PLAIN, "FAILED"))
    assert "run 1 ended COMPLETED by its record, but FAILED was heard" in found(ends=ends)


def test_the_end_of_a_run_that_never_was_is_wrong() -> None:
    ends = (*CLEAN.ends, end(PLAIN, run=2))
    assert found(ends=ends) == f"{PLAIN}: an end was heard of run 2, which never was"


def test_an_end_after_an_end_is_wrong() -> None:
    history = (*CLEAN.history, *turns(GONE, "COMPLETED"))
    assert "goes on after its end: ['IN_QUEUE', 'CANCELLED', 'COMPLETED']" in found(history=history)


def test_a_run_that_goes_on_after_its_end_is_wrong() -> None:
    history = (*CLEAN.history, *turns(GONE, "IN_PROGRESS"))
    assert "the history of run 1 goes on after its end" in found(history=history)


def test_a_history_without_an_end_is_wrong() -> None:
    history = without(CLEAN.history, *turns(GONE, "CANCELLED"))
    assert found(history=history) == f"{GONE}: the history of run 1 has no end: ['IN_QUEUE']"


# --- Effects ----------------------------------------------------------------------------------


def test_a_missing_artifact_is_lost() -> None:
    said = f"{DONE}: last.safetensors is not in the bucket at {LINK}/{DONE}/last.safetensors"
    assert found(bucket=CLEAN.bucket[1:]) == said


@pytest.mark.parametrize("damage", [{"bytes": 8}, {"sha256": "0" * 64}], ids=["size", "content"])
def test_a_damaged_artifact_is_lost(damage: dict[str, Any]) -> None:
    bucket = (replace(CLEAN.bucket[0], **damage), *CLEAN.bucket[1:])
    said = f"{DONE}: last.safetensors in the bucket is not the file of the output"
    assert found(bucket=bucket) == said


def test_a_completed_job_without_any_artifact_has_lost_them() -> None:
    records = (record(DONE), *CLEAN.records[1:])
    said = f"{DONE}: it has completed, and its output names no file"
    assert found(records=records, bucket=CLEAN.bucket[2:]) == said


def test_an_artifact_that_the_output_names_twice_is_doubled() -> None:
    records = (record(DONE, "COMPLETED", 1, *FILES[:2], FILES[0]), *CLEAN.records[1:])
    assert found(records=records) == f"{DONE}: last.safetensors is 2 times in the output"


@pytest.mark.parametrize("place", [f"{DONE}/again/last.safetensors", f"elsewhere/{DONE}/x"])
def test_whatever_else_lies_under_a_completed_job_is_doubled(place: str) -> None:
    bucket = (*CLEAN.bucket, replace(CLEAN.bucket[0], key=place))
    assert found(bucket=bucket) == f"{DONE}: {place} is in the bucket, and not in the output"


def test_a_job_without_a_bucket_has_nothing_in_it() -> None:
    bucket = (*CLEAN.bucket, stored(file(PLAIN)))
    assert f"{PLAIN}/last.safetensors is in the bucket" in found(bucket=bucket)


# --- Webhooks ---------------------------------------------------------------------------------


def test_a_webhook_that_was_never_accepted_is_lost() -> None:
    posts = without(CLEAN.posts, post(DONE))
    assert found(posts=posts) == f"{DONE}: 1 webhooks were owed, and 0 were accepted"


def test_the_webhook_of_each_run_is_owed() -> None:
    posts = without(CLEAN.posts, post(BROKE, "FAILED"))
    assert found(posts=posts) == f"{BROKE}: 2 webhooks were owed, and 1 were accepted"


def test_a_second_webhook_id_is_a_doubled_effect() -> None:
    posts = (*CLEAN.posts, post(DONE, webhook_id="another"))
    said = f"{DONE}: webhooks of an end came under 2 ids, and 1 were owed"
    assert found(posts=posts) == said


def test_a_webhook_that_nobody_asked_for_is_wrong() -> None:
    posts = (*CLEAN.posts, post(PLAIN))
    assert "1 ids, and 0 were owed" in found(posts=posts)


def test_a_webhook_that_says_something_else_the_second_time_is_wrong() -> None:
    posts = (*CLEAN.posts, post(DONE, body=b"something else"))
    assert found(posts=posts) == f"{DONE}: the webhook {DONE}-1 came with 2 bodies"


def test_a_link_that_is_signed_anew_is_the_same_link() -> None:
    again = post(DONE, body=post(DONE).body.replace(b"signature=1", b"signature=2&more=3"))
    assert check(replace(CLEAN, posts=(*CLEAN.posts, again))) == []


# --- What is left over ------------------------------------------------------------------------


@pytest.mark.parametrize(("ready", "unacked"), [(1, 0), (0, 1)])
def test_a_queue_with_one_message_is_not_empty(ready: int, unacked: int) -> None:
    queues = (*CLEAN.queues, Depth(queue="fetcher", ready=ready, unacked=unacked))
    assert "the queue fetcher is not empty" in found(queues=queues)


def test_queues_that_nobody_looked_at_are_not_empty() -> None:
    assert found(queues=()) == "no queue was looked at"


def test_a_message_that_has_not_left_the_outbox_is_left_over() -> None:
    assert found(outbox=("job/3/0",)) == "the outbox still holds job/3/0"


def test_what_outlives_its_job_is_left_over() -> None:
    left = Left(what="a job's folder", where="the scratch of trainer 2")
    assert found(left=(left,)) == "a job's folder is left in the scratch of trainer 2"


def test_an_unexplained_dead_letter_is_reported_with_its_reason() -> None:
    letter = Buried(queue="trainer", reason="delivery_limit", sha256="0" * 64)
    said = found(dead_letters=(*CLEAN.dead_letters, letter))
    assert "nobody planted: out of trainer, because of delivery_limit" in said


def test_poison_that_was_not_dead_lettered_is_lost() -> None:
    assert "poison was planted and not buried: b'{" in found(dead_letters=())


# --- Secrets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("secret", SECRETS)
def test_each_secret_is_found_in_each_place(secret: str, place: str) -> None:
    leak = Text(place=place, content=f"before {SECRETS[secret]} after".encode())
    assert found(texts=(*CLEAN.texts, leak)) == f"the {secret} stands in {place}"


def test_a_secret_that_is_not_known_cannot_be_searched_for() -> None:
    assert found(secrets={"API key": ""}) == "the API key is empty, and cannot be searched for"
