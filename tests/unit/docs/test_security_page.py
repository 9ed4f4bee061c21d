"""The page on security agrees with what is deployed, and names only what is there."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import pytest

from services.gateway.endpoints.routes import ROUTE_CLASSES
from services.gateway.web.routing import routes_of
from shared.messaging.messages import AnyMessage, type_of
from shared.messaging.topology import DEAD_LETTERS, EXCHANGE, QUEUES
from tests.support.broker_logins import definitions
from tests.support.compose import OURS, read_compose, seen_from, sees_the_outside

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "security.md").read_text()
TYPES = sorted(type_of(kind) for kind in get_args(AnyMessage))
NAMES = [*(queue.name for queue in QUEUES), EXCHANGE, DEAD_LETTERS]
DEPLOYED = definitions()
SECRETS = {
    "API keys": "api-keys",
    "secret key": "secret-key",
    "webhook secret": "webhook-secret",
    "of the database": "database-url",
    "of the store": "aws-credentials",
    "`HF_TOKEN`": "hub-token",
}
"""What the page calls a secret, and what the compose file does."""


def right_of(kind: str, login: str) -> dict[str, str]:
    (found,) = [entry for entry in DEPLOYED[kind] if entry["user"] == login]
    patterns: dict[str, str] = found
    return patterns


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """As the broker does it: anywhere, unless the pattern says where."""
    return [name for name in names if re.search(pattern, name)]


def cell(names: list[str]) -> str:
    return "everything" if names == TYPES else ", ".join(f"`{name}`" for name in names)


def row_of(login: str) -> str:
    """What a login may, as the page's table has it."""
    rights, topics = right_of("permissions", login), right_of("topic_permissions", login)
    cells = (
        cell(matching(rights["configure"], NAMES)),
        cell(matching(topics["write"], TYPES)),
        cell(matching(topics["read"], TYPES)),
        "yes" if matching(rights["write"], ["amq.default"]) else "no",
    )
    return f"| `{login}` | {' | '.join(cells)} |"


def test_the_logins_are_the_services() -> None:
    assert [user["name"] for user in DEPLOYED["users"]] == list(OURS)
    assert all(user["tags"] == [] for user in DEPLOYED["users"])
    table = PAGE.partition("### Logins on the broker")[2].partition("## Rules")[0]
    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == list(OURS)


@pytest.mark.parametrize("login", OURS)
def test_the_table_of_rights_is_what_is_deployed(login: str) -> None:
    assert row_of(login) in PAGE.splitlines()


@pytest.mark.parametrize("login", OURS)
def test_a_pattern_matches_whole_names_only(login: str) -> None:
    every = right_of("permissions", login) | right_of("topic_permissions", login)
    patterns = [every[right] for right in ("configure", "write", "read")]
    assert all(pattern.startswith("^") and pattern.endswith("$") for pattern in patterns)


@pytest.mark.parametrize("login", OURS)
def test_what_is_made_is_read_and_bound_too(login: str) -> None:
    rights = right_of("permissions", login)
    made = set(matching(rights["configure"], NAMES))
    assert made <= set(matching(rights["write"], NAMES))
    assert made <= set(matching(rights["read"], NAMES))


def entries_of(login: str) -> dict[str, dict[str, Any]]:
    """The services of the compose file that run as this one."""
    services = read_compose()["services"].items()
    found = {name: e for name, e in services if e.get("command", [""])[-1] == login}
    assert found
    return found


def access_of(login: str) -> tuple[str, str]:
    """What the page says that a service connects to, and which secrets it has."""
    ((reached, held),) = re.findall(rf"^\| {login} \| (broker.*) \| (.*) \|$", PAGE, re.MULTILINE)
    return reached, held


@pytest.mark.parametrize("login", OURS)
def test_a_service_is_given_the_secrets_that_the_page_names(login: str) -> None:
    _, held = access_of(login)
    named = {name for words, name in SECRETS.items() if words in held}
    for entry in entries_of(login).values():
        assert set(entry["secrets"]) == named | {f"amqp-url-{login}"}


@pytest.mark.parametrize("login", OURS)
def test_a_service_reaches_what_the_page_names(login: str) -> None:
    reached, _ = access_of(login)
    words = {"broker": "rabbitmq", "store": "s3", "database": "postgres"}
    for name in (alike := entries_of(login)):
        named = {server for word, server in words.items() if word in reached}
        assert seen_from(read_compose(), name) - alike.keys() == named
        assert sees_the_outside(read_compose(), name) is ("through the guard" in reached)


def test_the_page_names_what_answers_without_a_key() -> None:
    (told,) = re.findall(r"^These answer without a key: (.*)\.$", PAGE, re.MULTILINE)
    routes = [route for kind in ROUTE_CLASSES for _, route in routes_of(kind)]
    open_routes = {route.path for route in routes if not route.needs}
    named = {path.replace("/...", "/{key:.+}") for path in re.findall(r"`(/[^`]*)`", told)}
    assert named == open_routes


def test_every_file_on_the_page_is_there() -> None:
    named: Any = re.findall(r"`((?:services|shared|tests|deploy)/[\w/.-]+)`", PAGE)
    assert len(set(named)) > 25
    assert [name for name in named if not (ROOT / name).exists()] == []
