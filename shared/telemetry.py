"""Structured logs: one line per event, readable on a terminal, JSON elsewhere."""

import logging
import sys

import structlog


def configure(service: str, level: int = logging.INFO) -> None:
    """Send all logs of the process to stderr, with the service's name."""
    logging.basicConfig(level=level, stream=sys.stderr, format="%(name)s: %(message)s")
    for noisy in ("aiormq", "aio_pika", "aiobotocore", "botocore", "alembic", "httpx"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    on_terminal = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer() if on_terminal else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )
    structlog.contextvars.bind_contextvars(service=service)
