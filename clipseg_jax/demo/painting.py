"""Paints scenery and objects of the demo world with signed distances and noise, in NumPy.

Picture coordinates run from 0 to 1, so that a scene can be painted at any size. Object coordinates
are u to the right and v up, with the outline within about [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Array = np.ndarray
Random = np.random.Generator

DARK, GLASS = np.array([0.12, 0.12, 0.13]), np.array([0.72, 0.86, 0.93])
WOOD, BEAK = np.array([0.42, 0.27, 0.14]), np.array([0.95, 0.55, 0.10])
WHITE, HUB, LAMP = np.full(3, 0.95), np.array([0.7, 0.7, 0.72]), np.array([1.0, 0.95, 0.5])


def noise(rng: Random, rows: int, columns: int, y: Array, x: Array) -> Array:
    """Smooth noise (len(y), len(x)) in [0, 1]: an interpolated lattice, at positions in [0, 1]."""

    def weights(position: Array, n: int) -> Array:
        at = np.clip(position, 0, 1) * (n - 1)
        low = np.minimum(at.astype(int), n - 2)
        t = at - low
        t = t * t * (3 - 2 * t)
        out = np.zeros((len(position), n))
        index = np.arange(len(position))
        out[index, low] = 1 - t
        out[index, low + 1] = t
        return out

    return weights(y, rows) @ rng.random((rows, columns)) @ weights(x, columns).T


def paint_scenery(kind: str, rng: Random, y: Array, x: Array) -> Array:
    """Scenery (len(y), len(x), 3) in [0, 1] of a kind: "water", "grass", "sand" or "sky"."""
    jitter = rng.normal(0, 0.035, 3)

    def base(*colours: tuple[float, float, float]) -> Array:
        return np.array(colours[rng.integers(len(colours))]) + jitter

    def shade(colour: Array, brightness: Array, weights: tuple[float, float, float]) -> Array:
        return colour + brightness[..., None] * np.array(weights)

    rows, columns = y[:, None], x[None, :]
    if kind == "water":
        colour = base((0.13, 0.36, 0.62), (0.12, 0.47, 0.58), (0.25, 0.38, 0.50))
        n1, n2 = noise(rng, 7, 7, y, x), noise(rng, 26, 9, y, x)
        wave = np.sin(2 * np.pi * (rng.uniform(8, 13) * rows + 1.6 * n1))
        glint = 0.22 * ((wave > 0.8) & (n2 > 0.5))
        return shade(colour, 0.06 * wave + 0.10 * (n2 - 0.5) + glint, (0.9, 1, 1))
    if kind == "grass":
        colour = base((0.30, 0.52, 0.16), (0.40, 0.55, 0.22), (0.22, 0.44, 0.18))
        blades = 0.30 * (noise(rng, 30, 60, y, x) - 0.5)
        return shade(colour, blades + 0.16 * (noise(rng, 5, 5, y, x) - 0.5), (0.9, 1, 0.6))
    if kind == "sand":
        colour = base((0.84, 0.71, 0.46), (0.80, 0.62, 0.40), (0.88, 0.79, 0.60))
        slope, n = rng.uniform(-0.6, 0.6), noise(rng, 6, 6, y, x)
        ripple = np.sin(2 * np.pi * ((rows + slope * columns) * rng.uniform(7, 11) + 1.2 * n))
        grain = 0.12 * (noise(rng, 64, 64, y, x) - 0.5)
        return shade(colour, 0.05 * ripple + grain, (1, 1, 0.8))
    tops = [(0.30, 0.55, 0.88), (0.45, 0.66, 0.92), (0.55, 0.62, 0.72), (0.90, 0.58, 0.42)]
    top = np.array(tops[rng.choice(4, p=[0.4, 0.3, 0.15, 0.15])]) + jitter
    bottom = 0.35 * top + 0.65 * 0.93
    blend = (rows**0.9)[..., None]
    clouds = 0.65 * noise(rng, 5, 4, y, x) + 0.35 * noise(rng, 14, 10, y, x)
    cover = 0.85 * np.clip((clouds - rng.uniform(0.52, 0.68)) * 6, 0, 1)[..., None]
    return (top * (1 - blend) + bottom * blend) * (1 - cover) + 0.96 * cover


class Brush:
    """Paints the parts of one object, back to front, on a patch (h, w, 3) of a picture.

    Shapes are signed distances (h, w) in object coordinates, negative inside.
    """

    def __init__(self, patch: Array, u: Array, v: Array, pixels_per_unit: float):
        self.patch, self.u, self.v = patch, u, v
        self.scale = pixels_per_unit
        self.union = np.full(u.shape, np.inf)

    def paint(self, distance: Array, colour: Array) -> None:
        """Blends a colour, (3,) or (h, w, 3), over the inside of a shape."""
        self.union = np.minimum(self.union, distance)
        alpha = np.clip(0.5 - distance * self.scale, 0, 1)[..., None]
        self.patch += alpha * (colour - self.patch)

    def light(self) -> None:
        """Shades the painted parts as if lit from above."""
        alpha = np.clip(0.5 - self.union * self.scale, 0, 1)
        self.patch *= (1 + 0.12 * np.clip(self.v, -1, 1) * alpha)[..., None]

    def ellipse(self, cx: float, cy: float, rx: float, ry: float) -> Array:
        """Approximate distance to an ellipse of centre (cx, cy) and radii rx, ry."""
        return (np.hypot((self.u - cx) / rx, (self.v - cy) / ry) - 1) * min(rx, ry)

    def box(self, cx: float, cy: float, hx: float, hy: float, corner: float = 0.0) -> Array:
        """Distance to a box of half sizes hx, hy with corners of radius `corner`."""
        x, y = np.abs(self.u - cx) - hx + corner, np.abs(self.v - cy) - hy + corner
        outside = np.hypot(np.maximum(x, 0), np.maximum(y, 0))
        return outside + np.minimum(np.maximum(x, y), 0) - corner

    def polygon(self, *points: tuple[float, float]) -> Array:
        """Distance to a convex polygon; approximate outside its corners."""
        p = np.array(points)
        q = np.roll(p, -1, axis=0)
        area = np.sum(p[:, 0] * q[:, 1] - q[:, 0] * p[:, 1])
        distance = np.full(self.u.shape, -np.inf)
        for (x0, y0), (x1, y1) in zip(p, q, strict=True):
            length = np.hypot(x1 - x0, y1 - y0)
            side = ((self.u - x0) * (y1 - y0) - (self.v - y0) * (x1 - x0)) / length
            distance = np.maximum(distance, side * np.sign(area))
        return distance

    def capsule(self, x0: float, y0: float, x1: float, y1: float, radius: float) -> Array:
        """Distance to a line segment with round ends."""
        dx, dy = x1 - x0, y1 - y0
        t = ((self.u - x0) * dx + (self.v - y0) * dy) / (dx * dx + dy * dy)
        t = np.clip(t, 0, 1)
        return np.hypot(self.u - x0 - t * dx, self.v - y0 - t * dy) - radius


def _mix(a: Array, b: Array, where: Array, share: float = 1.0) -> Array:
    """Colour (h, w, 3): a, blended with `share` of b where `where` (h, w) is true."""
    return a + (share * where)[..., None] * (b - a)


# Paints an object: (brush, main colour, second colour, 4 shape parameters in [0, 1], texture).
Painter = Callable[[Brush, Array, Array, Array, Array], None]


def _boat(c: Brush, main: Array, second: Array, k: Array, t: Array) -> None:
    c.paint(c.box(0, 0.3, 0.035, 0.6), WOOD)
    c.paint(c.polygon((-0.06, 0.9), (-0.06, -0.08), (-0.55 - 0.3 * k[0], -0.08)), second)
    c.paint(c.polygon((0.07, 0.75), (0.07, -0.08), (0.25 + 0.35 * k[1], -0.08)), 0.88 * second)
    hull = c.polygon((-0.95, -0.15), (0.95, -0.15), (0.62, -0.65), (-0.62, -0.65))
    c.paint(hull, _mix(main, 0 * main, np.sin(38 * c.v) > 0.3, 0.35))


def _fish(c: Brush, main: Array, second: Array, k: Array, t: Array) -> None:
    for sign in (1, -1):
        c.paint(c.polygon((-0.45, 0), (-0.95, sign * 0.42), (-0.8, 0)), second)
    c.paint(c.polygon((-0.2, 0.3), (0.35, 0.3), (-0.1, 0.62)), second)
    stripes = np.sin((14 + 6 * k[1]) * c.u + 2 * c.v**2) > 0.35
    c.paint(c.ellipse(0.1, 0, 0.72, 0.38 + 0.1 * k[0]), _mix(main, second, stripes, 0.85))
    c.paint(c.ellipse(0.55, 0.1, 0.09, 0.09), WHITE)
    c.paint(c.ellipse(0.57, 0.1, 0.045, 0.045), DARK)


def _duck(c: Brush, main: Array, second: Array, k: Array, t: Array) -> None:
    c.paint(c.polygon((-0.55, -0.2), (-0.95, 0.22), (-0.45, 0.12)), 0.85 * main)
    c.paint(c.ellipse(-0.1, -0.25, 0.62, 0.38), main)
    c.paint(c.capsule(0.3, -0.1, 0.42, 0.3, 0.16), main)
    c.paint(c.ellipse(0.46, 0.42, 0.25, 0.24), main)
    c.paint(c.polygon((0.66, 0.5), (0.66, 0.3), (0.98, 0.34)), BEAK)
    wing = _mix(0.7 * main, 0.5 * main, np.sin(24 * c.u) > 0)
    c.paint(c.ellipse(-0.2, -0.2, 0.34, 0.2), wing)
    c.paint(c.ellipse(0.52, 0.48, 0.05, 0.05), DARK)


def _sheep(c: Brush, main: Array, second: Array, k: Array, t: Array) -> None:
    for x in (-0.45, -0.2, 0.1, 0.3):
        c.paint(c.box(x, -0.58, 0.06, 0.26), DARK)
    wool = c.ellipse(-0.1, 0.05, 0.55, 0.36)
    for a in np.arange(9) * 2 * np.pi / 9:
        curl = c.ellipse(-0.1 + 0.55 * np.cos(a), 0.05 + 0.34 * np.sin(a), 0.2, 0.2)
        wool = np.minimum(wool, curl)
    curls = np.sin(17 * c.u + 3 * t) * np.sin(17 * c.v + 3 * t) > 0.1
    c.paint(wool, _mix(main, 0 * main, curls, 0.28))
    c.paint(c.ellipse(0.62, 0.2, 0.2, 0.26), DARK)
    c.paint(c.ellipse(0.55, 0.42, 0.16, 0.1), main)


def _cow(c: Brush, main: Array, second: Array, k: Array, t: Array) -> None:
    for x in (-0.6, -0.35, 0.2, 0.42):
        c.paint(c.box(x, -0.55, 0.085, 0.33), 0.75 * main)
    c.paint(c.capsule(-0.75, 0.25, -0.88, -0.25, 0.04), 0.6 * main)
    c.paint(c.box(-0.1, 0.05, 0.66, 0.33, 0.15), _mix(main, second, t > 0.55))
    c.paint(c.box(0.68, 0.35, 0.2, 0.22, 0.08), main)
    c.paint(c.box(0.8, 0.26, 0.12, 0.1, 0.05), np.array([0.93, 0.68, 0.66]))
    c.paint(c.capsule(0.55, 0.58, 0.48, 0.72, 0.04), GLASS)
    c.paint(c.capsule(0.8, 0.58, 0.87, 0.72, 0.04), GLASS)


def _tree(c: Brush, main: Array, second: Array, k: Array, t: Array) -> None:
    c.paint(c.box(0, -0.6, 0.11, 0.4), WOOD)
    leaves = main * (1 - 0.45 * t[..., None])
    if k[0] < 0.4:
        c.paint(c.polygon((-0.7, -0.3), (0.7, -0.3), (0, 0.4)), leaves)
        c.paint(c.polygon((-0.55, 0.1), (0.55, 0.1), (0, 0.7)), leaves)
        c.paint(c.polygon((-0.4, 0.45), (0.4, 0.45), (0, 0.98)), leaves)
    else:
        c.paint(c.ellipse(-0.32, 0.15, 0.42, 0.4), leaves)
        c.paint(c.ellipse(0.34, 0.2, 0.42, 0.4), leaves)
        c.paint(c.ellipse(0, 0.5, 0.48, 0.44), leaves)


def _cactus(c: Brush, main: Array, second: Array, k: Array, t: Array) -> None:
    p, q = -0.15 + 0.3 * k[0], -0.35 + 0.35 * k[1]
    shape = np.minimum(c.capsule(0, -0.8, 0, 0.75, 0.2), c.capsule(0, p, 0.5, p, 0.12))
    shape = np.minimum(shape, c.capsule(0.5, p, 0.5, p + 0.5, 0.12))
    shape = np.minimum(shape, c.capsule(0, q, -0.5, q, 0.12))
    shape = np.minimum(shape, c.capsule(-0.5, q, -0.5, q + 0.55, 0.12))
    c.paint(shape, _mix(main, 0 * main, np.sin(42 * c.u) > 0.2, 0.4))


def _tent(c: Brush, main: Array, second: Array, k: Array, t: Array) -> None:
    c.paint(
        c.polygon((-0.9, -0.6), (0.9, -0.6), (0, 0.7)),
        _mix(main, second, np.sin(13 * c.u) > 0.1, 0.9),
    )
    c.paint(c.polygon((-0.26, -0.6), (0.26, -0.6), (0, 0.2)), DARK)
    c.paint(c.capsule(0, 0.6, 0, 0.9, 0.035), WOOD)


def _car(c: Brush, main: Array, second: Array, k: Array, t: Array) -> None:
    c.paint(c.polygon((-0.58, 0), (0.5, 0), (0.28, 0.42), (-0.38, 0.42)), 0.9 * main)
    c.paint(c.polygon((-0.46, 0.04), (-0.08, 0.04), (-0.08, 0.34), (-0.32, 0.34)), GLASS)
    c.paint(c.polygon((0, 0.04), (0.38, 0.04), (0.22, 0.34), (0, 0.34)), GLASS)
    c.paint(c.box(0, -0.15, 0.95, 0.22, 0.12), main)
    c.paint(c.box(0.86, -0.1, 0.08, 0.06), LAMP)
    for x in (-0.52, 0.52):
        c.paint(c.ellipse(x, -0.38, 0.22, 0.22), DARK)
        c.paint(c.ellipse(x, -0.38, 0.1, 0.1), HUB)


def _bus(c: Brush, main: Array, second: Array, k: Array, t: Array) -> None:
    c.paint(c.box(0, 0.05, 0.95, 0.5, 0.1), main)
    c.paint(c.box(0, -0.12, 0.95, 0.07), second)
    for i in range(5):
        c.paint(c.box(-0.7 + 0.35 * i, 0.25, 0.13, 0.16, 0.03), GLASS)
    for x in (-0.55, 0.55):
        c.paint(c.ellipse(x, -0.48, 0.17, 0.17), DARK)


def _plane(c: Brush, main: Array, second: Array, k: Array, t: Array) -> None:
    for sign in (1, -1):
        wing = ((0.2, 0), (-0.15, sign * 0.92), (-0.4, sign * 0.92), (-0.22, 0))
        c.paint(c.polygon(*wing), 0.85 * main)
        tail = ((-0.62, 0), (-0.8, sign * 0.38), (-0.95, sign * 0.38), (-0.9, 0))
        c.paint(c.polygon(*tail), second)
    c.paint(c.ellipse(0, 0, 0.95, 0.15), main)
    c.paint(c.ellipse(0.7, 0, 0.12, 0.07), GLASS)


def _balloon(c: Brush, main: Array, second: Array, k: Array, t: Array) -> None:
    for sign in (1, -1):
        c.paint(c.capsule(sign * 0.22, -0.3, sign * 0.13, -0.72, 0.02), WOOD)
    envelope = c.polygon((-0.5, 0), (0.5, 0), (0.18, -0.45), (-0.18, -0.45))
    envelope = np.minimum(envelope, c.ellipse(0, 0.32, 0.64, 0.64))
    bulge = np.sqrt(np.maximum(1.02 - np.minimum((c.v - 0.32) ** 2 / 0.5, 1), 0.05))
    gores = np.sin(1.3 * (4 + np.floor(4 * k[0])) * c.u / bulge) > 0
    c.paint(envelope, _mix(main, second, gores, 0.9))
    c.paint(c.box(0, -0.82, 0.18, 0.13), WOOD)


PAINTERS: dict[str, Painter] = {
    "boat": _boat,
    "fish": _fish,
    "duck": _duck,
    "sheep": _sheep,
    "cow": _cow,
    "tree": _tree,
    "cactus": _cactus,
    "tent": _tent,
    "car": _car,
    "bus": _bus,
    "plane": _plane,
    "balloon": _balloon,
}
