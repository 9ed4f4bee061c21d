"""The base model's autoencoder, for single files that have none."""

from __future__ import annotations

from math import prod
from pathlib import Path

from services.fetcher.parsing.models.architecture import vae_shapes
from services.fetcher.parsing.models.diffusers_folder import (
    names_in,
    read_config,
    weights_in,
)
from services.fetcher.parsing.models.diffusers_names import current_name, vae_names
from services.fetcher.parsing.models.folder_tensors import vae_of
from services.fetcher.parsing.models.safetensors_file import (
    TensorSource,
    read_header,
    tensor_sources,
)
from shared.errors import Refused

BASE = "the configured base model's vae"


def lent_vae(base: Path, single_file: str, prefix: str, shown: str) -> dict[str, TensorSource]:
    """The tensors of the autoencoder in the folder ``base``, in the original layout.

    ``single_file`` is the file's name if the folder has all its weights in one, and ``prefix``
    what names of an autoencoder begin with in the original layout.

    Raises:
        Refused: the folder has none that can be lent; names ``shown``.
    """
    if (base / single_file).exists():
        sources = tensor_sources(base / single_file, read_header(base / single_file, BASE))
        return {name: each for name, each in sources.items() if name.startswith(prefix)}
    vae = vae_of(read_config(base / "vae/config.json", BASE)) if _has_weights(base) else None
    if vae is None:
        raise Refused(
            f"{shown}: it has no vae in the original layout, and the configured base model has none"
            " that it could get; give a file with one, or a zipped diffusers folder"
        )
    file = base / weights_in(names_in(base), "vae", BASE)
    sources = {
        current_name("vae", name): each
        for name, each in tensor_sources(file, read_header(file, BASE)).items()
    }
    shapes = vae_shapes(vae)
    lent = {}
    for name, diffusers_name in vae_names(vae).items():
        source = sources.get(diffusers_name)
        if source is None or prod(source.shape) != prod(shapes[name]):
            raise Refused(f"{shown}: it has no vae, and {BASE} lacks {diffusers_name}")
        # The original attention consists of 1x1 convolutions: the same numbers, two more sizes.
        lent[prefix + name] = TensorSource(dtype=source.dtype, shape=shapes[name], copy=source.copy)
    return lent


def _has_weights(base: Path) -> bool:
    return (base / "vae/config.json").exists() and any(base.glob("vae/*.safetensors"))
