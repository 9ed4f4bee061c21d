"""On a card: the driver's figures are those of the card that torch computes on."""

from __future__ import annotations

import torch
from prometheus_client import generate_latest

from shared.diffusion.device import device_uuid, this_device
from shared.diffusion.memory import card_memory, held_memory
from shared.monitoring.child import show_card
from shared.monitoring.registry import REGISTRY
from tests.support.scraping import parsed, value

NEAR = 2 << 30
"""Bytes that torch and the driver may count differently."""


def test_the_driver_tells_of_the_card_that_torch_computes_on() -> None:
    device = this_device()
    held = torch.zeros(1 << 28, device=device)
    show_card(device_uuid(device))
    samples = parsed(generate_latest(REGISTRY).decode())
    memory = card_memory(device)
    assert memory is not None
    assert held_memory(device) >= held.nbytes
    assert abs(value(samples, "everydream_device_memory_total_bytes") - memory.total) < NEAR
    used = memory.total - memory.available
    assert abs(value(samples, "everydream_device_memory_used_bytes") - used) < NEAR
    assert 0 <= value(samples, "everydream_device_utilization_ratio") <= 1
