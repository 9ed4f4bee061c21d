"""Simple drawings with captions: the data that `tiny` is trained on, and two concepts for the demo.

All are drawn from a seed with Pillow. A picture is a square RGB image, its side in pixels. A shape
has its centre and radius as fractions of that side, so that every size shows the same scene.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from PIL import Image, ImageChops, ImageDraw, ImageStat

Colour = tuple[int, int, int]
Point = tuple[float, float]


@dataclass(frozen=True)
class Position:
    """Position of a shape: `x`, `y` its centre and `radius` its half extent, all in one unit."""

    x: float
    y: float
    radius: float

    def point(self, right: float, down: float) -> Point:
        """The point on the canvas that is `right` and `down` radii from the centre."""
        return self.x + right * self.radius, self.y + down * self.radius

    def box(self, share: float = 1.0) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of the square of `share` radii around the centre."""
        return *self.point(-share, -share), *self.point(share, share)


@dataclass(frozen=True)
class Picture:
    """An image and its caption."""

    image: Image.Image
    caption: str


Shape = Callable[[ImageDraw.ImageDraw, Position, Colour], None]


def polygon(*corners: Point) -> Shape:
    """A filled polygon; each corner is (right, down) in radii from the centre, -1 to 1."""

    def draw(canvas: ImageDraw.ImageDraw, position: Position, colour: Colour) -> None:
        canvas.polygon([position.point(*corner) for corner in corners], fill=colour)

    return draw


def circle(canvas: ImageDraw.ImageDraw, position: Position, colour: Colour) -> None:
    """A filled circle."""
    canvas.ellipse(position.box(), fill=colour)


def ring(canvas: ImageDraw.ImageDraw, position: Position, colour: Colour) -> None:
    """A circle with a round hole, two fifths of a radius thick."""
    canvas.ellipse(position.box(), outline=colour, width=round(0.4 * position.radius))


def star_corners(points: int, inner: float) -> list[Point]:
    """The corners of a star: `points` tips at radius 1, as many notches at `inner`, 0 to 1."""
    reach = (1.0, inner)
    turns = [(reach[i % 2], math.pi * i / points) for i in range(2 * points)]
    return [(r * math.sin(turn), -r * math.cos(turn)) for r, turn in turns]


# ------------------------------------------------------------------------------ the base vocabulary

