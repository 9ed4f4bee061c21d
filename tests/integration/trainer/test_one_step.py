"""One step of our loop against the same step by plain torch and diffusers calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from services.trainer.training import train as loop
from services.trainer.training.batches import LoadedBatch
from services.trainer.training.loss import DiffusionLoss
from services.trainer.training.state import State
from services.trainer.training.train import train
from shared.dataset.plan import seed_of
from shared.diffusion.loading import Parts, load
from shared.diffusion.noise import seeded
from tests.support.models import make_random_model
from tests.support.training import RecordingCallbacks, make_dataset, training_order

pytestmark = pytest.mark.usefixtures("small_pictures")

LR = 1e-3
CLIP = 0.05
"""Below both networks' norms, so that both are clipped."""


class Step:
    """What a step of ours was given, and what it came to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._loss, self._update, self._clip = (
            DiffusionLoss.loss, loop.update, torch.nn.utils.clip_grad_norm_
        )  # fmt: skip
        self.norms: list[float] = []
        monkeypatch.setattr(DiffusionLoss, "loss", self._note_loss())
        monkeypatch.setattr(loop, "update", self._note_update)
        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", self._note_norm)

    def _note_loss(self) -> Any:
        def note(objective: DiffusionLoss, loaded: LoadedBatch) -> Tensor:
            self.loaded = loaded
            loss = self._loss(objective, loaded)
            self.loss = float(loss.detach())
            return loss

        return note

    def _note_norm(self, parameters: Any, most: float) -> Tensor:
        norm = self._clip(parameters, most)
        self.norms.append(float(norm))
        return norm

    def _note_update(self, state: State, **settings: Any) -> bool:
        complete = self._update(state, **settings)
        self.unet = dict(state.parts.unet.state_dict())
        self.text_encoder = dict(state.parts.text_encoder.state_dict())
        return complete


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_step_is_the_textbooks(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss, the norms of the gradients, and every weight after AdamW."""
    base = make_random_model(tmp_path / "base", prediction_type=kind)
    data = make_dataset(tmp_path / "data", images=2)
    order = training_order(
        tmp_path / "out", dataset=data, base=base, batch_size=2, max_epochs=1, lr=LR,
        useadam8bit=False, clip_grad_norm=CLIP,
    )  # fmt: skip
    ours = Step(monkeypatch)
    train(order, RecordingCallbacks())
    monkeypatch.undo()

    parts = load(base)
    loss, norms = textbook_step(parts, ours.loaded, seed_of(order.seed, 0, 0, "noise"))

    assert ours.loss == pytest.approx(loss, rel=1e-6)
    assert ours.norms == pytest.approx(norms, rel=1e-5)
    assert min(norms) > CLIP
    assert_same(ours.unet, parts.unet.state_dict())
    assert_same(ours.text_encoder, parts.text_encoder.state_dict())


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """To rounding: but where a gradient is as small as Adam's epsilon, that is more.

    Adam's step is up to LR for every weight, and weight decay is up to LR / 100.
    """
    assert found.keys() == wanted.keys()
    off = torch.cat([(found[name] - wanted[name]).abs().flatten() for name in wanted])
    assert float(off.max()) < LR / 10
    assert float((off > LR / 5000).float().mean()) < 0.01


def textbook_step(parts: Parts, loaded: LoadedBatch, seed: int) -> tuple[float, list[float]]:
    """Loss and norms of the gradients; afterwards the parts have the new weights."""
    scheduler = DDPMScheduler.from_config(parts.scheduler_config)
    generator = seeded(seed)
    pixels = torch.stack([each.tensor for each in loaded.examples])
    with torch.no_grad():
        latents = parts.vae.encode(pixels).latent_dist.sample(generator) * 0.18215
    noise = torch.randn(latents.shape, generator=generator)
    timesteps = torch.randint(0, 1000, (2,), generator=generator)
    is_epsilon = parts.prediction_type == "epsilon"
    wanted = noise if is_epsilon else scheduler.get_velocity(latents, noise, timesteps)

    networks = (parts.unet.train(), parts.text_encoder.train())
    optimizers = [
        torch.optim.AdamW(each.parameters(), lr=LR, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
        for each in networks
    ]
    ids = parts.tokenizer(
        loaded.captions, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    ).input_ids
    hidden = parts.text_encoder(ids).last_hidden_state
    noisy = scheduler.add_noise(latents, noise, timesteps)
    loss = torch.nn.functional.mse_loss(parts.unet(noisy, timesteps, hidden).sample, wanted)
    loss.backward()  # type: ignore[no-untyped-call]
    norms = [float(torch.nn.utils.clip_grad_norm_(each.parameters(), CLIP)) for each in networks]
    for optimizer in optimizers:
        optimizer.step()
    return float(loss.detach()), norms
