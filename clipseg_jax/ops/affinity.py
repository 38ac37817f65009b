"""Patch affinities from attention maps: normalisation, and propagation of class maps.

Source: Lin et al., "CLIP is Also an Efficient Segmenter" (CLIP-ES), 2023, section 3.4; spec
clip_es, section 6.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array


def patch_affinity(maps: Array, real: Array) -> Array:
    """Attention maps (b, t, t) of all tokens -> (b, n, n) of patches; 0 where either is padding.

    Token 0 is the class token. `real` (b, n) is true for patches, false for padding. Rows do not
    sum to 1.
    """
    return jnp.where(real[:, :, None] & real[:, None, :], maps[:, 1:, 1:], 0.0)


def attention_map_weights(maps: Array) -> Array:
    """Weights (b, l) that average the attention maps (b, l, n, n) with the largest sums.

    Maps whose sum is at least the mean sum get equal weights, which add up to almost 1; the others
    get 0. The paper (Zhang et al., "Frozen CLIP", 2024, section 3.4) selects the maps nearest to a
    learned affinity; the published code sums signed differences, in which the affinity cancels.
    Spec weclip, section 5.4.
    """
    totals = jnp.sum(maps, axis=(2, 3))
    selected = (totals >= jnp.mean(totals, axis=1, keepdims=True)).astype(jnp.float32)
    return selected / (jnp.sum(selected, axis=1, keepdims=True) + 1e-5)


def sinkhorn_normalize(affinity: Array, rounds: int = 3) -> Array:
    """Symmetric, nearly doubly stochastic affinity (b, n, n) from a non-negative one.

    `rounds` times, columns and then rows are divided by their sums (Sinkhorn and Knopp); the result
    is averaged with its transpose. Rows and columns of zeros (padding) stay zero.
    """
    for _ in range(rounds):
        for axis in (1, 2):
            total = jnp.sum(affinity, axis=axis, keepdims=True)
            affinity = affinity / jnp.where(total > 0, total, 1.0)
    return (affinity + affinity.swapaxes(1, 2)) / 2


def propagate(affinity: Array, maps: Array, steps: int = 1) -> Array:
    """Maps (b, k, n) multiplied `steps` times by the affinity (b, n, n) of their patches.

    Several steps apply a power of the affinity without computing it.
    """
    for _ in range(steps):
        maps = jnp.einsum("bij,bkj->bki", affinity, maps, precision="highest")
    return maps
