"""The fields of a request, with their defaults and ranges."""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args
from urllib.parse import urlsplit

from msgspec import Meta, Struct, field

Resolution = Literal[256, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960, 1024, 1088, 1152]
Side = Literal[128, 256, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960, 1024]
LrScheduler = Literal["constant", "linear", "cosine", "polynomial"]
CheckpointFormat = Literal["safetensors", "ckpt"]
Optimizer = Literal[
    "adamw", "adamw8bit", "lion", "lion8bit", "prodigy", "adafactor", "schedule_free"
]
LossType = Literal["mse", "huber", "mse_huber", "huber_mse"]
Scheduler = Literal[
    "DDIM",
    "DDPM",
    "DPM-M",
    "DPM-S",
    "EULER-A",
    "EULER-D",
    "HEUN",
    "IPNDM",
    "KDPM2-A",
    "KDPM2-D",
    "PNDM",
    "K-LMS",
]
Command = Literal["sample", "save", "stop"]
"""What a user may order of a running training."""

WebhookEvent = Literal["start", "output", "completed"]
WEBHOOK_EVENTS: tuple[WebhookEvent, ...] = get_args(WebhookEvent)

Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
MAX_INTEGER = 2**31 - 1
"""Upper bound of numbers that have no other."""
MAX_ITEMS = 1000
"""Longest list whose items each take a while."""
Positive = Annotated[int, Meta(ge=1, le=MAX_INTEGER)]
Count = Annotated[int, Meta(ge=0, le=MAX_INTEGER)]
Seed = Annotated[int, Meta(ge=-1, le=2**63 - 1)]
Text = Annotated[str, Meta(min_length=1)]
LoraWeight = Annotated[float, Meta(ge=-10.0, le=10.0)]
MAX_LORAS = 10
"""That a model is drawn with at once."""
LEAST_ALPHA = 0.001
"""With less a LoRA would add nothing that could be seen."""

DEFAULT_BASE = "sd_v1-5_vae.ckpt"
"""The name that stands for the deployment's base model."""

BASE_PATHS = ("/v1/everydream-v1", "/v2/everydream-v1")
"""The endpoint's paths on a gateway."""

STORED = "store:"
"""Prefix of ``data_url``, ``resume_ckpt_url`` and ``model`` once the gateway has resolved them to a
key of our store that belongs to the client. Clients may not use it themselves."""

_HEX = "[0-9A-Fa-f]{1,4}"
_IPV6 = (
    rf"\[(?=([0-9A-Fa-f]{{0,4}}:){{2,7}}[0-9A-Fa-f]{{0,4}}\])"
    rf"(({_HEX}:){{7}}{_HEX}|({_HEX}(:{_HEX})*)?::({_HEX}(:{_HEX})*)?)\]"
)
_PORT = ":(6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5]?[0-9]{1,4})"
_SITE = rf"^[Hh][Tt][Tt][Pp][Ss]?://([^\u0000-\u0020\u007f/?#@:\[\]\\]+|{_IPV6})({_PORT})?"
WEB_ADDRESS = _SITE + r"([/?#][^\u0000-\u001f]*)?$(?!\n)"
"""An http or https URL with a host and without credentials, in the syntax that Python, ECMAScript
and JSON Schema share; the end is for Python, whose ``$`` also matches before a last line break."""
ENDPOINT = _SITE + r"(/[^?#\u0000-\u0020]*)?$(?!\n)"
"""The same without a query, which no S3 service has."""

_JOB_ID = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
JOB_ID = rf"^{_JOB_ID}$(?!\n)"
_HUB_NAME = "[A-Za-z0-9][A-Za-z0-9_.-]{0,95}"
MODEL_NAME = (
    rf"^({DEFAULT_BASE.removesuffix('.ckpt')}(\.ckpt)?|{_JOB_ID}"
    rf"|(?!.*\.(safetensors|ckpt|zip)$)({_HUB_NAME}/{_HUB_NAME}(@[A-Za-z0-9_.-]{{1,100}})?"
    r"|[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+/[A-Za-z0-9_.@/-]+))$(?!\n)"
)
"""The names of models: the deployment's own, a job's id, a hub id, a hub's page without its scheme.

Paths are none, and so is what ends like a file: nobody but the operator names local files."""
_CONTROL = r"\u0000-\u001f\u007f"
_BLANK = r"\u0020\u0080-\u00a0\u1680\u2000-\u200f\u2028-\u202f\u205f-\u2064\u3000\ufeff"
_ENDS = rf"[^{_CONTROL}{_BLANK}]"
ACCESS_ID = r"^[!-~]+$(?!\n)"
"""It is sent in a header."""
ACCESS_SECRET = rf"^(?={_ENDS})[^{_CONTROL}]*{_ENDS}$(?!\n)"
"""Without what a file or a clipboard adds: blanks at the ends, visible or not, and line breaks."""
BUCKET = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,254}$(?!\n)"
"""What any S3 service has taken as the name of a bucket."""
_NAME = rf"(?!\.{{1,2}}(/|$))[^/{_CONTROL}]+"
OBJECT_PATH = rf"^(?![{_BLANK}])(/*{_NAME}(/{_NAME})*)?/*(?<![{_BLANK}])$(?!\n)"
"""Names with a slash between them; slashes at the ends are dropped."""

