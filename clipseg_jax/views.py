"""WeCLIP's test-time views: scales and mirror images whose logits are averaged on one small grid.

Spec weclip, section 10. Unlike the default path of `inference`, images are resized in float32 after
normalisation, further scales are resized from the first one's pixels, and logits instead of
probabilities are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array

from clipseg_jax.ops.resize import resize_within
from clipseg_jax.ops.window import grid_to_image

# (normalised images, real sizes) -> logits (b, g, k, c), zero outside each image's own grid
Predict = Callable[[Array, Array], Array]


def size_of_view(
    size: tuple[int, int], scale_px: tuple[int, int] | None, ratio: float
) -> tuple[int, int]:
    """(height, width) in pixels of the view at `ratio` of an image; all sides rounded down.

    At ratio 1 it is the largest size that exceeds neither of `scale_px`, long and short; None: the
    image's own.
    """
    factor = 1.0
    if scale_px is not None:
        factor = min(max(scale_px) / max(size), min(scale_px) / min(size))
    # Rounded twice: further views are resized from the first one's pixels.
    return int(int(size[0] * factor) * ratio), int(int(size[1] * factor) * ratio)


def averaged_scores(
    predict: Predict,
    grid_size: Callable[[Array], Array],
    pixels: Array,
    image_sizes: Array,
    view_sizes: Array,
    view_shapes: Sequence[tuple[int, int]],
    ratios: Sequence[float],
    *,
    flip: bool,
) -> tuple[Array, Array, Array]:
    """Mean logits (b, g, k, c) of all views on the first one's grid, and upsampling matrices.

    Pixel scores are `rows @ logits @ columns^T`, with rows (b, h, g) and columns (b, w, k).

    Args:
      predict: (normalised images, real sizes) -> logits (b, g, k, c).
      grid_size: real sizes in pixels (b, 2) -> real rows and columns of the logits.
      pixels: normalised images (b, h, w, 3).
      image_sizes: (b, 2) real pixels of the images.
      view_sizes: (b, ratios, 2) pixels at the network.
      view_shapes: static (height, width) of each view, at least its `view_sizes`.
      ratios: scale of each view relative to the first; the first entry is not used.
      flip: average each view with its mirror image.
    """
    first = resize_within(pixels, image_sizes, view_sizes[:, 0], view_shapes[0])
    grids = grid_size(view_sizes[:, 0])
    total: Array | None = None
    for i, (ratio, shape) in enumerate(zip(ratios, view_shapes, strict=True)):
        sizes, view = view_sizes[:, i], first
        if i:
            view = resize_within(first, view_sizes[:, 0], sizes, shape, scale_factor=ratio)
        logits = _flip_averaged(predict, grid_size, view, sizes) if flip else predict(view, sizes)
        if total is None:
            total = logits
        else:
            shape = total.shape[1], total.shape[2]
            total += resize_within(logits, grid_size(sizes), grids, shape)
    assert total is not None
    rows, columns = (
        grid_to_image(
            grids[:, axis],
            image_sizes[:, axis],
            grid_length=total.shape[1 + axis],
            length=pixels.shape[1 + axis],
        )
        for axis in (0, 1)
    )
    return total / len(ratios), rows, columns


def _flip_averaged(
    predict: Predict, grid_size: Callable[[Array], Array], view: Array, sizes: Array
) -> Array:
    """Mean of a view's logits and its mirror image's, mirrored back."""
    mirrored = mirror(view, sizes[:, 1], axis=2)
    # Sequentially: one compiled program, and no more memory than without mirroring.
    logits, flipped = jax.lax.map(lambda x: predict(x, sizes), jnp.stack([view, mirrored]))
    return (logits + mirror(flipped, grid_size(sizes)[:, 1], axis=2)) / 2


def mirror(x: Array, sizes: Array, axis: int) -> Array:
    """Reverses the first `sizes[i]` entries of x[i] along `axis`."""
    position = jnp.arange(x.shape[axis])[None, :]
    index = jnp.where(position < sizes[:, None], sizes[:, None] - 1 - position, position)
    return jax.vmap(lambda one, i: jnp.take(one, i, axis=axis - 1))(x, index)
