"""A warm child of the trainer: ``python -m tests.support.warm.trainer DESCRIPTOR PARENT``."""

from __future__ import annotations

from tests.support.warm.stand_in import stand_in_for

if __name__ == "__main__":
    stand_in_for("services.trainer.training.child")
