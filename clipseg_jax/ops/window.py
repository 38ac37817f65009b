"""Sliding windows and test-time resizes as weight matrices.

Upsampling, averaging overlapping windows and resizing to the original image are linear and
separable, so the scores of all pixels are `rows @ logits @ columns^T` of the small grid of logits.
Only that grid is stored; class scores at full size are computed some image rows at a time.
Spec maskclip, section 7.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

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


class Margins(NamedTuple):
    """Zeros around windows, along one axis."""

    sizes: Array  # (b,) pixels with the zeros on both sides
    before: Array  # (b,) zeros on the first side


def margins_to_multiple(sizes: Array, multiple: int) -> Margins:
    """The margins that centre `sizes` (b,) in a multiple of pixels; an odd zero goes behind."""
    padded = -(-sizes // multiple) * multiple
    return Margins(padded, (padded - sizes) // 2)


def add_margins(
    images: Array, sizes: Array, margins: Sequence[Margins], shape: tuple[int, int]
) -> Array:
    """Padded images (b, h, w, c) of `sizes` (b, 2) -> (b, *shape, c), zeros outside each image."""
    for axis, margin in enumerate(margins):

        def shift(image: Array, size: Array, before: Array, axis: int = axis) -> Array:
            index = jnp.arange(shape[axis]) - before
            inside = ((index >= 0) & (index < size)).reshape(-1, *(1,) * (image.ndim - 1 - axis))
            return jnp.where(inside, jnp.take(image, index, axis=axis, mode="clip"), 0)

        images = jax.vmap(shift)(images, sizes[:, axis], margin.before)
    return images


def grid_to_image(
    grids: Array,
    sizes: Array,
    *,
    grid_length: int,
    length: int,
    crop: int | None = None,
    starts: Array | None = None,
    margins: Margins | None = None,
    padded_length: int | None = None,
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
      margins: of each window, where grids are those of windows with margins.
      padded_length: static length of a window with its margins.
    """

    def window(grid: Array, extent: Array, margins: Margins | None, length: int) -> Array:
        if margins is None or padded_length is None:
            return resize_matrix(grid, extent, in_length=grid_length, out_length=length)
        padded = resize_matrix(grid, margins.sizes, in_length=grid_length, out_length=padded_length)
        index = jnp.arange(length)
        rows = jnp.take(padded, index + margins.before, axis=0, mode="clip")
        return jnp.where((index < extent)[:, None], rows, 0)

    if crop is None or starts is None:
        whole = functools.partial(window, length=length)
        return jax.vmap(whole)(grids, sizes, margins)
    n = starts.shape[1]

    def windows(grid: Array, size: Array, start: Array, margins: Margins | None) -> Array:
        extent = jnp.minimum(crop, size)
        upsampling = window(grid, extent, margins, crop)
        offset = jnp.arange(length)[:, None] - start[None, :]  # (length, n)
        # Surplus windows repeat the last one: count each start once.
        fresh = jnp.concatenate([jnp.ones(1, bool), start[1:] != start[:-1]])
        covers = (offset >= 0) & (offset < extent) & fresh
        placed = jnp.where(covers[..., None], upsampling[jnp.clip(offset, 0, crop - 1)], 0)
        cover_count = jnp.maximum(jnp.sum(covers, axis=1), 1)[:, None, None]
        return (placed / cover_count).reshape(length, n * grid_length)

    return jax.vmap(windows)(grids, sizes, starts, margins)


def compose_resize(matrices: Array, sizes: Array, out_sizes: Array, out_length: int) -> Array:
    """Composes matrices (b, length, g) with a bilinear resize from `sizes` to `out_sizes` (b,).

    Returns (b, out_length, g); rows from `out_sizes` on are zero.
    """

    def one(matrix: Array, size: Array, out_size: Array) -> Array:
        length = matrix.shape[0]
        step = resize_matrix(size, out_size, in_length=length, out_length=out_length)
        return jnp.matmul(step, matrix, precision="highest")

    return jax.vmap(one)(matrices, sizes, out_sizes)
