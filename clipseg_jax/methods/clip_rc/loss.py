"""Focal and dice losses of binary class masks, and the recovery loss. Spec clip_rc, section 6.

Mask logits are upsampled to the size of the labels block by block: neither full-size masks nor
one-hot labels are stored.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from clipseg_jax.ops.cross_entropy import IGNORED
from clipseg_jax.ops.upsample import map_upsampled_rows

_ALPHA = 0.25  # focal loss: weight of positive pixels; negative ones have 1 - alpha
_OUTSIDE = -2  # label of rows that fill up the last block


class MaskLosses(NamedTuple):
    """Scalars over all images of a batch; losses are sums over masks divided by `pairs`."""

    focal: Array
    dice: Array
    accuracy: Array  # percent of labelled pixels whose class has the highest logit
    pairs: Array  # number of pairs (image, class present in it), at least 1


def mask_losses(logits: Array, labels: Array, counted: Array | None = None) -> MaskLosses:
    """Focal and dice losses of mask logits (b, g, k, c), upsampled to labels (b, h, w).

    As published, ignored pixels (255) are negatives of all masks. The focal loss is the mean over
    pixels, summed over masks. The dice loss is summed over masks of classes present in the image.

    Args:
      counted: (c,) bool, the classes with a focal loss; None: all.
    """
    _, height, width = labels.shape
    classes = jnp.arange(logits.shape[-1])

    def block(x: Array, y: Array) -> tuple[Array, ...]:
        """Sums over the pixels of a block of logits (b, rows, w, c) and labels (b, rows, w)."""
        positive = y[..., None] == classes
        inside = (y != _OUTSIDE)[..., None]
        # The probability of the wrong answer, for positives and negatives alike.
        wrong = jnp.where(positive, -x, x)
        p_wrong = jax.nn.sigmoid(wrong)
        weight = jnp.where(positive, _ALPHA, 1 - _ALPHA)
        focal = jnp.where(inside, weight * jax.nn.softplus(wrong) * p_wrong**2, 0)
        p = jnp.where(inside, jnp.where(positive, 1 - p_wrong, p_wrong), 0)
        labelled = (y >= 0) & (y != IGNORED)
        correct = labelled & (jnp.argmax(x, axis=-1) == y)
        pixels = (focal, p, jnp.where(positive, p, 0), positive.astype(jnp.float32))
        return tuple(jnp.sum(each, axis=(1, 2)) for each in pixels) + tuple(
            jnp.sum(each.astype(jnp.float32), axis=(1, 2)) for each in (correct, labelled)
        )

    sums = map_upsampled_rows(
        block, [logits.astype(jnp.float32)], (height, width), labels, _OUTSIDE
    )
    focal, p, p_positive, positives, correct, labelled = (jnp.sum(each, axis=0) for each in sums)
    if counted is not None:
        focal = jnp.where(counted, focal, 0)
    present = positives > 0  # (b, c)
    pairs = jnp.maximum(jnp.sum(present), 1)
    dice = 1 - (2 * p_positive + 1) / (p + positives + 1)
    return MaskLosses(
        focal=jnp.sum(focal) / (height * width * pairs),
        dice=jnp.sum(jnp.where(present, dice, 0)) / pairs,
        accuracy=100 * jnp.sum(correct) / jnp.maximum(jnp.sum(labelled), 1),
        pairs=pairs,
    )


def recovery_loss(recovered: Array, target: Array) -> Array:
    """Mean absolute difference of two arrays of one shape; `target` is stop-gradiented."""
    return jnp.mean(jnp.abs(recovered - jax.lax.stop_gradient(target)))
