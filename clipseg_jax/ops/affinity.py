"""Affinities of patches from attention maps: normalised, and applied to class maps.

Source: Lin et al., "CLIP is Also an Efficient Segmenter" (CLIP-ES), 2023, section 3.4; spec
clip_es, section 6.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array


def patch_affinity(maps: Array, real: Array) -> Array:
    """Attention (b, t, t) of all tokens -> (b, n, n) of patches alone; 0 where either is padding.

    Token 0 is the class token. `real` (b, n) tells patches from padding. Rows no longer sum to 1.
    """
    return jnp.where(real[:, :, None] & real[:, None, :], maps[:, 1:, 1:], 0.0)


def chosen_weights(maps: Array) -> Array:
    """Weights (b, l) of attention maps (b, l, n, n): those of the most patch-to-patch attention.

    Maps whose sum is at least the mean sum have equal weights, which add up to almost 1. The paper
    (Zhang et al., "Frozen CLIP", 2024, section 3.4) chooses the maps nearest to a learned
    affinity; the published code sums signed differences, where the affinity cancels out. Spec
    weclip, section 5.4.
    """
    totals = jnp.sum(maps, axis=(2, 3))
    kept = (totals >= jnp.mean(totals, axis=1, keepdims=True)).astype(jnp.float32)
    return kept / (jnp.sum(kept, axis=1, keepdims=True) + 1e-5)


def sinkhorn_normalize(affinity: Array, rounds: int = 3) -> Array:
    """Symmetric, nearly doubly stochastic affinity (b, n, n) from non-negative ones.

    `rounds` times columns, then rows are divided by their sum (Sinkhorn and Knopp), then the result
    is averaged with its transpose. Rows and columns that are all zero (padding) stay so.
    """
    for _ in range(rounds):
        for axis in (1, 2):
            total = jnp.sum(affinity, axis=axis, keepdims=True)
            affinity = affinity / jnp.where(total > 0, total, 1.0)
    return (affinity + affinity.swapaxes(1, 2)) / 2


def propagate(affinity: Array, maps: Array, steps: int = 1) -> Array:
    """Maps (b, k, n) averaged over similar patches: affinity (b, n, n), `steps` times.

    Two steps apply the squared affinity without ever squaring it.
    """
    for _ in range(steps):
        maps = jnp.einsum("bij,bkj->bki", affinity, maps, precision="highest")
    return maps
