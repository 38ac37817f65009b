"""Images of any size as whole patches: what the ViTs of CLIP, SigLIP and DINO share."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
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


def embed(conv: nnx.Conv, images: Array) -> Array:
    """Patch tokens (b, hp*wp, d) float32 of images (b, h, w, 3) by a convolution of whole patches.

    In bfloat16, which is for accelerators, it is written as a matrix product: of a convolution over
    three channels TPUs' compiler reorders every pixel (2.7 of 28 ms of a dense inference on v5e).
    """
    if jnp.dtype(conv.dtype) != jnp.bfloat16:
        return conv(images).astype(jnp.float32).reshape(len(images), -1, conv.out_features)
    (p, _), (b, h, w, channels) = conv.kernel_size, images.shape
    pixels = images[:, : h // p * p, : w // p * p].astype(jnp.bfloat16)
    pixels = pixels.reshape(b, h // p, p, w // p, p * channels)
    kernel = conv.kernel[...].astype(jnp.bfloat16).reshape(p, p * channels, -1)
    tokens = jnp.einsum("birjc,rcd->bijd", pixels, kernel, preferred_element_type=jnp.float32)
    tokens = tokens.reshape(b, -1, conv.out_features)
    return tokens if conv.bias is None else tokens + conv.bias[...]


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
