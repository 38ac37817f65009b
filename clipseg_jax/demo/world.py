"""The demo world: seeded pictures of objects in scenery with exact labels.

Pictures have the biases of web images: objects correlate with scenery (boats with water), and the
main object is near the centre. Rectification learns to remove such biases. A (split, index) pair
gives the same picture at any size.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from clipseg_jax.demo.painting import PAINTERS, Brush, noise, paint_scenery

CLASSES = tuple(PAINTERS)  # label i + 1 is CLASSES[i]
SCENERY = ("water", "grass", "sand", "sky")  # label 0
SPLITS = {
    "single": 1,
    "mixed": 2,
    "evaluation": 3,
    "test": 4,
    "scenery": 5,
    "train": 6,
    "backbone": 7,
}
BOUNDARY = 255

# No brown and no pale blue, which are invisible on sand and in the sky at 64 pixels.
COLOURS = {
    "red": (0.80, 0.13, 0.12),
    "orange": (0.96, 0.50, 0.08),
    "yellow": (0.96, 0.86, 0.14),
    "green": (0.10, 0.62, 0.22),
    "blue": (0.12, 0.20, 0.80),
    "purple": (0.50, 0.16, 0.66),
    "pink": (0.96, 0.50, 0.72),
    "white": (0.95, 0.95, 0.93),
    "black": (0.12, 0.12, 0.13),
}
_TYPICAL = {
    "boat": "red white blue",
    "fish": "orange yellow purple",
    "duck": "yellow white yellow",
    "sheep": "white white black",
    "cow": "black white red",
    "tree": "green green orange",
    "cactus": "green green pink",
    "tent": "orange blue red",
    "car": "red black blue",
    "bus": "yellow red blue",
    "plane": "white red blue",
    "balloon": "pink purple red",
}
# Names that say more, a class for each usual colour of each kind: "red boat", "white boat", ...
COLOURED = tuple(
    f"{colour} {kind}" for kind in CLASSES for colour in dict.fromkeys(_TYPICAL[kind].split())
)
_TURN = {
    "boat": 8, "fish": 25, "duck": 10, "sheep": 8, "cow": 8, "tree": 6, "cactus": 8, "tent": 6,
    "car": 10, "bus": 8, "plane": 60, "balloon": 8,
}  # fmt: skip
# Frequency of each class in each scenery; columns as CLASSES.
_COMPANY = {
    "water": (0.38, 0.26, 0.22, 0.01, 0.01, 0.02, 0, 0.01, 0.02, 0.01, 0.04, 0.02),
    "grass": (0.01, 0, 0.08, 0.22, 0.17, 0.20, 0.01, 0.08, 0.12, 0.07, 0.02, 0.02),
    "sand": (0.03, 0.01, 0.02, 0.03, 0.03, 0.04, 0.30, 0.20, 0.18, 0.12, 0.02, 0.02),
    "sky": (0, 0, 0.04, 0, 0, 0.02, 0, 0, 0, 0, 0.52, 0.42),
}
_ODD_ONE_OUT, _TYPICAL_SHARE = 0.25, 0.55
_LARGEST = {1: 0.46, 2: 0.36, 3: 0.29}  # largest half-size by the number of objects
_SMALLEST = 0.17


@dataclasses.dataclass
class Thing:
    """One object of a scene, in picture coordinates from 0 to 1 (y down)."""

    name: str  # of the class
    x: float  # centre
    y: float
    radius: float
    colour: str  # name of the main colour
    typical: bool  # whether the colour is common for the class
    main: np.ndarray  # (3,) main colour
    second: np.ndarray  # (3,) second colour
    turn: float  # rotation in radians
    mirror: bool
    aspect: float  # width to height
    shape: np.ndarray  # (4,) shape parameters in [0, 1]


@dataclasses.dataclass
class Picture:
    """A painted scene."""

    image: np.ndarray  # (s, s, 3) uint8
    label: np.ndarray  # (s, s) uint8: 0 scenery, i + 1 CLASSES[i], 255 boundary
    scenery: np.ndarray  # (s, s) uint8 index into SCENERY, under the objects as well
    things: list[Thing]
    visible: list[float]  # share of the picture covered by the visible part of each thing
    kind: str  # of the main scenery
    rng: np.random.Generator  # for sampling captions

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the visible things."""
        areas = zip(self.things, self.visible, strict=True)
        return tuple(dict.fromkeys(thing.name for thing, area in areas if area > 0.004))

    @property
    def typical(self) -> bool:
        """Whether the first thing has a colour that is common for its class."""
        return bool(self.things) and self.things[0].typical


