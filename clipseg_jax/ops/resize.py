"""PyTorch's bilinear and bicubic `interpolate` as a pair of weight matrices per resize.

Every separable interpolation is `rows @ image @ columns^T`, so one function that computes an
(out, in) matrix serves all modes, both `align_corners` rules, a given scale factor, and sizes that
are traced values. Sizes are (height, width); images are (b, h, w, c).

`jax.image.resize` is not used: its bicubic kernel has another constant (-0.5, PyTorch's is -0.75
unless it antialiases), and it takes no traced sizes.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

Mode = Literal["bilinear", "bicubic", "bilinear_antialias", "bicubic_antialias"]
_CUBIC_A = -0.75  # of PyTorch and OpenCV
_CUBIC_A_ANTIALIAS = -0.5  # of Pillow, and of PyTorch with `antialias`


def _cubic(x: Array, a: float) -> Array:
    """Keys' cubic convolution kernel of constant `a` at distance `x`."""
    x = jnp.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return jnp.where(x <= 1, near, jnp.where(x < 2, far, 0.0))


def _onehot(index: Array, length: int) -> Array:
    return (index[:, None] == jnp.arange(length)[None, :]).astype(jnp.float32)


def _source(position: Array, in_size: Array, out_size: Array, step: Array, align: bool) -> Array:
    """Real-valued source coordinate of each output position (`step` = input pixels per output)."""
    if align:
        return position * (in_size - 1) / jnp.maximum(out_size - 1, 1)
    return (position + 0.5) * step - 0.5


def resize_matrix(
    in_size: ArrayLike,
    out_size: ArrayLike,
    mode: Mode = "bilinear",
    *,
    align_corners: bool = False,
    scale_factor: float | None = None,
    size_offset: float = 0.0,
    in_length: int | None = None,
    out_length: int | None = None,
) -> Array:
    """Weights (out_length, in_length) float32 of a one-dimensional resize.

    Args:
      in_size, out_size: pixels before and after: Python ints, or traced scalars of at most the
        static `in_length` and `out_length`. Rows from `out_size` on and columns from `in_size` on
        are zero.
      mode: "bilinear", "bicubic", or one of these with "_antialias", whose kernel is as wide as the
        step when shrinking, and normalised within the image.
      align_corners: map the centres of the corner pixels onto each other, as in PyTorch.
      scale_factor: compute source positions from this factor instead of the sizes, as PyTorch does
        when it is called with `scale_factor`.
      size_offset: compute source positions as if `out_size` were this much larger (0.1: the
        positions of DINO and of CLIP's read-outs).
      in_length, out_length: static sizes of the matrix; default: `in_size` and `out_size`.

    Raises:
      ValueError: an unknown mode.
    """
    in_length = int(in_size) if in_length is None else in_length  # type: ignore[arg-type]
    out_length = int(out_size) if out_length is None else out_length  # type: ignore[arg-type]
    n_in = jnp.asarray(in_size, jnp.float32)
    n_out = jnp.asarray(out_size, jnp.float32)
    step = n_in / (n_out + size_offset)
    step = step if scale_factor is None else jnp.float32(1.0 / scale_factor)
    position = jnp.arange(out_length, dtype=jnp.float32)
    last = jnp.asarray(in_size, jnp.int32) - 1

    if mode == "bilinear":
        source = jnp.maximum(_source(position, n_in, n_out, step, align_corners), 0.0)
        low = jnp.clip(jnp.floor(source).astype(jnp.int32), 0, last)
        fraction = jnp.clip(source - low, 0.0, 1.0)[:, None]
        high = jnp.minimum(low + 1, last)
        weights = (1 - fraction) * _onehot(low, in_length) + fraction * _onehot(high, in_length)
    elif mode == "bicubic":
        source = _source(position, n_in, n_out, step, align_corners)
        low = jnp.floor(source).astype(jnp.int32)
        fraction = source - low
        weights = jnp.zeros((out_length, in_length), jnp.float32)
        for k in (-1, 0, 1, 2):  # four taps; those outside repeat the border pixel
            weight = _cubic(fraction - k, _CUBIC_A)[:, None]
            weights += weight * _onehot(jnp.clip(low + k, 0, last), in_length)
    elif mode in ("bilinear_antialias", "bicubic_antialias"):
        source = _source(position, n_in, n_out, step, align_corners)
        distance = (source[:, None] - jnp.arange(in_length)) / jnp.maximum(step, 1.0)
        if mode == "bicubic_antialias":
            kernel = _cubic(distance, _CUBIC_A_ANTIALIAS)
        else:
            kernel = jnp.maximum(1 - jnp.abs(distance), 0.0)
        weights = jnp.where(jnp.arange(in_length) <= last, kernel, 0.0)
        # Rows beyond `out_size` may have no weight; they are zeroed below.
        total = jnp.sum(weights, axis=1, keepdims=True)
        weights = weights / jnp.where(total == 0, 1.0, total)
    else:
        raise ValueError(
            f"unknown resize mode {mode!r}; choose bilinear or bicubic, or one with _antialias"
        )
    return jnp.where((position < n_out)[:, None], weights, 0.0)


def resize(
    x: Array,
    size: tuple[int, int],
    mode: Mode = "bilinear",
    *,
    align_corners: bool = False,
    scale_factor: tuple[float, float] | None = None,
    size_offset: float = 0.0,
) -> Array:
    """Images (b, h, w, c) resized to (b, *size, c) float32, as `torch.nn.functional.interpolate`.

    `scale_factor` (height, width) and `size_offset`: see `resize_matrix`.
    """
    scales = (None, None) if scale_factor is None else scale_factor
    rows, columns = (
        resize_matrix(
            x.shape[1 + axis],
            size[axis],
            mode,
            align_corners=align_corners,
            scale_factor=scales[axis],
            size_offset=size_offset,
        )
        for axis in (0, 1)
    )
    return _apply(rows, x, columns)


def resize_within(
    x: Array,
    in_sizes: Array,
    out_sizes: Array,
    out_shape: tuple[int, int],
    mode: Mode = "bilinear",
    *,
    align_corners: bool = False,
    scale_factor: float | None = None,
    size_offset: float = 0.0,
) -> Array:
    """Padded images (b, h, w, c), each resized by its own ratio, to (b, *out_shape, c) float32.

    Image i fills the top-left `in_sizes[i]` pixels of `x[i]` and the top-left `out_sizes[i]` pixels
    of the result; the rest is zero. Both are (b, 2) int32. The result equals `resize` of the
    unpadded image, so one compiled program serves all sizes of a bucket.
    """

    def one(image: Array, in_size: Array, out_size: Array) -> Array:
        rows, columns = (
            resize_matrix(
                in_size[axis],
                out_size[axis],
                mode,
                align_corners=align_corners,
                scale_factor=scale_factor,
                size_offset=size_offset,
                in_length=image.shape[axis],
                out_length=out_shape[axis],
            )
            for axis in (0, 1)
        )
        return _apply(rows, image, columns)

    return jax.vmap(one)(x, in_sizes, out_sizes)


def _apply(rows: Array, x: Array, columns: Array) -> Array:
    x = x.astype(jnp.float32)
    x = jnp.einsum("oh,...hwc->...owc", rows, x, precision="highest")
    return jnp.einsum("pw,...owc->...opc", columns, x, precision="highest")
