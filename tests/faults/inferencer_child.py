"""An inferencer's lasting child that draws by a script: no torch, but real pictures and records."""

from __future__ import annotations

import time
from pathlib import Path

from PIL import Image

from services.inferencer.order import GenerationOrder, ImageRequest
from shared.child.process import RecordWriter, begin, read_order
from shared.child.records import Done, Drawn, Failed, Phase, Ready
from shared.errors import Passing, Refused
from shared.thumbnail import SUFFIX, write_thumbnail
from tests.faults.mishaps import attempt_of, suffer
from tests.faults.script import read


def draw_all(order: GenerationOrder, writer: RecordWriter) -> int:
    """Every image of every entry, one colour each; how many.

    Raises:
        Passing, Refused: the script wants it.
    """
    writer.write(Phase(name="drawing"))
    wanted = [
        (entry, number) for entry in order.requests for number in range(entry.inference.num_outputs)
    ]
    for index, (entry, number) in enumerate(wanted):
        writer.write(draw_one(order, entry, index, entry.seed + number))
    return len(wanted)


def draw_one(order: GenerationOrder, entry: ImageRequest, index: int, seed: int) -> Drawn:
    script = read(entry.inference.prompt)
    suffer(script.mishap("inferencer", index + 1, attempt_of(order.out)))
    time.sleep(script.image_seconds)
    path = Path(order.out) / f"{index:04}.png"
    image = Image.new("RGB", (8, 8), (seed % 256, index % 256, 0))
    image.save(path)
    write_thumbnail(image, path.with_suffix(SUFFIX))
    return Drawn(index=index, path=str(path), thumbnail=str(path.with_suffix(SUFFIX)), seed=seed)


def carry_out(order: GenerationOrder, writer: RecordWriter) -> Done | Failed:
    """The last word on an order, as the real child decides it."""
    try:
        return Done(summary={"images": draw_all(order, writer)})
    except (Passing, Refused) as error:
        return Failed(refused=isinstance(error, Refused), reason=str(error))


def main() -> None:
    writer = begin()
    writer.write(Ready(gpu="scripted"))
    while True:
        writer.write(carry_out(read_order(GenerationOrder), writer))


if __name__ == "__main__":
    main()
