"""What a notifier counts."""

from __future__ import annotations

from prometheus_client import Histogram

from shared.monitoring.registry import QUICK, REGISTRY

WEBHOOKS = Histogram(
    "everydream_webhook_post_seconds",
    "Webhooks that were posted, by outcome: delivered or failed.",
    ["outcome"],
    buckets=QUICK,
    registry=REGISTRY,
)
