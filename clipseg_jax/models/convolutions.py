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
from clipseg_jax.ops.image import hide

_KAIMING = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class DilatedConv(nnx.Conv):
    """A dilated or depthwise convolution of stride 1, which CPUs compute as one product a tap.

    There that is about twice as fast for many channels, and taps that only ever see the padding
    (dilations as large as the map) cost nothing.
    """

    def __call__(self, x: Array) -> Array:  # type: ignore[override]
        """(b, h, w, c_in) -> (b, h, w, c_out)."""
        assert isinstance(self.kernel_dilation, int)
        spread = functools.partial(_by_taps, dilation=self.kernel_dilation)
        kernel = self.kernel[...].astype(self.dtype)
        bias = 0 if self.bias is None else self.bias[...].astype(self.dtype)
        return jax.lax.platform_dependent(
            x.astype(self.dtype),
            kernel,
            cpu=lambda x, kernel: spread(x, kernel) + bias,
            default=lambda x, _: super(DilatedConv, self).__call__(x),
        )


def _by_taps(x: Array, kernel: Array, dilation: int) -> Array:
    h, w = x.shape[1], x.shape[2]
    depthwise = kernel.shape[2] < x.shape[-1]
    reach = [dilation * (n // 2) for n in kernel.shape[:2]]
    padded = jnp.pad(x, ((0, 0), *((n, n) for n in reach), (0, 0)))
    total = jnp.zeros((), x.dtype)
    for i, j in itertools.product(*map(range, kernel.shape[:2])):
        top, left = i * dilation, j * dilation
        if abs(top - reach[0]) < h and abs(left - reach[1]) < w:
            seen = padded[:, top : top + h, left : left + w]
            if depthwise:
                total = total + seen * kernel[i, j, 0]
            else:
                total = total + jnp.einsum("bhwc,co->bhwo", seen, kernel[i, j])
    return total


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
    spread = (dilation > 1 or groups > 1) and kernel > 1 and stride == 1
    kind = DilatedConv if spread else nnx.Conv
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
        return nnx.relu(self.norm(self.conv(hide(x, sizes)), train=train))
