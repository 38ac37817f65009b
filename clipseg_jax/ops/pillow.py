"""Pillow's bicubic resize on the device, equal bit for bit."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array

_BITS = 22  # of the fixed-point weights


def pillow_bicubic(images: Array, side_px: int) -> Array:
    """Resizes square uint8 images (b, s, s, c) to (b, side_px, side_px, c), as Pillow's BICUBIC.

    Horizontally first, then vertically, each with fixed-point weights and rounding to uint8.

    Raises:
      ValueError: images that are not square, for which Pillow 13 may resize vertically first.
    """
    if images.shape[1] != images.shape[2]:
        raise ValueError(f"images must be square, not {images.shape[1:3]}")
    if images.shape[1] == side_px:
        return images
    return _along(_along(images, side_px, axis=2), side_px, axis=1)


def _along(x: Array, length: int, axis: int) -> Array:
    index, weights = _taps(x.shape[axis], length)
    x = x.astype(jnp.int32)
    total = jnp.int32(1 << (_BITS - 1))
    for tap in range(index.shape[1]):
        shape = [length if i == axis else 1 for i in range(x.ndim)]
        total = total + jnp.take(x, index[:, tap], axis=axis) * weights[:, tap].reshape(shape)
    return jnp.clip(total >> _BITS, 0, 255).astype(jnp.uint8)


def _taps(in_length: int, out_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Input positions and fixed-point weights (out_length, taps) of each output position."""
    scale = in_length / out_length
    stretch = max(scale, 1.0)  # downsampling widens the kernel
    centre = (np.arange(out_length) + 0.5) * scale
    start = np.maximum((centre - 2 * stretch + 0.5).astype(np.int64), 0)
    stop = np.minimum((centre + 2 * stretch + 0.5).astype(np.int64), in_length)
    index = start[:, None] + np.arange(np.max(stop - start))
    weights = _cubic((index + 0.5 - centre[:, None]) / stretch)
    weights = np.where(index < stop[:, None], weights, 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    fixed = np.trunc(weights * (1 << _BITS) + np.copysign(0.5, weights)).astype(np.int32)
    return np.minimum(index, in_length - 1), fixed


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -0.5."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = -0.5 * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
