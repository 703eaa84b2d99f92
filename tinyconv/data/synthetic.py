"""A data set that needs no download: ten kinds of textures and shapes, drawn on the spot.

A first training run should start at once and succeed within minutes, and it should prove
something. So the pictures are easy for a convolutional network and too much for a linear
classifier. What the latter could use, the brightness of a pixel at a given place, is drawn at
random for every picture:

- both colours, so that every class is as often bright on dark as dark on bright, and their mean
  over many pictures is a grey blur;
- place, size and a tilt of up to 20°, both ways, so that a horizontal flip (§4.1) never turns a
  picture into one that its class would not have drawn;
- uneven light, stray strokes behind and in front, and noise.

What is left is form: the orientation of edges, corners, repetition, which is what the first
layers of a convolutional network learn to see (§6.1, figure 3).

Every picture draws its chances from a generator of its own, seeded with (seed, split, class,
number). Asking for more pictures therefore never changes the first ones, and threads may draw
them in any order. Python's `random` serves instead of NumPy's because seeding it is cheap and
its stream is promised to stay the same.

Points are complex numbers, so that turning, scaling and moving a figure is `centre + turn * z`.
"""

from __future__ import annotations

import cmath
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from tinyconv.data.photos import PhotoSet, central_square

CANVAS = 256  # pixels a side when drawn: what the paper keeps of a photo (§2)
INK, PAPER = 255, 0  # in the mask: the figure, and holes in it

# A figure is a list of filled polygons, later ones over earlier ones.
Figure = Iterator[tuple[int, list[complex]]]


def _polygon(corners: int, radius: float = 1.0, first: float = -math.pi / 2) -> list[complex]:
    """A regular polygon around 0, its first corner on top (y points down)."""
    return [cmath.rect(radius, first + 2 * math.pi * k / corners) for k in range(corners)]


def _box(left: float, top: float, right: float, bottom: float) -> list[complex]:
    return [complex(left, top), complex(right, top), complex(right, bottom), complex(left, bottom)]


# --- textures: one unit is one period; REACH of them cover the canvas from its middle

REACH = 6


def bricks() -> Figure:
    """Rows of bricks, every other one moved by half a brick."""
    for row in range(-REACH, REACH):
        for column in range(-REACH, REACH, 2):
            left = column + row % 2
            yield INK, _box(left + 0.1, row + 0.1, left + 1.9, row + 0.9)


def checkerboard() -> Figure:
    """Squares in every other place."""
    for row in range(-REACH, REACH):
        for column in range(-REACH + row % 2, REACH, 2):
            yield INK, _box(column, row, column + 1, row + 1)


def dots() -> Figure:
    """A disc in every period."""
    disc = _polygon(14, 0.32)
    for row in range(-REACH, REACH):
        for column in range(-REACH, REACH):
            yield INK, [point + complex(column, row) for point in disc]


def stripes() -> Figure:
    """Stripes of half a period."""
    for column in range(-REACH, REACH):
        yield INK, _box(column, -REACH, column + 0.5, REACH)


def waves() -> Figure:
    """Bands between two sines."""
    crest = [complex(k / 8, 0.4 * math.sin(k / 8 * math.pi)) for k in range(-8 * REACH, 8 * REACH)]
    for row in range(-REACH, REACH):
        trough = [point + 0.5j for point in reversed(crest)]
        yield INK, [point + 1j * row for point in crest + trough]


# --- shapes: the unit is the radius of the circle around them


def cross() -> Figure:
    """Two bars, upright and level."""
    yield INK, _box(-1, -0.28, 1, 0.28)
    yield INK, _box(-0.28, -1, 0.28, 1)


def rings() -> Figure:
    """Two rings, one in the other."""
    for fill, radius in ((INK, 1.0), (PAPER, 0.75), (INK, 0.5), (PAPER, 0.25)):
        yield fill, _polygon(40, radius)


def square() -> Figure:
    """A square."""
    yield INK, _polygon(4, first=math.pi / 4)


def star() -> Figure:
    """A star of five tips."""
    tips, notches = _polygon(5), _polygon(5, 0.4, first=-math.pi / 2 + math.pi / 5)
    yield INK, [point for pair in zip(tips, notches, strict=True) for point in pair]


def triangle() -> Figure:
    """A triangle."""
    yield INK, _polygon(3)


TEXTURES: tuple[Callable[[], Figure], ...] = (bricks, checkerboard, dots, stripes, waves)
SHAPES: tuple[Callable[[], Figure], ...] = (cross, rings, square, star, triangle)
FIGURES = dict(sorted((figure.__name__, figure) for figure in TEXTURES + SHAPES))

