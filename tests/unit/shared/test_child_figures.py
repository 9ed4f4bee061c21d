"""What a process shows of its child, and of a card that there is not."""

from __future__ import annotations

import math

from prometheus_client import generate_latest

from shared.monitoring.child import CARD, show_card, show_training, training_shown
from shared.monitoring.registry import REGISTRY
from tests.support.scraping import Samples, parsed, value


def shown() -> Samples:
    return parsed(generate_latest(REGISTRY).decode())


def test_a_training_is_shown_while_it_lasts() -> None:
    with training_shown():
        show_training({"images_per_second": 3.5, "loss": 0.25, "step": 7}, memory_bytes=1000)
        show_training({"step": 7, "loss": None}, memory_bytes=2000)
        assert value(shown(), "everydream_training_images_per_second") == 3.5
        assert value(shown(), "everydream_training_loss") == 0.25
        assert value(shown(), "everydream_child_memory_bytes") == 2000
    assert value(shown(), "everydream_training_images_per_second") == 0
    assert math.isnan(value(shown(), "everydream_training_loss"))
    assert value(shown(), "everydream_child_memory_bytes") == 0


def test_without_its_card_the_driver_is_not_asked() -> None:
    show_card("")
    assert not CARD.uuid
    assert not [name for name, _ in shown() if name.startswith("everydream_device_")]


def test_a_card_that_the_driver_does_not_know_is_left_out() -> None:
    show_card("00000000-0000-0000-0000-000000000000")
    assert not [name for name, _ in shown() if name.startswith("everydream_device_")]
    assert not CARD.uuid
