"""Follow every allocation of a step on meta tensors, as autocast on a card would make them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from transformers import CLIPTextConfig, CLIPTextModel

from shared.request import Train

TOKENS = 77
IN_HALF = {torch.conv2d, F.linear, torch.matmul, torch.bmm}
IN_FULL = {F.group_norm, F.layer_norm, F.softmax, F.mse_loss}
"""Of the functions that Stable Diffusion calls, those in the two lists of CUDA's autocast."""
CLIP: dict[str, Any] = {"max_position_embeddings": TOKENS, "vocab_size": 49408}


class Networks(NamedTuple):
    """A model's networks, without weights."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    vae: AutoencoderKL

    @property
    def parameters(self) -> dict[str, int]:
        return {name: count(network) for name, network in self._asdict().items()}


class Counted(NamedTuple):
    """Bytes of a step."""

    casts: int
    gradients: int
    peak: int
    """All that is there at once beside the weights."""


def networks(number: int) -> Networks:
    """Those of Stable Diffusion 1 or 2, in full size."""
    levels = 4
    with torch.device("meta"):
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=(128, 256, 512, 512), layers_per_block=2,
        )  # fmt: skip
        if number == 1:
            text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                                  num_attention_heads=12, **CLIP)  # fmt: skip
            unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
            return Networks(unet, CLIPTextModel(text), vae)
        text = CLIPTextConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23,
                              num_attention_heads=16, hidden_act="gelu", **CLIP)  # fmt: skip
        unet = UNet2DConditionModel(cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20),
                                    use_linear_projection=True)  # fmt: skip
        return Networks(unet, CLIPTextModel(text), vae)


def count(network: torch.nn.Module) -> int:
    return sum(each.numel() for each in network.parameters())


def count_step(of: Networks, train: Train) -> Counted:
    """Forward, loss and backward, of one batch of squares."""
    unet, text = of.unet, of.text_encoder
    unet.requires_grad_(not train.disable_unet_training).train()
    text.requires_grad_(not train.disable_textenc_training).train()
    _set_checkpointing(of, train)
    images, side = train.batch_size, train.resolution // 8
    autocast, live = Autocast(on=train.amp), Live((unet, text))
    with live, autocast, torch.device("meta"):
        hidden = text(torch.zeros(images, TOKENS, dtype=torch.long)).last_hidden_state
        noisy, timesteps = torch.empty(images, 4, side, side), torch.zeros(images)
        predicted = unet(noisy, timesteps, hidden).sample
        loss = F.mse_loss(predicted.float(), torch.empty_like(predicted, dtype=torch.float32))
        del predicted, hidden
    casts = sum(each.nbytes for each in autocast.cache.values())
    autocast.cache.clear()
    with live:
        torch.autograd.backward(loss)
    weights = [*unet.parameters(), *text.parameters()]
    gradients = sum(each.grad.nbytes for each in weights if each.grad is not None)
    for each in weights:
        each.grad = None
    return Counted(casts, gradients, live.peak)


@torch.no_grad()
def count_call(network: torch.nn.Module, call: Callable[[], Any]) -> int:
    """The most that a call takes beside the weights, without gradients."""
    live = Live((network,))
    with live, Autocast(on=False), torch.device("meta"):
        call()
    return live.peak


def _set_checkpointing(of: Networks, train: Train) -> None:
    if not train.gradient_checkpointing:
        of.unet.disable_gradient_checkpointing()
        of.text_encoder.activation_checkpointing_disable()  # type: ignore[no-untyped-call]
        return
    again: dict[str, Any] = {
        "use_reentrant": False,
        "context_fn": lambda: (nullcontext(), Autocast(on=train.amp)),
    }
    of.unet.enable_gradient_checkpointing(partial(checkpoint, **again))
    of.text_encoder.activation_checkpointing_enable(activation_checkpointing_kwargs=again)


class Autocast(TorchFunctionMode):
    """CUDA's autocast for meta tensors, which torch has none for, and attention by flash."""

    def __init__(self, *, on: bool) -> None:
        super().__init__()
        self._on = on
        self.cache: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Any, _types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        if self._on and func in IN_HALF:
            args, kwargs = _each(self._half, args, kwargs)
        elif self._on and func in IN_FULL:
            args, kwargs = _each(_full, args, kwargs)
        return func(*args, **kwargs)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
        halves = [self._half(each) if self._on else each for each in (query, key, value)]
        with torch._C.DisableTorchFunction():
            return torch.ops.aten._scaled_dot_product_flash_attention(*halves)[0]

    def _half(self, each: Any) -> Any:
        if not isinstance(each, Tensor) or each.dtype != torch.float32:
            return each
        if not (each.requires_grad and each.is_leaf):
            return each.to(torch.bfloat16)
        if id(each) not in self.cache:
            self.cache[id(each)] = each.to(torch.bfloat16)
        return self.cache[id(each)]


def _full(each: Any) -> Any:
    return each.float() if isinstance(each, Tensor) and each.dtype == torch.bfloat16 else each


def _each(convert: Callable[[Any], Any], args: Any, kwargs: Mapping[str, Any]) -> Any:
    return [convert(each) for each in args], {k: convert(each) for k, each in kwargs.items()}


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The bytes of all storages that are alive, but for those of some networks' weights."""

    def __init__(self, weights_of: tuple[torch.nn.Module, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known = {
            each.untyped_storage()._cdata: 0
            for network in weights_of
            for each in network.parameters()
        }

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, Tensor):
                self._add(each.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        self._known[storage._cdata] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, storage._cdata)

    def _drop(self, storage: int) -> None:
        self.now -= self._known.pop(storage)
