"""Dropout as a function of a key."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """`x` with a random share `rate` of its entries 0 and the others grown by 1 / (1 - rate).

    Without a key, or at rate 0, it is `x`.
    """
    if key is None or rate == 0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0).astype(
        x.dtype
    )
