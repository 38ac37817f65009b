"""The 2-D Haar wavelet transform, and a depthwise convolution.

Finder et al., "Wavelet Convolutions for Large Receptive Fields", 2024; spec wtclip, section 2.2.
Maps are (b, h, w, c) with even sides; a transform is (b, h / 2, w / 2, c, 4): the four bands of
each channel are low-pass, and details along the height, along the width and along both.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array


def haar(maps: Array) -> Array:
    """The orthonormal transform (b, h / 2, w / 2, c, 4) of maps (b, h, w, c).

    Raises:
      ValueError: an odd side.
    """
    if maps.shape[1] % 2 or maps.shape[2] % 2:
        raise ValueError(
            f"a Haar transform needs even sides, not {maps.shape[1:3]}; pad with zeros"
        )
    top, bottom = maps[:, 0::2], maps[:, 1::2]
    rows = jnp.stack([top + bottom, top - bottom], axis=-1)  # low and high along the height
    left, right = rows[:, :, 0::2], rows[:, :, 1::2]
    low, high = left + right, left - right
    return 0.5 * jnp.concatenate([low, high], axis=-1)


def inverse_haar(bands: Array) -> Array:
    """The inverse of `haar`: (b, h / 2, w / 2, c, 4) -> maps (b, h, w, c)."""
    low, high = bands[..., :2], bands[..., 2:]
    columns = _interleave(low + high, low - high, axis=2)  # (b, h / 2, w, c, 2)
    first, second = columns[..., 0], columns[..., 1]
    return 0.5 * _interleave(first + second, first - second, axis=1)


def _interleave(even: Array, odd: Array, axis: int) -> Array:
    """Alternates the slices of two arrays along `axis`."""
    both = jnp.stack([even, odd], axis=axis + 1)
    return both.reshape(*even.shape[:axis], -1, *even.shape[axis + 1 :])


def depthwise(maps: Array, kernel: Array) -> Array:
    """Each channel of maps (b, h, w, c) correlated with its own kernel (s, s, c), zero-padded.

    One shifted product per kernel tap, on CPUs many times faster than a grouped convolution.
    """
    _, h, w, _ = maps.shape
    side = kernel.shape[0]
    before, after = (side - 1) // 2, side // 2
    wide = jnp.pad(maps, ((0, 0), (before, after), (before, after), (0, 0)))
    taps = [wide[:, i : i + h, j : j + w] * kernel[i, j] for i in range(side) for j in range(side)]
    return sum(taps[1:], taps[0])
