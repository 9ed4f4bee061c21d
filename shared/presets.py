"""Presets: a few fields of ``train``, and where each is recommended or was measured.

What no document and no measurement supports stays at the endpoint's default.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

Preset = Literal["person", "style", "object", "quick"]


class Choice(NamedTuple):
    """A value of a preset."""

    value: Any
    why: str
    source: str
    """A document of EveryDream2trainer, and its section or example; or one of our own, in docs/."""


RANGE = "doc/ATWEAKING.md, Resolution"
MANY = Choice(6, "the size of a batch for which the learning rate is meant", RANGE)
USUAL_LR = Choice(3e-6, "usual for SD 1 at 512 with batches of 6 to 8: 2e-6 to 5e-6", RANGE)
MEASURED = "docs/models.md, LoRA"

PRESETS: dict[Preset, dict[str, Choice]] = {
    "person": {
        "lora_rank": Choice(
            64,
            "a LoRA in place of a whole model: 160 MB (of SD 1) in place of 2 GB, half the memory",
            MEASURED,
        ),
        "lora_conv_rank": Choice(
            64,
            "with it a small model was no worse on pictures held out than trained whole",
            MEASURED,
        ),
        "flip_p": Choice(
            0.0, "faces are not symmetrical: mirroring washes them out", "doc/ATWEAKING.md, Flip_p"
        ),
    },
    "style": {
        "batch_size": MANY,
        "lr": USUAL_LR,
        "flip_p": Choice(
            0.5, "mirroring suits styles: twice the pictures", "doc/ATWEAKING.md, Flip_p"
        ),
        "cond_dropout": Choice(
            0.15,
            "trains the style also without words, which forces it into the model",
            "doc/ATWEAKING.md, Conditional dropout",
        ),
    },
    "object": {
        "batch_size": Choice(6, "as in the example of things (jets)", "doc/TRAINING.md, example 3"),
        "lr": Choice(1.5e-6, "as in that example", "doc/TRAINING.md, example 3"),
        "lr_scheduler": Choice("cosine", "as in that example", "doc/TRAINING.md, example 3"),
    },
    "quick": {
        "batch_size": Choice(6, "as in the first example", "doc/TRAINING.md, example 1"),
        "lr": Choice(3e-6, "as in that example", "doc/TRAINING.md, example 1"),
        "lr_scheduler": Choice("cosine", "as in that example", "doc/TRAINING.md, example 1"),
        "max_epochs": Choice(
            50, "as in that example; a sixth of the default", "doc/TRAINING.md, example 1"
        ),
        "sample_steps": Choice(200, "as in that example", "doc/TRAINING.md, example 1"),
    },
}
