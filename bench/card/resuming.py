"""A training that is resumed, against one that was not interrupted."""

from __future__ import annotations

from pathlib import Path

from bench.card.findings import Findings
from bench.card.setting import Setting
from bench.sd15 import TINY
from services.trainer.training.train import train
from shared.diffusion.loading import load
from tests.support.training import RecordingCallbacks, make_dataset, training_order, whole_model

BOUND = 0.1
"""Of the way that the weights went. On a CPU it is 0; a card adds in any order."""


def resumed_against_whole(setting: Setting) -> Findings:
    """The tiny model, two epochs in one piece and in two."""
    folder = setting.folder / "resuming"
    data = make_dataset(folder / "data", images=3)

    def trained(
        name: str, epochs: int, *, every: float, point: Path | None = None
    ) -> tuple[Path, list[Path]]:
        order = training_order(
            folder / name, base=TINY, dataset=data, max_epochs=epochs, resume=point,
            resume_every=every, lr=1e-4,
        )  # fmt: skip
        callbacks = RecordingCallbacks()
        outcome = train(order, callbacks)
        points = [path for kind, path, *_ in callbacks.saves if kind == "resume_point"]
        return whole_model(outcome), points

    whole, _ = trained("whole", 2, every=1e9)
    again, _ = trained("again", 2, every=1e9)
    _, points = trained("first", 1, every=0.0)
    rest, _ = trained("rest", 2, every=1e9, point=points[-1])

    resumed, repeated = distance(rest, whole), distance(again, whole)
    found = Findings(facts={
        "resumed against whole": f"{resumed:.2%} of the way that the weights went",
        "the same training twice": f"{repeated:.2%}",
    })  # fmt: skip
    if not resumed <= max(BOUND, 2 * repeated):
        found.problems.append(f"resuming leads elsewhere: {resumed:.2%}")
    return found


def distance(one: Path, other: Path) -> float:
    """How far two trained UNets are apart, as a share of the way from the base model."""
    base, first, second = (load(folder).unet.state_dict() for folder in (TINY, one, other))
    apart = sum(float((first[name] - second[name]).square().sum()) for name in base)
    moved = sum(float((second[name] - base[name]).square().sum()) for name in base)
    return float((apart / moved) ** 0.5)
