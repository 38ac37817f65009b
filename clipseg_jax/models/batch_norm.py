"""Batch normalisation with PyTorch's semantics, for trained networks."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array


class BatchNorm(nnx.Module):
    """Normalises each channel of NHWC maps and keeps running statistics for evaluation.

    Unlike `nnx.BatchNorm`, as in PyTorch: the running variance is unbiased, and `momentum` is the
    weight of the new value.
    """

    def __init__(
        self, features: int, *, epsilon: float = 1e-5, momentum: float = 0.1, rngs: nnx.Rngs
    ):
        del rngs  # nothing is random
        self.epsilon, self.momentum = epsilon, momentum
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros((features,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((features,), jnp.float32))

    def __call__(
        self,
        x: Array,
        *,
        train: bool,
        stats_over: Literal["batch", "image"] = "batch",
        num_copies: int = 1,
    ) -> Array:
        """(b, ..., c) -> (b, ..., c) of the same type, computed in float32.

        Args:
          x: (b, ..., c). Half precision is kept: maps that are read by the next convolution and by
            the gradient take half the bytes, which a network of narrow convolutions waits for.
          train: normalise by the statistics of `x` and update the running ones; otherwise
            normalise by the running ones.
          stats_over: "batch": statistics over all images (under a sharded jit over all devices);
            "image": over each image separately, as with batches of one image: the running
            statistics are updated once per image, in order.
          num_copies: treat `x` as this many copies of itself. Affects running statistics only: with
            "batch" the unbiased variance, with "image" one update per copy.
        """
        dtype = x.dtype
        x = x.astype(jnp.float32)
        if not train:
            return self._scale(x - self.mean[...], self.var[...]).astype(dtype)
        together = stats_over == "batch"
        axes = tuple(range(0 if together else 1, x.ndim - 1))
        mean, var = _moments(x, axes) if dtype == jnp.float32 else self._moments_at_once(x, axes)
        centred = x - mean
        count = x.size // x.shape[-1] * num_copies if together else x[0, ..., 0].size
        self._record(mean, var * (count / max(count - 1, 1)), 1 if together else num_copies)
        return self._scale(centred, var).astype(dtype)

    def _scale(self, centred: Array, var: Array) -> Array:
        return centred * (jax.lax.rsqrt(var + self.epsilon) * self.scale[...]) + self.bias[...]

    def _moments_at_once(self, x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
        """`_moments` in one pass over `x`, and its gradient in another: half the bytes.

        Differences from the running mean keep digits that the squares of large values would lose.
        """
        origin = jax.lax.stop_gradient(self.mean[...])
        moved = x - origin
        first = jnp.mean(moved, axis=axes, keepdims=True)
        second = jnp.mean(moved * moved, axis=axes, keepdims=True)
        return first + origin, jnp.maximum(second - first * first, 0.0)

    def _record(self, mean: Array, var: Array, times: int) -> None:
        """Updates the running statistics `times` times for each row of (n, ..., c)."""
        n = mean.shape[0] * times
        keep = 1 - self.momentum
        weights = self.momentum * keep ** jnp.arange(n - 1, -1, -1, dtype=jnp.float32)
        for running, new in ((self.mean, mean), (self.var, var)):
            rows = jax.lax.stop_gradient(new.reshape(mean.shape[0], -1))
            rows = jnp.repeat(rows, times, axis=0)
            update = jnp.matmul(weights, rows, precision="highest")
            running[...] = keep**n * running[...] + update


def _moments(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Mean and variance of `x` over `axes`, which are kept with length 1."""
    mean = jnp.mean(x, axis=axes, keepdims=True)
    centred = x - mean
    # Not jnp.var: the gradient of this product stores no further array.
    return mean, jnp.mean(centred * centred, axis=axes, keepdims=True)