def _draw_thing(rng: np.random.Generator, i: int, count: int, kind: str) -> Thing:
    weights = np.array(_COMPANY[kind])
    odd = rng.random() < _ODD_ONE_OUT
    name = CLASSES[rng.integers(12) if odd else rng.choice(12, p=weights / weights.sum())]
    largest = _LARGEST[count]
    radius = rng.uniform(0.5 * largest + 0.06 if i == 0 else _SMALLEST, largest)
    names = list(COLOURS)
    typical = _TYPICAL[name].split()
    usual = rng.random() < _TYPICAL_SHARE
    colour = typical[rng.integers(3)] if usual else names[rng.integers(len(names))]
    second = rng.choice([other for other in names if other != colour])
    if name == "boat" and rng.random() < 0.6:
        second = "white" if colour != "white" else "red"
    jitter = rng.normal(0, 0.04, (2, 3))
    return Thing(
        name=name,
        x=0.5,
        y=0.5,
        radius=radius,
        colour=colour,
        typical=colour in typical,
        main=np.clip(np.array(COLOURS[colour]) + jitter[0], 0, 1),
        second=np.clip(np.array(COLOURS[second]) + jitter[1], 0, 1),
        turn=np.deg2rad(rng.normal(0, _TURN[name])),
        mirror=bool(rng.random() < 0.5),
        aspect=float(np.exp(rng.normal(0, 0.1))),
        shape=rng.random(4),
    )


def _place(rng: np.random.Generator, things: list[Thing], thing: Thing, horizon: float) -> bool:
    """Places `thing` without overlap; the first goes near the centre. Returns whether it fits."""
    for _ in range(12):
        if not things:
            thing.x, thing.y = np.clip(rng.normal(0.5, 0.14, 2), 0.15, 0.85)
        else:
            thing.x, thing.y = rng.uniform(0.08, 0.92, 2)
        if horizon > 0:
            if thing.name in ("plane", "balloon") and rng.random() < 0.8:
                thing.y = min(thing.y, max(horizon, 0.8 * thing.radius))
            else:
                thing.y = max(thing.y, horizon + 0.1)
        gaps = (max(abs(thing.x - t.x), abs(thing.y - t.y)) for t in things)
        if all(g > 0.8 * (thing.radius + t.radius) for g, t in zip(gaps, things, strict=True)):
            return True
    return not things


def make(split: str, index: int, size: int, names: Sequence[str] = CLASSES) -> Picture:
    """Paints picture `index` of a split at `size` x `size` pixels.

    Labels are positions in `names` plus 1, of the same pixels. A name is a kind ("boat") or a
    colour and a kind ("red boat"); objects that no name says are ignored (255).

    The splits "single" and "test" have one object per picture, "scenery" none, the others ("mixed",
    "evaluation", "train") one to three.
    """
    rng = np.random.default_rng([SPLITS[split], index])
    kind = SCENERY[rng.choice(4, p=[0.27, 0.28, 0.24, 0.21])]
    horizon = rng.uniform(0.22, 0.5) if kind != "sky" and rng.random() < 0.5 else 0.0
    strip = None
    if kind == "sky" and rng.random() < 0.3:
        strip = SCENERY[rng.integers(3)], rng.uniform(0.72, 0.9)
    if split == "scenery":
        count = 0
    elif split in ("single", "test"):
        count = 1
    else:
        count = int(rng.choice([1, 2, 3], p=[0.45, 0.37, 0.18]))
    things: list[Thing] = []
    for i in range(count):
        thing = _draw_thing(rng, i, count, kind)
        if _place(rng, things, thing, horizon):
            things.append(thing)
    order = sorted(range(len(things)), key=lambda i: things[i].y + 0.2 * things[i].radius)
    painter = np.random.default_rng(int(rng.integers(2**31)))
    image, scenery = _paint_ground(painter, kind, horizon, strip, size)
    label, owner = _paint_things(painter, image, things, order, names)
    contrast, brightness = painter.uniform(0.85, 1.1), painter.uniform(-0.06, 0.06)
    image = (image - 0.5) * contrast + 0.5 + brightness + painter.normal(0, 0.018, image.shape)
    return Picture(
        image=np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8),
        label=label,
        scenery=scenery,
        things=things,
        visible=[float(np.mean(owner == i)) for i in range(len(things))],
        kind=kind,
        rng=rng,
    )


