"""Preprocessing on the device: OpenCV's uint8 resize, normalisation, padding masks.

Images are transferred to the device as decoded, uint8. The published pipelines resize them with
OpenCV, whose fixed-point arithmetic is reproduced here bit for bit.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

CLIP_MEAN = (0.48145466 * 255, 0.4578275 * 255, 0.40821073 * 255)
CLIP_STD = (0.26862954 * 255, 0.26130258 * 255, 0.27577711 * 255)
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


def normalize(images: Array, mean: tuple[float, ...], std: tuple[float, ...]) -> Array:
    """uint8 RGB (..., 3) -> float32 (x - mean) / std; mean and std in pixel values, 0 to 255."""
    return (images.astype(jnp.float32) - jnp.asarray(mean)) * (1 / jnp.asarray(std))


def network_input(
    images: Array, sizes: Array, mean: tuple[float, ...], std: tuple[float, ...]
) -> Array:
    """Normalised training crops: uint8 (b, h, w, 3) -> float32, 0 outside the real `sizes` (b, 2).

    As in the published pipelines, crops are padded after normalisation and padding is not masked.
    """
    real = valid_mask(sizes, (images.shape[1], images.shape[2]))
    return jnp.where(real[..., None], normalize(images, mean, std), 0)


def valid_mask(sizes: Array, shape: tuple[int, int]) -> Array:
    """Mask (b, *shape), true in the top-left `sizes[i]` = (rows, columns) of image i."""
    rows = jnp.arange(shape[0])[None, :, None] < sizes[:, 0, None, None]
    columns = jnp.arange(shape[1])[None, None, :] < sizes[:, 1, None, None]
    return rows & columns


def mask_padding(x: Array, sizes: Array | None) -> Array:
    """Zeroes maps (b, h, w, c) outside their real `sizes` (b, 2); None: returns `x`.

    Applied before a convolution, so that its output at a border equals that of the unpadded map.
    """
    if sizes is None:
        return x
    return jnp.where(valid_mask(sizes, (x.shape[1], x.shape[2]))[..., None], x, 0)


def opencv_resize(
    images: Array, in_sizes: Array, out_sizes: Array, out_shape: tuple[int, int]
) -> Array:
    """cv2.resize(INTER_LINEAR) of padded uint8 images (b, h, w, c), to (b, *out_shape, c) uint8.

    Image i fills the top-left `in_sizes[i]` (rows, columns) and afterwards the top-left
    `out_sizes[i]`; the rest of the result is undefined. Equal to OpenCV bit for bit if no side of
    `out_sizes` exceeds 4096 pixels.
    """

    def one(image: Array, in_size: Array, out_size: Array) -> Array:
        rows = _opencv_weights(in_size[0], out_size[0], out_shape[0])
        columns = _opencv_weights(in_size[1], out_size[1], out_shape[1])
        # Beyond the border OpenCV uses a border column alone, and a border row twice.
        outside = (columns.low < 0) | (columns.low >= in_size[1] - 1)
        near = jnp.where(outside, 2048, columns.near)[:, None]
        far = jnp.where(outside, 0, columns.far)[:, None]

        def take(pixels: Array, index: Array, axis: int) -> Array:
            return jnp.take(pixels, jnp.clip(index, 0, in_size[axis] - 1), axis=axis)

        left, right = take(image, columns.low, 1), take(image, columns.low + 1, 1)
        wide = (left.astype(jnp.int32) * near + right.astype(jnp.int32) * far) >> 4
        top = (take(wide, rows.low, 0) * rows.near[:, None, None]) >> 16
        bottom = (take(wide, rows.low + 1, 0) * rows.far[:, None, None]) >> 16
        resized = jnp.clip((top + bottom + 2) >> 2, 0, 255).astype(jnp.uint8)
        return jnp.where(jnp.all(in_size == out_size), _fit(image, out_shape), resized)

    return jax.vmap(one)(images, in_sizes, out_sizes)


class _Weights(NamedTuple):
    """Per output pixel: index of the input pixel before it, weights of this and the next one."""

    low: Array  # (n,) int32, -1 to in_size - 1
    near: Array  # (n,) int32, in 1/2048
    far: Array  # (n,) int32, in 1/2048


def _opencv_weights(in_size: Array, out_size: Array, length: int) -> _Weights:
    """OpenCV's positions and weights along one axis, for `length` output pixels.

    OpenCV computes the position (i + 0.5) * in / out - 0.5 in double precision, rounds it to
    float32, subtracts the integer part and rounds the fraction to 11 bits. Integer arithmetic
    reproduces both roundings exactly.
    """
    doubled = (2 * jnp.arange(length) + 1) * in_size - out_size
    divisor = 2 * out_size
    low = doubled // divisor
    rest, fraction = doubled - low * divisor, jnp.zeros_like(doubled)
    for _ in range(3):  # 27 bits of rest / divisor, nine at a time: int32 holds the products
        fraction = (fraction << 9) + (rest << 9) // divisor
        rest = (rest << 9) % divisor
    # A float32 in [2^e, 2^(e+1)) has 23 - e fraction bits.
    exponent = jnp.floor(jnp.log2(jnp.maximum(low, 1).astype(jnp.float32) + 0.5)).astype(jnp.int32)
    bits = jnp.where(low < 1, 24, jnp.minimum(23 - exponent, 24))
    rounded = _rounded_shift(fraction, 27 - bits, rest > 0)
    near, far = (
        _rounded_shift(part, bits - 11, False) for part in ((1 << bits) - rounded, rounded)
    )
    return _Weights(low, near, far)


def _rounded_shift(value: Array, bits: Array, sticky: ArrayLike) -> Array:
    """`value` / 2^bits, rounded to the nearest integer, ties to even.

    `sticky`: the exact value is slightly larger than `value`, whose lower bits were truncated.
    """
    result, rest = value >> bits, value & ((1 << bits) - 1)
    half = (1 << bits) >> 1
    up = (rest > half) | ((rest == half) & (sticky | (result % 2 == 1)))
    return result + jnp.where(bits > 0, up, False)


def _fit(image: Array, shape: tuple[int, int]) -> Array:
    """Crops or zero-pads (h, w, c) at the bottom and right to (*shape, c)."""
    image = image[: shape[0], : shape[1]]
    return jnp.pad(image, [(0, n - m) for n, m in zip(shape, image.shape, strict=False)] + [(0, 0)])
