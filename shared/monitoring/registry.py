"""The metrics of this process: one registry, because libraries count for a process and not a part.

A metric is made where it is owned, in a module of the service; that module's import registers it.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector

REGISTRY = CollectorRegistry(auto_describe=True)
"""What ``/metrics`` shows."""

QUICK = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bounds in seconds, of what somebody waits for."""
LONG = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 43_200.0, 172_800.0)
"""Bounds in seconds, of what takes from a moment to two days."""

PROCESS = ProcessCollector(registry=REGISTRY)

BUILD = Gauge(
    "everydream_build_info",
    "Always 1; which service runs here, and the version of the project.",
    ["service", "version"],
    registry=REGISTRY,
)
READY = Gauge(
    "everydream_ready",
    "Whether the process can do its work: 1, or 0 with the reason at /readyz.",
    registry=REGISTRY,
)
