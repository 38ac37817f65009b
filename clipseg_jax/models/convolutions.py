"""Convolution layers of the networks that are trained on CLIP's labels.

Initialised as in He et al. 2015, "Delving Deep into Rectifiers".
"""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from clipseg_jax.models.batch_norm import BatchNorm
from clipseg_jax.ops.image import mask_padding

_KAIMING = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class PointwiseConv(nnx.Conv):
    """A 1 x 1 convolution without bias, computed as a matrix product.

    XLA's convolutions on CPUs take 3 to 9 times as long for the kernel's gradient, and several
    hundred times as long inside a scan over blocks.
    """

    def __call__(self, x: Array) -> Array:  # type: ignore[override]
        """(b, h, w, c_in) -> (b, ceil(h / stride), ceil(w / stride), c_out)."""
        assert isinstance(self.strides, int)
        assert self.bias is None
        x = x[:, :: self.strides, :: self.strides].astype(self.dtype)
        return x @ self.kernel[0, 0].astype(self.dtype)


class TapConv(nnx.Conv):
    """A convolution of stride 1, computed on CPUs as one matrix product per kernel tap.

    On CPUs a dilated convolution is thus about twice as fast for many channels, and several times
    for few outputs; taps that only cover padding (dilations as large as the map) cost nothing, and
    inside a scan over blocks the kernel's gradient avoids the slowest form of XLA's convolutions.
    """

    def __call__(self, x: Array) -> Array:  # type: ignore[override]
        """(b, h, w, c_in) -> (b, h, w, c_out)."""
        assert isinstance(self.kernel_dilation, int)
        # The backward pass stores the maps, not their slices.
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

    corners, taps = [], []  # top-left corner in the padded maps of the slice of each tap
    for i, j in itertools.product(range(rows), range(columns)):
        top, left = i * dilation, j * dilation
        if abs(top - down) < h and abs(left - right) < w:
            corners.append((top, left))
            taps.append(kernel[i, j])

    def crop(maps: Array, corner: tuple[int, int]) -> Array:
        top, left = corner
        return maps[:, top : top + h, left : left + w]

    depthwise = c_in < x.shape[-1]
    if not depthwise and c_out * len(taps) < c_in:
        # Few outputs, as in a classifier: one product for all taps, whose results are then shifted.
        maps = jnp.split(pad(x @ jnp.concatenate(taps, axis=-1)), len(taps), axis=-1)
        products = map(crop, maps, corners)
    else:
        multiply = jnp.multiply if depthwise else jnp.matmul
        products = map(multiply, map(functools.partial(crop, pad(x)), corners), taps)
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
    """A zero-padded convolution without bias whose output has size ceil(input / stride).

    `groups` is 1, or `c_in` for a depthwise convolution.
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
    """Real rows and columns (b, 2) after a convolution or pooling of this stride."""
    return None if sizes is None else -(-sizes // stride)


class ConvNorm(nnx.Module):
    """Convolution, batch normalisation, ReLU; see `conv` for the arguments."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        dtype: str,
        rngs: nnx.Rngs,
    ):
        self.conv = conv(
            c_in,
            c_out,
            kernel,
            stride=stride,
            dilation=dilation,
            groups=groups,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = BatchNorm(c_out, rngs=rngs)

    def __call__(self, x: Array, sizes: Array | None = None, *, train: bool) -> Array:
        """Maps (b, h, w, c_in) -> (b, h', w', c_out); `sizes` (b, 2): real size of `x`."""
        return nnx.relu(self.norm(self.conv(mask_padding(x, sizes)), train=train))