def _paint_ground(
    rng: np.random.Generator,
    kind: str,
    horizon: float,
    strip: tuple[str, float] | None,
    size: int,
) -> tuple[np.ndarray, np.ndarray]:
    at = (np.arange(size) + 0.5) / size
    image = paint_scenery(kind, rng, at, at)
    scenery = np.full((size, size), SCENERY.index(kind), np.uint8)
    if horizon > 0:
        above = at < horizon
        image[above] = paint_scenery("sky", rng, at[above] / horizon, at)
        scenery[above] = SCENERY.index("sky")
    if strip is not None:
        below = at > strip[1]
        image[below] = paint_scenery(strip[0], rng, at[below], at)
        scenery[below] = SCENERY.index(strip[0])
    return image, scenery


def _paint_things(
    rng: np.random.Generator,
    image: np.ndarray,
    things: list[Thing],
    order: list[int],
    names: Sequence[str],
) -> tuple[np.ndarray, np.ndarray]:
    size = len(image)
    labels = {name: i + 1 for i, name in enumerate(names)}
    at = (np.arange(size) + 0.5) / size
    texture = noise(rng, 14, 14, at, at)
    label = np.zeros((size, size), np.uint8)
    owner = np.full((size, size), -1)
    for i in order:
        thing = things[i]
        reach = 1.35 * thing.radius * max(thing.aspect, 1 / thing.aspect)
        rows = slice(*np.searchsorted(at, (thing.y - reach, thing.y + reach)))
        columns = slice(*np.searchsorted(at, (thing.x - reach, thing.x + reach)))
        right = (at[None, columns] - thing.x) / thing.radius
        up = (thing.y - at[rows, None]) / thing.radius
        cos, sin = np.cos(thing.turn), np.sin(thing.turn)
        u = (right * cos + up * sin) / thing.aspect * (-1 if thing.mirror else 1)
        v = (up * cos - right * sin) * thing.aspect
        brush = Brush(image[rows, columns], u, v, size * thing.radius)
        PAINTERS[thing.name](brush, thing.main, thing.second, thing.shape, texture[rows, columns])
        brush.light()
        inside = np.zeros((size, size), bool)
        inside[rows, columns] = brush.union < 0
        ring = np.zeros_like(inside)
        ring[1:] |= inside[:-1]
        ring[:-1] |= inside[1:]
        ring[:, 1:] |= inside[:, :-1]
        ring[:, :-1] |= inside[:, 1:]
        label[ring & ~inside] = BOUNDARY
        label[inside] = labels.get(thing.name, labels.get(f"{thing.colour} {thing.name}", BOUNDARY))
        owner[inside] = i
    return label, owner


def pictures(
    split: str, count: int, size: int, names: Sequence[str] = CLASSES
) -> Iterator[Picture]:
    """Yields the first `count` pictures of a split."""
    return (make(split, index, size, names) for index in range(count))


def write_dataset(
    root: str | Path,
    count: int,
    size: int,
    split: str = "evaluation",
    names: Sequence[str] = CLASSES,
) -> None:
    """Writes a split as a dataset: images/NNNN.png, labels/NNNN.png and classes.json.

    Labels are greyscale PNGs: 0 background, then `names`, 255 boundaries and what has no name.
    """
    root = Path(root)
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for index, picture in enumerate(pictures(split, count, size, names)):
        Image.fromarray(picture.image).save(root / "images" / f"{index:04d}.png")
        Image.fromarray(picture.label).save(root / "labels" / f"{index:04d}.png")
    about = {"classes": ["background", *names], "split": split, "count": count, "size": size}
    (root / "classes.json").write_text(json.dumps(about, indent=2) + "\n")
