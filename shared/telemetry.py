"""Structured logs: one line per event, for people on a terminal, as JSON elsewhere."""

import logging
import sys

import structlog


def configure(service: str, level: int = logging.INFO) -> None:
    """Send every log line of the process to stderr, with its service's name."""
    logging.basicConfig(level=level, stream=sys.stderr, format="%(name)s: %(message)s")
    for noisy in ("aiormq", "aio_pika", "aiobotocore", "botocore", "alembic", "httpx"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    renderer = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else _json()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )
    structlog.contextvars.bind_contextvars(service=service)


def _json() -> structlog.processors.JSONRenderer:
    return structlog.processors.JSONRenderer()
