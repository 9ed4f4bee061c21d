"""What a process tells of itself from its start: its log, its traces, its first line."""

from __future__ import annotations

from dataclasses import fields

import structlog

from shared.settings import Settings, from_environment
from shared.telemetry import logs, tracing

SERVERS = ("amqp_url", "database_url", "store_url")
"""Settings that are logged in any case, without the logins in them."""

log = structlog.get_logger()


def begin_telemetry(service: str, settings: Settings) -> None:
    """Log from the level that is set on, and collect traces if the environment says where.

    The first line says what starts here, and with which settings.
    """
    logs.set_level(settings.log_level)
    if tracing.are_wanted():
        from shared.telemetry.spans import ExportedSpans  # noqa: PLC0415 - only if it is wanted

        tracing.collect(ExportedSpans(service))
    log.info("starting", **logs.of_this_process(), settings=for_the_log(settings))


def for_the_log(settings: Settings) -> dict[str, object]:
    """What a deployment has set, and where its servers are; without any secret."""
    defaults = from_environment({})
    told: dict[str, object] = {}
    for each in fields(Settings):
        value = getattr(settings, each.name)
        if each.name in SERVERS:
            told[each.name] = without_login(value)
        elif each.repr and value != getattr(defaults, each.name):
            told[each.name] = _plain(value)
    return told


def without_login(url: str) -> str:
    """A URL without the login in it, and without its query, in which there may be another."""
    scheme, mark, rest = url.partition("://")
    where, slash, path = rest.partition("?")[0].partition("/")
    return f"{scheme}{mark}{where.rpartition('@')[2]}{slash}{path}"


def _plain(value: object) -> object:
    match value:
        case bool() | int() | float():
            return value
        case frozenset() | tuple():
            return sorted(map(str, value))
        case str() if "://" in value:
            return without_login(value)
    return str(value)
