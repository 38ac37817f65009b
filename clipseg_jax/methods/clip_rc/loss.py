"""Losses of class masks, each class a yes or no at every pixel: focal and dice.

Masks are small grids and are compared with labels at the labels' size, in bounded memory: neither
masks nor one-hot labels ever exist at full size. Spec clip_rc, section 6.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from clipseg_jax.ops.cross_entropy import IGNORED
from clipseg_jax.ops.upsample import map_upsampled_rows

_ALPHA = 0.25  # weight of a pixel in its own class; the others have 1 - alpha
_OUTSIDE = -2  # label of rows that fill up a block


class MaskLosses(NamedTuple):
    """Over all images of a batch; divided by `pairs`."""

    focal: Array
    dice: Array
    accuracy: Array  # percent of labelled pixels at which their class has the highest logit
    pairs: Array  # (image, class present in it), at least 1


def mask_losses(logits: Array, labels: Array, counted: Array | None = None) -> MaskLosses:
    """Focal and dice loss of mask logits (b, g, k, c), brought to the size of labels (b, h, w).

    Ignored pixels (255) are in no class: to each mask they are negatives, as published. Focal: mean
    over pixels, summed over all masks, or those of the classes that `counted` (c,) names. Dice:
    summed over the masks of present classes.
    """
    _, height, width = labels.shape
    classes = jnp.arange(logits.shape[-1])

    def block(x: Array, own: Array) -> tuple[Array, ...]:
        hit = own[..., None] == classes
        pixel = (own != _OUTSIDE)[..., None]
        # Both cases at once: how wrong a pixel is, is a sigmoid of the signed logit.
        wrong = jnp.where(hit, -x, x)
        p_wrong = jax.nn.sigmoid(wrong)
        weight = jnp.where(hit, _ALPHA, 1 - _ALPHA)
        focal = jnp.where(pixel, weight * jax.nn.softplus(wrong) * p_wrong**2, 0)
        p = jnp.where(pixel, jnp.where(hit, 1 - p_wrong, p_wrong), 0)
        labelled = (own >= 0) & (own != IGNORED)
        right = labelled & (jnp.argmax(x, axis=-1) == own)
        pixels = (focal, p, jnp.where(hit, p, 0), hit.astype(jnp.float32))
        return tuple(jnp.sum(each, axis=(1, 2)) for each in pixels) + tuple(
            jnp.sum(each.astype(jnp.float32), axis=(1, 2)) for each in (right, labelled)
        )

    sums = map_upsampled_rows(
        block, [logits.astype(jnp.float32)], (height, width), labels, _OUTSIDE
    )
    focal, p, p_hit, hits, right, labelled = (jnp.sum(each, axis=0) for each in sums)
    if counted is not None:
        focal = jnp.where(counted, focal, 0)
    present = hits > 0  # (b, c)
    pairs = jnp.maximum(jnp.sum(present), 1)
    dice = 1 - (2 * p_hit + 1) / (p + hits + 1)
    return MaskLosses(
        focal=jnp.sum(focal) / (height * width * pairs),
        dice=jnp.sum(jnp.where(present, dice, 0)) / pairs,
        accuracy=100 * jnp.sum(right) / jnp.maximum(jnp.sum(labelled), 1),
        pairs=pairs,
    )


def recovery_loss(made: Array, wanted: Array) -> Array:
    """Mean absolute difference; `wanted` is what it is: it gets no gradient."""
    return jnp.mean(jnp.abs(made - jax.lax.stop_gradient(wanted)))
