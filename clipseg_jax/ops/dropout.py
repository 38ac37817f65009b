"""Dropout with an explicit random key."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zeroes each entry of `x` with probability `rate` and scales the others by 1 / (1 - rate).

    Returns `x` if `key` is None or `rate` is 0.
    """
    if key is None or rate == 0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0).astype(
        x.dtype
    )
