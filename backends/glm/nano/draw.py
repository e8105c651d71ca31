"""Draws pictures of which everything is known: `draw_scene(seed)` -> picture and Scene.

The same seed and size give the same picture on every machine: only Pillow and `random.Random` are
used. Things never overlap, never sit on the border between two places of the
3x3 grid, and always differ clearly from the background, so that every answer is decidable.
"""

import math
import random

from PIL import Image, ImageDraw

from backends.glm.nano.scene import (
    COLOURS,
    PASTELS,
    RGB,
    SHAPES,
    Scene,
    Thing,
    reading_order,
)

PLACE_MARGIN = 0.045  # distance of a centre from a border between two places
ROW_GAP = 0.06  # things of one row differ at least this much in x: reading order is decidable
CONTRAST = 100.0  # Euclidean RGB distance between a thing and what it stands on
MAX_THINGS = 3
RETRIES = 60

Spot = tuple[float, float, float]  # x, y, size


def draw_scene(seed: int | str, *, size: int | tuple[int, int] = 224) -> tuple[Image.Image, Scene]:
    """A picture (RGB) and what it shows. `size`: side, or (width, height), in pixels."""
    picture, scene, _ = draw_labelled(seed, size=size)
    return picture, scene


def draw_labelled(
    seed: int | str, *, size: int | tuple[int, int]
) -> tuple[Image.Image, Scene, Image.Image]:
    """The same, and a picture ("L") that is 0 on the ground and i + 1 on the i-th thing."""
    rng = random.Random(f"scene {seed}")
    width, height = (size, size) if isinstance(size, int) else size
    kind = rng.choices(KINDS, KIND_WEIGHTS)[0]
    name, ground = pick_background(rng, plain=kind == "plain")
    picture = Image.new("RGB", (width, height), ground)
    labels = Image.new("L", (width, height))
    things: list[Thing] = []
    if kind != "plain":
        things = draw_things(rng, picture, labels, kind, name, ground)
    ordered = reading_order(things)
    rank = [0, *(ordered.index(thing) + 1 for thing in things)]
    return picture, Scene(name, ordered), labels.point(rank + [0] * (256 - len(rank)))


KINDS = ("single", "pair", "alike", "mixed", "plain")
KIND_WEIGHTS = (32, 26, 17, 21, 4)


def pick_background(rng: random.Random, *, plain: bool) -> tuple[str, RGB]:
    roll = rng.random()
    if plain or roll > 0.90:
        name = rng.choice(list(COLOURS))
        return name, jitter(rng, rng.choice(COLOURS[name]), 8)
    if roll < 0.52:
        return "white", (255, 255, 255)
    if roll < 0.60:
        grey = rng.randint(243, 254)
        return "white", (grey, grey, grey)
    if roll < 0.68:
        grey = rng.randint(130, 222)
        return "gray", (grey, grey, grey)
    if roll < 0.76:
        grey = rng.randint(0, 24)
        return "black", (grey, grey, grey)
    name = rng.choice(list(PASTELS))
    return name, jitter(rng, PASTELS[name], 6)


def jitter(rng: random.Random, rgb: RGB, by: int) -> RGB:
    """A tint near `rgb`; one time in three exactly it, because named colours are common."""
    if rng.random() < 0.34:
        return rgb
    r, g, b = (max(0, min(255, value + rng.randint(-by, by))) for value in rgb)
    return r, g, b


def pick_tint(
    rng: random.Random, background: str, ground: RGB, colour: str | None
) -> tuple[str, RGB]:
    """A colour name and a tint of it that stands out from the ground."""
    names = [colour] if colour else [name for name in COLOURS if name != background]
    for _ in range(RETRIES):
        name = rng.choice(names)
        tint = jitter(rng, rng.choice(COLOURS[name]), 10)
        if math.dist(tint, ground) >= CONTRAST:
            return name, tint
    # The asked colour does not stand out here (white on white): any that does.
    return pick_tint(rng, background, ground, None)


def settled(x: float, y: float) -> bool:
    """Whether a centre is clearly inside one place of the 3x3 grid."""
    return all(abs(value - border) > PLACE_MARGIN for value in (x, y) for border in (1 / 3, 2 / 3))


def clear(spot: Spot, spots: list[Spot], aspect: tuple[float, float]) -> bool:
    """Whether a thing overlaps none of the others and its reading order is decidable."""
    x, y, size = spot
    for ox, oy, osize in spots:
        apart = math.hypot((x - ox) * aspect[0], (y - oy) * aspect[1])
        if apart < 0.5 * (size + osize) * 1.12:
            return False
        if min(2, int(y * 3)) == min(2, int(oy * 3)) and abs(x - ox) < ROW_GAP:
            return False
    return True


def scatter(rng: random.Random, count: int, aspect: tuple[float, float]) -> list[Spot]:
    """Spots at random; tries again, smaller, until `count` fit."""
    largest = {1: 0.9, 2: 0.52, 3: 0.42}[count]
    smallest = 0.3 if count == 1 else 0.24
    while True:
        spots: list[Spot] = []
        for _ in range(RETRIES):
            size = rng.uniform(smallest, largest)
            reach_x, reach_y = size / 2 / aspect[0] + 0.01, size / 2 / aspect[1] + 0.01
            x, y = rng.uniform(reach_x, 1 - reach_x), rng.uniform(reach_y, 1 - reach_y)
            if settled(x, y) and clear((x, y, size), spots, aspect):
                spots.append((x, y, size))
            if len(spots) == count:
                return spots
        largest = max(smallest, largest * 0.85)


