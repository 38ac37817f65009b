"""Segmentation losses.

Functions named `upsampled_*` bilinearly upsample small maps to the labels' size, in bounded memory
(see `ops.upsample`); the others take labels of the maps' size. Label 255 is ignored.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from clipseg_jax.ops.upsample import map_upsampled_rows

IGNORED = 255


def downsample_labels(labels: Array, size: tuple[int, int]) -> Array:
    """Labels (b, h, w) resized to (b, *size) by nearest neighbour as in Pillow.

    Output pixel i takes input pixel floor((i + 0.5) * in / out).
    """
    rows, columns = (
        (2 * np.arange(out) + 1) * length // (2 * out)  # integers: no rounding
        for length, out in zip(labels.shape[1:], size, strict=True)
    )
    return labels[:, rows[:, None], columns]


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Mean cross entropy of logits (b, g, k, c) over the pixels of labels (b, g, k) except 255.

    Without such pixels it is 0 (in PyTorch NaN).
    """
    return _mean(_entropies(logits, labels), labels != IGNORED)


def balanced_cross_entropy(logits: Array, labels: Array) -> Array:
    """Sum of the mean cross entropies over background (label 0) and over foreground pixels.

    Logits (b, g, k, c), labels (b, g, k). Huang et al., "Weakly-Supervised Semantic Segmentation
    Network with Deep Seeded Region Growing", 2018, equation 2, with means over the whole batch. A
    part without pixels is 0. Spec clip_es, section 10.
    """
    entropies = _entropies(logits, labels)
    foreground = (labels != 0) & (labels != IGNORED)
    return _mean(entropies, labels == 0) + _mean(entropies, foreground)


def _entropies(logits: Array, labels: Array) -> Array:
    """Cross entropy (...) of each pixel; undefined where the label is not a class."""
    logits = logits.astype(jnp.float32)
    hit = labels[..., None] == jnp.arange(logits.shape[-1])
    return jax.nn.logsumexp(logits, axis=-1) - jnp.sum(jnp.where(hit, logits, 0), axis=-1)


def _mean(values: Array, counted: Array) -> Array:
    return jnp.sum(jnp.where(counted, values, 0)) / jnp.maximum(jnp.sum(counted), 1)


def upsampled_cross_entropy(logits: Array, labels: Array) -> Array:
    """Mean over ALL pixels of the cross entropy of upsampled logits; ignored pixels count as 0.

    Args:
      logits: (b, g, k, c), upsampled bilinearly to the labels' size.
      labels: (b, h, w) int; 255 is ignored.
    """
    return upsampled_cross_entropy_and_accuracy(logits, labels)[0]


def upsampled_cross_entropy_and_accuracy(logits: Array, labels: Array) -> tuple[Array, Array]:
    """`upsampled_cross_entropy`, and the share of all pixels that are not ignored and correct."""

    def block(scores: Array, rows: Array) -> tuple[Array, Array]:
        entropies = jnp.where(rows == IGNORED, 0, _entropies(scores, rows))
        hits = (jnp.argmax(scores, axis=-1) == rows) & (rows != IGNORED)
        return jnp.sum(entropies), jnp.sum(hits, dtype=jnp.float32)

    sums = map_upsampled_rows(
        block, [logits.astype(jnp.float32)], (labels.shape[1], labels.shape[2]), labels, IGNORED
    )
    entropy, hits = (jnp.sum(x) / labels.size for x in sums)
    return entropy, hits


def upsampled_balanced_cross_entropy(logits: Array, labels: Array) -> Array:
    """`balanced_cross_entropy` of logits (b, g, k, c) upsampled bilinearly to labels (b, h, w)."""

    def block(scores: Array, rows: Array) -> Array:
        entropies = _entropies(scores, rows)
        foreground = (rows != 0) & (rows != IGNORED)
        return jnp.stack(
            [jnp.sum(jnp.where(part, entropies, 0)) for part in (rows == 0, foreground)]
        )

    size = (labels.shape[1], labels.shape[2])
    sums = map_upsampled_rows(block, [logits.astype(jnp.float32)], size, labels, IGNORED)
    background, ignored = (jnp.sum(labels == kind) for kind in (0, IGNORED))
    counts = jnp.stack([background, labels.size - background - ignored])
    return jnp.sum(jnp.sum(sums, axis=0) / jnp.maximum(counts, 1))


def upsampled_l1(first: Array, second: Array, counted: Array) -> Array:
    """Mean absolute difference of two upsampled maps, over pixels and channels.

    Args:
      first: (b, g, k, e).
      second: (b, g', k', e).
      counted: (b, h, w) bool, the pixels of the mean; without any the result is 0.
    """

    def block(a: Array, b: Array, mask: Array) -> Array:
        return jnp.sum(jnp.where(mask[..., None], jnp.abs(a - b), 0))

    maps = [x.astype(jnp.float32) for x in (first, second)]
    total = jnp.sum(
        map_upsampled_rows(block, maps, (counted.shape[1], counted.shape[2]), counted, False)
    )
    return total / (jnp.maximum(jnp.sum(counted), 1) * first.shape[-1])
