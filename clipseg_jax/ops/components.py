"""Bounding boxes of connected components, batched, for small maps.

CLIP-ES and TagCLIP turn a thresholded class map into the union of its components' bounding boxes.
Spec clip_es, section 6; spec tagclip, sections 5 and 6. The published code uses OpenCV's contours;
contours of holes lie inside their component's box, so the components suffice.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

_NONE = -(2**30)  # bound of a cell that belongs to no component


def component_bounds(masks: Array) -> Array:
    """Bounding boxes of the 8-connected components of masks (..., h, w) bool.

    Returns (4, ..., h, w) int32: at each true cell the first row, first column, last row and last
    column of its component; undefined at false cells.
    """
    h, w = masks.shape[-2:]
    rows = jnp.broadcast_to(jnp.arange(h)[:, None], masks.shape)
    columns = jnp.broadcast_to(jnp.arange(w)[None, :], masks.shape)
    # The first bounds are negated, so that all four grow.
    bounds = jnp.where(masks, jnp.stack([-rows, -columns, rows, columns]), _NONE)

    def grow(state: tuple[Array, Array]) -> tuple[Array, Array]:
        bounds, _ = state
        grown = jnp.where(masks, _neighbourhood_max(bounds), _NONE)
        return grown, jnp.any(grown != bounds)

    bounds, _ = jax.lax.while_loop(lambda state: state[1], grow, (bounds, jnp.any(masks)))
    return bounds * jnp.asarray([-1, -1, 1, 1]).reshape(4, *[1] * masks.ndim)


def _neighbourhood_max(x: Array) -> Array:
    """Maximum over each cell (..., h, w) and its eight neighbours."""
    for axis in (-2, -1):
        pad = [(0, 0)] * x.ndim
        pad[axis] = (1, 1)
        length = x.shape[axis]
        wide = jnp.pad(x, pad, constant_values=_NONE)
        before, after = (
            jax.lax.slice_in_dim(wide, i, i + length, axis=axis % x.ndim) for i in (0, 2)
        )
        x = jnp.maximum(x, jnp.maximum(before, after))
    return x


def component_boxes_mask(masks: Array, ends: Array) -> Array:
    """Union (..., h, w) bool of the boxes of all components of masks (..., h, w).

    Boxes are half-open and end at most at `ends` (..., 2) = (row, column), which broadcasts to the
    masks' leading axes. The published code passes the LAST row and column: these are in no box, and
    a component that lies entirely in one of them has an empty box.
    """
    h, w = masks.shape[-2:]
    ends = jnp.broadcast_to(ends, (*masks.shape[:-2], 2)).reshape(-1, 2)[:, :, None, None]
    lead = masks.shape[:-2]
    masks = masks.reshape(-1, h, w)
    top, left, bottom, right = component_bounds(masks)
    bottom, right = jnp.minimum(bottom + 1, ends[:, 0]), jnp.minimum(right + 1, ends[:, 1])
    # Each cell adds the box of its component, as +1 and -1 at the box's corners; the 2-D cumulative
    # sum then counts the boxes over each cell.
    steps = jnp.zeros((masks.shape[0], h + 1, w + 1), jnp.int32)
    index = jnp.arange(masks.shape[0])[:, None, None]
    once = masks.astype(jnp.int32)
    for rows, columns, sign in (
        (top, left, 1),
        (top, right, -1),
        (bottom, left, -1),
        (bottom, right, 1),
    ):
        rows, columns = (jnp.where(masks, x, 0) for x in (rows, columns))
        steps = steps.at[index, rows, columns].add(sign * once)
    covered = jnp.cumsum(jnp.cumsum(steps, axis=1), axis=2)[:, :h, :w] > 0
    return covered.reshape(*lead, h, w)


def bounding_box(masks: Array) -> Array:
    """Half-open box (..., 4) int32 = (top, left, bottom, right) of the true cells of (..., h, w).

    Zeros if there are none.
    """
    h, w = masks.shape[-2:]
    rows, columns = jnp.any(masks, axis=-1), jnp.any(masks, axis=-2)

    def span(line: Array, length: int) -> tuple[Array, Array]:
        first = jnp.argmax(line, axis=-1)
        last = length - jnp.argmax(line[..., ::-1], axis=-1)
        return first, jnp.where(jnp.any(line, axis=-1), last, 0)

    (top, bottom), (left, right) = span(rows, h), span(columns, w)
    return jnp.stack([top, left, bottom, right], axis=-1).astype(jnp.int32)
