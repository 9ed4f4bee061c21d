"""What a training or a drawing takes of a card's memory, counted without a card.

The numbers for each pixel come from networks of full size on meta tensors, where every allocation
of a step was followed (``tests/unit/shared/test_card_memory.py`` counts again). They hold for
attention that does not keep its scores, as PyTorch's own and xformers. :data:`CONTEXT` and
:data:`SPARE` are not in any count: they are assumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import ceil
from typing import Any, NamedTuple

from msgspec import Struct
from msgspec.json import encode
from msgspec.structs import replace

from shared.dataset.buckets import sizes
from shared.dataset.optimizers import IN_8_BITS, state_bytes
from shared.request import Resolution, Train

GIB = 2**30
FP32_BYTES, FP16_BYTES = 4, 2
CONTEXT = GIB // 2
"""What CUDA itself takes for a process; assumed."""
SPARE = GIB // 2
"""Workspaces of the libraries, and memory in pieces too small to be used; assumed."""
ENCODED_BYTES = 2572
"""Per pixel, while the VAE encodes one image in fp32."""
DECODED_BYTES = 1537
"""Per pixel, while the VAE decodes one image in fp16."""
DRAWN_BYTES = 522
"""Per pixel of an image, for its two rows in the UNet, with guidance and without, in fp16."""
ALIKE = 0.05
"""Numbers of parameters that differ by less belong to the same architecture."""


class PerPixel(NamedTuple):
    """Bytes that one image's pixel takes in a step."""

    forward: int
    """Once the loss is known: all that the backward pass will need."""
    late: int
    """When the backward pass has reached the UNet's beginning, whose gradients come last."""


PER_PIXEL = {
    # (autocast, gradient checkpointing)
    (True, False): PerPixel(4782, 1475),
    (True, True): PerPixel(872, 614),
    (False, False): PerPixel(7148, 2140),
    (False, True): PerPixel(1525, 1045),
}
"""The UNets of Stable Diffusion 1 and 2 differ by less than a percent."""


class Kind(NamedTuple):
    """An architecture that was counted."""

    parameters: Mapping[str, int]
    embedded: int
    """Parameters of the text encoder that autocast does not convert."""
    caption: Mapping[tuple[bool, bool], int]
    """Bytes for each image where the text encoder is trained; by the same key."""
    per_rank: Mapping[str, int]
    """Parameters of a LoRA's layers in attention, for each of its rank."""


SD1 = Kind(
    {"unet": 859_520_964, "text_encoder": 123_060_480, "vae": 83_653_863},
    38_004_480,
    {(True, False): 42_300_000, (True, True): 2_100_000,
     (False, False): 65_300_000, (False, True): 4_300_000},
    {"unet": 423_936, "text_encoder": 165_888},
)  # fmt: skip
SD2 = Kind(
    {"unet": 865_910_724, "text_encoder": 340_387_840, "vae": 83_653_863},
    50_672_640,
    {(True, False): 82_300_000, (True, True): 6_700_000,
     (False, False): 124_800_000, (False, True): 10_000_000},
    {"unet": 432_128, "text_encoder": 423_936},
)  # fmt: skip


BESIDE_ATTENTION, CONVOLUTIONS = 82_880, 544_000
"""Parameters of a LoRA's other layers, in the UNet of both: for each of the rank, of 3x3
convolutions for each of theirs."""
USUAL = Train(data_url="-")
"""With the defaults."""


def kind_of(parameters: Mapping[str, int]) -> Kind | None:
    """The architecture with these numbers of parameters by network; None: none that was counted."""
    for kind in (SD1, SD2):
        expected = kind.parameters
        if all(abs(parameters.get(name, 0) / expected[name] - 1) < ALIKE for name in expected):
            return kind
    return None


class TrainingMemory(Struct, frozen=True, kw_only=True):
    """Bytes that a training takes on a card, by what they are for."""

    weights: int
    """Of all networks; in fp32, but for those that a LoRA is trained for with ``amp``."""
    gradients: int
    moments: int
    averages: int
    """Of the weights, with ``ema_decay_rate``."""
    casts: int
    """The weights in half precision, which autocast keeps for the backward pass."""
    activations: int
    at_once: int
    """The most that gradients, casts, activations and the VAE take together: as activations go,
    gradients come."""

    @property
    def lasting(self) -> int:
        """What no setting of the batch makes smaller: it is all there at each update."""
        return self.weights + self.moments + self.averages + self.gradients

    @property
    def total(self) -> int:
        return self.weights + self.moments + self.averages + self.at_once + CONTEXT + SPARE


