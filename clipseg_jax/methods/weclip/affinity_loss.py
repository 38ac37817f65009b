"""The affinity loss: pairwise affinities of patches are trained on label maps.

Source: Ru et al., "Learning Affinity from Attention", 2022, section 3.3; spec weclip, section 6.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array

from clipseg_jax.ops.cross_entropy import IGNORED


def affinity_targets(labels: Array, grid: tuple[int, int], radius: int = 8) -> Array:
    """Labels (b, h, w) -> targets (b, n, n) int32 of pairs of the n patches on `grid`.

    1: both patches have the same label; 0: they have different labels; 255: they are more than
    `radius` rows or columns apart, or one is ignored (255). The label of a patch is that of its top
    left pixel.
    """
    rows, columns = (
        np.arange(patches) * length // patches
        for patches, length in zip(grid, labels.shape[1:], strict=True)
    )
    patch_labels = labels[:, rows[:, None], columns].reshape(labels.shape[0], -1)
    same = (patch_labels[:, :, None] == patch_labels[:, None]).astype(jnp.int32)
    labelled = (patch_labels != IGNORED)[:, :, None] & (patch_labels != IGNORED)[:, None]
    return jnp.where(labelled & _near(grid, radius), same, IGNORED)


def _near(grid: tuple[int, int], radius: int) -> np.ndarray:
    """Pairs (n, n) bool of patches that are at most `radius` rows and columns apart."""
    row, column = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    distance = np.maximum(abs(row[:, None] - row), abs(column[:, None] - column))
    return distance <= radius


def affinity_loss(affinity: Array, targets: Array) -> Array:
    """Mean of the L1 losses of positive and negative pairs (spec weclip, section 6).

    Affinities (b, n, n) are in (0, 1); targets are 1, 0 or 255 (ignored). Each sum over pairs of
    the batch is divided by their number plus one.
    """
    positive, negative = targets == 1, targets == 0
    positive_loss = jnp.sum(jnp.where(positive, 1 - affinity, 0)) / (jnp.sum(positive) + 1)
    negative_loss = jnp.sum(jnp.where(negative, affinity, 0)) / (jnp.sum(negative) + 1)
    return (positive_loss + negative_loss) / 2
