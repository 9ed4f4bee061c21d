"""Find out what a single file's UNet predicts: the noise (epsilon) or the velocity.

The shapes are the same for both. A file may declare it: by ModelSpec's ``prediction_type`` in its
header, or by a tensor named ``v_pred`` (and ``ztsnr`` for a schedule that ends in pure noise).
Without a declaration, Stable Diffusion 1 predicts noise. Most files of Stable Diffusion 2 declare
nothing; for these we use ComfyUI's observation that in models that predict the velocity, the biases
of the last norm layer have a larger standard deviation.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from services.fetcher.parsing.models.diffusers_configs import PredictionType
from services.fetcher.parsing.models.safetensors_file import TensorSource, read_values
from shared.errors import Refused

METADATA_KEY = "modelspec.prediction_type"
DECLARED_TYPES: dict[str, PredictionType] = {
    "epsilon": "epsilon",
    "eps": "epsilon",
    "v": "v_prediction",
    "v_prediction": "v_prediction",
}
MARKER = "v_pred"
ZERO_SNR_MARKER = "ztsnr"
LAST_NORM_BIAS = "transformer_blocks.0.norm1.bias"
"""In the UNet's last upsampling transformer."""
STD_THRESHOLD = 0.09
"""Models that predict the velocity have a larger standard deviation."""


def declared_prediction_type(
    metadata: Mapping[str, str], names: Collection[str], shown: str
) -> PredictionType | None:
    """What the file declares; None: nothing.

    Raises:
        Refused: it declares something else than the two.
    """
    if text := metadata.get(METADATA_KEY):
        word = text.strip().lower().replace("-", "_")
        if word not in DECLARED_TYPES:
            raise Refused(
                f"{shown}: its header says that it predicts {text[:40]!r}; expected epsilon or v"
            )
        return DECLARED_TYPES[word]
    return "v_prediction" if MARKER in names else None


def guess_prediction_type(unet: Mapping[str, TensorSource]) -> PredictionType:
    """Guess from a Stable Diffusion 2's weights; names are those inside the UNet."""
    names = [name for name in unet if name.startswith("output_blocks.") and LAST_NORM_BIAS in name]
    last = max(names, key=lambda name: int(name.split(".")[1]))
    return "v_prediction" if read_values(unet[last]).std() > STD_THRESHOLD else "epsilon"