# How hard it is: chosen so that a narrow AlexNet gets nearly all of them right after a dozen
# rounds of 2,000 pictures. Of these the tilt matters most; any rotation at all would need several
# times as many.
TILT = math.radians(20)
PERIOD = (32, 54)  # pixels on the canvas, as the next two
RADIUS = (62, 100)
OFF_CENTRE = 30
CONTRAST = 90  # least difference in brightness between the figure and the rest, of 255
STROKES = (4, 12)
NOISE = 0.2  # at most this share of a picture is noise


# --- a picture


def draw(name: str, random: Random) -> Image.Image:
    """Draw one picture of the class `name`, an RGB image of 256×256 pixels."""
    figure = FIGURES[name]
    size = random.uniform(*(PERIOD if figure in TEXTURES else RADIUS))
    turn = cmath.rect(size, random.uniform(-TILT, TILT))
    centre = complex(*(CANVAS / 2 + random.uniform(-OFF_CENTRE, OFF_CENTRE) for _ in "xy"))
    mask = Image.new("L", (CANVAS, CANVAS), PAPER)
    pen = ImageDraw.Draw(mask)
    for fill, points in figure():
        placed = (centre + turn * point for point in points)
        pen.polygon([(point.real, point.imag) for point in placed], fill=fill)

    ink, paper = _two_colours(random)
    picture = _uneven(paper, random)
    _scribble(picture, random)
    picture.paste(_uneven(ink, random), mask=mask)
    _scribble(picture, random)
    noise = Image.frombytes("RGB", picture.size, random.randbytes(3 * CANVAS * CANVAS))
    return Image.blend(picture, noise, random.uniform(0, NOISE))


def _two_colours(random: Random) -> list[list[float]]:
    """Two random colours that differ in brightness, either one the brighter."""
    while True:
        colours = [[random.uniform(0, 255) for _ in "rgb"] for _ in range(2)]
        if abs(sum(colours[0]) - sum(colours[1])) >= 3 * CONTRAST:
            return colours


def _uneven(colour: list[float], random: Random) -> Image.Image:
    """A canvas of one colour that drifts a little from corner to corner."""
    corners = [round(level + random.uniform(-30, 30)) for _ in range(4) for level in colour]
    small = Image.frombytes("RGB", (2, 2), bytes(min(max(level, 0), 255) for level in corners))
    return small.resize((CANVAS, CANVAS), Image.Resampling.BICUBIC)


def _scribble(picture: Image.Image, random: Random) -> None:
    """A few short strokes in any colour, place and direction."""
    pen = ImageDraw.Draw(picture)
    for _ in range(random.randint(*STROKES) // 2):
        start = complex(*(random.uniform(0, CANVAS) for _ in "xy"))
        end = start + cmath.rect(random.uniform(8, 40), random.uniform(0, 2 * math.pi))
        colour = tuple(random.randrange(256) for _ in "rgb")
        line = [(start.real, start.imag), (end.real, end.imag)]
        pen.line(line, fill=colour, width=random.randint(2, 5))


# --- a data set


def synthetic(
    train_per_class: int = 200,
    val_per_class: int = 50,
    size: int = 256,
    seed: int = 0,
    threads: int | None = None,
) -> tuple[PhotoSet, PhotoSet]:
    """Draw the embedded data set: ten classes, as many pictures of each as asked for.

    The pictures are drawn at 256×256 and rescaled to `size` as photos are. Returns (train, val),
    images uint8 (10 · per class, size, size, 3), class after class as in a folder of photos; the
    same bytes for the same seed. threads: None for one per core. Raises ValueError for a count
    or size below 1.
    """
    if min(train_per_class, val_per_class, size) < 1:
        raise ValueError(
            "train_per_class, val_per_class and size must be at least 1, not "
            f"{train_per_class}, {val_per_class} and {size}"
        )
    names = tuple(FIGURES)

    def make(split: str, per_class: int) -> PhotoSet:
        images = np.empty((len(names) * per_class, size, size, 3), np.uint8)

        def draw_row(row: int) -> None:
            name, number = names[row // per_class], row % per_class
            picture = draw(name, Random(f"{seed} {split} {name} {number}"))
            images[row] = np.asarray(central_square(picture, size))

        with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
            for _ in pool.map(draw_row, range(len(images))):
                pass  # fetching the results raises what a thread raised
        labels = np.repeat(np.arange(len(names), dtype=np.int64), per_class)
        return PhotoSet(images, labels, names)

    return make("train", train_per_class), make("val", val_per_class)
