"""What the training and the drawing of a small job take alone: ``python -m bench.pure_compute``."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from PIL import Image

TINY = Path(__file__).parents[1] / "shared" / "tiny"
PICTURES, SIDE = 4, 256
PROMPT = "a red wall"
TRAIN: dict[str, Any] = {
    "max_epochs": 1, "batch_size": 2, "resolution": SIDE,
    "sample_prompts": [PROMPT], "sample_steps": 1000,
}  # fmt: skip
INFERENCE: dict[str, Any] = {
    "prompt": PROMPT, "width": SIDE, "height": SIDE, "num_inference_steps": 5, "seed": 0,
}  # fmt: skip
ROWS = 2
"""Of samples: before the first step and after the last."""
RUNS = 3
"""The first pays for what is loaded once."""


def make_pictures(folder: Path, count: int) -> Path:
    """Pictures of one colour each, with captions as names."""
    folder.mkdir(parents=True)
    for number in range(count):
        colour = (60 * number, 200 - 40 * number, 90)
        Image.new("RGB", (SIDE, SIDE), colour).save(folder / f"a wall, number {number}.png")
    return folder


def main() -> None:
    from msgspec import json  # noqa: PLC0415

    from bench.pairs import RESULT  # noqa: PLC0415

    with TemporaryDirectory(prefix="bench-pure-") as folder:
        seconds = [one_run(Path(folder) / str(number)) for number in range(RUNS)]
    print(f"{RESULT}{json.encode(min(seconds)).decode()}", flush=True)


def one_run(folder: Path) -> float:
    """Seconds of the steps and of all drawing: nothing is loaded, checked or saved in them."""
    import torch  # noqa: PLC0415

    from bench.training.ours import Watch  # noqa: PLC0415
    from services.inferencer.generation.generate import generate  # noqa: PLC0415
    from services.inferencer.generation.pipeline_cache import PipelineCache  # noqa: PLC0415
    from services.inferencer.order import ImageRequest  # noqa: PLC0415
    from services.inferencer.sample_rows import STEPS  # noqa: PLC0415
    from services.trainer.training.train import train  # noqa: PLC0415
    from shared.request import Inference  # noqa: PLC0415
    from tests.support.training import make_dataset, training_order  # noqa: PLC0415

    watch = Watch()
    data = make_dataset(folder / "data", images=PICTURES)
    train(training_order(folder / "out", base=TINY, dataset=data, **TRAIN), watch)
    pipeline = PipelineCache(torch.device("cpu")).load(TINY)
    sample = INFERENCE | {"num_inference_steps": STEPS}
    began = perf_counter()
    for fields in (*[sample] * ROWS, INFERENCE):
        asked = ImageRequest(inference=Inference(**fields), seed=0)
        list(generate(pipeline, [asked], clip_skip=0, on_step=lambda *_: None))
    return perf_counter() - began + watch.ended - watch.began


if __name__ == "__main__":
    main()