FIRST_TIMESTEP, LAST_TIMESTEP = 0, 1000
EXECUTION_TIMEOUT = 24 * 3600 * 1000
TTL = 7 * 24 * 3600 * 1000


class Validation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Images held out of training, whose loss is measured with fixed noise; ``{}`` is enough."""

    val_split_proportion: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.15
    every_n_epochs: Positive = 1
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 555


class LoraShape(Struct, frozen=True, kw_only=True):
    """How large the layers of a LoRA are, and how strongly they count."""

    rank: int
    """Of linear layers and 1x1 convolutions."""
    alpha: float
    """What is added is multiplied by ``alpha / rank``, in convolutions too."""
    conv_rank: int = 0
    """Of 3x3 convolutions; 0: only attention has layers."""

    def __str__(self) -> str:
        return f"rank {self.rank}, alpha {self.alpha:g} and convolutions' rank {self.conv_rank}"


class Train(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``input.train`` object: how to fine-tune."""

    data_url: Text
    amp: bool = True
    batch_size: Annotated[int, Meta(ge=1, le=1024)] = 2
    ckpt_every_n_minutes: Count | None = 20
    clip_grad_norm: Annotated[float, Meta(gt=0.0)] | None = None
    clip_skip: Annotated[int, Meta(ge=0, le=4)] = 0
    cond_dropout: Fraction = 0.04
    disable_textenc_training: bool = False
    disable_unet_training: bool = False
    disable_xformers: bool = False
    flip_p: Fraction = 0.0
    gradient_checkpointing: bool = False
    grad_accum: Annotated[int, Meta(ge=1, le=1024)] = 1
    hf_repo_subfolder: str | None = None
    lr: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    lr_decay_steps: Positive | None = None
    lr_scheduler: LrScheduler = "constant"
    lr_warmup_steps: Count | None = None
    max_epochs: Positive = 300
    resolution: Resolution = 512
    resume_ckpt_url: Text = DEFAULT_BASE
    sample_prompts: Annotated[list[str], Meta(max_length=MAX_ITEMS)] = field(default_factory=list)
    sample_steps: Positive = 250
    save_full_precision: bool = False
    save_optimizer: bool = False
    scale_lr: bool = False
    seed: Seed = 555
    shuffle_tags: bool = False
    useadam8bit: bool = True
    rated_dataset: bool = False
    rated_dataset_target_dropout_percent: Annotated[int, Meta(ge=1, le=100)] = 50

    # Not on RunPod's page. Off by default, but for crops_per_image; named as in EveryDream2, those
    # of LoRA as in other trainers.
    base: Text | None = None
    checkpoint_format: CheckpointFormat = "safetensors"
    crops_per_image: Annotated[int, Meta(ge=0, le=1000)] = 4
    ema_decay_rate: Annotated[float, Meta(gt=0.0, lt=1.0)] | None = None
    enable_zero_terminal_snr: bool = False
    keep_checkpoints: Positive | None = None
    keep_tags: Count = 0
    lora_alpha: Annotated[float, Meta(ge=LEAST_ALPHA, le=1024.0)] | None = None
    lora_conv_rank: Annotated[int, Meta(ge=0, le=128)] = 0
    lora_merge: bool = False
    lora_rank: Annotated[int, Meta(ge=1, le=256)] | None = None
    loss_type: LossType = "mse"
    masked_loss: bool = False
    min_snr_gamma: Annotated[float, Meta(gt=0.0)] | None = None
    optimizer: Optimizer | None = None
    pyramid_noise_discount: Fraction = 0.0
    save_every_n_epochs: Positive | None = None
    text_encoder_lr: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    timestep_end: Annotated[int, Meta(ge=1, le=1000)] = LAST_TIMESTEP
    timestep_start: Annotated[int, Meta(ge=0, le=999)] = FIRST_TIMESTEP
    unmasked_weight: Fraction = 0.1
    validation: Validation | None = None
    zero_frequency_noise_ratio: Fraction = 0.0

    @property
    def lora_shape(self) -> LoraShape | None:
        """Of the LoRA that is asked for; None: the whole networks are trained."""
        if self.lora_rank is None:
            return None
        alpha = float(self.lora_rank) if self.lora_alpha is None else self.lora_alpha
        return LoraShape(rank=self.lora_rank, alpha=alpha, conv_rank=self.lora_conv_rank)


