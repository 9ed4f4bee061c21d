"""Read the compose file with its anchors merged and its variables filled in; make its secrets."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
OURS = ("gateway", "fetcher", "trainer", "inferencer", "notifier")

VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>\w+)(?:(?P<rule>:?[-?+])(?P<text>[^}]*))?\})")
"""``${NAME}``, with a default after ``-``, an error after ``?`` or a replacement after ``+``; with
``:``, empty is unset."""
IN_CONTAINERS = "/run/secrets/"
"""Where a container finds the secrets that it is given."""
ICC, MASQUERADE = (
    f"com.docker.network.bridge.enable_{option}" for option in ("icc", "ip_masquerade")
)
"""Whether a network's containers see one another, and whether they get out; both by default."""


class MissingError(Exception):
    """A required variable is not set."""


def read_compose(name: str = "compose.yaml") -> dict[str, Any]:
    """The file with its anchors merged; variables are not replaced."""
    compose: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text())
    return compose


def our_services(compose: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The services that are built from this repository."""
    return {name: entry for name, entry in compose["services"].items() if "build" in entry}


def environment_of(entry: Mapping[str, Any], values: Mapping[str, str]) -> dict[str, str]:
    """A container's environment with these values in ``.env``."""
    filled = {
        key: values.get(key) if text is None else fill_in(text, values)
        for key, text in entry["environment"].items()
    }
    return {key: text for key, text in filled.items() if text is not None}


def give_secrets(
    entry: Mapping[str, Any], environment: Mapping[str, str], secrets: Path
) -> dict[str, str]:
    """A container's environment, with the paths of those secrets that it gets as they are here.

    A path that it is not given stays as it is, and is not there.
    """
    given = {IN_CONTAINERS + name: str(secrets / name) for name in entry.get("secrets", [])}
    return {name: given.get(text, text) for name, text in environment.items()}


def make_secrets(
    folder: Path, values: Mapping[str, str] | None = None, *, into: str = "secrets"
) -> Path:
    """Run ``make-secrets.sh`` beside what it reads, in this folder; the folder of secrets.

    That is ``into``, below the folder. ``values`` are environment variables that it may take some
    from.

    Raises:
        CalledProcessError: it failed.
    """
    for name in ("make-secrets.sh", "rabbitmq-logins.json"):
        if not (folder / name).exists():
            shutil.copy(DEPLOY / name, folder)
    environment = {"PATH": os.environ["PATH"], **(values or {})}
    command: list[Path | str] = [folder / "make-secrets.sh", *([into] if into != "secrets" else [])]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return folder / into


def seen_from(compose: Mapping[str, Any], name: str) -> set[str]:
    """The services to which a service can open a connection."""
    networks = {
        network for network in compose["services"][name]["networks"]
        if _option(compose, network, ICC)
    }  # fmt: skip
    return {
        other for other, entry in compose["services"].items() if networks & {*entry["networks"]}
    } - {name}


def sees_the_outside(compose: Mapping[str, Any], name: str) -> bool:
    """Whether a service can open a connection to other machines."""
    return any(
        not (compose["networks"][network] or {}).get("internal")
        and _option(compose, network, MASQUERADE)
        for network in compose["services"][name]["networks"]
    )


def _option(compose: Mapping[str, Any], network: str, option: str) -> bool:
    options = (compose["networks"][network] or {}).get("driver_opts", {})
    return bool(options.get(option, "true") == "true")


def fill_in(text: str, values: Mapping[str, str]) -> str:
    """Replace every variable by its value.

    Raises:
        MissingError: a required variable is not set.
    """

    def value_of(match: re.Match[str]) -> str:
        name = match["name"]
        if name is None:
            return "$"
        rule, value = match["rule"] or "", values.get(name)
        missing = value is None or (value == "" and ":" in rule)
        if "+" in rule:
            return "" if missing else match["text"]
        if value is None or missing:
            return _default_or_raise(name, rule, match["text"] or "")
        return value

    return VARIABLE.sub(value_of, text)


def _default_or_raise(name: str, rule: str, text: str) -> str:
    if "?" in rule:
        raise MissingError(f"{name}: {text}")
    return text


def read_env(path: Path) -> dict[str, str]:
    """The variables of an ``.env`` file."""
    lines = (line.strip() for line in path.read_text().splitlines())
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}
