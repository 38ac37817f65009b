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
    return keep(x, rate, kept(x.shape, rate, key))


def kept(shape: tuple[int, ...], rate: float, key: Array) -> Array:
    """Which entries of an array of `shape` stay: bool, each with probability 1 - `rate`."""
    return jax.random.bernoulli(key, 1 - rate, shape)


def keep(x: Array, rate: float, stays: Array) -> Array:
    """Zeroes the entries of `x` that do not stay and scales the others by 1 / (1 - rate)."""
    return jnp.where(stays, x / (1 - rate), 0).astype(x.dtype)
