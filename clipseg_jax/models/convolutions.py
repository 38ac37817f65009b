"""Convolutions of the networks that are trained on CLIP's labels, dilated and normalised.

Initialised after He et al. 2015, "Delving Deep into Rectifiers".
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from clipseg_jax.models.batch_norm import BatchNorm
from clipseg_jax.ops.image import mask_padding

_KAIMING = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class PointwiseConv(nnx.Conv):
    """A 1 x 1 convolution as the matrix product that it is.

    XLA's convolutions on CPUs take 3 to 9 times as long for the kernel's gradient, in a scan over
    blocks several hundred times.
    """

    def __call__(self, x: Array) -> Array:  # type: ignore[override]
        """(b, h, w, c_in) -> (b, ceil(h / stride), ceil(w / stride), c_out)."""
        assert isinstance(self.strides, int)
        assert self.bias is None
        x = x[:, :: self.strides, :: self.strides].astype(self.dtype)
        return x @ self.kernel[0, 0].astype(self.dtype)


class TapConv(nnx.Conv):
    """A convolution of stride 1, which CPUs compute as matrix products, a tap of its kernel each.

    There a dilated one is about twice as fast for many channels, and several times for few outputs;
    taps that only ever see the padding (dilations as large as the map) cost nothing; and in a scan
    over blocks a kernel's gradient is spared the slowest form of XLA's convolutions.
    """

    def __call__(self, x: Array) -> Array:  # type: ignore[override]
        """(b, h, w, c_in) -> (b, h, w, c_out)."""
        assert isinstance(self.kernel_dilation, int)
        # Kept for the gradient are the maps, not what each tap saw of them.
        by_taps = jax.checkpoint(functools.partial(_by_taps, dilation=self.kernel_dilation))
        kernel = self.kernel[...].astype(self.dtype)
        bias = 0 if self.bias is None else self.bias[...].astype(self.dtype)
        return jax.lax.platform_dependent(
            x.astype(self.dtype),
            kernel,
            cpu=lambda x, kernel: by_taps(x, kernel) + bias,
            default=lambda x, _: super(TapConv, self).__call__(x),
        )


def _by_taps(x: Array, kernel: Array, dilation: int) -> Array:
    """Maps (b, h, w, c_in) and a kernel (i, j, c_in, c_out) -> (b, h, w, c_out), zero-padded."""
    h, w = x.shape[1:3]
    rows, columns, c_in, c_out = kernel.shape
    down, right = dilation * (rows // 2), dilation * (columns // 2)
    pad = functools.partial(jnp.pad, pad_width=((0, 0), (down, down), (right, right), (0, 0)))

    corners, taps = [], []  # where in the padded maps each tap begins to look
    for i, j in itertools.product(range(rows), range(columns)):
        top, left = i * dilation, j * dilation
        if abs(top - down) < h and abs(left - right) < w:
            corners.append((top, left))
            taps.append(kernel[i, j])

    def seen(maps: Array, corner: tuple[int, int]) -> Array:
        top, left = corner
        return maps[:, top : top + h, left : left + w]

    depthwise = c_in < x.shape[-1]
    if not depthwise and c_out * len(taps) < c_in:
        # Few outputs, as a classifier's: one product makes those of all taps, which then move.
        maps = jnp.split(pad(x @ jnp.concatenate(taps, axis=-1)), len(taps), axis=-1)
        products = map(seen, maps, corners)
    else:
        multiply = jnp.multiply if depthwise else jnp.matmul
        products = map(multiply, map(functools.partial(seen, pad(x)), corners), taps)
    return functools.reduce(jnp.add, products)


def conv(
    c_in: int,
    c_out: int,
    kernel: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    dtype: str,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A convolution without bias that keeps the size (but for its stride), zero-padded.

    `groups` is 1, or `c_in` for one that looks at each channel by itself.
    """
    kind = PointwiseConv if kernel == 1 else TapConv if stride == 1 else nnx.Conv
    return kind(
        c_in,
        c_out,
        (kernel, kernel),
        strides=stride,
        padding=kernel // 2 * dilation,
        kernel_dilation=dilation,
        feature_group_count=groups,
        use_bias=False,
        dtype=dtype,
        kernel_init=_KAIMING,
        rngs=rngs,
    )


def halve(sizes: Array | None, stride: int = 2) -> Array | None:
    """Real rows and columns after a convolution or pooling of this stride."""
    return None if sizes is None else -(-sizes // stride)


class ConvNorm(nnx.Module):
    """Convolution, normalisation, ReLU."""

    def __init__(self, c_in: int, c_out: int, kernel: int, *, rngs: nnx.Rngs, **choices: Any):
        """`choices`: stride, dilation, groups and dtype of `conv`."""
        self.conv = conv(c_in, c_out, kernel, rngs=rngs, **choices)
        self.norm = BatchNorm(c_out, rngs=rngs)

    def __call__(self, x: Array, sizes: Array | None = None, *, train: bool) -> Array:
        """Maps (b, h, w, c_in) -> (b, h', w', c_out) float32; `sizes` are real in `x`."""
        return nnx.relu(self.norm(self.conv(mask_padding(x, sizes)), train=train))
