"""Read the compose file with its anchors merged and its variables filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
OURS = ("gateway", "fetcher", "trainer", "inferencer", "notifier")

VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>\w+)(?:(?P<rule>:?[-?])(?P<text>[^}]*))?\})")
"""``${NAME}``, with a default after ``-`` or an error after ``?``; with ``:``, empty is unset."""


class MissingError(Exception):
    """A required variable is not set."""


def read_compose() -> dict[str, Any]:
    """The file with its anchors merged; variables are not replaced."""
    compose: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
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
        if value is None or (value == "" and ":" in rule):
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
