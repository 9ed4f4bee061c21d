"""The files of `deploy/` fit the Compose specification, the project and the settings."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shared import settings
from shared.messaging.topology import MAX_MESSAGE_BYTES
from shared.settings import from_environment
from tests.support.compose import (
    DEPLOY,
    IN_CONTAINERS,
    OURS,
    environment_of,
    fill_in,
    give_secrets,
    make_secrets,
    our_services,
    read_compose,
    read_env,
)
from tests.support.servers.process import HOST
from tests.support.servers.rabbitmq import RabbitMQ

ROOT = DEPLOY.parent
COMPOSE = read_compose()
SERVICES = our_services(COMPOSE)
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
EXAMPLE = read_env(DEPLOY / ".env.example")


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_secrets(tmp_path_factory.mktemp("deploy"))


# ----------------------------------------------------------------------------- compose.yaml


def check_against_the_specification(path: Path) -> subprocess.CompletedProcess[str]:
    """By the schema included in check-jsonschema; nothing is downloaded."""
    command = ("-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path))
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("name", ["compose.yaml", "compose.own-s3.yaml", "compose.monitoring.yaml"])
def test_compose_fits_the_specification(name: str) -> None:
    checked = check_against_the_specification(DEPLOY / name)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("stop_grace_period: 11m", "stop_grace_periods: 11m"),
        ("condition: service_healthy", "condition: service_is_healthy"),
        ("capabilities: [gpu]", "kapabilities: [gpu]"),
    ],
)
def test_the_specification_finds_a_slip(tmp_path: Path, right: str, wrong: str) -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    assert right in text
    (tmp_path / "compose.yaml").write_text(text.replace(right, wrong))
    assert check_against_the_specification(tmp_path / "compose.yaml").returncode == 1


def test_every_service_of_ours_is_there_by_its_own_command() -> None:
    commands = {tuple(entry["command"]) for entry in SERVICES.values()}
    assert commands == {("everydream", "service", name) for name in OURS}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_built_as_what_it_runs_as(name: str) -> None:
    assert SERVICES[name]["build"]["args"]["SERVICE"] == SERVICES[name]["command"][-1]


@pytest.mark.parametrize(("profile", "suffix"), [("cpu", "-cpu"), ("gpu", "-gpu")])
def test_either_profile_runs_each_service_once(profile: str, suffix: str) -> None:
    started = [
        name for name, entry in SERVICES.items() if profile in entry.get("profiles", [profile])
    ]
    assert sorted(name.removesuffix(suffix) for name in started) == sorted(OURS)


def test_those_with_a_card_ask_for_one_and_the_others_do_not() -> None:
    asking = {name for name, entry in SERVICES.items() if "deploy" in entry}
    assert asking == {"trainer-gpu", "inferencer-gpu"}
    for name in asking:
        devices = SERVICES[name]["deploy"]["resources"]["reservations"]["devices"]
        assert devices[0]["capabilities"] == ["gpu"]


def test_a_service_starts_when_the_servers_that_it_needs_are_healthy() -> None:
    for name, entry in SERVICES.items():
        needed = {"rabbitmq", "s3"} | ({"postgres"} if name == "gateway" else set())
        assert set(entry["depends_on"]) == needed
        for server in needed:
            assert entry["depends_on"][server]["condition"] == "service_healthy"
            assert COMPOSE["services"][server]["healthcheck"]["test"]


def test_a_server_that_can_be_left_out_is_not_waited_for() -> None:
    for entry in SERVICES.values():
        for server, wait in entry["depends_on"].items():
            can_be_left_out = "profiles" in COMPOSE["services"][server]
            assert wait.get("required", True) is not can_be_left_out


def test_nothing_is_published_beyond_this_machine() -> None:
    published = [port for entry in COMPOSE["services"].values() for port in entry.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_what_is_kept_is_kept_under_a_name() -> None:
    kept = {
        volume.split(":")[0]
        for entry in COMPOSE["services"].values()
        for volume in entry.get("volumes", [])
        if not volume.startswith(".")
    }
    assert kept == set(COMPOSE["volumes"])


def test_the_broker_keeps_its_name_and_with_it_its_queues() -> None:
    assert COMPOSE["services"]["rabbitmq"]["hostname"]


def test_a_trainer_may_take_as_long_to_save_as_the_runtime_grants() -> None:
    from shared.worker.runtime import GRACE_HEARTBEATS  # noqa: PLC0415 - only this test needs it

    minutes = SERVICES["trainer-cpu"]["stop_grace_period"].removesuffix("m")
    assert int(minutes) * 60 > GRACE_HEARTBEATS * from_environment({}).heartbeat


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_healthy_once_it_is_ready(name: str) -> None:
    port = SERVICES[name]["environment"]["EVERYDREAM_METRICS_PORT"]
    assert f"http://127.0.0.1:{port}/readyz" in SERVICES[name]["healthcheck"]["test"][-1]


# ----------------------------------------------------------------------------- .env


def test_compose_needs_nothing_that_the_example_does_not_ask_for() -> None:
    fill_in((DEPLOY / "compose.yaml").read_text(), EXAMPLE)


def settings_of(entry: dict[str, Any], values: dict[str, str], secrets: Path) -> settings.Settings:
    """What a service's settings are with these values in ``.env``."""
    return from_environment(give_secrets(entry, environment_of(entry, values), secrets))


