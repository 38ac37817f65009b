"""Straight-through Gumbel-softmax sampling. Source: Jang et al. 2017."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def gumbel_noise(key: Array, shape: tuple[int, ...]) -> Array:
    """Standard Gumbel noise, float32 and finite."""
    return jax.random.gumbel(key, shape, jnp.float32)


def straight_through(logits: Array, noise: Array) -> Array:
    """One-hot samples (..., c) of softmax(logits) with the gradient of softmax(logits + noise).

    `noise` (..., c) from `gumbel_noise`; the softmax has temperature 1.
    """
    soft = jax.nn.softmax(logits + noise, axis=-1)
    hard = jax.nn.one_hot(jnp.argmax(soft, axis=-1), soft.shape[-1], dtype=soft.dtype)
    return hard + (soft - jax.lax.stop_gradient(soft))
