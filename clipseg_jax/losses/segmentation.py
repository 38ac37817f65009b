"""Losses between small maps and full-size labels, in bounded memory (see `ops.upsample`)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from clipseg_jax.ops.upsample import over_rows

IGNORED = 255


def upsampled_cross_entropy(logits: Array, labels: Array) -> Array:
    """Mean over ALL pixels of the cross entropy of upsampled logits; ignored pixels count as 0.

    Args:
      logits: (b, g, k, c), brought bilinearly to the labels' size.
      labels: (b, h, w) int; 255 is ignored.
    """

    def block(scores: Array, own: Array) -> Array:
        hit = own[..., None] == jnp.arange(scores.shape[-1])
        entropy = jax.nn.logsumexp(scores, axis=-1) - jnp.sum(jnp.where(hit, scores, 0), axis=-1)
        return jnp.sum(jnp.where(own == IGNORED, 0, entropy))

    sums = over_rows(
        block, [logits.astype(jnp.float32)], (labels.shape[1], labels.shape[2]), labels, IGNORED
    )
    return jnp.sum(sums) / labels.size


def upsampled_l1(first: Array, second: Array, counted: Array) -> Array:
    """Mean absolute difference of two maps brought to full size, over pixels and channels.

    Args:
      first: (b, g, k, e); second: (b, g', k', e).
      counted: (b, h, w) bool, the pixels of the mean; without any it is 0.
    """

    def block(a: Array, b: Array, own: Array) -> Array:
        return jnp.sum(jnp.where(own[..., None], jnp.abs(a - b), 0))

    maps = [x.astype(jnp.float32) for x in (first, second)]
    total = jnp.sum(over_rows(block, maps, (counted.shape[1], counted.shape[2]), counted, False))
    return total / (jnp.maximum(jnp.sum(counted), 1) * first.shape[-1])
