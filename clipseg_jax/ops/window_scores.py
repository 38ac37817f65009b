"""Class scores of images, stored as small grids of logits.

Linear scores need two matrices (`ops/window.py`). If a nonlinear function (CLIP-RC: a sigmoid) is
applied to the logits of a window's pixels before windows are averaged, logits are upsampled first,
then the function is applied, and then windows are averaged and resized to the image. The last two
steps read few pixels for each row and column of the result: its taps. Spec clip_rc, section 10.

Maps that were computed at full or nearly full size (`resized_maps`) are read by taps as well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from clipseg_jax.ops.resize import resize_matrix

PixelScores = Callable[[Array], Array]


class Taps(NamedTuple):
    """A row-sparse matrix M: (M x)[i] = sum_j weights[i, j] * x[indices[i, j]]."""

    weights: Array  # (b, n, k) float32
    indices: Array  # (b, n, k) int32


class Scores(NamedTuple):
    """Class scores of images in factored form: pixel scores are `rows @ logits @ columns^T`.

    With a function `pixel_scores` of the windows' pixels, for all windows together:
    `rows @ pixel_scores(to_pixels[0] @ logits @ to_pixels[1]^T) @ columns^T`. Rows and columns are
    taps then; they may be without the function as well.
    """

    logits: Array  # (b, g, k, c)
    rows: Array | Taps  # (b, height, g)
    columns: Array | Taps  # (b, width, k)
    to_pixels: tuple[Array, Array] | None = None  # (b, pixels, grid) of one window, each axis
    pixel_scores: PixelScores | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(b, height, width) of the pixel scores."""
        rows, columns = (jax.tree.leaves(x)[0] for x in (self.rows, self.columns))
        return rows.shape[0], rows.shape[1], columns.shape[1]

    @property
    def numbers_in_a_row(self) -> int:
        """Size of the largest array when computing one row of scores of one image."""
        width = self.shape[2]
        if isinstance(self.rows, Taps):
            in_windows = self.logits.shape[2]
            if self.to_pixels is not None:
                _, pixels, grid = self.to_pixels[1].shape
                in_windows = in_windows // grid * pixels
            width = max(width, self.rows.indices.shape[2] * in_windows)
        return width * self.logits.shape[-1]

    def at(self, rows: Array | Taps) -> Array:
        """Scores (b, r, width, c) of a subset of `self.rows`."""
        if isinstance(rows, Taps):
            assert isinstance(self.columns, Taps)
            if self.pixel_scores is None:
                return jax.vmap(_read)(self.logits, rows, self.columns)
            assert self.to_pixels is not None
            return tapped_rows(self.logits, *self.to_pixels, rows, self.columns, self.pixel_scores)
        return jnp.einsum(
            "brg,bgkc,bwk->brwc", rows, self.logits, self.columns, precision="highest"
        )

    def sampled(self, sizes: Array, out_sizes: Array, shape: tuple[int, int]) -> Scores:
        """The scores of the pixels nearest to those of smaller images, (b, *shape) pixels.

        Scores are smooth: there is nothing that averaging would add. `sizes` and `out_sizes`:
        (b, 2) real pixels before and after.
        """

        def taken(matrix: Array | Taps, axis: int) -> Array | Taps:
            size, out_size = sizes[:, axis, None], out_sizes[:, axis, None]
            index = (2 * jnp.arange(shape[axis]) + 1) * size // (2 * out_size)
            index = jnp.minimum(index, size - 1)[..., None]
            return jax.tree.map(lambda x: jnp.take_along_axis(x, index, axis=1), matrix)

        return self._replace(rows=taken(self.rows, 0), columns=taken(self.columns, 1))