@pytest.mark.parametrize("name", SERVICES)
def test_the_settings_take_what_compose_gives_a_service(name: str, secrets: Path) -> None:
    found = settings_of(SERVICES[name], EXAMPLE, secrets)
    assert found.base_model == "tiny"
    assert found.store_url == "s3://everydream"
    assert found.store_public_endpoint == "http://localhost:8333"
    key = (secrets / "secret-key").read_text().strip()
    assert found.secret_key == (key if name in ("gateway", "notifier") else None)
    login = SERVICES[name]["command"][-1]
    password = (secrets / f"broker-password-{login}").read_text().strip()
    assert found.amqp_url == f"amqp://{login}:{password}@rabbitmq:5672/"


def test_without_a_public_endpoint_links_lead_to_the_server_itself(secrets: Path) -> None:
    values = EXAMPLE | {"EVERYDREAM_STORE_PUBLIC_ENDPOINT": ""}
    assert settings_of(SERVICES["fetcher"], values, secrets).store_public_endpoint is None


def test_optional_settings_reach_every_service(secrets: Path) -> None:
    values = EXAMPLE | {"EVERYDREAM_HEARTBEAT": "3"}
    for entry in SERVICES.values():
        assert settings_of(entry, values, secrets).heartbeat == 3


# ----------------------------------------------------------------------------- settings


def known_variables() -> set[str]:
    """Every variable that is read when all are missing."""

    class Asked(dict[str, str]):
        def get(self, key: str, default: Any = None) -> Any:
            asked.add(key)
            return default

    asked: set[str] = set()
    settings.from_environment(Asked())
    return {name for name in asked if not name.endswith("_FILE")}


def documented() -> dict[str, str]:
    """The lines of the table in docs/settings.md, by their variable."""
    lines = (ROOT / "docs/settings.md").read_text().splitlines()
    found = ((re.match(r"\| `(EVERYDREAM_\w+)` \|", line), line) for line in lines)
    return {match[1]: line for match, line in found if match}


DEFAULT_CELL, EXAMPLE_CELL = 1, 3


def cell(name: str, number: int) -> str:
    return documented()[name].strip("| ").split(" | ")[number].strip("`")


def value_of(name: str, environment: dict[str, str]) -> str:
    """The settings' value of a variable, as the docs would write it; empty for none."""
    value = getattr(from_environment(environment), name.removeprefix("EVERYDREAM_").lower())
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value or "")


def test_compose_and_the_image_set_only_what_the_settings_know() -> None:
    in_compose = {
        name.removesuffix("_FILE") for entry in SERVICES.values() for name in entry["environment"]
    }
    used = in_compose | set(EXAMPLE) | set(re.findall(r"\b(EVERYDREAM_\w+)=", DOCKERFILE))
    assert {name for name in used if name.startswith("EVERYDREAM_")} <= known_variables()


def test_every_setting_is_documented_and_no_other() -> None:
    former = {f"EVERYDREAM_{old}" for old in settings.RENAMED.values()}
    assert former <= known_variables()
    assert set(documented()) == known_variables() - former


