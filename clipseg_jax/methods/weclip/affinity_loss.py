"""Affinities of patches learned from label maps.

Ru et al., "Learning Affinity from Attention", 2022, section 3.3; spec weclip, section 6.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array

from clipseg_jax.ops.cross_entropy import IGNORED


def affinity_targets(labels: Array, grid: tuple[int, int], radius: int = 8) -> Array:
    """Labels (b, h, w) -> (b, n, n) int32 of the patches on `grid`: 1 where two agree, else 0.

    A patch has the label of its top left pixel. 255 where two patches are more than `radius` rows
    or columns apart, or either is labelled 255.
    """
    rows, columns = (
        np.arange(patches) * length // patches
        for patches, length in zip(grid, labels.shape[1:], strict=True)
    )
    own = labels[:, rows[:, None], columns].reshape(labels.shape[0], -1)
    same = (own[:, :, None] == own[:, None]).astype(jnp.int32)
    labelled = (own != IGNORED)[:, :, None] & (own != IGNORED)[:, None]
    return jnp.where(labelled & _near(grid, radius), same, IGNORED)


def _near(grid: tuple[int, int], radius: int) -> np.ndarray:
    """(n, n) bool: pairs of patches at most `radius` rows and columns apart."""
    row, column = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    apart = np.maximum(abs(row[:, None] - row), abs(column[:, None] - column))
    return apart <= radius


def affinity_loss(affinity: Array, targets: Array) -> Array:
    """Mean distance of affinities (b, n, n) in (0, 1) to targets 1 and to 0, half each.

    Means are over the batch's pairs of each kind, one more than there are; 255 is ignored.
    """
    alike, unlike = targets == 1, targets == 0
    positive = jnp.sum(jnp.where(alike, 1 - affinity, 0)) / (jnp.sum(alike) + 1)
    negative = jnp.sum(jnp.where(unlike, affinity, 0)) / (jnp.sum(unlike) + 1)
    return (positive + negative) / 2
