"""A program that speaks only AMQP, with a login of its own, runs a job and reads its facts."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pika
import pytest
from pika.exceptions import ChannelClosedByBroker

from tests.end_to_end.story import host_of, user_of
from tests.support.broker_logins import make_user
from tests.support.servers.rabbitmq import RabbitMQ
from tests.support.servers.s3 import S3Server
from tests.support.servers.web import Web
from tests.support.services import ROOT, WARM, running, shared_environment

SECONDS = 240
BOUND = """
lists:any(
  fun({binding, _, Key, {resource, _, _, Queue}, _}) ->
    {Queue, Key} == {<<"board.facts">>, <<"images.generated">>}
  end,
  rabbit_binding:list(<<"%s">>)
)
"""
SERVICES = ["gateway", "fetcher", "trainer", "inferencer", "notifier"]


@contextmanager
def example(name: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """An example in a process of its own, which imports nothing of ours."""
    command = [sys.executable, str(ROOT / "examples" / name), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd="/") as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.usefixtures("warm_children")
async def test_a_job_from_the_exchange_is_followed_to_its_end_by_producer_and_consumer(
    rabbitmq: RabbitMQ, postgres_url: str, s3_server: S3Server, s3_bucket: str, web: Web,
    tmp_path: Path,
) -> None:  # fmt: skip
    rabbitmq.start()
    vhost = rabbitmq.fresh_vhost()
    environment = shared_environment(
        amqp_url=rabbitmq.url(vhost), database_url=postgres_url, s3=s3_server, bucket=s3_bucket,
        HEARTBEAT="0.5", ALLOWED_PRIVATE_HOSTS=host_of(web.url()),
    )  # fmt: skip
    async with (
        running(SERVICES, environment, program=WARM) as services,
        user_of(services.first("gateway").url, web) as user,
    ):
        shop = await asyncio.to_thread(make_user, rabbitmq, "producer", "shop", vhost)
        board = await asyncio.to_thread(make_user, rabbitmq, "consumer", "board", vhost)
        file = tmp_path / "request.json"
        file.write_text(json.dumps(user.request()))
        with example("follow_facts.py", board, "board.facts") as following:
            await asyncio.to_thread(until_bound, rabbitmq, vhost)
            with example("submit_over_amqp.py", shop, str(file)) as submitting:
                told = await asyncio.to_thread(lines_of, submitting)
            assert [line.split()[1] for line in told] == [
                "job.requested", "job.started", "job.completed",
            ]  # fmt: skip
            job = told[0].split()[0]
            heard = await asyncio.to_thread(heard_until, following, "job.completed")
        assert {line.split()[2] for line in heard} == {"-", job}
        kinds = [line.split()[1] for line in heard]
        assert {"job.requested", "job.submitted", "training.started", "checkpoint.final"} <= set(
            kinds
        )
        with pytest.raises(Exception, match="404"):
            await user.client.status(job)

        file.write_text(json.dumps({"input": {"train": {"flip_p": 2}}}))
        with example("submit_over_amqp.py", shop, str(file)) as submitting:
            refused = (await asyncio.to_thread(lines_of, submitting))[1]
        assert "job.refused" in refused
        assert "data_url: required" in refused
        assert "flip_p: expected" in refused


@pytest.fixture(scope="module")
def logins(rabbitmq: RabbitMQ) -> dict[str, str]:
    """The address of a login of each kind."""
    rabbitmq.start()
    vhost = rabbitmq.fresh_vhost()
    with pika.BlockingConnection(pika.URLParameters(rabbitmq.url(vhost))) as connection:
        connection.channel().exchange_declare("everydream", "topic", durable=True)
    return {
        kind: make_user(rabbitmq, kind, f"a-{kind}", vhost) for kind in ("producer", "consumer")
    }


@pytest.mark.parametrize(
    ("kind", "key", "exchange"),
    [
        ("producer", "webhook.due", "everydream"),
        ("producer", "fetcher", ""),
        ("consumer", "job.requested", "everydream"),
        ("consumer", "trainer", ""),
    ],
)
def test_a_login_may_say_no_more_than_it_is_for(
    logins: dict[str, str], kind: str, key: str, exchange: str
) -> None:
    with pika.BlockingConnection(pika.URLParameters(logins[kind])) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        with pytest.raises(ChannelClosedByBroker, match="ACCESS_REFUSED"):
            channel.basic_publish(exchange, key, b"{}")


def lines_of(process: subprocess.Popen[str]) -> list[str]:
    printed, _ = process.communicate(timeout=SECONDS)
    return printed.splitlines()


def heard_until(process: subprocess.Popen[str], last: str) -> list[str]:
    assert process.stdout is not None
    heard: list[str] = []
    for line in process.stdout:
        heard.append(line)
        if line.split()[1] == last:
            break
    return heard


def until_bound(rabbitmq: RabbitMQ, vhost: str) -> None:
    """Wait until the consumer's queue hears all that it wants."""
    for _ in range(1000):
        if rabbitmq.evaluate(BOUND % vhost) == "true":
            return
        time.sleep(0.1)
    raise AssertionError("the example never bound its queue")
