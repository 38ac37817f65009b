"""Pixel-adaptive refinement (PAR): iterative averaging of masks over pixels of similar colour.

Ru et al., "Learning Affinity from Attention", 2022, section 3.4; spec weclip, section 5.8.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from clipseg_jax.core.checks import check_number, check_whole
from clipseg_jax.ops import neighbours
from clipseg_jax.ops.resize import resize

_EPSILON = 1e-8


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
        neighbours.check_dilations(self.dilations)

    @property
    def offsets(self) -> neighbours.Offsets:
        """(row, column) of every neighbour, dilation by dilation."""
        return neighbours.neighbour_offsets(self.dilations)


PUBLISHED = PARConfig()


def par(
    images: Array, masks: Array, cfg: PARConfig = PUBLISHED, sizes: Array | None = None
) -> Array:
    """Refines masks (b, k, h, w) float along the edges of images (b, h', w', 3).

    Images of another size are resized to that of the masks with aligned corners; with `sizes`
    (b, 2), the real rows and columns of padded images, they must have the masks' size. The scale of
    their pixel values has no influence; the published code passes normalised images, with one mask
    for the background and one per class.
    """
    shape = (masks.shape[2], masks.shape[3])
    if images.shape[1:3] != shape:
        assert sizes is None, "padded images have the size of their masks"
        images = resize(images, shape, align_corners=True)
    weights = neighbour_weights(images, cfg, sizes)
    return jnp.moveaxis(diffuse(weights, jnp.moveaxis(masks, 1, 2), cfg, sizes), 2, 1)


def neighbour_weights(
    images: Array, cfg: PARConfig = PUBLISHED, sizes: Array | None = None
) -> Array:
    """Weights (b, h, n, w) of the n neighbours of each pixel of images (b, h, w, 3).

    Border pixels are repeated beyond the border; with `sizes` (b, 2) beyond that of each padded
    image, outside of which the weights are undefined.
    """
    colour = neighbours.likeness_weights(
        images, cfg.offsets, jnp.square, width=cfg.width, epsilon=_EPSILON, sizes=sizes
    )
    return colour + cfg.position_weight * position_weights(cfg)[:, None]


def position_weights(cfg: PARConfig = PUBLISHED) -> Array:
    """Position kernel (n,) of the neighbours by their distance; sums to 1."""
    distances = np.asarray([math.hypot(y, x) for y, x in cfg.offsets])
    scaled = distances / (np.std(distances, ddof=1) + _EPSILON) / cfg.width
    return jax.nn.softmax(jnp.asarray(-np.square(scaled), jnp.float32))


def diffuse(
    weights: Array, masks: Array, cfg: PARConfig = PUBLISHED, sizes: Array | None = None
) -> Array:
    """Runs all iterations on masks (b, h, k, w) with weights (b, h, n, w) of the same `sizes`."""
    return neighbours.diffuse(weights, masks, cfg.offsets, cfg.iterations, sizes)