def line_up(rng: random.Random, count: int, aspect: tuple[float, float]) -> list[Spot]:
    """Equal spots side by side, or one above the other when that fits."""
    upright = rng.random() < 0.3
    room = aspect[1] if upright else aspect[0]
    for _ in range(RETRIES):
        size = min(0.6, room / count * rng.uniform(0.55, 0.85))
        across = rng.choice((0.5, 0.5, rng.uniform(0.15, 0.85)))
        reach = size / 2 / (aspect[0] if upright else aspect[1]) + 0.01
        across = min(1 - reach, max(reach, across))
        along = [(i + 0.5) / count + rng.uniform(-0.03, 0.03) for i in range(count)]
        spots = [(across, a, size) if upright else (a, across, size) for a in along]
        if size >= 0.17 and all(settled(x, y) for x, y, _ in spots):
            return spots
    return scatter(rng, count, aspect)


def draw_things(
    rng: random.Random,
    picture: Image.Image,
    labels: Image.Image,
    kind: str,
    background: str,
    ground: RGB,
) -> list[Thing]:
    count = {"single": 1, "pair": 2, "alike": rng.randint(2, MAX_THINGS)}.get(kind, MAX_THINGS)
    short = min(picture.size)
    aspect = (picture.width / short, picture.height / short)
    if count == 1 and rng.random() < 0.5:
        spots = [
            (0.5 + rng.uniform(-0.04, 0.04), 0.5 + rng.uniform(-0.04, 0.04), rng.uniform(0.3, 0.95))
        ]
    elif count > 1 and rng.random() < 0.4:
        spots = line_up(rng, count, aspect)
    else:
        spots = scatter(rng, count, aspect)
    looks = pick_looks(rng, kind, count)
    if count == 1 and looks[0][0] == "square" and rng.random() < 0.5:
        # Size is the diameter of the circle around a thing: a square may grow beyond the picture's.
        x, y, size = spots[0]
        spots = [(x, y, min(size * 1.35, 2.5 * min(x, 1 - x, y, 1 - y)))]
    shared: dict[str | None, tuple[str, RGB]] = {}
    things: list[Thing] = []
    for (shape, wanted), (x, y, size) in zip(looks, spots, strict=True):
        if wanted is None or wanted not in shared:
            shared[wanted] = pick_tint(rng, background, ground, wanted)
        colour, tint = shared[wanted]
        paint(rng, picture, labels, shape, (x, y, size), tint, label=len(things) + 1)
        things.append(Thing(shape, colour, x, y, size))
    return things


def pick_looks(rng: random.Random, kind: str, count: int) -> list[tuple[str, str | None]]:
    """Shape and wanted colour of each thing (None: any)."""
    if kind == "alike":
        return [(rng.choice(SHAPES), rng.choice(list(COLOURS)))] * count
    shapes, colours = list(SHAPES), list(COLOURS)
    if kind == "mixed" and rng.random() < 0.7:
        # Few shapes and colours make counting by shape or colour worth asking.
        shapes, colours = rng.sample(shapes, 2), rng.sample(colours, rng.randint(2, 3))
    return [(rng.choice(shapes), rng.choice(colours)) for _ in range(count)]


def corners(rng: random.Random, shape: str, spot: Spot, scale: float) -> list[tuple[float, float]]:
    """Polygon in pixels. `scale`: shorter side of the picture in pixels; spot x, y in pixels."""
    x, y, size = spot
    radius = size * scale / 2
    up = -math.pi / 2
    if shape == "triangle":
        bend = rng.choice((0.0, 0.15))  # equilateral, or any triangle near it
        polar = [
            (up + math.tau * i / 3 + rng.uniform(-bend, bend), rng.uniform(1 - bend, 1))
            for i in range(3)
        ]
    elif shape == "star":
        inner = rng.uniform(0.38, 0.46)
        polar = [(up + math.pi * i / 5, inner if i % 2 else 1.0) for i in range(10)]
    else:
        polar = [(math.pi / 4 + math.pi / 2 * i, 1.0) for i in range(4)]
    return [(x + radius * r * math.cos(a), y + radius * r * math.sin(a)) for a, r in polar]


def paint(
    rng: random.Random,
    picture: Image.Image,
    labels: Image.Image,
    shape: str,
    spot: Spot,
    tint: RGB,
    *,
    label: int,
) -> None:
    """Draw one shape, and its label where it stands."""
    pen, marker = ImageDraw.Draw(picture), ImageDraw.Draw(labels)
    short = min(picture.size)
    x, y = spot[0] * picture.width, spot[1] * picture.height
    if shape == "circle":
        r = spot[2] * short / 2
        box = (x - r, y - r, x + r, y + r)
        pen.ellipse(box, fill=tint)
        marker.ellipse(box, fill=label)
        return
    points = corners(rng, shape, (x, y, spot[2]), short)
    pen.polygon(points, fill=tint)
    marker.polygon(points, fill=label)
