"""Losses of class maps against labels.

Those named upsampled bring small maps to the labels' size, in bounded memory (see `ops.upsample`);
the others take labels of the maps' own size.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from clipseg_jax.ops.upsample import over_rows

IGNORED = 255


def shrink_labels(labels: Array, size: tuple[int, int]) -> Array:
    """Labels (b, h, w) at another size by nearest: index floor((i + 0.5) * in / out), as Pillow."""
    rows, columns = (
        (2 * np.arange(out) + 1) * length // (2 * out)  # whole numbers, so that nothing is rounded
        for length, out in zip(labels.shape[1:], size, strict=True)
    )
    return labels[:, rows[:, None], columns]


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Mean cross entropy of logits (b, g, k, c) over the pixels of labels (b, g, k) but for 255.

    Without any such pixel it is 0 (PyTorch's is no number).
    """
    return _mean(_entropies(logits, labels), labels != IGNORED)


def balanced_cross_entropy(logits: Array, labels: Array) -> Array:
    """The same over background (label 0) and over foreground pixels apart, added.

    Huang et al., "Weakly-Supervised Semantic Segmentation Network with Deep Seeded Region Growing",
    2018, equation 2; here over the batch. A part without pixels is 0. Spec clip_es, section 10.
    """
    entropies = _entropies(logits, labels)
    foreground = (labels != 0) & (labels != IGNORED)
    return _mean(entropies, labels == 0) + _mean(entropies, foreground)


def _entropies(logits: Array, labels: Array) -> Array:
    """Cross entropy of each pixel; without meaning where the label is no class."""
    logits = logits.astype(jnp.float32)
    hit = labels[..., None] == jnp.arange(logits.shape[-1])
    return jax.nn.logsumexp(logits, axis=-1) - jnp.sum(jnp.where(hit, logits, 0), axis=-1)


def _mean(values: Array, counted: Array) -> Array:
    return jnp.sum(jnp.where(counted, values, 0)) / jnp.maximum(jnp.sum(counted), 1)


def upsampled_cross_entropy(logits: Array, labels: Array) -> Array:
    """Mean over ALL pixels of the cross entropy of upsampled logits; ignored pixels count as 0.

    Args:
      logits: (b, g, k, c), brought bilinearly to the labels' size.
      labels: (b, h, w) int; 255 is ignored.
    """
    return upsampled_cross_entropy_and_accuracy(logits, labels)[0]


def upsampled_cross_entropy_and_accuracy(logits: Array, labels: Array) -> tuple[Array, Array]:
    """The same, and the share of all pixels whose label wins; an ignored one's never does."""

    def block(scores: Array, own: Array) -> tuple[Array, Array]:
        entropies = jnp.where(own == IGNORED, 0, _entropies(scores, own))
        hits = (jnp.argmax(scores, axis=-1) == own) & (own != IGNORED)
        return jnp.sum(entropies), jnp.sum(hits, dtype=jnp.float32)

    sums = over_rows(
        block, [logits.astype(jnp.float32)], (labels.shape[1], labels.shape[2]), labels, IGNORED
    )
    entropy, hits = (jnp.sum(x) / labels.size for x in sums)
    return entropy, hits


def upsampled_balanced_cross_entropy(logits: Array, labels: Array) -> Array:
    """`balanced_cross_entropy` of logits (b, g, k, c) brought bilinearly to the labels' size."""

    def block(scores: Array, own: Array) -> Array:
        entropies = _entropies(scores, own)
        foreground = (own != 0) & (own != IGNORED)
        return jnp.stack(
            [jnp.sum(jnp.where(part, entropies, 0)) for part in (own == 0, foreground)]
        )

    size = (labels.shape[1], labels.shape[2])
    sums = over_rows(block, [logits.astype(jnp.float32)], size, labels, IGNORED)
    background, ignored = (jnp.sum(labels == kind) for kind in (0, IGNORED))
    counts = jnp.stack([background, labels.size - background - ignored])
    return jnp.sum(jnp.sum(sums, axis=0) / jnp.maximum(counts, 1))


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