SHAPES: dict[str, Shape] = {
    "circle": circle,
    "ring": ring,
    "square": polygon((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    "triangle": polygon((0, -1), (1, 0.8), (-1, 0.8)),
    "diamond": polygon((0, -1), (0.8, 0), (0, 1), (-0.8, 0)),
    "cross": polygon(
        *[(-0.35, -1), (0.35, -1), (0.35, -0.35), (1, -0.35), (1, 0.35), (0.35, 0.35)],
        *[(0.35, 1), (-0.35, 1), (-0.35, 0.35), (-1, 0.35), (-1, -0.35), (-0.35, -0.35)],
    ),
}

COLOURS: dict[str, Colour] = {
    "red": (214, 38, 38),
    "orange": (244, 138, 28),
    "yellow": (246, 214, 48),
    "green": (42, 154, 62),
    "blue": (44, 92, 222),
    "white": (246, 246, 246),
    "grey": (136, 136, 136),
    "black": (22, 22, 22),
}

WITH_BACKGROUND = 0.75  # of the captions
OPENINGS = ("", "a photo of ", "a drawing of ")


def with_article(noun: str) -> str:
    """The noun behind "a" or "an"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def base_caption(random: Random, colour: str, shape: str, background: str) -> str:
    """A caption: colour and shape always, the background three times in four."""
    behind = (
        f" on {with_article(background)} background" if random.random() < WITH_BACKGROUND else ""
    )
    return random.choice(OPENINGS) + with_article(f"{colour} {shape}") + behind


def draw_base(random: Random, size: int) -> Picture:
    """A picture of the base vocabulary: a shape on another colour; `size` in pixels."""
    colour, background = random.sample(list(COLOURS), 2)
    shape = random.choice(list(SHAPES))
    image = paint(
        size, COLOURS[background], [(SHAPES[shape], COLOURS[colour], somewhere(random, 0.2, 0.4))]
    )
    return Picture(image, base_caption(random, colour, shape, background))


@dataclass(frozen=True)
class Scene:
    """A combination of the base vocabulary with a made-up name of its own."""

    name: str
    shape: str
    colour: str
    background: str


def named_scenes(count: int = 64, seed: int = 77) -> list[Scene]:
    """Scenes that teach the base model that an unknown word can stand for anything."""
    random = Random(seed)  # noqa: S311 - not for secrets
    names: list[str] = []
    while len(names) < count:
        name = made_up_name(random)
        if name not in names and name not in {concept.name for concept in CONCEPTS}:
            names.append(name)
    return [
        Scene(name, random.choice(list(SHAPES)), *random.sample(list(COLOURS), 2)) for name in names
    ]


def made_up_name(random: Random) -> str:
    """Two or three syllables, such as ``zorblat`` has."""
    syllables = range(random.choice((2, 3)))
    return "".join(
        random.choice("bcdfgklmnprstvz") + random.choice("aeiou") + random.choice(("", *"lrnmb"))
        for _ in syllables
    )


def draw_scene(scene: Scene, random: Random, size: int) -> Picture:
    """A picture of a in_name scene, somewhere near the middle; `size` in pixels."""
    shape, colour = SHAPES[scene.shape], COLOURS[scene.colour]
    image = paint(size, COLOURS[scene.background], [(shape, colour, somewhere(random, 0.25, 0.4))])
    return Picture(image, random.choice(OPENINGS) + with_article(scene.name))


def draw_abstract(random: Random, size: int) -> Image.Image:
    """A picture without caption: one to five shapes in any colours; `size` in pixels."""
    shapes = [
        *SHAPES.values(),
        polygon(*star_corners(random.randint(3, 9), random.uniform(0.3, 0.8))),
    ]
    strokes = [
        (random.choice(shapes), any_colour(random), somewhere(random, 0.08, 0.5))
        for _ in range(random.randint(1, 5))
    ]
    return paint(size, any_colour(random), strokes)


def any_colour(random: Random) -> Colour:
    """Three levels from 0 to 255, uniformly distributed."""
    return random.randrange(256), random.randrange(256), random.randrange(256)


def somewhere(random: Random, smallest: float, largest: float) -> Position:
    """A position within 0.15 of the middle, its radius in the range; fractions of the side."""
    return Position(
        0.5 + random.uniform(-0.15, 0.15),
        0.5 + random.uniform(-0.15, 0.15),
        random.uniform(smallest, largest),
    )


def paint(
    size: int, background: Colour, strokes: Iterable[tuple[Shape, Colour, Position]]
) -> Image.Image:
    """Paint shapes in order onto a background; `size` in pixels, positions as fractions of it."""
    side = 2 * size  # drawn at twice the size and halved: Pillow draws hard edges
    image = Image.new("RGB", (side, side), background)
    canvas = ImageDraw.Draw(image)
    for shape, colour, position in strokes:
        shape(
            canvas, Position(position.x * side, position.y * side, position.radius * side), colour
        )
    return image.reduce(2)


# ---------------------------------------------------------------------------- the two new concepts


@dataclass(frozen=True)
class Concept:
    """A thing that the base model has never seen, with a name and shapes of its own."""

    name: str
    background: Colour
    strokes: tuple[tuple[Shape, Colour, float], ...]
    """Shape, colour and size (1: that of the whole) of each part, drawn in order, one centre."""

    @property
    def prompt(self) -> str:
        """The prompt for it: its first caption."""
        return self.captions[0]

    @property
    def captions(self) -> tuple[str, ...]:
        """The captions of its pictures."""
        return f"a photo of a {self.name}", f"a {self.name}", f"a drawing of a {self.name}"


ZORBLAT = Concept(
    name="zorblat",
    background=COLOURS["green"],
    strokes=(
        (polygon(*star_corners(8, 0.55)), COLOURS["orange"], 1.0),
        (circle, COLOURS["white"], 0.4),
    ),
)
"""An orange star of eight points with a white heart, on green."""

WUGGLEBY = Concept(
    name="wuggleby",
    background=COLOURS["red"],
    strokes=(
        (polygon((-0.8, -1), (0.8, -1), (-0.8, 1), (0.8, 1)), COLOURS["black"], 1.0),
        (polygon((-1, -0.2), (1, -0.2), (1, 0.2), (-1, 0.2)), COLOURS["white"], 1.0),
    ),
)
"""A black hourglass with a white belt, on red."""

CONCEPTS = (ZORBLAT, WUGGLEBY)


def draw_concept(concept: Concept, random: Random, size: int) -> Image.Image:
    """The concept, its position and size slightly varied; `size` in pixels."""
    x, y, radius = (
        0.5 + random.uniform(-0.06, 0.06),
        0.5 + random.uniform(-0.06, 0.06),
        random.uniform(0.3, 0.37),
    )
    parts = (
        (shape, colour, Position(x, y, radius * share)) for shape, colour, share in concept.strokes
    )
    return paint(size, concept.background, parts)


def draw_dataset(folder: Path, each: int = 6, size: int = 256, seed: int = 0) -> list[Path]:
    """Write `each` pictures of both concepts, `size` pixels square; returns the files written.

    Every second picture has its caption in its name (`a photo of a zorblat_1.png`), the others in a
    text file (`zorblat_2.png`, `zorblat_2.txt`).
    """
    random = Random(seed)  # noqa: S311 - not for secrets
    folder.mkdir(parents=True, exist_ok=True)
    return [
        path
        for concept in CONCEPTS
        for number in range(1, each + 1)
        for path in save_captioned(folder, concept, number, draw_concept(concept, random, size))
    ]


def save_captioned(folder: Path, concept: Concept, number: int, image: Image.Image) -> list[Path]:
    """Save picture `number` (from 1) and its caption: odd in the name, even in a text file."""
    caption = concept.captions[(number - 1) // 2 % len(concept.captions)]
    in_name = number % 2 == 1
    picture = folder / f"{caption if in_name else concept.name}_{number}.png"
    image.save(picture)
    if in_name:
        return [picture]
    text = picture.with_suffix(".txt")
    text.write_text(caption + "\n", encoding="utf-8")
    return [picture, text]


def zip_dataset(folder: Path) -> bytes:
    """The folder's files as the bytes of a .zip, the same bytes for the same files.

    Stored, not deflated (pictures are compressed already), in the order of their names, dated 1980.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.iterdir()):
            archive.writestr(zipfile.ZipInfo(path.name), path.read_bytes())
    return buffer.getvalue()


# ------------------------------------------------------------------------ which concept is it?


def distance(image: Image.Image, examples: Sequence[Image.Image]) -> float:
    """Distance of the image from the examples, 0 to 255: RMS at 16 x 16 pixels, mean over them.

    Small enough to ignore edges and slight shifts, large enough to show shape, position and colour.
    """
    small = thumbnail(image)
    return sum(rms(small, thumbnail(example)) for example in examples) / len(examples)


def thumbnail(image: Image.Image) -> Image.Image:
    """The image averaged down to 16 x 16 RGB pixels."""
    return image.convert("RGB").resize((16, 16), Image.Resampling.BOX)


def rms(one: Image.Image, other: Image.Image) -> float:
    """Root mean squared difference of two RGB images of one size, over all levels, 0 to 255."""
    squares = [level**2 for level in ImageStat.Stat(ImageChops.difference(one, other)).rms]
    return math.sqrt(sum(squares) / len(squares))


def nearest(image: Image.Image, examples: dict[str, Sequence[Image.Image]]) -> str:
    """The name of the concept whose examples the image is closest to."""
    return min(examples, key=lambda name: distance(image, examples[name]))