def map_rows(
    views: Sequence[Scores], function: Callable[[list[Array]], tuple[Array, Array]], at_once: int
) -> tuple[Array, Array]:
    """Two maps (b, h, w) computed from the scores of views, some rows at a time.

    Args:
      views: scores of the same images.
      function: scores (b, r, w, c) of each view for a block of rows -> two maps (b, r, w).
      at_once: limit on the scores of each view, pixels x classes, in memory at any time.
    """
    b, height, width = views[0].shape
    a_row = max(view.numbers_in_a_row for view in views)
    step = int(np.clip(at_once // max(b * a_row, 1), 1, height))
    blocks = -(-height // step)

    def block(rows: list[Array | Taps]) -> tuple[Array, Array]:
        return function([v.at(r) for r, v in zip(rows, views, strict=True)])

    def split(rows: Array) -> Array:
        rows = jnp.pad(rows, ((0, 0), (0, blocks * step - height), (0, 0)))
        return rows.reshape(b, blocks, step, -1).swapaxes(0, 1)

    def join(x: Array) -> Array:
        return x.swapaxes(0, 1).reshape(b, blocks * step, width)[:, :height]

    one, two = jax.lax.map(block, [jax.tree.map(split, v.rows) for v in views])
    return join(one), join(two)


def resized_maps(maps: Array, sizes: Array, out_sizes: Array, out_shape: tuple[int, int]) -> Scores:
    """Scores of padded maps (b, h, w, c), each resized bilinearly, to (b, *out_shape) pixels.

    `sizes` and `out_sizes`: (b, 2) real rows and columns before and after. Maps that have
    `out_shape` already are not resized.
    """

    def read(axis: int) -> Taps:
        b, length = maps.shape[0], maps.shape[1 + axis]
        if maps.shape[1:3] == out_shape:
            index = jnp.broadcast_to(jnp.arange(length)[:, None], (b, length, 1))
            return Taps(jnp.ones(index.shape), index)

        def matrix(size: Array, out_size: Array) -> Array:
            return resize_matrix(size, out_size, in_length=length, out_length=out_shape[axis])

        return taps(jax.vmap(matrix)(sizes[:, axis], out_sizes[:, axis]), 2)

    return Scores(maps, read(0), read(1))


def taps(matrices: Array, most: int) -> Taps:
    """The `most` largest weights in each row of non-negative matrices (b, n, m)."""
    return Taps(*jax.lax.top_k(matrices, min(most, matrices.shape[2])))


def tapped_rows(
    logits: Array,
    to_rows: Array,
    to_columns: Array,
    rows: Taps,
    columns: Taps,
    pixel_scores: PixelScores,
) -> Array:
    """Scores (b, r, w, c) of some rows of images, with `pixel_scores`.

    Args:
      logits: (b, ny * gh, nx * gw, c), windows side by side.
      to_rows, to_columns: (b, height, gh) and (b, width, gw), from a window's grid to its pixels.
      rows: taps of r rows, indices into the ny * height rows of all windows' pixels.
      columns: taps of w columns, indices into the nx * width columns of all windows' pixels.
      pixel_scores: logits (..., c) of pixels -> scores.
    """

    one = functools.partial(_tapped_rows, pixel_scores=pixel_scores)
    return jax.vmap(one)(logits, to_rows, to_columns, rows, columns)


def _tapped_rows(
    logits: Array,
    to_rows: Array,
    to_columns: Array,
    rows: Taps,
    columns: Taps,
    pixel_scores: PixelScores,
) -> Array:
    height, gh = to_rows.shape
    width, gw = to_columns.shape
    ny, nx, c = logits.shape[0] // gh, logits.shape[1] // gw, logits.shape[2]
    r, k = rows.indices.shape
    # Weights of the grid rows for each tapped pixel row, within the window that it lies in.
    of_window = jax.nn.one_hot(rows.indices // height, ny)[..., None]
    matrix = (of_window * to_rows[rows.indices % height][:, :, None]).reshape(r * k, ny * gh)
    lines = jnp.einsum("rg,gxc->rxc", matrix, logits, precision="highest")
    lines = lines.reshape(r * k, nx, gw, c)
    pixels = pixel_scores(
        jnp.einsum("rngc,wg->rnwc", lines, to_columns, precision="highest")
    ).reshape(r, k, nx * width, c)
    pixels = jnp.einsum("rk,rkxc->rxc", rows.weights, pixels, precision="highest")
    return _weighted(pixels, columns, axis=1)


def _read(maps: Array, rows: Taps, columns: Taps) -> Array:
    """Rows and columns (r, w, c) of maps (g, k, c)."""
    return _weighted(_weighted(maps, rows, axis=0), columns, axis=1)


def _weighted(x: Array, read: Taps, axis: int) -> Array:
    """Weighted sums of the tapped entries of `x` (g, k, c) along axis 0 or 1."""
    weights = read.weights[:, :, None, None] if axis == 0 else read.weights[:, :, None]
    first = jnp.arange(x.shape[0])[:, None] * x.shape[1]

    def entries(indices: Array) -> Array:
        if axis == 0:
            return jnp.take(x, indices, axis=0, mode="clip")
        # By the index of pixels in raster order: XLA gathers along axis 1 into a transposed array,
        # which costs five times as much.
        return jnp.take(x.reshape(-1, x.shape[2]), first + indices, axis=0, mode="clip")

    parts = [weights[:, j] * entries(read.indices[:, j]) for j in range(read.indices.shape[1])]
    return jnp.sum(jnp.stack(parts), axis=0)
