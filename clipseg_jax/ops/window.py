"""Sliding windows and test-time resizes as weight matrices.

Upsampling, averaging overlapping windows and resizing to the original image are linear and
separable, so the scores of all pixels are `rows @ logits @ columns^T` of the small grid of logits.
Only that grid is stored; class scores at full size are computed some image rows at a time.
Spec maskclip, section 7.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from clipseg_jax.ops.resize import resize_matrix


def count_windows(length: int, crop: int, stride: int) -> int:
    """Number of windows that cover `length` pixels.

    Raises:
      ValueError: a stride that is not from 1 to `crop`, which would leave pixels between windows.
    """
    if not 1 <= stride <= crop:
        raise ValueError(f"stride {stride} is not from 1 to the crop, {crop} pixels")
    return max(length - crop + stride - 1, 0) // stride + 1


def window_starts(size: Array, count: int, crop: int, stride: int) -> Array:
    """First pixel (..., count) of each window of images of `size` (...) pixels, int32.

    The last windows are shifted back to end at the border. `count` may exceed the number of windows
    of an image; surplus ones repeat the last.
    """
    ends = jnp.minimum(jnp.arange(count) * stride + crop, size[..., None])
    return jnp.maximum(ends - crop, 0)


def crop_windows(images: Array, starts: tuple[Array, Array], crop: tuple[int, int]) -> Array:
    """Windows (ny * nx, b, *crop, c) of images (b, h, w, c); starts (b, ny) and (b, nx)."""
    extra = [(0, max(n - m, 0)) for n, m in zip(crop, images.shape[1:3], strict=True)]
    images = jnp.pad(images, ((0, 0), *extra, (0, 0)))

    def one(image: Array, rows: Array, columns: Array) -> Array:
        def cut(y: Array, x: Array) -> Array:
            return jax.lax.dynamic_slice(image, (y, x, 0), (*crop, image.shape[-1]))

        return jax.vmap(lambda y: jax.vmap(lambda x: cut(y, x))(columns))(rows)

    windows = jax.vmap(one, out_axes=2)(images, *starts)  # (ny, nx, b, h, w, c)
    return windows.reshape(-1, *windows.shape[2:])


def grid_to_image(
    grids: Array,
    sizes: Array,
    *,
    grid_length: int,
    length: int,
    crop: int | None = None,
    starts: Array | None = None,
) -> Array:
    """Matrices (b, length, n * grid_length) from the grids of n windows to pixels, along one axis.

    Where windows overlap, their values are averaged.

    Args:
      grids: (b,) real positions of each window's grid.
      sizes: (b,) real pixels of the images, at most `length`.
      grid_length: static length of a window's grid.
      length: static length of the image axis in pixels.
      crop: window size in pixels; None: one window that is the whole image.
      starts: (b, n) first pixel of each window, from `window_starts`; None if `crop` is.
    """

    def whole(grid: Array, size: Array) -> Array:
        return resize_matrix(grid, size, in_length=grid_length, out_length=length)

    if crop is None or starts is None:
        return jax.vmap(whole)(grids, sizes)
    n = starts.shape[1]

    def windows(grid: Array, size: Array, start: Array) -> Array:
        extent = jnp.minimum(crop, size)
        upsampling = resize_matrix(grid, extent, in_length=grid_length, out_length=crop)
        offset = jnp.arange(length)[:, None] - start[None, :]  # (length, n)
        # Surplus windows repeat the last one: count each start once.
        fresh = jnp.concatenate([jnp.ones(1, bool), start[1:] != start[:-1]])
        covers = (offset >= 0) & (offset < extent) & fresh
        placed = jnp.where(covers[..., None], upsampling[jnp.clip(offset, 0, crop - 1)], 0)
        cover_count = jnp.maximum(jnp.sum(covers, axis=1), 1)[:, None, None]
        return (placed / cover_count).reshape(length, n * grid_length)

    return jax.vmap(windows)(grids, sizes, starts)


def compose_resize(matrices: Array, sizes: Array, out_sizes: Array, out_length: int) -> Array:
    """Composes matrices (b, length, g) with a bilinear resize from `sizes` to `out_sizes` (b,).

    Returns (b, out_length, g); rows from `out_sizes` on are zero.
    """

    def one(matrix: Array, size: Array, out_size: Array) -> Array:
        length = matrix.shape[0]
        step = resize_matrix(size, out_size, in_length=length, out_length=out_length)
        return jnp.matmul(step, matrix, precision="highest")

    return jax.vmap(one)(matrices, sizes, out_sizes)
