"""Pixel-adaptive refinement (PAR): iterative averaging of masks over pixels of similar colour.

Ru et al., "Learning Affinity from Attention", 2022, section 3.4; spec weclip, section 5.8.

Neighbours are those of a 3x3 window at several dilations, read as shifted slices. Only the weights
are stored per neighbour; all iterations and masks share them.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from clipseg_jax.core.checks import check_number, check_whole
from clipseg_jax.ops.resize import resize

_EPSILON = 1e-8
# The window without its centre, row by row, as (row, column).
_WINDOW = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))


@dataclasses.dataclass(frozen=True)
class PARConfig:
    """Parameters of PAR; the defaults are the published ones."""

    iterations: int = 20
    dilations: tuple[int, ...] = (1, 2, 4, 8, 12, 24)  # pixels
    width: float = 0.3  # of both kernels, in standard deviations over the neighbours
    # Weight of the position kernel relative to the colour kernel. Each sums to 1, so every
    # iteration scales masks by 1 + position_weight, as published.
    position_weight: float = 0.01

    def __post_init__(self) -> None:
        check_whole("iterations", self.iterations, least=0)
        check_number("width", self.width, 0, above=True)
        check_number("position_weight", self.position_weight, 0)
        for dilation in self.dilations or (None,):  # an empty list is refused as well
            check_whole("dilations", dilation)

    @property
    def offsets(self) -> tuple[tuple[int, int], ...]:
        """(row, column) of every neighbour, dilation by dilation."""
        return tuple((d * y, d * x) for d in self.dilations for y, x in _WINDOW)


PUBLISHED = PARConfig()


def par(images: Array, masks: Array, cfg: PARConfig = PUBLISHED) -> Array:
    """Refines masks (b, k, h, w) float along the edges of images (b, h', w', 3).

    Images of another size are resized to that of the masks with aligned corners. The scale of their
    pixel values has no influence; the published code passes normalised images, with one mask for
    the background and one per class.
    """
    shape = (masks.shape[2], masks.shape[3])
    if images.shape[1:3] != shape:
        images = resize(images, shape, align_corners=True)
    weights = neighbour_weights(images, cfg)
    return jnp.moveaxis(diffuse(weights, jnp.moveaxis(masks, 1, 2), cfg), 2, 1)


def neighbour_weights(
    images: Array, cfg: PARConfig = PUBLISHED, sizes: Array | None = None
) -> Array:
    """Weights (b, h, n, w) of the n neighbours of each pixel of images (b, h, w, 3).

    Border pixels are repeated beyond the border; with `sizes` (b, 2) beyond that of each padded
    image, outside of which the weights are undefined.
    """
    images = jnp.moveaxis(images.astype(jnp.float32), 3, 2)  # (b, h, 3, w)
    b, h, channels, w = images.shape
    wide, offsets = _widen(images, cfg, sizes), cfg.offsets
    count = len(offsets)
    mean = sum(_shifted(wide, offset, (h, w), cfg) for offset in offsets) / count
    squares = sum(jnp.square(_shifted(wide, o, (h, w), cfg) - mean) for o in offsets)
    scale = 1 / ((jnp.sqrt(squares / (count - 1)) + _EPSILON) * cfg.width)
    starts = jnp.asarray(offsets) + max(cfg.dilations)

    def likeness(start: Array) -> Array:
        neighbour = jax.lax.dynamic_slice(wide, (0, start[0], 0, start[1]), (b, h, channels, w))
        return -jnp.mean(jnp.square((neighbour - images) * scale), axis=2)

    likenesses = jax.lax.map(likeness, starts)  # (n, b, h, w)
    colour = jnp.moveaxis(jax.nn.softmax(likenesses, axis=0), 0, 2)
    return colour + cfg.position_weight * position_weights(cfg)[:, None]


def position_weights(cfg: PARConfig = PUBLISHED) -> Array:
    """Position kernel (n,) of the neighbours by their distance; sums to 1."""
    distances = np.asarray([math.hypot(y, x) for y, x in cfg.offsets])
    scaled = distances / (np.std(distances, ddof=1) + _EPSILON) / cfg.width
    return jax.nn.softmax(jnp.asarray(-np.square(scaled), jnp.float32))


def diffuse(
    weights: Array, masks: Array, cfg: PARConfig = PUBLISHED, sizes: Array | None = None
) -> Array:
    """Runs all iterations on masks (b, h, k, w) with weights (b, h, n, w) of the same `sizes`.

    Rows are the outer axis, so that the cached weights of a row serve all k masks.
    """
    shape = (masks.shape[1], masks.shape[3])

    def once(_: int, masks: Array) -> Array:
        wide = _widen(masks, cfg, sizes)
        return sum(
            (
                weights[:, :, i, None] * _shifted(wide, offset, shape, cfg)
                for i, offset in enumerate(cfg.offsets)
            ),
            jnp.zeros_like(masks),
        )

    return jax.lax.fori_loop(0, cfg.iterations, once, masks)


def _widen(x: Array, cfg: PARConfig, sizes: Array | None) -> Array:
    """Pads (b, h, k, w) by repeating border pixels as far as neighbours reach."""
    far = max(cfg.dilations)
    if sizes is not None:
        rows, columns = jnp.arange(-far, x.shape[1] + far), jnp.arange(-far, x.shape[3] + far)

        def pad_one(x: Array, size: Array) -> Array:
            x = jnp.take(x, jnp.clip(rows, 0, size[0] - 1), axis=0)
            return jnp.take(x, jnp.clip(columns, 0, size[1] - 1), axis=2)

        return jax.vmap(pad_one)(x, sizes)
    return jnp.pad(x, ((0, 0), (far, far), (0, 0), (far, far)), mode="edge")


def _shifted(wide: Array, offset: tuple[int, int], shape: tuple[int, int], cfg: PARConfig) -> Array:
    """The neighbour at `offset` of every pixel, (b, h, k, w), from what `_widen` returns."""
    top, left = (max(cfg.dilations) + n for n in offset)
    return wide[:, top : top + shape[0], :, left : left + shape[1]]
