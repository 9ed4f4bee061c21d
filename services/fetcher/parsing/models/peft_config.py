"""What peft's configuration of a LoRA says of its strength.

Its tensors have no alpha. peft keeps it in ``adapter_config.json``, diffusers in the file's header.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from shared.errors import Refused

IN_HEADER = "lora_adapter_metadata"
"""Where diffusers has written the file."""
Alpha = Annotated[float, Meta(ge=1e-30, le=1e30)]
"""In fp32 it is neither 0 nor infinite."""
ALPHA_ELSEWHERE = (
    "{}: the file has no alpha, which peft keeps in adapter_config.json: it is taken as the rank"
)


class PeftConfig(Struct, frozen=True, kw_only=True):
    """Of the LoRA of one network, as far as it counts here."""

    lora_alpha: Alpha | None = None
    """None: the rank."""
    alpha_pattern: dict[str, Alpha] | None = None
    """In place of it, by regular expressions that ends of layers' names match."""
    use_rslora: bool | None = None
    """Whether alpha is divided by the rank's square root in place of the rank."""

    def alpha_of(self, layer: str, rank: int) -> float:
        """A layer's alpha, by its name in the network; the rank, where nothing says another."""
        fitting = (alpha for pattern, alpha in self.patterns() if pattern.match(layer))
        alpha = next(fitting, self.lora_alpha or float(rank))
        return alpha * rank**0.5 if self.use_rslora else alpha

    def patterns(self) -> Iterator[tuple[re.Pattern[str], float]]:
        """As peft matches them, in its order. Raises re.error where one is none."""
        for pattern, alpha in (self.alpha_pattern or {}).items():
            yield re.compile(rf"(.*\.)?({pattern})$"), alpha


def peft_configs(
    metadata: Mapping[str, str], networks: Collection[str], shown: str
) -> dict[str, PeftConfig]:
    """By network; ``metadata`` is the file's header.

    Raises:
        Refused: they are not as peft writes them; names ``shown``.
    """
    try:
        given = msgspec.json.decode(metadata.get(IN_HEADER, "{}"), type=dict[str, Any])
        configs = {network: _config(given, f"{network}.") for network in networks}
        for config in configs.values():
            list(config.patterns())
    except (msgspec.DecodeError, re.error, RecursionError, OverflowError) as error:
        raise Refused(
            f"{shown}: {IN_HEADER} in its header is not as peft writes it: {error}"
        ) from None
    return configs


def _config(given: Mapping[str, Any], start: str) -> PeftConfig:
    of_network = {
        name.removeprefix(start): value for name, value in given.items() if name.startswith(start)
    }
    return msgspec.convert(of_network, PeftConfig)
