"""Structured logs: one line per event, readable on a terminal, JSON elsewhere."""

from __future__ import annotations

import atexit
import logging
import os
import socket
import sys
from typing import Any

import structlog
from structlog.typing import Processor

from shared.release import release
from shared.telemetry.repeats import Line, Repeats
from shared.telemetry.tracing import trace_id

NOISY = ("aiormq", "aio_pika", "aiobotocore", "botocore", "alembic", "httpx")
"""Libraries that log what we log ourselves."""


def configure(service: str, level: int = logging.INFO) -> None:
    """Send all logs of the process to stderr, with who says it: service, machine, process, version.

    On a terminal, which shows one process, only the line at the start has the latter three.
    """
    on_terminal = sys.stderr.isatty()
    who = {"service": service}
    if not on_terminal:
        who |= of_this_process()

    def sign(_: object, __: str, line: Line) -> Line:
        line.update(who)
        if traced := trace_id():
            line["trace_id"] = traced
        return line

    begin: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        sign,
    ]
    end: list[Processor] = [
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    render: Processor = (
        structlog.dev.ConsoleRenderer() if on_terminal else structlog.processors.JSONRenderer()
    )
    repeats = Repeats()
    atexit.register(repeats.flush)
    structlog.configure(
        processors=[*begin, repeats, *end, render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )
    _configure_libraries(level, [structlog.stdlib.add_logger_name, *begin, *end], render)


def set_level(level: str) -> None:
    """Write only what is at least of this level: ``debug``, ``info``, ``warning`` or ``error``."""
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(number))
    logging.getLogger().setLevel(number)


def of_this_process() -> dict[str, Any]:
    """What tells a process from all others."""
    return {"instance": socket.gethostname(), "pid": os.getpid(), "version": release()}


def _configure_libraries(level: int, before: list[Processor], render: Processor) -> None:
    """Have lines of the standard library's logging look like ours."""
    without_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before, processors=[without_meta, render]
        )
    )
    logging.basicConfig(level=level, handlers=[handler])
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
