"""Pixel-adaptive mask refinement (PAMR): scores are averaged over pixels of similar colour.

Araslanov and Roth, "Single-Stage Semantic Segmentation from Image Labels", 2020, section 3.3; spec
readouts, section 7.

PAR (`ops/par.py`) came from it. PAMR compares absolute differences of colours instead of squares,
has no position kernel, and its weights sum to 1, so that it changes no constant map.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax import Array

from clipseg_jax.core.checks import check_whole
from clipseg_jax.ops.neighbours import (
    Offsets,
    check_dilations,
    diffuse,
    likeness_weights,
    neighbour_offsets,
)
from clipseg_jax.ops.resize import resize

_WIDTH = 0.1  # of the colour kernel, in standard deviations over the neighbourhood
_EPSILON = 1e-7  # of a standard deviation; times the width it is the published 1e-8


@dataclasses.dataclass(frozen=True)
class PAMRConfig:
    """Parameters of PAMR; the defaults are NACLIP's."""

    steps: int = 10
    dilations: tuple[int, ...] = (8, 16)  # pixels

    def __post_init__(self) -> None:
        check_whole("steps", self.steps, least=0)
        check_dilations(self.dilations)

    @property
    def offsets(self) -> Offsets:
        """(row, column) of every neighbour, dilation by dilation."""
        return neighbour_offsets(self.dilations)


NACLIP = PAMRConfig()


def pamr(
    images: Array, masks: Array, cfg: PAMRConfig = NACLIP, sizes: Array | None = None
) -> Array:
    """Refines masks (b, k, h', w') float along the edges of images (b, h, w, 3), to (b, k, h, w).

    Masks of another size are resized to that of the images first, with aligned corners; with
    `sizes` (b, 2), the real rows and columns of padded images, they must have the images' size.
    Padding has no influence; its own values are undefined. The scale of pixel values has none
    either; the published code passes normalised images.

    Takes 2 * 16 * steps * k operations a pixel (16: two dilations), and reads or writes about
    (16 + 3 k) * 4 * steps bytes a pixel. Weights take 64 bytes a pixel; for the masks see
    `neighbours.diffuse`.
    """
    shape = (images.shape[1], images.shape[2])
    if masks.shape[2:] != shape:
        assert sizes is None, "masks of padded images have the size of the images"
        masks = jnp.moveaxis(resize(jnp.moveaxis(masks, 1, 3), shape, align_corners=True), 3, 1)
    weights = likeness_weights(
        images,
        cfg.offsets,
        jnp.abs,
        width=_WIDTH,
        epsilon=_EPSILON,
        centres=len(cfg.dilations),
        sizes=sizes,
    )
    refined = diffuse(weights, jnp.moveaxis(masks, 1, 2), cfg.offsets, cfg.steps, sizes)
    return jnp.moveaxis(refined, 2, 1)
