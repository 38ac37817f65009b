"""Averages over dilated 3 x 3 neighbourhoods, weighted by colour: what PAR and PAMR share.

Neighbours are read as shifted slices of a widened array, so that only the weights are stored per
neighbour; all iterations and all masks share them. Maps are (b, h, k, w), rows outermost: the
cached weights of a row serve all k masks.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from clipseg_jax.core.checks import check_whole
from clipseg_jax.core.mesh import by_rows, takes_kernels
from clipseg_jax.ops import neighbours_tpu

Offsets = tuple[tuple[int, int], ...]  # (row, column) of each neighbour, in pixels

# The window without its centre, row by row, as (row, column).
_WINDOW = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
_MASKS_AT_ONCE = 2**24  # numbers of the masks that are diffused together: 64 MB


def neighbour_offsets(dilations: tuple[int, ...]) -> Offsets:
    """The eight neighbours at each dilation in pixels, dilation by dilation."""
    return tuple((d * y, d * x) for d in dilations for y, x in _WINDOW)


def check_dilations(dilations: tuple[int, ...]) -> None:
    """Checks the distances in pixels at which neighbours are read.

    Raises:
      ValueError: none is given, or one is no whole number of at least 1.
    """
    if not dilations:
        raise ValueError("dilations is empty; give at least one distance in pixels")
    for dilation in dilations:
        check_whole("dilations", dilation)


def likeness_weights(
    images: Array,
    offsets: Offsets,
    distance: Callable[[Array], Array],
    *,
    width: float,
    epsilon: float,
    centres: int = 0,
    sizes: Array | None = None,
) -> Array:
    """Weights (b, h, n, w) of the n neighbours of each pixel of images (b, h, w, 3); they sum to 1.

    They are the softmax of minus the channels' mean distance. Border pixels are repeated beyond the
    border; with `sizes` (b, 2) beyond that of each padded image, outside of which the weights are
    undefined.

    Args:
      images: any scale of pixel values; it has no influence.
      offsets: of the neighbours.
      distance: of a difference of colours in units of `width` standard deviations.
      width: of the kernel, in standard deviations of the colours in the neighbourhood.
      epsilon: is added to them, so that flat neighbourhoods have a scale.
      centres: how often the pixel itself counts in the standard deviation.
      sizes: (b, 2) real rows and columns of padded images; None: no padding.
    """
    images = jnp.moveaxis(images.astype(jnp.float32), 3, 2)  # (b, h, 3, w)
    b, h, channels, w = images.shape
    wide, far = _widen(images, offsets, sizes), _reach(offsets)
    count = len(offsets) + centres
    around = [_shifted(wide, offset, (h, w), far) for offset in offsets]
    mean = (sum(around) + centres * images) / count
    squares = sum(jnp.square(each - mean) for each in around)
    squares += centres * jnp.square(images - mean)
    scale = 1 / ((jnp.sqrt(squares / (count - 1)) + epsilon) * width)

    def likeness(start: Array) -> Array:
        neighbour = jax.lax.dynamic_slice(wide, (0, start[0], 0, start[1]), (b, h, channels, w))
        return -jnp.mean(distance((neighbour - images) * scale), axis=2)

    likenesses = jax.lax.map(likeness, jnp.asarray(offsets) + far)  # (n, b, h, w)
    return jnp.moveaxis(jax.nn.softmax(likenesses, axis=0), 0, 2)


def diffuse(
    weights: Array, masks: Array, offsets: Offsets, iterations: int, sizes: Array | None = None
) -> Array:
    """Replaces masks (b, h, k, w) by the weighted sums of their neighbours, `iterations` times.

    `weights` (b, h, n, w) are of images of the same `sizes`. An iteration takes 2 b h w n k
    operations. Besides its result it needs a few copies of a share of the masks, at most 64 MB each
    where a single mask of the batch is smaller: shares are diffused one after the other.
    """
    b, h, k, w = masks.shape
    if not iterations:
        return masks
    far = _reach(offsets)

    def written(masks: Array, weights: Array) -> Array:
        def once(_: int, masks: Array) -> Array:
            wide = _widen(masks, offsets, sizes)
            return sum(
                (
                    weights[:, :, i, None] * _shifted(wide, offset, (h, w), far)
                    for i, offset in enumerate(offsets)
                ),
                jnp.zeros_like(masks),
            )

        return jax.lax.fori_loop(0, iterations, once, masks)

    def by_kernel(masks: Array, weights: Array) -> Array:
        real = jnp.broadcast_to(jnp.asarray([h, w]), (b, 2)) if sizes is None else sizes
        return by_rows(
            lambda rows: neighbours_tpu.diffuse(
                rows["weights"], rows["masks"], offsets, iterations, rows["sizes"]
            ),
            {"weights": weights, "masks": masks, "sizes": real},
        )

    def all_iterations(masks: Array) -> Array:
        forms = {}
        if takes_kernels() and neighbours_tpu.fits(masks.shape, offsets):  # type: ignore[arg-type]
            forms["tpu"] = by_kernel
        return jax.lax.platform_dependent(masks, weights, **forms, default=written)

    shares = min(-(-b * h * w * k // _MASKS_AT_ONCE), k)
    if shares <= 1:
        return all_iterations(masks)
    each = -(-k // shares)
    padded = jnp.pad(masks, ((0, 0), (0, 0), (0, shares * each - k), (0, 0)))
    split = jnp.moveaxis(padded.reshape(b, h, shares, each, w), 2, 0)
    joined = jnp.moveaxis(jax.lax.map(all_iterations, split), 0, 2)
    return joined.reshape(b, h, shares * each, w)[:, :, :k]


def _reach(offsets: Offsets) -> int:
    """Pixels that the farthest neighbour is away along an axis."""
    return max(max(abs(y), abs(x)) for y, x in offsets)


def _widen(x: Array, offsets: Offsets, sizes: Array | None) -> Array:
    """Pads (b, h, k, w) by repeating border pixels as far as neighbours reach."""
    far = _reach(offsets)
    if sizes is not None:
        x = jax.vmap(_repeat_border)(x, sizes)
    wide = jnp.pad(x, ((0, 0), (far, far), (0, 0), (far, far)), mode="edge")
    return jax.lax.optimization_barrier(wide)  # otherwise each neighbour is padded anew


def _repeat_border(x: Array, size: Array) -> Array:
    """Fills the padding of (h, k, w) with the last real row and column of the `size` (2,)."""
    for axis, length in ((0, size[0]), (2, size[1])):
        last = jax.lax.dynamic_index_in_dim(x, length - 1, axis)
        x = jnp.where(jax.lax.broadcasted_iota(jnp.int32, x.shape, axis) < length, x, last)
    return x


def _shifted(wide: Array, offset: tuple[int, int], shape: tuple[int, int], far: int) -> Array:
    """The neighbour at `offset` of every pixel, (b, h, k, w), from what `_widen` returns."""
    top, left = far + offset[0], far + offset[1]
    return wide[:, top : top + shape[0], :, left : left + shape[1]]
