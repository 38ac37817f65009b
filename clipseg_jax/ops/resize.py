"""PyTorch's `interpolate`, exactly, as one pair of weight matrices per resize.

Every separable interpolation is `rows @ image @ columns`, so one function that fills the
(out, in) matrix serves all modes, both `align_corners` rules, a given scale factor, and sizes
that are only known inside a jitted program. Sizes are (height, width); images are (b, h, w, c).

`jax.image.resize` is not used: its bicubic kernel has another constant (-0.5, PyTorch's is -0.75),
and its default anti-aliases.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

Mode = Literal["nearest", "nearest-exact", "bilinear", "bicubic", "area"]
_CUBIC_A = -0.75  # PyTorch and OpenCV; Pillow and PyTorch's antialias=True use -0.5


def _cubic(x: Array, a: float) -> Array:
    """Keys' cubic convolution kernel at distance `x`."""
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


def _antialiased(position: Array, in_size: Array, step: Array, in_length: int, mode: Mode) -> Array:
    support = jnp.maximum(step, 1.0)
    centre = (position + 0.5) * step
    tap = jnp.arange(in_length, dtype=jnp.float32)[None, :]
    distance = (tap + 0.5 - centre[:, None]) / support
    if mode == "bilinear":
        weights = jnp.maximum(1.0 - jnp.abs(distance), 0.0)
    else:
        weights = _cubic(distance, -0.5)
    weights = jnp.where(tap < in_size, weights, 0.0)
    return weights / jnp.sum(weights, axis=1, keepdims=True)


def resize_matrix(
    in_size: ArrayLike,
    out_size: ArrayLike,
    mode: Mode = "bilinear",
    *,
    align_corners: bool = False,
    antialias: bool = False,
    scale_factor: float | None = None,
    in_length: int | None = None,
    out_length: int | None = None,
) -> Array:
    """Weights (out_length, in_length) float32 of a one-dimensional resize.

    Args:
      in_size, out_size: pixels before and after; Python ints, or scalars of a traced program, in
        which case the static `in_length` and `out_length` bound them. Rows from `out_size` on are
        zero, and no weight falls on a column from `in_size` on.
      scale_factor: PyTorch takes source positions from a given scale factor instead of the sizes
        unless told otherwise (`recompute_scale_factor`); pass it on to do the same.
    """
    in_length = int(in_size) if in_length is None else in_length  # type: ignore[arg-type]
    out_length = int(out_size) if out_length is None else out_length  # type: ignore[arg-type]
    n_in = jnp.asarray(in_size, jnp.float32)
    n_out = jnp.asarray(out_size, jnp.float32)
    step = n_in / n_out if scale_factor is None else jnp.float32(1.0 / scale_factor)
    position = jnp.arange(out_length, dtype=jnp.float32)
    last = jnp.asarray(in_size, jnp.int32) - 1

    if antialias:
        if mode not in ("bilinear", "bicubic") or align_corners:
            raise ValueError(f"antialias needs bilinear or bicubic without align_corners: {mode}")
        weights = _antialiased(position, n_in, step, in_length, mode)
    elif mode in ("nearest", "nearest-exact"):
        offset = 0.5 if mode == "nearest-exact" else 0.0
        tap = jnp.floor((position + offset) * step).astype(jnp.int32)
        weights = _onehot(jnp.clip(tap, 0, last), in_length)
    elif mode == "area":  # adaptive average pooling
        column = jnp.arange(in_length)[None, :]
        index = jnp.arange(out_length)[:, None]
        size_in, size_out = jnp.asarray(in_size, jnp.int32), jnp.asarray(out_size, jnp.int32)
        start = index * size_in // size_out
        stop = -(-(index + 1) * size_in // size_out)
        inside = ((column >= start) & (column < stop)).astype(jnp.float32)
        weights = inside / jnp.maximum(jnp.sum(inside, axis=1, keepdims=True), 1.0)
    elif mode == "bilinear":
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
    else:
        raise ValueError(f"unknown resize mode {mode!r}; choose one of {Mode.__args__}")  # type: ignore[attr-defined]
    return jnp.where((position < n_out)[:, None], weights, 0.0)


def resize(
    x: Array,
    size: tuple[int, int],
    mode: Mode = "bilinear",
    *,
    align_corners: bool = False,
    antialias: bool = False,
    scale_factor: tuple[float, float] | None = None,
) -> Array:
    """Images (b, h, w, c) resized to (b, *size, c), as `torch.nn.functional.interpolate`."""
    scales = (None, None) if scale_factor is None else scale_factor
    options = {"align_corners": align_corners, "antialias": antialias}
    rows = resize_matrix(x.shape[1], size[0], mode, scale_factor=scales[0], **options)  # type: ignore[arg-type]
    columns = resize_matrix(x.shape[2], size[1], mode, scale_factor=scales[1], **options)  # type: ignore[arg-type]
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
) -> Array:
    """Padded images (b, h, w, c) resized each by its own ratio, to (b, *out_shape, c).

    Image i fills the top-left `in_sizes[i]` pixels of `x[i]` and, afterwards, the top-left
    `out_sizes[i]` of the result, whose rest is zero; both (b, 2) int32. The result inside equals
    `resize` of the unpadded image, so one compiled program serves every size in a bucket.
    """

    def one(image: Array, in_size: Array, out_size: Array) -> Array:
        rows, columns = (
            resize_matrix(
                in_size[axis],
                out_size[axis],
                mode,
                align_corners=align_corners,
                scale_factor=scale_factor,
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