class Inference(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry of ``input.inference``: images to generate with the finished model."""

    prompt: str
    negative_prompt: str | None = None
    width: Side = 512
    height: Side = 512
    num_outputs: Annotated[int, Meta(ge=1, le=10)] = 1
    num_inference_steps: Annotated[int, Meta(ge=1, le=500)] = 50
    guidance_scale: Annotated[float, Meta(ge=1.0, le=20.0)] = 7.5
    scheduler: Scheduler = "K-LMS"
    seed: Seed | None = None
    passback: str | None = None
    loras: Annotated[list[LoraWeight], Meta(max_length=MAX_LORAS)] = field(default_factory=list)
    """Weights of the model's LoRAs, in their order; empty: those that ``model`` gives them."""


class S3Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The user's own bucket; never logged, returned, or put on the broker in plain text."""

    accessId: Text  # noqa: N815 - the endpoint's spelling
    accessSecret: Text  # noqa: N815
    bucketName: Text  # noqa: N815
    endpointUrl: Text  # noqa: N815
    objectPath: str = ""  # noqa: N815

    def __repr__(self) -> str:
        return f"S3Config(bucketName={self.bucketName!r}, secrets hidden)"


class WeighedModel(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An item of ``input.model``, if that is a list."""

    model: Text
    weight: LoraWeight = 1.0
    """Of a LoRA: what it adds is multiplied by this."""


class LoraSource(Struct, frozen=True, kw_only=True):
    """A LoRA that is added to the model to generate with."""

    source: Text
    """As a model's."""
    weight: LoraWeight = 1.0
    name: str = ""
    """Name of its file, for people; empty: unknown."""


class AddedLora(Struct, frozen=True, kw_only=True):
    """A LoRA in a stored model's folder."""

    file: str
    """Its name there."""
    name: str
    """For people; ``<lora:NAME:WEIGHT>`` in stable-diffusion-webui."""
    weight: float = 1.0
    """What it adds is multiplied by this."""


class ModelSource(Struct, frozen=True, kw_only=True):
    """A finished model to generate with, if nothing is to be trained."""

    source: Text
    """As ``resume_ckpt_url``, or ``store:`` and the prefix of a job of the client."""
    base: str = ""
    """The model that ``source`` is a LoRA for; empty: the deployment's, or the one it is with."""
    weight: LoraWeight = 1.0
    """Of ``source``, if it is a LoRA."""
    loras: tuple[LoraSource, ...] = ()
    """Further ones."""
    clip_skip: Annotated[int, Meta(ge=0, le=4)] = 0
    """As used when the model was trained."""
    name: str = ""
    """Name of its checkpoint, for people."""
    sha256: str = ""
    """SHA-256 of its checkpoint file; empty: unknown."""

    @property
    def named(self) -> dict[str, str]:
        """Every model that is named, by its place in the request."""
        others = {f"input.model[{index}]": each.source for index, each in enumerate(self.loras, 1)}
        base = {"input.base": self.base} if self.base else {}
        return {"input.model[0]" if others else "input.model": self.source, **base, **others}


class Policy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Deadlines in milliseconds, within RunPod's bounds.

    A job of ``lowPriority`` begins only while no other of its line waits.
    """

    executionTimeout: Annotated[int, Meta(ge=5_000, le=TTL)] = EXECUTION_TIMEOUT  # noqa: N815
    ttl: Annotated[int, Meta(ge=10_000, le=TTL)] = TTL
    lowPriority: bool = False  # noqa: N815


class Request(Struct, frozen=True, kw_only=True):
    """A checked request: either ``train``, or ``model`` and entries to generate."""

    train: Train | None = None
    model: ModelSource | None = None
    inference: tuple[Inference, ...] = ()
    s3: S3Config | None = None
    webhook: str | None = None
    webhook_events: tuple[WebhookEvent, ...] = ()
    """Empty: none named; every end is reported except the client's own cancel."""
    policy: Policy = field(default_factory=Policy)
    warnings: tuple[str, ...] = ()
    """Requested options that have no effect, one sentence each."""


def is_http_url(text: str, pattern: str = WEB_ADDRESS) -> bool:
    """Whether the text is an http or https URL with a host, without credentials."""
    try:
        urlsplit(text).port  # noqa: B018 - raises for an invalid host or port
    except ValueError:
        return False
    return re.search(pattern, text) is not None
