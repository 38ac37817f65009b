"""Class scores of images, of which only small logits are ever stored whole.

Linear scores need two matrices (`ops/window.py`). Where the logits of a window's pixels pass a
function (CLIP-RC: a sigmoid) before windows are averaged, they are upsampled first, then comes the
function, then the average and the resize to the image, which take few pixels for each row and
column of the result: its taps. Spec clip_rc, section 10.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

PixelScores = Callable[[Array], Array]


class Taps(NamedTuple):
    """A matrix M with few numbers in a row: (M x)[i] = sum_j weights[i, j] * x[places[i, j]]."""

    weights: Array  # (b, n, k) float32
    places: Array  # (b, n, k) int32


class Scores(NamedTuple):
    """Class scores of images, small: pixel scores are `rows @ logits @ columns^T`.

    Or, with a function of the windows' pixels, of all windows together:
    `rows @ pixel_scores(to_pixels[0] @ logits @ to_pixels[1]^T) @ columns^T`.
    """

    logits: Array  # (b, g, k, c)
    rows: Array | Taps  # (b, height, g)
    columns: Array | Taps  # (b, width, k)
    to_pixels: tuple[Array, Array] | None = None  # (b, pixels, grid) of one window, each axis
    pixel_scores: PixelScores | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Images, and rows and columns of each."""
        rows, columns = (jax.tree.leaves(x)[0] for x in (self.rows, self.columns))
        return rows.shape[0], rows.shape[1], columns.shape[1]

    @property
    def numbers_in_a_row(self) -> int:
        """The most that making one row of one image's scores holds."""
        width = self.shape[2]
        if isinstance(self.rows, Taps):
            assert self.to_pixels is not None
            _, pixels, grid = self.to_pixels[1].shape
            in_windows = self.logits.shape[2] // grid * pixels
            width = max(width, self.rows.places.shape[2] * in_windows)
        return width * self.logits.shape[-1]

    def at(self, rows: Array | Taps) -> Array:
        """Scores (b, r, width, c) of some of `rows`."""
        if isinstance(rows, Taps):
            assert isinstance(self.columns, Taps)
            assert self.to_pixels is not None
            assert self.pixel_scores is not None
            return tapped_rows(self.logits, *self.to_pixels, rows, self.columns, self.pixel_scores)
        return jnp.einsum(
            "brg,bgkc,bwk->brwc", rows, self.logits, self.columns, precision="highest"
        )


def by_rows(
    views: Sequence[Scores], make: Callable[[list[Array]], tuple[Array, Array]], at_once: int
) -> tuple[Array, Array]:
    """Two maps (b, h, w) of images, made of their views' scores some rows at a time.

    Args:
      make: each view's scores (b, r, w, c) of the same rows -> both maps (b, r, w) of them.
      at_once: so many scores, pixels x classes, of each view are there at any time.
    """
    b, height, width = views[0].shape
    a_row = max(view.numbers_in_a_row for view in views)
    step = int(np.clip(at_once // max(b * a_row, 1), 1, height))
    blocks = -(-height // step)

    def block(rows: list[Array | Taps]) -> tuple[Array, Array]:
        return make([v.at(r) for r, v in zip(rows, views, strict=True)])

    def split(rows: Array) -> Array:
        rows = jnp.pad(rows, ((0, 0), (0, blocks * step - height), (0, 0)))
        return rows.reshape(b, blocks, step, -1).swapaxes(0, 1)

    def join(x: Array) -> Array:
        return x.swapaxes(0, 1).reshape(b, blocks * step, width)[:, :height]

    one, two = jax.lax.map(block, [jax.tree.map(split, v.rows) for v in views])
    return join(one), join(two)


def taps(matrices: Array, most: int) -> Taps:
    """The `most` largest weights in each row of matrices (b, n, m) without negative numbers."""
    return Taps(*jax.lax.top_k(matrices, min(most, matrices.shape[2])))


def tapped_rows(
    logits: Array,
    to_rows: Array,
    to_columns: Array,
    rows: Taps,
    columns: Taps,
    pixel_scores: PixelScores,
) -> Array:
    """Scores (b, r, w, c) of some rows of images.

    Args:
      logits: (b, ny * gh, nx * gw, c), windows side by side.
      to_rows, to_columns: (b, height, gh) and (b, width, gw), from a window's grid to its pixels.
      rows: r of them, into the ny * height rows of pixels that all windows have; columns: w, into
        their nx * width columns.
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
    r, k = rows.places.shape
    # The grid rows that make each tapped row of pixels, of the window that it lies in.
    of_window = jax.nn.one_hot(rows.places // height, ny)[..., None]
    matrix = (of_window * to_rows[rows.places % height][:, :, None]).reshape(r * k, ny * gh)
    lines = jnp.einsum("rg,gxc->rxc", matrix, logits, precision="highest")
    lines = lines.reshape(r * k, nx, gw, c)
    pixels = pixel_scores(
        jnp.einsum("rngc,wg->rnwc", lines, to_columns, precision="highest")
    ).reshape(r, k, nx * width, c)
    pixels = jnp.einsum("rk,rkxc->rxc", rows.weights, pixels, precision="highest")
    parts = [
        columns.weights[:, j, None] * pixels[:, columns.places[:, j]]
        for j in range(columns.places.shape[1])
    ]
    return jnp.sum(jnp.stack(parts), axis=0)
