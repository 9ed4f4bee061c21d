"""The scripts of `deploy/` that make the secrets and start the S3 server."""

from __future__ import annotations

import asyncio
import configparser
import json
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.compose import DEPLOY, IN_CONTAINERS, OURS, make_secrets, read_compose
from tests.support.servers.s3 import S3Server

BROKER = {f"broker-password-{name}" for name in OURS}
MADE_UP = {"api-keys", "secret-key", "database-password", "s3-secret-key", *BROKER}
SECONDS = 30.0

# ----------------------------------------------------------------------------- make-secrets.sh


def contents(secrets: Path) -> dict[str, str]:
    return {path.name: path.read_text().strip() for path in secrets.iterdir()}


def test_every_secret_of_compose_is_made_and_no_two_are_alike(tmp_path: Path) -> None:
    made = contents(make_secrets(tmp_path))
    assert made.keys() == read_compose()["secrets"].keys() | BROKER
    assert len({made[name] for name in MADE_UP}) == len(MADE_UP)
    assert all(len(made[name]) == 64 for name in MADE_UP)


def test_servers_elsewhere_are_named_in_the_addresses(tmp_path: Path) -> None:
    hosts = {"RABBITMQ_HOST": "broker.internal:5672", "POSTGRES_HOST": "db.internal"}
    made = contents(make_secrets(tmp_path, hosts))
    assert {urlsplit(made[f"amqp-url-{name}"]).hostname for name in OURS} == {"broker.internal"}
    assert urlsplit(made["database-url"]).hostname == "db.internal"


def test_other_users_of_the_machine_do_not_get_at_them_but_containers_do(tmp_path: Path) -> None:
    secrets = make_secrets(tmp_path)
    secrets.chmod(0o755)
    make_secrets(tmp_path)
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets.iterdir()} == {0o644}


def test_what_is_there_stays_and_what_is_made_of_it_follows(tmp_path: Path) -> None:
    secrets = make_secrets(tmp_path)
    before = contents(secrets)
    (secrets / "broker-password-trainer").write_text("changed\n")
    (secrets / "s3-secret-key").write_text("with/slash+and=\n")
    (secrets / "hub-token").write_text("hf_token\n")

    after = contents(make_secrets(tmp_path))

    assert {name for name in after if after[name] != before[name]} == {
        "broker-password-trainer", "amqp-url-trainer", "rabbitmq-logins.json",
        "s3-secret-key", "aws-credentials", "hub-token",
    }  # fmt: skip
    assert after["amqp-url-trainer"] == "amqp://trainer:changed@rabbitmq:5672/"
    users = json.loads(after["rabbitmq-logins.json"])["users"]
    passwords = {user["name"]: user["password"] for user in users}
    assert passwords == {name: after[f"broker-password-{name}"] for name in OURS}
    aws = configparser.ConfigParser(interpolation=None)
    aws.read_string(after["aws-credentials"])
    assert dict(aws["default"]) == {
        "aws_access_key_id": "everydream",
        "aws_secret_access_key": "with/slash+and=",
    }


def test_those_of_an_earlier_deployment_are_taken_over_once(tmp_path: Path) -> None:
    former = {
        "EVERYDREAM_API_KEYS": "one,two", "EVERYDREAM_SECRET_KEY": "k" * 32,
        "HF_TOKEN": "hf_token", "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret",
        "POSTGRES_PASSWORD": "p" * 8, "RABBITMQ_NOTIFIER_PASSWORD": "n" * 8,
    }  # fmt: skip
    made = contents(make_secrets(tmp_path, former))
    assert (made["api-keys"], made["secret-key"]) == ("one,two", "k" * 32)
    assert (made["hub-token"], made["s3-access-key"], made["s3-secret-key"]) == (
        "hf_token", "id", "secret",
    )  # fmt: skip
    assert made["database-url"] == f"postgresql://everydream:{'p' * 8}@postgres:5432/everydream"
    assert made["broker-password-notifier"] == "n" * 8
    assert contents(make_secrets(tmp_path, former | {"EVERYDREAM_API_KEYS": "three"})) == made


@pytest.mark.parametrize("password", ["with@at", "with/slash", "two\nlines\n@", 'quoted"'])
def test_a_password_that_does_not_fit_into_an_address_is_named(
    tmp_path: Path, password: str
) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        make_secrets(tmp_path, {"POSTGRES_PASSWORD": password})
    assert b"deploy/secrets/database-password: only letters" in caught.value.stderr


# ----------------------------------------------------------------------------- s3-server.sh

FAKE_WEED = """#!/bin/sh
printf '%s\\n' "$@" >"$FOLDER/arguments"
env >"$FOLDER/environment"
exec sleep 600
"""


@contextmanager
def started(folder: Path, address: str) -> Iterator[subprocess.Popen[bytes]]:
    """The script with SeaweedFS's place taken; its bucket goes to the S3 server at this address."""
    script = (DEPLOY / "s3-server.sh").read_text()
    assert "http://127.0.0.1:8333/" in script
    script = script.replace("127.0.0.1:8333", address).replace(IN_CONTAINERS, f"{folder}/secrets/")
    weed = folder / "weed"
    weed.write_text(FAKE_WEED)
    weed.chmod(0o755)
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}", "FOLDER": str(folder), "S3_BUCKET": "made-here",
    }  # fmt: skip
    process = subprocess.Popen(
        ["/bin/sh", "-c", script], env=environment, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):  # all have ended
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


async def test_only_the_s3_interface_of_the_server_is_open_and_it_has_its_bucket(
    tmp_path: Path, s3_server: S3Server
) -> None:
    s3_server.start()
    secrets = make_secrets(
        tmp_path,
        {"AWS_ACCESS_KEY_ID": s3_server.access_key, "AWS_SECRET_ACCESS_KEY": s3_server.secret_key},
    )
    with started(tmp_path, urlsplit(s3_server.endpoint_url).netloc):
        async with asyncio.timeout(SECONDS), s3_server.client() as client:
            while "made-here" not in {b["Name"] for b in (await client.list_buckets())["Buckets"]}:
                await asyncio.sleep(0.1)
        said = (tmp_path / "arguments").read_text().split()
        environment = (tmp_path / "environment").read_text()

    for flag in (
        "server", "-dir=/data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3",
        "-s3.ip.bind=0.0.0.0", "-s3.port=8333", "-s3.port.iceberg=0", "-s3.port.lance=0",
    ):  # fmt: skip
        assert flag in said
    assert not any("0.0.0.0" in flag for flag in said if flag != "-s3.ip.bind=0.0.0.0")  # noqa: S104 - nothing listens
    assert not any(s3_server.secret_key in flag for flag in said)
    assert f"AWS_SECRET_ACCESS_KEY={(secrets / 's3-secret-key').read_text()}" in environment
    (signing,) = [
        line for line in environment.splitlines() if line.startswith("WEED_JWT_FILER_SIGNING_KEY=")
    ]
    assert len(signing.partition("=")[2]) == 44


@pytest.mark.parametrize("name", ["s3-access-key", "s3-secret-key"])
def test_the_server_does_not_start_open_to_everybody(tmp_path: Path, name: str) -> None:
    secrets = make_secrets(tmp_path)
    (secrets / name).write_text("")
    with started(tmp_path, "127.0.0.1:1") as process:
        _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert f"{name} is missing or empty" in said.decode()
    assert not (tmp_path / "arguments").exists()
