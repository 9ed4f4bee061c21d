"""What every worker counts."""

from __future__ import annotations

from prometheus_client import Gauge, Histogram

from shared.monitoring.registry import QUICK, REGISTRY

SLOTS = Gauge(
    "everydream_worker_slots",
    "How many jobs this process works on at a time.",
    ["service"],
    registry=REGISTRY,
)
BUSY = Gauge(
    "everydream_worker_busy",
    "Claims that this process works on now.",
    ["stage"],
    registry=REGISTRY,
)
CLAIM = Histogram(
    "everydream_claim_seconds",
    "From asking the gateway for a stage to its answer (granted or refused).",
    ["stage", "answer"],
    buckets=QUICK,
    registry=REGISTRY,
)