@pytest.mark.parametrize(("new", "old"), settings.RENAMED.items())
def test_a_settings_former_name_is_documented_with_the_new_one(new: str, old: str) -> None:
    assert f"Formerly `EVERYDREAM_{old}`" in documented()[f"EVERYDREAM_{new}"]


@pytest.mark.parametrize("name", documented())
def test_the_example_of_a_setting_is_taken(name: str) -> None:
    assert value_of(name, {name: cell(name, EXAMPLE_CELL)}) != value_of(name, {})


@pytest.mark.parametrize("name", documented())
def test_the_default_of_a_setting_is_what_the_docs_say(name: str) -> None:
    home = str(Path("~/.everydream").expanduser())
    found = value_of(name, {}).replace(home, "~/.everydream")
    assert cell(name, DEFAULT_CELL) == (found or "none")


# ----------------------------------------------------------------------------- Dockerfile


def test_compose_sets_only_arguments_that_the_dockerfile_has() -> None:
    known = set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))
    for entry in SERVICES.values():
        assert set(entry["build"]["args"]) <= known
        assert (DEPLOY / entry["build"]["context"]).resolve() == ROOT
        assert (ROOT / entry["build"]["dockerfile"]) == DEPLOY / "Dockerfile"


def test_what_the_dockerfile_copies_is_there_and_not_ignored() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {
        word
        for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE)
        for word in line.split()[:-1]
        if not line.startswith("--from")
    }
    folders = ("deploy/requirements", "services")
    assert {
        next((each for each in folders if name.startswith(each)), name) for name in copied
    } == let_in
    assert all((ROOT / name).exists() for name in let_in)


def test_the_image_runs_as_an_ordinary_user() -> None:
    user = re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE)[-1]
    assert "useradd --system" in DOCKERFILE
    assert user not in {"root", "0"}


# ----------------------------------------------------------------------------- rabbitmq.conf


class ConfiguredBroker(RabbitMQ):
    """A private node under the configuration that we ship, and no other."""

    def __init__(self, secrets: Path) -> None:
        self._secrets = secrets
        super().__init__()

    def url(self, vhost: str = "/") -> str:
        """The gateway's address of it."""
        shipped = (self._secrets / "amqp-url-gateway").read_text().strip()
        return shipped.replace("rabbitmq:5672/", f"{HOST}:{self.port}/{vhost.replace('/', '%2F')}")

    def _write_settings(self) -> None:
        super()._write_settings()
        logins = (DEPLOY / "rabbitmq-logins.conf").read_text()
        assert IN_CONTAINERS in logins
        logins = logins.replace(IN_CONTAINERS, f"{self._secrets}/")
        configuration = (DEPLOY / "rabbitmq.conf").read_text() + logins
        (self.folder / "rabbitmq.conf").write_text(configuration)


def test_the_broker_understands_its_configuration_and_lets_the_services_in(secrets: Path) -> None:
    with ConfiguredBroker(secrets) as node:
        timeout = node.evaluate("application:get_env(rabbit, consumer_timeout)")
        limit = node.evaluate("rabbit_disk_monitor:get_disk_free_limit()")
        listed = node.ctl("list_users", "--no-table-headers").splitlines()
        largest = node.evaluate("application:get_env(rabbit, max_message_size)")
    assert timeout == "{ok, 608400000}"
    assert largest == f"{{ok, {MAX_MESSAGE_BYTES}}}"
    assert limit == str(2 * 10**9)
    assert sorted(line.split()[0] for line in listed) == sorted(OURS)


def test_compose_hands_its_configuration_to_the_broker() -> None:
    broker = COMPOSE["services"]["rabbitmq"]
    mounts = [volume.split(":") for volume in broker["volumes"]]
    sources = {target: source for source, target, *_ in mounts}
    assert sources["/etc/rabbitmq/conf.d/20-everydream.conf"] == "./rabbitmq.conf"
    assert sources["/etc/rabbitmq/conf.d/30-logins.conf"] == "./rabbitmq-logins.conf"
    assert "environment" not in broker, "else the image makes a login with all rights"
