"""Functions of bilinearly upsampled maps that never hold them at full size.

Maps are small grids (b, g, k, c); at the size of the labels they would take gigabytes. They are
upsampled some rows at a time, or the adjoint of upsampling is applied to the labels instead. Spec
reclip, section 20.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from clipseg_jax.ops.resize import resize_matrix

_NUMBERS_AT_ONCE = 2**24  # values at full size at any time: 64 MB
Size = tuple[int, int]


def map_upsampled_rows(
    function: Callable[..., Any],
    maps: Sequence[Array],
    size: Size,
    pixels: Array | None = None,
    fill: Any = 0,
) -> Any:
    """Applies `function` to blocks of rows of upsampled maps; returns its stacked results.

    The backward pass recomputes the upsampled rows instead of storing them.

    Args:
      function: takes a block (b, r, w, c) of each upsampled map and, if `pixels` is given, the same
        rows (b, r, w) of it.
      maps: (b, g, k, c) each.
      size: (height, width) to which maps are upsampled.
      pixels: (b, h, w), already at full size.
      fill: value of `pixels` in rows that pad the last block; maps are 0 there.
    """
    height, width = size
    split = _Blocks(height, maps[0].shape[0] * width * sum(m.shape[-1] for m in maps))
    rows = [split(resize_matrix(m.shape[1], height), axis=0) for m in maps]
    columns = [resize_matrix(m.shape[2], width) for m in maps]

    @jax.checkpoint
    def block(part: tuple[list[Array], list[Array]]) -> Any:
        rows, pixel_rows = part
        upsampled = [
            jnp.einsum("brkc,wk->brwc", _rows(r, m), c, precision="highest")
            for r, m, c in zip(rows, maps, columns, strict=True)
        ]
        return function(*upsampled, *pixel_rows)

    return jax.lax.map(block, (rows, [] if pixels is None else [split(pixels, 1, fill)]))


def upsampled_argmax(logits: Array, size: Size) -> Array:
    """Argmax (b, *size) int32 over the classes of upsampled logits (b, g, k, c)."""
    labels = map_upsampled_rows(lambda x: jnp.argmax(x, axis=-1).astype(jnp.int32), [logits], size)
    labels = jnp.moveaxis(labels, 0, 1)
    return labels.reshape(labels.shape[0], -1, size[1])[:, : size[0]]


def sum_by_class(features: Array, labels: Array, classes: int) -> Array:
    """Sums (b, c, e) of upsampled features (b, g, k, e) over the pixels of each class.

    `labels` (b, h, w); those outside 0..classes-1 are ignored.
    """
    _, grid_rows, grid_columns, _ = features.shape
    b, height, width = labels.shape
    split = _Blocks(height, b * width * classes)
    columns = resize_matrix(grid_columns, width)

    def add(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        rows, label_rows = part
        hits = jax.nn.one_hot(label_rows, classes, dtype=jnp.float32)  # (b, r, w, c)
        hits = jnp.einsum("brwc,wk->brkc", hits, columns, precision="highest")
        return total + jnp.einsum("brkc,rg->bgkc", hits, rows, precision="highest"), None

    parts = split(resize_matrix(grid_rows, height), 0), split(labels, 1, -1)
    # Weight of each grid position for each class: transposed upsampling of the one-hot labels.
    shares, _ = jax.lax.scan(add, jnp.zeros((b, grid_rows, grid_columns, classes)), parts)
    return jnp.einsum("bgkc,bgke->bce", shares, features, precision="highest")


def _rows(weights: Array, maps: Array) -> Array:
    """(r, g) and (b, g, k, c) -> (b, r, k, c)."""
    return jnp.einsum("rg,bgkc->brkc", weights, maps, precision="highest")


class _Blocks:
    """Splits `height` rows into equal blocks of about _NUMBERS_AT_ONCE values."""

    def __init__(self, height: int, numbers_per_row: int):
        most = int(np.clip(_NUMBERS_AT_ONCE // max(numbers_per_row, 1), 1, height))
        self.count = -(-height // most)
        self.rows = -(-height // self.count)

    def __call__(self, x: Array, axis: int, fill: Any = 0) -> Array:
        """Rows along `axis` -> (blocks, ..., rows, ...)."""
        missing = self.count * self.rows - x.shape[axis]
        pad = [(0, missing if i == axis else 0) for i in range(x.ndim)]
        x = jnp.pad(x, pad, constant_values=fill)
        shape = (*x.shape[:axis], self.count, self.rows, *x.shape[axis + 1 :])
        return jnp.moveaxis(x.reshape(shape), axis, 0)
