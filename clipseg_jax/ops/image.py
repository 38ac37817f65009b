"""Pixels before the network: OpenCV's uint8 resize and normalisation, on the device.

Images go to the device as they were decoded, uint8; the published pipelines resize them with
OpenCV, whose fixed-point arithmetic is repeated here: equal but for single grey levels in about
0.1 % of the pixels (measured against OpenCV 5.0).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

CLIP_MEAN = (0.48145466 * 255, 0.4578275 * 255, 0.40821073 * 255)
CLIP_STD = (0.26862954 * 255, 0.26130258 * 255, 0.27577711 * 255)
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


def normalise(images: Array, mean: tuple[float, ...], std: tuple[float, ...]) -> Array:
    """uint8 RGB (..., 3) -> float32; mean and std in grey levels, 0 to 255."""
    return (images.astype(jnp.float32) - jnp.asarray(mean)) * (1 / jnp.asarray(std))


def network_input(
    images: Array, sizes: Array, mean: tuple[float, ...], std: tuple[float, ...]
) -> Array:
    """Normalised training crops: uint8 (b, h, w, 3) -> float32, 0 beyond the real `sizes` (b, 2).

    The published pipelines pad crops after normalising; the network sees padding as pixels.
    """
    real = inside(sizes, (images.shape[1], images.shape[2]))
    return jnp.where(real[..., None], normalise(images, mean, std), 0)


def inside(sizes: Array, shape: tuple[int, int]) -> Array:
    """Mask (b, h, w), true in the top-left `sizes[i]` = (rows, columns) of each image."""
    rows = jnp.arange(shape[0])[None, :, None] < sizes[:, 0, None, None]
    columns = jnp.arange(shape[1])[None, None, :] < sizes[:, 1, None, None]
    return rows & columns


def hide(x: Array, sizes: Array | None) -> Array:
    """Zeroes what lies outside the real `sizes` (b, 2) of maps (b, h, w, c); None: all is real.

    Before a convolution: then it sees at a real border what it would see in the unpadded map.
    """
    if sizes is None:
        return x
    return jnp.where(inside(sizes, (x.shape[1], x.shape[2]))[..., None], x, 0)


def opencv_resize(
    images: Array, in_sizes: Array, out_sizes: Array, out_shape: tuple[int, int]
) -> Array:
    """cv2.resize(INTER_LINEAR) of padded uint8 images (b, h, w, c), to (b, *out_shape, c) uint8.

    Image i fills the top-left `in_sizes[i]` (rows, columns) and afterwards the top-left
    `out_sizes[i]`; the rest of the result repeats border pixels and has no meaning.
    """

    def taps(in_size: Array, out_size: Array, length: int) -> tuple[Array, Array, Array, Array]:
        # OpenCV takes (i + 0.5) * in / out - 0.5 in double precision, rounds it to float32 and
        # its fraction to 11 bits. Whole part and remainder are exact in integers.
        doubled = (2 * jnp.arange(length) + 1) * in_size - out_size
        low = doubled // (2 * out_size)
        whole = low.astype(jnp.float32)
        exact = (doubled - low * 2 * out_size).astype(jnp.float32) / (2 * out_size)
        fraction = (whole + exact) - whole
        fraction = jnp.where((low < 0) | (low >= in_size - 1), 0.0, fraction)
        low = jnp.clip(low, 0, in_size - 1)
        high = jnp.minimum(low + 1, in_size - 1)
        near = jnp.round((1.0 - fraction) * 2048).astype(jnp.int32)
        far = jnp.round(fraction * 2048).astype(jnp.int32)
        return low, high, near, far

    def one(image: Array, in_size: Array, out_size: Array) -> Array:
        low, high, near, far = taps(in_size[1], out_size[1], out_shape[1])
        left, right = (image[:, tap].astype(jnp.int32) for tap in (low, high))
        wide = (left * near[:, None] + right * far[:, None]) >> 4
        low, high, near, far = taps(in_size[0], out_size[0], out_shape[0])
        top = (wide[low] * near[:, None, None]) >> 16
        bottom = (wide[high] * far[:, None, None]) >> 16
        resized = jnp.clip((top + bottom + 2) >> 2, 0, 255).astype(jnp.uint8)
        return jnp.where(jnp.all(in_size == out_size), _fit(image, out_shape), resized)

    return jax.vmap(one)(images, in_sizes, out_sizes)


def _fit(image: Array, shape: tuple[int, int]) -> Array:
    """Crops or zero-pads (h, w, c) at the bottom and right to (*shape, c)."""
    image = image[: shape[0], : shape[1]]
    return jnp.pad(image, [(0, n - m) for n, m in zip(shape, image.shape, strict=False)] + [(0, 0)])
