"""Images of any size as whole patches: what the ViTs of CLIP, SigLIP and DINO share."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from clipseg_jax.ops.attention import MASKED
from clipseg_jax.ops.image import mask_padding, valid_mask


def grid_sizes(sizes: Array, patch_px: int, *, pad_to_patch: bool) -> Array:
    """Grids (b, 2) = (rows, columns) of patches of images of `sizes` (b, 2) pixels.

    `pad_to_patch` False: the remainder of a side is dropped, but what is less than a patch is one.
    """
    extra = patch_px - 1 if pad_to_patch else 0
    return jnp.maximum((sizes + extra) // patch_px, 1)


def grid_shape(height: int, width: int, patch_px: int, *, pad_to_patch: bool) -> tuple[int, int]:
    """`grid_sizes` of an image of a static size in pixels."""
    extra = patch_px - 1 if pad_to_patch else 0
    return max((height + extra) // patch_px, 1), max((width + extra) // patch_px, 1)


def pad_to_grid(images: Array, sizes: Array | None, grid: tuple[int, int], patch_px: int) -> Array:
    """Images (b, h, w, 3) with zeros up to the pixels of a grid, and outside of `sizes` (b, 2)."""
    shape = (images.shape[1], images.shape[2])
    pad = [(0, max(n * patch_px - side, 0)) for n, side in zip(grid, shape, strict=True)]
    return jnp.pad(mask_padding(images, sizes), ((0, 0), *pad, (0, 0)))


def padding_bias(grids: Array, grid: tuple[int, int], leading: int) -> Array:
    """Attention bias (b, 1, leading + hp*wp) that masks patches outside of each image's grid.

    Args:
      grids: (b, 2) rows and columns of each image.
      grid: static (hp, wp) of the batch.
      leading: tokens before the patches, which are never masked.
    """
    real = valid_mask(grids, grid).reshape(len(grids), -1)
    real = jnp.pad(real, ((0, 0), (leading, 0)), constant_values=True)
    return jnp.where(real, 0.0, MASKED)[:, None, :]
