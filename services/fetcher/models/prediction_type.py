"""What a single file's UNet was trained to predict: the noise, or the velocity.

The shapes are the same. So the file's own word counts: ModelSpec's ``prediction_type`` in its
header, or a tensor named ``v_pred`` (and ``ztsnr``, for a schedule that ends in pure noise), as
model makers leave one. Stable Diffusion 1 predicts noise unless a file says otherwise. Most files
of Stable Diffusion 2 say nothing; for these, ComfyUI's observation serves: the last normed layer's
biases are spread wider in the models that predict velocity.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from services.fetcher.models.diffusers_configs import Predicts
from services.fetcher.models.safetensors_file import Source, values_of
from shared.errors import Refused

SPOKEN = "modelspec.prediction_type"
WORDS: dict[str, Predicts] = {
    "epsilon": "epsilon",
    "eps": "epsilon",
    "v": "v_prediction",
    "v_prediction": "v_prediction",
}
MARKER = "v_pred"
ZERO_SNR_MARKER = "ztsnr"
TELLING = "transformer_blocks.0.norm1.bias"
"""Of the last transformer on the way up."""
SPREAD = 0.09
"""Standard deviation that parts the two."""


def spoken(metadata: Mapping[str, str], names: Collection[str], shown: str) -> Predicts | None:
    """What the file says about itself; None: nothing.

    Raises:
        Refused: it predicts something else.
    """
    if text := metadata.get(SPOKEN):
        word = text.strip().lower().replace("-", "_")
        if word not in WORDS:
            raise Refused(
                f"{shown}: its header says that it predicts {text[:40]!r}; expected epsilon or v"
            )
        return WORDS[word]
    return "v_prediction" if MARKER in names else None


def guessed(unet: Mapping[str, Source]) -> Predicts:
    """Stable Diffusion 2's prediction from its weights, by names inside the UNet."""
    names = [name for name in unet if name.startswith("output_blocks.") and TELLING in name]
    last = max(names, key=lambda name: int(name.split(".")[1]))
    return "v_prediction" if values_of(unet[last]).std() > SPREAD else "epsilon"
