"""Programs that ask over the broker: whose job it is, and who hears what of it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pika
import pytest

from services.gateway.background.intake import (
    former_job_id_for,
    job_id_for,
    may_reply_to,
    owner_for,
)
from services.gateway.jobs.request_parser import Invalid
from shared.messaging.envelope import Envelope, envelope_for
from shared.messaging.messages import JobRefused, JobRequested, encode
from shared.messaging.topology import (
    EXCHANGE,
    FETCHER,
    QUEUES,
    RESERVED_NAMES,
    TRAINER,
    Queue,
)
from tests.support.broker_logins import make_user
from tests.support.compose import DEPLOY
from tests.support.gateway_world import REQUEST, S3_CONFIG, TRAIN_ONLY, World, world
from tests.support.servers.rabbitmq import RabbitMQ

WRONG = JobRequested(request={"input": {"train": {"flip_p": 2}}})
ASKED = JobRequested(request=TRAIN_ONLY)


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as opened:
        yield opened


def event(login: str | None, *, id_: str = "42", reply_to: str | None = None) -> Envelope:
    return Envelope(
        id=id_, source="/orders", type="job.requested", time="", user_id=login, reply_to=reply_to
    )


def ask(here: World, message: JobRequested, envelope: Envelope) -> str:
    """Ask as a login that the broker has verified; the id of the job."""
    assert here.broker.publish("job.requested", encode(message), envelope)
    return job_id_for(envelope)


def answers_to(here: World, login: str) -> Queue:
    queue = Queue(f"{login}.answers", ())
    here.broker.declare(queue)
    return queue


async def answer(here: World, queue: Queue) -> JobRefused:
    refused = await here.get(queue)
    assert isinstance(refused, JobRefused)
    return refused


# --- Whose job it is --------------------------------------------------------------------------


async def test_a_program_may_ask_over_the_broker_and_a_repeat_is_the_same_job(
    here: World,
) -> None:
    requested = JobRequested(request={**REQUEST, "s3Config": S3_CONFIG})
    await here.bus.publish(requested)
    await here.bus.publish(requested)
    submitted = await here.get(FETCHER)
    row = await here.jobs.get(submitted.job)
    assert row.owner == f"producer:{here.bus.source}"
    assert b"the-access-secret" not in row.record
    await here.bus.publish(JobRequested(request=TRAIN_ONLY))
    other = await here.get(FETCHER)
    assert other.job != submitted.job


async def test_two_logins_that_send_the_same_source_and_id_have_a_job_each(here: World) -> None:
    ours = ask(here, ASKED, event("shop"))
    theirs = ask(here, ASKED, event("mallory"))

    assert {(await here.get(FETCHER)).job, (await here.get(FETCHER)).job} == {ours, theirs}
    assert (await here.jobs.get(ours)).owner == "producer:shop"
    assert (await here.jobs.get(theirs)).owner == "producer:mallory"


async def test_a_wrong_request_of_one_login_is_no_word_about_the_job_of_another(
    here: World,
) -> None:
    ours = ask(here, ASKED, event("shop"))
    await here.get(FETCHER)
    theirs = ask(here, WRONG, event("mallory"))

    refused = await here.receive(JobRefused)

    assert refused.job == theirs != ours


def test_no_login_can_spell_the_id_of_another() -> None:
    parts = [("a", "b/c", "d"), ("a/b", "c", "d"), ("a", "b", "c/d"), ("", "a/b", "c/d")]

    ids = {
        job_id_for(Envelope(id=id_, source=source, type="", time="", user_id=login))
        for login, source, id_ in parts
    }

    assert len(ids) == len(parts)


async def test_a_job_that_was_admitted_before_ids_had_the_login_is_still_the_same_job(
    here: World,
) -> None:
    envelope = event("shop")
    former = former_job_id_for(envelope)
    admission = here.gateway._intake._admission
    await admission.admit(former, "producer:shop", TRAIN_ONLY)
    assert (await here.get(FETCHER)).job == former

    ask(here, ASKED, envelope)
    theirs = ask(here, ASKED, event("mallory"))

    assert (await here.get(FETCHER)).job == theirs
    assert await here.jobs.get(job_id_for(envelope)) is None


async def test_the_loser_of_a_collision_is_told_and_the_job_goes_on(here: World) -> None:
    queue = answers_to(here, "shop")
    job = ask(here, ASKED, event("shop"))
    await here.get(FETCHER)

    ask(here, JobRequested(request=REQUEST), event("shop", reply_to=queue.name))

    refused = await answer(here, queue)
    assert refused.job == job
    assert "cloudEvents_source and cloudEvents_id: used for another request" in refused.mistakes[0]
    assert await here.receive(JobRefused) == refused
    assert (await here.jobs.get(job)).status == "IN_QUEUE"


def test_who_does_not_name_a_login_owns_nothing() -> None:
    nobody = envelope_for(JobRequested(request=REQUEST), source="somewhere")

    with pytest.raises(Invalid, match="user_id: expected the login"):
        owner_for(nobody)


# --- Who hears of it --------------------------------------------------------------------------


async def test_a_program_with_a_wrong_request_gets_all_its_mistakes(here: World) -> None:
    queue = answers_to(here, "shop")

    ask(here, WRONG, event("shop", reply_to=queue.name))

    refused = await answer(here, queue)
    assert len(refused.mistakes) == 2
    assert await here.receive(JobRefused) == refused
    assert not here.broker.dead_letters


@pytest.mark.parametrize("login", ["mallory", "sho", "shop.answer", None])
async def test_nothing_is_sent_to_a_queue_of_another_and_who_named_it_is_told_why(
    here: World, login: str | None
) -> None:
    queue = answers_to(here, "shop")

    ask(here, WRONG, event(login, reply_to=queue.name))
    told = await here.receive(JobRefused)
    last = ask(here, WRONG, event("shop", reply_to=queue.name))

    assert "reply_to: nothing is sent there" in told.mistakes[-1]
    assert (await answer(here, queue)).job == last
    assert await here.bus.depth(queue) == 0


def test_no_login_may_have_a_reply_sent_to_a_queue_of_ours() -> None:
    ours = [*(queue.name for queue in QUEUES), "control.trainer/host-1.0123", "everydream.dead"]
    logins = {name.partition(".")[0] for name in ours} | {"shop", "guest", "", "amq"}

    assert not [(queue, each) for queue in ours for each in logins if may_reply_to(queue, each)]
    assert not may_reply_to("amq.gen-JzTY20BRgKO-HjmUJj0wLg", "amq")


@pytest.mark.parametrize("name", sorted(RESERVED_NAMES))
def test_the_script_makes_no_login_that_would_own_queues_of_ours(name: str) -> None:
    made = subprocess.run(
        [DEPLOY / "rabbitmq-users.sh", "producer", name], input="secret\n", text=True, check=False,
        capture_output=True, env={"RABBITMQCTL": "true", "PATH": os.environ["PATH"]},
    )  # fmt: skip

    assert made.returncode == 2
    assert "take another name" in made.stderr


async def test_no_refusal_is_sent_to_a_queue_of_ours(here: World) -> None:
    wrong = JobRequested(request={"input": {}})

    await here.bus.publish(wrong, reply_to=TRAINER.name)

    await here.receive(JobRefused)
    assert await here.bus.depth(TRAINER) == 0


async def test_a_login_hears_by_a_queue_of_its_own_and_by_direct_reply(
    rabbitmq: RabbitMQ, tmp_path: Path
) -> None:
    rabbitmq.start()
    vhost = rabbitmq.fresh_vhost()
    async with world(tmp_path, amqp_url=rabbitmq.url(vhost)):
        login = f"shop-{vhost}"
        url = await asyncio.to_thread(make_user, rabbitmq, "producer", login, vhost)
        for queue in (f"{login}.answers", "amq.rabbitmq.reply-to"):
            said = await asyncio.to_thread(refusal_over_amqp, url, login, queue)
            assert said["type"] == "job.refused"
            assert len(said["mistakes"]) == 2


def refusal_over_amqp(url: str, login: str, queue: str) -> dict[str, Any]:
    """What a producer gets on the queue that it names."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        if not queue.startswith("amq."):
            channel.queue_declare(queue, exclusive=True)
        heard: list[dict[str, Any]] = []
        channel.basic_consume(queue, lambda *told: heard.append(json.loads(told[3])), auto_ack=True)
        properties = pika.BasicProperties(user_id=login, reply_to=queue, message_id="1")
        channel.basic_publish(EXCHANGE, "job.requested", encode(WRONG), properties)
        deadline = time.monotonic() + 60
        while not heard:
            assert time.monotonic() < deadline, "nothing came"
            connection.process_data_events(time_limit=0.1)
        return heard[0]
