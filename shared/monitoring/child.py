"""What a child that computes reports of its work, and what the driver says of its card.

The driver is asked by NVML, where there is one. Elsewhere the figures of the card are left out, and
what torch holds of its memory comes from the child.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import nan
from typing import Any

import pynvml
import structlog
from prometheus_client import Counter, Gauge
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from shared.monitoring.registry import REGISTRY

IMAGES_PER_SECOND = Gauge(
    "everydream_training_images_per_second",
    "How fast the child trains, since this attempt began; 0: it does not.",
    registry=REGISTRY,
)
LOSS = Gauge(
    "everydream_training_loss",
    "Mean loss of the last steps of the training under way; NaN: none is.",
    registry=REGISTRY,
)
DRAWN = Counter(
    "everydream_images_drawn",
    "Images that the child has drawn, samples included.",
    registry=REGISTRY,
)
HELD = Gauge(
    "everydream_child_memory_bytes",
    "Memory of the card that torch holds in the child, by its last report; 0 on the processor.",
    registry=REGISTRY,
)

log = structlog.get_logger()


class Card(Collector):
    """Memory and utilisation of the child's card, asked when they are shown."""

    def __init__(self) -> None:
        self.uuid = ""
        """As the driver has it; empty: no card, or none that is known."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        used, total, busy = self._figures() or (None, None, None)
        for name, text, figure in (
            ("memory_used_bytes", "Memory of the child's card that is in use, by anybody.", used),
            ("memory_total_bytes", "Memory of the child's card.", total),
            ("utilization_ratio", "Part of the last second in which the card worked.", busy),
        ):
            family = GaugeMetricFamily(f"everydream_device_{name}", text)
            if figure is not None:
                family.add_metric([], figure)
            yield family

    def _figures(self) -> tuple[float, float, float] | None:
        if not self.uuid:
            return None
        try:
            card = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{self.uuid}")
            memory = pynvml.nvmlDeviceGetMemoryInfo(card)
            busy = pynvml.nvmlDeviceGetUtilizationRates(card).gpu / 100
        except pynvml.NVMLError as error:
            log.warning("card_not_measured", reason=str(error))
            self.uuid = ""
            return None
        return float(memory.used), float(memory.total), float(busy)


CARD = Card()
REGISTRY.register(CARD)


def show_card(uuid: str) -> None:
    """Show the figures of this card from now on; empty: there is none."""
    if not uuid or uuid == CARD.uuid:
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:  # another maker's, or without its library
        log.info("no_nvml", reason=str(error))
    else:
        CARD.uuid = uuid


@contextmanager
def training_shown() -> Iterator[None]:
    """The block is a training; before and after it there are no figures of one."""
    LOSS.set(nan)
    try:
        yield
    finally:
        IMAGES_PER_SECOND.set(0.0)
        HELD.set(0.0)
        LOSS.set(nan)


def show_training(numbers: Mapping[str, Any], memory_bytes: int) -> None:
    """A report of the child; what it does not name stays."""
    for name, gauge in (("images_per_second", IMAGES_PER_SECOND), ("loss", LOSS)):
        if (number := numbers.get(name)) is not None:  # no loss is known before the first update
            gauge.set(number)
    HELD.set(memory_bytes)
