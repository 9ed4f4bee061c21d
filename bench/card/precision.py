"""UNet and text encoder forward and backward, in three precisions, against the CPU's gradients."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere
from torch import Tensor

from bench.card.findings import Findings
from bench.card.setting import Setting, mebibytes
from services.trainer.training.device import probe
from shared.diffusion.device import this_device
from shared.diffusion.loading import Parts, load
from shared.diffusion.noise import seeded
from shared.diffusion.text import encode, tokenize

KINDS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
BOUNDS = {"fp32": 0.02, "fp16": 0.1, "bf16": 0.25}
"""Of the gradient's error, as a share of it; from the digits of each kind, not measured."""
SCALE = 1024.0
"""As a loss scaler would, so that gradients do not vanish in fp16."""


def gradients_in_three_precisions(setting: Setting) -> Findings:
    """Losses, gradients' errors, peak memory and time of one step of batch 1."""
    torch.backends.cudnn.allow_tf32 = False  # fp32 shall be fp32
    device, parts = this_device(), load(setting.base())
    reference_loss = backward(parts, torch.device("cpu"), torch.float32, setting.side)
    reference = take_gradients(parts)
    parts.to(device)
    found = Findings(facts={"model": f"{setting.geometry}, {setting.side} pixels, batch 1"})
    found.facts["loss on the CPU in fp32"] = f"{reference_loss:.6f}"
    kinds_of_attention = ("sdpa", "xformers") if probe(device).xformers else ("sdpa",)
    for attention in kinds_of_attention:
        if attention == "xformers":
            parts.unet.enable_xformers_memory_efficient_attention()
        for name, kind in KINDS.items():
            is_emulated = name == "bf16" and not _has_bf16(device)
            if is_emulated:
                continue
            title = f"{name}, {attention}"
            found.facts[title], error = compare(parts, device, kind, setting.side, reference)
            if not error <= BOUNDS[name]:
                text = f"gradients differ by {error:.2%}, over {BOUNDS[name]:.0%}"
                found.problems.append(f"{title}: {text}")
    return found


def compare(
    parts: Parts,
    device: torch.device,
    kind: torch.dtype,
    side: int,
    reference: dict[str, Tensor],
) -> tuple[str, float]:
    """One step in words, and how far its gradients are from the reference's."""
    backward(parts, device, kind, side)  # the first time kernels are chosen
    take_gradients(parts)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    begun = perf_counter()
    loss = backward(parts, device, kind, side)
    seconds = perf_counter() - begun
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    memory = f", peak {mebibytes(peak)}" if peak else ""
    error = relative_error(take_gradients(parts), reference)
    return f"loss {loss:.6f}, error {error:.2%}, {seconds * 1000:.0f} ms{memory}", error


def backward(parts: Parts, device: torch.device, kind: torch.dtype, side: int) -> float:
    """The loss of one image of noise; gradients are in the networks, times ``SCALE``."""
    generator = seeded(1)
    latents, noise = (
        torch.randn(1, 4, side // 8, side // 8, generator=generator).to(device) for _ in range(2)
    )
    timesteps = torch.tensor([500], device=device)
    with torch.autocast(device.type, kind, enabled=kind is not torch.float32):
        hidden = encode(parts.text_encoder, tokenize(parts.tokenizer, ["a red wall"]), 0)
        predicted = parts.unet(latents, timesteps, hidden).sample
    loss = F.mse_loss(predicted.float(), noise)
    (loss * SCALE).backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())


def take_gradients(parts: Parts) -> dict[str, Tensor]:
    """The gradients, on the CPU; the networks have none afterwards."""
    taken = {}
    for network in (parts.unet, parts.text_encoder):
        for name, weight in network.named_parameters():
            if weight.grad is not None:
                taken[f"{type(network).__name__}.{name}"] = (weight.grad / SCALE).cpu()
        network.zero_grad(set_to_none=True)
    return taken


def relative_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The distance of all gradients together as a share of the expected ones' length."""
    squares: Any = sum(
        float((found[name] - each).square().sum()) for name, each in expected.items()
    )
    length: Any = sum(float(each.square().sum()) for each in expected.values())
    return float((squares / length) ** 0.5)


def _has_bf16(device: torch.device) -> bool:
    return device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