def training_memory(
    train: Train,
    parameters: Mapping[str, int],
    *,
    has_8bit: bool = True,
) -> TrainingMemory | None:
    """What a training takes; None: its networks are of no size that was counted.

    Args:
        train: what is asked for.
        parameters: how many each network has.
        has_8bit: whether the machine can do ``useadam8bit``, if that is asked for.
    """
    kind = kind_of(parameters)
    return _of_kind(kind, train, parameters, has_8bit=has_8bit) if kind else None


def usual_training() -> TrainingMemory:
    """What a training of Stable Diffusion 1 takes with the defaults."""
    return _of_kind(SD1, USUAL, SD1.parameters, has_8bit=True)


def _of_kind(
    kind: Kind, train: Train, parameters: Mapping[str, int], *, has_8bit: bool
) -> TrainingMemory:
    mode = train.amp, train.gradient_checkpointing
    trained = trained_parameters(train, parameters)
    moment = state_bytes(train, has_8bit=has_8bit)
    pixels = max(size.width * size.height for size in sizes(train.resolution))
    per_pixel, teaches_text = PER_PIXEL[mode], "text_encoder" in trained

    gradients = FP32_BYTES * sum(trained.values())
    half = FP16_BYTES if train.amp else 0
    text_casts = half * (parameters["text_encoder"] - kind.embedded) if teaches_text else 0
    casts = half * parameters["unet"] + text_casts
    if train.lora_shape:
        casts = text_casts = half * sum(trained.values())
    caption = kind.caption[mode] if teaches_text else 0
    activations = train.batch_size * (per_pixel.forward * pixels + caption)
    earlier = gradients if train.grad_accum > 1 else 0
    at_once = max(
        earlier + ENCODED_BYTES * pixels,
        earlier + casts + activations,
        gradients,
        # The backward pass near its end: the text encoder still waits for its turn.
        (earlier or FP32_BYTES * trained.get("unet", 0))
        + (0 if train.gradient_checkpointing else text_casts)
        + train.batch_size * (per_pixel.late * pixels + caption),
    )
    return TrainingMemory(
        weights=_weights(train, parameters, sum(trained.values())),
        gradients=gradients,
        moments=int(moment * sum(trained.values())),
        averages=FP32_BYTES * sum(trained.values()) if train.ema_decay_rate else 0,
        casts=casts,
        activations=activations,
        at_once=at_once,
    )


def _weights(train: Train, parameters: Mapping[str, int], trained: int) -> int:
    """Bytes of the networks, and of the LoRA, which is in fp32; the VAE always is."""
    if not train.lora_shape:
        return FP32_BYTES * sum(parameters.values())
    networks = parameters["unet"] + parameters["text_encoder"]
    bytes_each = FP16_BYTES if train.amp else FP32_BYTES
    return bytes_each * networks + FP32_BYTES * (parameters["vae"] + trained)


def trained_parameters(train: Train, parameters: Mapping[str, int]) -> dict[str, int]:
    """How many parameters are trained, by network: its own, or those of its LoRA.

    Of a LoRA for networks of a size that was not counted it is about as many.
    """
    names = list(_trained(train))
    if (shape := train.lora_shape) is None:
        return {name: parameters[name] for name in names}
    kind = kind_of(parameters) or SD1
    found = {}
    for name in names:
        wider = (parameters[name] / kind.parameters[name]) ** 0.5  # a layer grows as its sides do
        units = kind.per_rank[name] * shape.rank
        if name == "unet" and shape.conv_rank:
            units += BESIDE_ATTENTION * shape.rank + CONVOLUTIONS * shape.conv_rank
        found[name] = round(units * wider)
    return found


def _trained(train: Train) -> Iterator[str]:
    if not train.disable_unet_training:
        yield "unet"
    if not train.disable_textenc_training:
        yield "text_encoder"


# --- Settings that need less ------------------------------------------------------------------


class Smaller(NamedTuple):
    """Settings that need less memory than those that were asked for."""

    train: Train
    needed: int

    def changes(self, asked: Train) -> str:
        """``gradient_checkpointing true, batch_size 2, grad_accum 2``."""
        changed = {name: getattr(self.train, name) for name in CHANGEABLE}
        return ", ".join(
            f"no {name}" if value is None else f"{name} {_shown(value)}"
            for name, value in changed.items()
            if value != getattr(asked, name)
        )


def _shown(value: object) -> str:
    return value if isinstance(value, str) else encode(value).decode()


CHANGEABLE = (
    "useadam8bit", "optimizer", "gradient_checkpointing", "amp", "batch_size", "grad_accum",
    "ema_decay_rate", "disable_textenc_training", "resolution", "lora_rank",
)  # fmt: skip
SMALL_RESOLUTION: Resolution = 512
USUAL_RANK = 16


def smaller(
    train: Train,
    parameters: Mapping[str, int],
    room: int,
    *,
    has_8bit: bool = True,
) -> Smaller | None:
    """Settings with which a training fits into ``room`` bytes; None: there are none.

    What trains alike and costs only time is changed first; then what trains otherwise.
    """

    def needed(train: Train) -> int:
        memory = training_memory(train, parameters, has_8bit=has_8bit)
        return memory.total if memory else 0

    least, steps = train, list[dict[str, Any]]()
    for step in _changes(train):
        if needed(changed := replace(least, **step)) < needed(least):
            least = changed
            steps.append(step)
        if needed(least) <= room:
            break
    for step in steps:  # what a later one has made superfluous
        undone = replace(least, **{name: getattr(train, name) for name in step})
        if needed(undone) <= room:
            least = undone
    fits = 0 < needed(least) <= room
    return Smaller(least, needed(least)) if fits else None


def _changes(train: Train) -> Iterator[dict[str, Any]]:
    if train.optimizer is None:
        yield {"useadam8bit": True}
    elif (small := IN_8_BITS.get(train.optimizer)) is not None:
        yield {"optimizer": small}
    yield {"gradient_checkpointing": True}
    yield {"amp": True}
    images, batch = train.batch_size * train.grad_accum, train.batch_size
    while batch > 1:
        batch = ceil(batch / 2)
        yield {"batch_size": batch, "grad_accum": ceil(images / batch)}
    yield {"ema_decay_rate": None}
    yield {"disable_textenc_training": True}
    yield {"resolution": min(train.resolution, SMALL_RESOLUTION)}
    if train.lora_rank is None:
        yield {"lora_rank": USUAL_RANK}


def shortage(
    train: Train,
    parameters: Mapping[str, int],
    room: int,
    has: str,
    *,
    has_8bit: bool = True,
) -> str | None:
    """For people: that a training needs more than ``room`` bytes, and what would need less.

    None: it fits, or is of no size that was counted. ``has`` says whose memory that is, and how
    much: ``NVIDIA T4 has 14.6 GiB``.
    """
    memory = training_memory(train, parameters, has_8bit=has_8bit)
    if memory is None or memory.total <= room:
        return None
    less = smaller(train, parameters, room, has_8bit=has_8bit)
    mend = (
        f"with {less.changes(train)} it needs about {in_gib(less.needed)}"
        if less
        else "no settings make it fit into that; docs/models.md says what fits which card"
    )
    return f"this training needs about {in_gib(memory.total)} of memory, and {has}: {mend}"


def in_gib(count: int) -> str:
    """Bytes in the unit that cards are sold in: ``11.3 GiB``."""
    return f"{count / GIB:.1f} GiB"


# --- Drawing ----------------------------------------------------------------------------------


def drawing_weights(parameters: Mapping[str, int]) -> int:
    """Bytes of a pipeline's weights on a card."""
    return FP16_BYTES * sum(parameters.values())


def drawing_memory(pixels: int, images: int) -> int:
    """Bytes beside the weights to draw images of so many pixels each in one batch.

    They are decoded one at a time, when the UNet has done its work.
    """
    return max(DRAWN_BYTES * images, DECODED_BYTES) * pixels + SPARE


def drawing_beside(parameters: Mapping[str, int], pixels: int = 512 * 512) -> int:
    """Bytes of a process that draws one image at a time, its CUDA context included."""
    return CONTEXT + drawing_weights(parameters) + drawing_memory(pixels, 1)


def images_at_once(pixels: int, free: int, most: int) -> int:
    """How many images of so many pixels to draw in one batch, at least one and at most ``most``."""
    return max(1, min(most, (free - SPARE) // (DRAWN_BYTES * pixels)))
